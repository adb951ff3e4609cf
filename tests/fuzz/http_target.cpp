// SPDX-License-Identifier: Apache-2.0
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/local/connect_pair.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <mutex>

#include "server/http/chunked_body.h"
#include "server/http/http_connection.h"
#include "server/http/http_head.h"
#include "tests/fuzz/fuzz_model.h"
#include "tests/fuzz/targets.h"

namespace kivi::fuzz {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using Stream = asio::local::stream_protocol::socket;

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);

// The server catches every exception of a handler. Here it is a finding, unless memory ran out.
class ExceptionsAreFindings final : public spdlog::sinks::base_sink<std::mutex> {
 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    const std::string_view text(message.payload.data(), message.payload.size());
    KIVI_VERIFY(text.find("by an exception") == text.npos || text.find("bad_alloc") != text.npos);
  }
  void flush_() override {}
};

ServerConfig http_config() {
  auto logger = std::make_shared<spdlog::logger>("", std::make_shared<ExceptionsAreFindings>());
  logger->set_level(spdlog::level::err);
  spdlog::set_default_logger(std::move(logger));
  ServerConfig config;
  config.allowed_hosts = {"x"};
  config.header_timeout = config.idle_timeout = config.write_timeout = 5;
  return config;
}

// Never destroyed, as the engine's thread may still notify while the process ends.
struct Front {
  Front() { context.set_model(fuzz_model()); }

  const ServerConfig config = http_config();
  Metrics metrics{"kivi", "fuzz"};
  HttpContext context{config, metrics};
  IoThread io;
};

// Pieces of `bytes`, the size of which the first byte gives (0: all at once), so that one input
// arrives in one way alone.
class Pieces {
 public:
  explicit Pieces(std::string_view bytes)
      : rest_(bytes.substr(std::min<size_t>(1, bytes.size()))),
        size_(bytes.empty() || bytes[0] == 0 ? bytes.size()
                                             : size_t(static_cast<unsigned char>(bytes[0]))) {}
  std::string_view whole() const { return rest_; }
  std::string_view next() {
    const std::string_view piece = rest_.substr(0, size_);
    rest_.remove_prefix(piece.size());
    return piece;
  }

 private:
  std::string_view rest_;
  const size_t size_;
};

asio::awaitable<void> send_all(Stream& client, Pieces pieces) {
  for (std::string_view piece = pieces.next(); !piece.empty(); piece = pieces.next()) {
    const auto [error, count] = co_await asio::async_write(client, asio::buffer(piece), kTuple);
    if (error) co_return;  // the server has closed
  }
  boost::system::error_code ignored;
  client.shutdown(Stream::shutdown_send, ignored);
}

asio::awaitable<void> receive_all(Stream& client, std::string& received) {
  std::array<char, 16 << 10> part;
  for (;;) {
    const auto [error, count] = co_await client.async_read_some(asio::buffer(part), kTuple);
    if (error) co_return;
    received.append(part.data(), count);
  }
}

}  // namespace

bool read_http_connection(std::string_view bytes) {
  static Front& front = *new Front;
  front.io.context.restart();
  Stream client(front.io.context), served(front.io.context);
  asio::local::connect_pair(client, served);
  asio::ip::tcp::socket socket(front.io.context);
  // It is no TCP socket, but nothing but reads, writes and shutdowns matters (as behind TLS).
  socket.assign(asio::ip::tcp::v4(), served.release());
  std::make_shared<HttpConnection>(front.context, front.io, std::move(socket),
                                   asio::ip::address_v4::loopback(), Clock::now())
      ->start();
  std::string received;
  asio::co_spawn(front.io.context, send_all(client, Pieces(bytes)), asio::detached);
  asio::co_spawn(front.io.context, receive_all(client, received), asio::detached);
  front.io.context.run();
  KIVI_VERIFY(front.io.connections.empty() && front.io.idle.empty());
  KIVI_VERIFY(front.context.clients.of("address:127.0.0.1") == 0);
  KIVI_VERIFY(front.context.connections == 0 && front.context.exchanges == 0);
  KIVI_VERIFY(front.context.body_budget().used() == 0);
  KIVI_VERIFY(received.empty() || received.starts_with("HTTP/1.1 "));
  return received.find("HTTP/1.1 200 OK") != received.npos;
}

bool read_http_head(std::string_view bytes) {
  HeadScanner whole, grown;
  const HeadScanner::State state = whole.scan(bytes);
  // Byte by byte it comes to the same end at the same place.
  HeadScanner::State last = HeadScanner::State::incomplete;
  for (size_t i = 1; i <= bytes.size() && last == HeadScanner::State::incomplete; ++i)
    last = grown.scan(bytes.substr(0, i));
  KIVI_VERIFY(last == state);
  if (state != HeadScanner::State::complete) {
    KIVI_VERIFY(std::string_view(whole.reason()) == grown.reason());
    return false;
  }
  KIVI_VERIFY(whole.size() == grown.size() && whole.size() <= bytes.size());
  KIVI_VERIFY(bytes.substr(0, whole.size()).ends_with("\r\n\r\n"));
  http::request_parser<http::empty_body> parser;
  parser.header_limit(uint32_t(bytes.size()) + 1);
  boost::system::error_code error;
  parser.put(asio::buffer(bytes.data(), whole.size()), error);
  if (error || !parser.is_header_done()) return false;
  const auto& head = parser.get();
  const auto reason = judge_head(head);
  if (reason) KIVI_VERIFY(reason->status >= 400 && reason->status != 500);
  const kivi::Target target = split_target({head.target().data(), head.target().size()});
  KIVI_VERIFY(percent_decode(target.path).size() <= target.path.size());
  return !reason;
}

bool read_chunked_body(std::string_view bytes) {
  constexpr size_t kBytesMax = 4096;
  Pieces pieces(bytes);
  std::string_view rest = pieces.whole();
  std::string body, grown;
  const ChunkedBody::State state = ChunkedBody(kBytesMax).read(rest, body);
  ChunkedBody decoder(kBytesMax);
  ChunkedBody::State last = ChunkedBody::State::incomplete;
  size_t left = 0;
  for (std::string_view piece = pieces.next();
       !piece.empty() && last == ChunkedBody::State::incomplete; piece = pieces.next()) {
    last = decoder.read(piece, grown);
    left = piece.size();
  }
  KIVI_VERIFY(last == state && grown == body && body.size() <= kBytesMax);
  KIVI_VERIFY(left <= rest.size());
  return state == ChunkedBody::State::complete;
}

}  // namespace kivi::fuzz
