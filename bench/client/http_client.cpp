// SPDX-License-Identifier: Apache-2.0
#include "bench/client/http_client.h"

#include <fmt/format.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/connect.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http.hpp>
#include <utility>

#include "bench/client/sse_parser.h"

namespace kivi::load {
namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;

namespace {

using Socket = asio::basic_stream_socket<tcp, Executor>;
using Resolver = asio::ip::basic_resolver<tcp, Executor>;

constexpr size_t kReadBytes = 64 << 10;
constexpr size_t kBodyBytesMax = 8 << 20;  // of a reply that is no stream

}  // namespace

struct HttpClient::Connection {
  explicit Connection(asio::io_context& io) : socket(io) {}
  void close() {
    boost::system::error_code ignored;
    socket.close(ignored);
  }
  Socket socket;
  boost::beast::flat_buffer buffer;
  bool used = false;  // has served a request before
};

// One request, with all its waits under one deadline.
struct HttpClient::Exchange {
  // Takes what has come of the body and clears it; false: nobody wants the rest.
  std::function<bool(const http::response<http::string_body>& head, std::string& body)> on_body;

  int status = 0;
  bool keep_alive = false;
  bool abandoned = false;  // on_body wanted no more
  std::string error_kind;  // "": the reply is whole, or abandoned
  std::string error_message;
  // Shared with the deadline's handler, which may run after the request has ended.
  struct Deadline {
    Connection* connection = nullptr;
    Resolver* resolver = nullptr;
    bool passed = false;
  };
  std::shared_ptr<Deadline> deadline = std::make_shared<Deadline>();

  void fail(std::string kind, std::string message) {
    error_kind = deadline->passed ? "timeout" : std::move(kind);
    error_message = deadline->passed ? "no whole reply within --timeout" : std::move(message);
  }
};

HttpClient::HttpClient(asio::io_context& io, Endpoint endpoint, std::string path,
                       RequestOptions options)
    : io_(io),
      endpoint_(std::move(endpoint)),
      path_(std::move(path)),
      options_(std::move(options)) {}

HttpClient::~HttpClient() = default;

std::string HttpClient::prepare(const LoadRequest& request) const {
  return http_message(endpoint_, path_, options_.api_key, completion_body(request, options_));
}

Task<> HttpClient::connect(Connection& connection, Exchange& exchange) {
  if (addresses_.empty()) {
    Resolver resolver(io_);
    exchange.deadline->resolver = &resolver;
    const auto [error, found] =
        co_await resolver.async_resolve(endpoint_.host, endpoint_.port, kTuple);
    exchange.deadline->resolver = nullptr;
    if (error || exchange.deadline->passed) {
      exchange.fail("connect", fmt::format("{}: {}", endpoint_.host, error.message()));
      co_return;
    }
    addresses_.assign(found.begin(), found.end());
  }
  const auto [error, used] =
      co_await asio::async_connect(connection.socket, std::vector(addresses_), kTuple);
  if (error || exchange.deadline->passed) {
    exchange.fail("connect",
                  fmt::format("{}:{}: {}", endpoint_.host, endpoint_.port, error.message()));
    co_return;
  }
  boost::system::error_code ignored;
  connection.socket.set_option(tcp::no_delay(true), ignored);
}

Task<bool> HttpClient::read_reply(Connection& connection, Exchange& exchange) {
  http::response_parser<http::string_body> parser;
  parser.eager(true);
  parser.body_limit(boost::none);
  bool any = false;
  while (!parser.is_done()) {
    const auto [read_error, count] =
        co_await connection.socket.async_read_some(connection.buffer.prepare(kReadBytes), kTuple);
    connection.buffer.commit(count);
    boost::system::error_code error = read_error;
    any |= count > 0;
    if (error == asio::error::eof && any && !exchange.deadline->passed) {
      parser.put_eof(error);  // fine where the body had no length
    }
    if (error && !parser.is_done()) {
      exchange.fail("closed",
                    fmt::format("the connection ended before the reply did: {}", error.message()));
      co_return any;
    }
    while (connection.buffer.size() > 0 && !parser.is_done()) {
      const size_t used = parser.put(connection.buffer.data(), error);
      connection.buffer.consume(used);
      if (error && error != http::error::need_more) {
        exchange.fail("bad reply", fmt::format("not HTTP: {}", error.message()));
        co_return true;
      }
      if (error || used == 0) break;
    }
    if (!parser.is_header_done()) continue;
    exchange.status = parser.get().result_int();
    if (!exchange.on_body(parser.get(), parser.get().body())) {
      exchange.abandoned = true;
      co_return true;
    }
  }
  exchange.keep_alive = parser.keep_alive() && connection.buffer.size() == 0;
  co_return true;
}

Task<bool> HttpClient::transfer(Connection& connection, const std::string& message,
                                Exchange& exchange) {
  const auto [error, count] =
      co_await asio::async_write(connection.socket, asio::buffer(message), kTuple);
  // A server that refuses early may have answered and closed: its reply counts, so it is read.
  if (error && error != asio::error::broken_pipe && error != asio::error::connection_reset) {
    exchange.fail("closed", fmt::format("sending: {}", error.message()));
    co_return true;
  }
  co_return co_await read_reply(connection, exchange);
}

Task<> HttpClient::perform(std::string message, Exchange& exchange) {
  Timer timer(io_, std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                       std::chrono::duration<double>(options_.timeout_s)));
  timer.async_wait([deadline = exchange.deadline](const boost::system::error_code& error) {
    if (error) return;
    deadline->passed = true;
    if (deadline->resolver != nullptr) deadline->resolver->cancel();
    if (deadline->connection != nullptr) deadline->connection->close();
  });
  for (bool again = true; again;) {
    again = false;
    std::shared_ptr<Connection> connection;
    if (idle_.empty()) {
      connection = std::make_shared<Connection>(io_);
    } else {
      connection = std::move(idle_.back());
      idle_.pop_back();
    }
    exchange.deadline->connection = connection.get();
    if (!connection->socket.is_open()) co_await connect(*connection, exchange);
    if (exchange.error_kind.empty()) {
      const bool answered = co_await transfer(*connection, message, exchange);
      // A kept connection that the server has closed meanwhile; a fresh one will tell.
      again = !answered && connection->used && !exchange.deadline->passed;
      if (again) exchange.error_kind.clear();
    }
    exchange.deadline->connection = nullptr;
    connection->used = true;
    if (exchange.keep_alive && exchange.error_kind.empty() && !exchange.deadline->passed)
      idle_.push_back(std::move(connection));
    else
      connection->close();
  }
  timer.cancel();
}

