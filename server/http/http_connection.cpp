#include "server/http/http_connection.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/read.hpp>

#include "engine/limits.h"
#include "server/request_id.h"
#include "server/tenant.h"

namespace kivi {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);
constexpr Clock::time_point kNever = Clock::time_point::max();

// A refused request's body is read up to this size so that the connection can be kept.
constexpr uint64_t kMaxRefusedBody = 64 << 10;
// How long a connection that is closed with a reply under way stays to be read from: closing at
// once would reset it, and the client might lose the reply.
constexpr std::chrono::seconds kLinger{2};

std::string text_of(boost::beast::string_view view) {
  return std::string(view.data(), view.size());
}

}  // namespace

// What notifiers hold: they may outlive the connection, and each other.
struct HttpConnection::Mailbox {
  asio::io_context& context;
  std::atomic<bool> posted{false};
  HttpConnection* connection = nullptr;  // io thread only; null once it is gone
};

HttpConnection::HttpConnection(HttpContext& shared, IoThread& io, asio::ip::tcp::socket socket,
                               Clock::time_point accepted)
    : shared_(shared),
      io_(io),
      socket_(std::move(socket)),
      deadline_(io.context,
                [this] {
                  timed_out_ = true;
                  error_code ignored;
                  socket_.cancel(ignored);
                }),
      signal_(io.context),
      mailbox_(std::make_shared<Mailbox>(io.context)),
      buffer_(2 * kMaxHeaderBytes),
      accepted_(accepted) {
  mailbox_->connection = this;
  io_.connections.insert(this);
  ++shared_.connections;
  error_code ignored;
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  socket_.non_blocking(true, ignored);
  const auto client = socket_.remote_endpoint(ignored);
  if (!ignored) tenant_ = tenant_of_address(client.address().to_string());
}

HttpConnection::~HttpConnection() {
  mailbox_->connection = nullptr;
  io_.connections.erase(this);
  --shared_.connections;
}

void HttpConnection::start() {
  asio::co_spawn(
      io_.context, [self = shared_from_this()] { return self->run(); }, asio::detached);
}

void HttpConnection::refuse() {
  shared_.metrics().admission_rejected("connections");
  ApiError error{503, "overloaded_error", "too_many_connections",
                 "the server has as many connections as it takes"};
  error.retry_after = 1;
  const HttpReply reply = error_reply(error);
  const std::string text =
      reply_head(request_, reply, fmt::format("Content-Length: {}\r\n", reply.body.size()), false,
                 {}) +
      reply.body;
  error_code ignored;
  socket_.write_some(asio::buffer(text), ignored);
  // A flood gets no such courtesy.
  constexpr int kMaxLingering = 256;
  if (shared_.connections > shared_.config().max_connections + kMaxLingering) return;
  asio::co_spawn(
      io_.context, [self = shared_from_this()] { return self->linger(); }, asio::detached);
}

void HttpConnection::close() {
  must_close_ = true;
  client_gone("shutdown");
  error_code ignored;
  socket_.close(ignored);
}

asio::awaitable<void> HttpConnection::run() {
  const auto self = shared_from_this();
  try {
    while (co_await serve_one()) {
    }
  } catch (const std::exception& e) {
    // A library's exception (memory, say) costs its connection, not the server.
    spdlog::error("connection ended by an exception: {}", e.what());
    client_gone("exception");
  }
  on_gone_ = nullptr;
  stop_watching();
  error_code ignored;
  socket_.close(ignored);
}

asio::awaitable<bool> HttpConnection::serve_one() {
  const ServerConfig& config = shared_.config();
  request_ = {};
  request_.arrival = accepted_;
  reply_sent_ = false;
  stream_reply_.reset();
  parser_.emplace();
  parser_->header_limit(kMaxHeaderBytes);
  parser_->body_limit(config.max_body_bytes);
  if (buffer_.size() == 0) {
    deadline_.set_in(
        std::chrono::seconds(first_request_ ? config.header_timeout : config.idle_timeout));
    const auto [error] = co_await socket_.async_wait(asio::socket_base::wait_read, kTuple);
    if (error || timed_out_ || must_close_) co_return false;
  }
  if (!std::exchange(first_request_, false)) request_.arrival = Clock::now();
  deadline_.set(request_.arrival + std::chrono::seconds(config.header_timeout));
  const auto [error, bytes] = co_await http::async_read_header(socket_, buffer_, *parser_, kTuple);
  if (error) co_return co_await reject_unreadable(error);
  take_head();

  ++shared_.exchanges;
  const std::shared_ptr<void> counted(nullptr, [this](void*) { --shared_.exchanges; });
  const Route* route = nullptr;
  HttpReply refusal;
  const bool admitted = admit_request(shared_, request_, route, refusal);
  const bool readable = co_await read_body(!admitted);
  if (gone_ != nullptr || reply_sent_) co_return false;
  deadline_.clear();
  if (!readable) must_close_ = true;
  if (admitted)
    co_await dispatch(*route);
  else
    co_await reply(std::move(refusal));
  stop_watching();
  on_gone_ = nullptr;
  if (gone_ != nullptr) {
    if (!reply_sent_) count_reply(499);
    co_return false;
  }
  if (must_close_) co_await linger();
  co_return request_.keep_alive && !must_close_;
}

