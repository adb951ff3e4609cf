// SPDX-License-Identifier: Apache-2.0
// A server that does what a test wrote: each request is answered by a script of bytes and waits. It
// keeps when it did what, by the clock that the client under test reads.
#pragma once

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <chrono>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace kivi::load::testing {

namespace asio = boost::asio;
using asio::ip::tcp;
using SteadyClock = std::chrono::steady_clock;

struct Piece {
  double wait_ms = 0;
  std::string bytes;
};

struct Script {
  std::vector<Piece> pieces;
  bool close = false;  // afterwards; else the connection is kept
};

// When a request had been read, and when each of its pieces had been handed to the socket.
struct Served {
  std::string request;
  SteadyClock::time_point received;
  std::vector<SteadyClock::time_point> sent;
};

inline std::string chunk(const std::string& bytes) {
  char size[16];
  std::snprintf(size, sizeof size, "%zx", bytes.size());
  return std::string(size) + "\r\n" + bytes + "\r\n";
}

inline const std::string kStreamHead =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

inline std::string token_event(const std::string& text) {
  return chunk(R"(data: {"choices":[{"index":0,"text":")" + text +
               "\",\"finish_reason\":null}],\"usage\":null}\n\n");
}

inline std::string stream_end(int prompt_tokens, int completion_tokens) {
  return chunk(
             "data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"length\"}]}\n\n"
             "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":" +
             std::to_string(prompt_tokens) + ",\"completion_tokens\":" +
             std::to_string(completion_tokens) + "}}\n\ndata: [DONE]\n\n") +
         chunk("");
}

// The first token after first_ms, the others gap_ms apart.
inline Script answer(int tokens, double first_ms, double gap_ms) {
  Script script;
  for (int i = 0; i < tokens; ++i)
    script.pieces.push_back(
        {i == 0 ? first_ms : gap_ms, (i == 0 ? kStreamHead : "") + token_event("t")});
  script.pieces.push_back({0, stream_end(5, tokens)});
  return script;
}

inline Script refusal(int status, const std::string& body) {
  return {{{0, "HTTP/1.1 " + std::to_string(status) + " No\r\nContent-Type: application/json\r\n" +
                   "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body}}};
}

class ScriptedServer {
 public:
  // `script(n)`: of the n-th request, from 0; called on the server's thread.
  explicit ScriptedServer(std::function<Script(int)> script)
      : script_(std::move(script)),
        acceptor_(io_, tcp::endpoint(asio::ip::address_v4::loopback(), 0)) {
    asio::co_spawn(io_, accept(), asio::detached);
    thread_ = std::thread([this] { io_.run(); });
  }
  ~ScriptedServer() {
    io_.stop();
    thread_.join();
  }

  std::string port() const { return std::to_string(acceptor_.local_endpoint().port()); }
  std::string url() const { return "http://127.0.0.1:" + port(); }
  int connections() const {
    const std::lock_guard lock(mutex_);
    return connections_;
  }
  // By the order in which they were read. Call when the client is done.
  std::vector<Served> served() const {
    const std::lock_guard lock(mutex_);
    return served_;
  }

 private:
  asio::awaitable<void> accept() {
    for (;;) {
      tcp::socket socket = co_await acceptor_.async_accept(asio::use_awaitable);
      socket.set_option(tcp::no_delay(true));
      const std::lock_guard lock(mutex_);
      ++connections_;
      asio::co_spawn(io_, serve(std::move(socket)), asio::detached);
    }
  }

  asio::awaitable<void> serve(tcp::socket socket) try {
    std::string buffer;
    for (;;) {
      const size_t head = co_await asio::async_read_until(socket, asio::dynamic_buffer(buffer),
                                                          "\r\n\r\n", asio::use_awaitable);
      const size_t at = buffer.find("Content-Length: ");
      const size_t length = at < head ? std::stoul(buffer.substr(at + 16)) : 0;
      while (buffer.size() < head + length) {
        char more[4096];
        const size_t count =
            co_await socket.async_read_some(asio::buffer(more), asio::use_awaitable);
        buffer.append(more, count);
      }
      size_t index = 0;
      {
        const std::lock_guard lock(mutex_);
        index = served_.size();
        served_.push_back({buffer.substr(0, head + length), SteadyClock::now()});
      }
      buffer.erase(0, head + length);
      const Script script = script_(int(index));
      for (const Piece& piece : script.pieces) {
        if (piece.wait_ms > 0) {
          asio::steady_timer timer(io_, std::chrono::microseconds(int64_t(piece.wait_ms * 1e3)));
          co_await timer.async_wait(asio::use_awaitable);
        }
        co_await asio::async_write(socket, asio::buffer(piece.bytes), asio::use_awaitable);
        const std::lock_guard lock(mutex_);
        served_[index].sent.push_back(SteadyClock::now());
      }
      if (script.close) co_return;
    }
  } catch (const boost::system::system_error&) {  // the client is gone
  }

  const std::function<Script(int)> script_;
  asio::io_context io_{1};
  tcp::acceptor acceptor_;
  mutable std::mutex mutex_;
  std::vector<Served> served_;
  int connections_ = 0;
  std::thread thread_;
};

}  // namespace kivi::load::testing