Task<> HttpClient::send(const LoadRequest& request, std::string prepared, RequestRecord& record,
                        RunState& run) {
  SseParser sse;
  bool finished = false, bad = false;
  std::string other, stream_error;  // a body that is no stream; an error within the stream
  Exchange exchange;
  exchange.on_body = [&](const http::response<http::string_body>& head, std::string& body) {
    if (head.result_int() != 200) {
      if (other.size() < kBodyBytesMax) other += body;
      body.clear();
      return true;
    }
    const double now = run.now();
    const int before = record.token_events;
    sse.feed(body, [&](std::string_view data) {
      if (request.cancel_after > 0 && record.token_events >= request.cancel_after) return;
      const StreamEvent event = read_event(data);
      note_event(record, event, now);
      finished |= event.done || event.finished;
      bad |= event.bad;
      if (!event.error.empty()) stream_error = event.error;
    });
    body.clear();
    run.tokens.fetch_add(record.token_events - before, std::memory_order_relaxed);
    return request.cancel_after == 0 || record.token_events < request.cancel_after;
  };
  co_await perform(std::move(prepared), exchange);
  const double now = run.now();
  if (exchange.abandoned) {
    record.outcome = Outcome::cancelled;
    record.output_tokens = record.token_events;
    record.ended = now;
  } else if (!exchange.error_kind.empty()) {
    note_failed(record, exchange.error_kind, exchange.error_message, now);
  } else if (exchange.status != 200) {
    note_failed(record, fmt::format("HTTP {}", exchange.status), error_message(other), now);
  } else if (!stream_error.empty()) {
    note_failed(record, "error event", stream_error, now);
  } else if (bad || !finished) {
    note_failed(
        record, "bad reply",
        bad ? "an event is no JSON object" : "the stream has neither finish_reason nor [DONE]",
        now);
  } else {
    note_completed(record, now);
  }
}

Task<Result<HttpClient::Reply>> HttpClient::get(const std::string& path) {
  Reply reply;
  Exchange exchange;
  exchange.on_body = [&](const auto&, std::string& body) {
    reply.body += std::exchange(body, {});
    return reply.body.size() < kBodyBytesMax;
  };
  co_await perform(http_message(endpoint_, path, options_.api_key, ""), exchange);
  if (!exchange.error_kind.empty())
    co_return Error{ErrorCode::unavailable, fmt::format("GET {}: {}: {}", path, exchange.error_kind,
                                                        exchange.error_message)};
  reply.status = exchange.status;
  co_return reply;
}

Result<HttpClient::Reply> http_get(const Endpoint& endpoint, const std::string& path,
                                   const std::string& api_key, double timeout_s) {
  asio::io_context io(1);
  HttpClient client(io, endpoint, "", {.api_key = api_key, .timeout_s = timeout_s});
  Result<HttpClient::Reply> reply = Error{ErrorCode::internal, "no reply"};
  asio::co_spawn(
      io.get_executor(), [&]() -> Task<> { reply = co_await client.get(path); }, asio::detached);
  io.run();
  return reply;
}

}  // namespace kivi::load