void HttpConnection::take_head() {
  const auto& head = parser_->get();
  request_.method = text_of(head.method_string());
  const std::string target = text_of(head.target());
  request_.path = percent_decode(std::string_view(target).substr(0, target.find_first_of("?#")));
  request_.content_type = text_of(head[http::field::content_type]);
  request_.content_encoding = text_of(head[http::field::content_encoding]);
  request_.authorization = text_of(head[http::field::authorization]);
  request_.origin = text_of(head[http::field::origin]);
  request_.request_id = text_of(head["X-Request-Id"]);
  if (!usable_request_id(request_.request_id)) request_.request_id = make_request_id();
  request_.tenant = tenant_;
  request_.http_1_1 = head.version() >= 11;
  request_.keep_alive = head.keep_alive() && shared_.phase() != ServerPhase::draining;
  request_.head = request_.method == "HEAD";
  if (request_.head) request_.method = "GET";
}

// Reads the body where it is wanted. False where it was left in the socket.
asio::awaitable<bool> HttpConnection::read_body(bool refused) {
  if (parser_->is_done()) co_return true;
  const bool expects = boost::beast::iequals(parser_->get()[http::field::expect], "100-continue");
  if (refused) {
    const auto length = parser_->content_length();
    if (expects || !length || *length > kMaxRefusedBody) co_return false;
  } else if (expects) {
    constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
    const Buffers buffers{asio::buffer(kContinue)};
    if (!co_await send(buffers)) co_return false;
    deadline_.set(request_.arrival + std::chrono::seconds(shared_.config().header_timeout));
  }
  const auto [error, bytes] = co_await http::async_read(socket_, buffer_, *parser_, kTuple);
  if (error) co_return co_await reject_unreadable(error);
  request_.body = std::move(parser_->get().body());
  co_return true;
}

// The request cannot be read to its end. Replies where that can help; always false.
asio::awaitable<bool> HttpConnection::reject_unreadable(error_code error) {
  ApiError reason{400, "invalid_request_error", "malformed_request",
                  fmt::format("the request is not HTTP/1.1: {}", error.message())};
  if (must_close_ || gone_ != nullptr) co_return false;
  if (timed_out_) {
    reason = {
        408, "timeout_error", "request_timeout",
        fmt::format("the request did not arrive within {} s", shared_.config().header_timeout)};
  } else if (error == http::error::body_limit) {
    reason = {413, "invalid_request_error", "body_too_large",
              fmt::format("the body is larger than {} bytes", shared_.config().max_body_bytes)};
  } else if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    reason = {431, "invalid_request_error", "headers_too_large",
              fmt::format("the headers are larger than {} bytes", kMaxHeaderBytes)};
  } else if (error == http::error::end_of_stream || error == http::error::partial_message ||
             error.category() != make_error_code(http::error::end_of_stream).category()) {
    client_gone("client_disconnect");  // closed or reset: nobody reads a reply
    co_return false;
  }
  timed_out_ = false;
  must_close_ = true;
  if (request_.handler.empty()) request_.handler = "other";
  if (request_.method.empty()) request_.method = "other";
  co_await reply(error_reply(reason));
  if (gone_ == nullptr) co_await linger();
  co_return false;
}

asio::awaitable<void> HttpConnection::dispatch(const Route& route) {
  if (route.simple != nullptr)
    co_await reply(route.simple(shared_, request_));
  else
    co_await route.async(*this);
}

void HttpConnection::count_reply(int status) {
  reply_sent_ = true;
  // Methods of a client's own making would each be a series.
  constexpr std::array<std::string_view, 7> kKnown = {"GET",   "POST",    "HEAD",  "PUT",
                                                      "PATCH", "OPTIONS", "DELETE"};
  const std::string_view method = request_.head ? std::string_view("HEAD") : request_.method;
  const bool known = std::ranges::find(kKnown, method) != kKnown.end();
  shared_.metrics().http_request(request_.handler, known ? method : "other", status);
  if (shared_.config().enable_log_requests)
    spdlog::info(
        "{} {} {} {} ms request_id={}", method, request_.handler, status,
        std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - request_.arrival)
            .count(),
        request_.request_id);
}

asio::awaitable<void> HttpConnection::reply(HttpReply reply) {
  const bool keep = request_.keep_alive && !must_close_;
  // 204 has no body and no length.
  const std::string framing =
      reply.status == 204 ? "" : fmt::format("Content-Length: {}\r\n", reply.body.size());
  const std::string head =
      reply_head(request_, reply, framing, keep, shared_.config().allowed_origins);
  if (request_.head) reply.body.clear();
  count_reply(reply.status);
  const Buffers buffers{asio::buffer(head), asio::buffer(reply.body)};
  co_await send(buffers);
}

void HttpConnection::begin_stream(HttpReply head) {
  // HTTP/1.0: the end of the body is the end of the connection.
  const bool keep = request_.keep_alive && !must_close_ && request_.http_1_1;
  request_.keep_alive = keep;
  stream_head_ =
      reply_head(request_, head, request_.http_1_1 ? "Transfer-Encoding: chunked\r\n" : "", keep,
                 shared_.config().allowed_origins);
  stream_reply_ = std::move(head);
}

asio::awaitable<bool> HttpConnection::write_stream(std::string& data, bool last) {
  if (gone_ != nullptr) co_return false;
  std::string_view tail;
  if (request_.http_1_1) {
    if (!data.empty()) fmt::format_to(std::back_inserter(stream_head_), "{:x}\r\n", data.size());
    tail = data.empty() ? (last ? "0\r\n\r\n" : "") : (last ? "\r\n0\r\n\r\n" : "\r\n");
  }
  if (last) count_reply(stream_reply_->status);
  const Buffers buffers{asio::buffer(stream_head_), asio::buffer(data), asio::buffer(tail)};
  const bool sent = co_await send(buffers);
  stream_head_.clear();
  data.clear();
  co_return sent;
}

// All of `buffers`, in most cases with one system call and without waiting.
asio::awaitable<bool> HttpConnection::send(Buffers buffers) {
  error_code error;
  size_t sent = socket_.write_some(buffers, error);
  if (error == asio::error::would_block) error = {};
  if (!error && sent < asio::buffer_size(buffers)) {
    // The client does not read as fast as we write.
    for (asio::const_buffer& buffer : buffers) {
      const size_t skipped = std::min(sent, buffer.size());
      buffer += skipped;
      sent -= skipped;
    }
    deadline_.set_in(std::chrono::seconds(shared_.config().write_timeout));
    const auto [write_error, bytes] = co_await asio::async_write(socket_, buffers, kTuple);
    deadline_.clear();
    error = write_error;
  }
  if (error) client_gone(timed_out_ ? "slow_reader" : "client_disconnect");
  co_return gone_ == nullptr;
}

// After a reply that ends the connection: reads on for a moment and throws away.
asio::awaitable<void> HttpConnection::linger() {
  error_code ignored;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  deadline_.set_in(kLinger);
  std::array<char, 16 << 10> rubbish;
  for (;;) {
    const auto [error, bytes] = co_await socket_.async_read_some(asio::buffer(rubbish), kTuple);
    if (error || timed_out_) co_return;
  }
}

std::function<void()> HttpConnection::notifier() {
  return [mailbox = mailbox_] {
    if (mailbox->posted.exchange(true)) return;
    asio::post(mailbox->context, [mailbox] {
      mailbox->posted = false;
      if (HttpConnection* connection = mailbox->connection) {
        connection->signalled_ = true;
        connection->signal_.cancel();
      }
    });
  };
}

asio::awaitable<void> HttpConnection::wait(Clock::time_point until) {
  if (gone_ != nullptr) co_return;
  if (!watching_) watch();
  if (!signalled_ && gone_ == nullptr) {
    signal_.expires_at(until);
    co_await signal_.async_wait(kTuple);
  }
  signalled_ = false;
}

void HttpConnection::client_gone(const char* why) {
  if (gone_ != nullptr) return;
  gone_ = why;
  if (on_gone_) on_gone_();
  signalled_ = true;
  signal_.cancel();
  error_code ignored;
  socket_.cancel(ignored);  // a write that waits for this client
}

void HttpConnection::watch() {
  watching_ = true;
  socket_.async_wait(asio::socket_base::wait_read,
                     [self = shared_from_this(), generation = ++watch_generation_](
                         error_code error) { self->on_readable(error, generation); });
}

void HttpConnection::stop_watching() {
  if (!watching_) return;
  watching_ = false;
  ++watch_generation_;
  error_code ignored;
  socket_.cancel(ignored);
}

// Bytes during a reply are the next request's (pipelining): they are kept, up to a limit beyond
// which the socket is left alone until this reply is out. An end of file is a client that has gone.
void HttpConnection::on_readable(error_code error, unsigned generation) {
  if (error || generation != watch_generation_ || !watching_) return;
  watching_ = false;
  constexpr size_t kRead = 4096;
  if (buffer_.size() + kRead > kMaxHeaderBytes) {
    ++watch_generation_;
    watching_ = true;  // nothing waits, and nothing is to be waited for
    return;
  }
  const size_t bytes = socket_.read_some(buffer_.prepare(kRead), error);
  if (error && error != asio::error::would_block) return client_gone("client_disconnect");
  if (!error) buffer_.commit(bytes);
  watch();
}

}  // namespace kivi
