// SPDX-License-Identifier: Apache-2.0
#include "server/http/http_connection.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <new>

#include "base/log.h"
#include "engine/limits.h"
#include "server/gateway.h"
#include "server/http/chunked_body.h"
#include "server/http/http_head.h"
#include "server/openai/messages_api.h"
#include "server/request_id.h"
#include "server/tenant.h"

namespace kivi {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);

// A refused request's body is read up to this size so that the connection can be kept.
constexpr uint64_t kMaxRefusedBody = 64 << 10;
// How long a connection that is closed with a reply under way stays to be read from: closing at
// once would reset it, and the client might lose the reply.
constexpr std::chrono::seconds kLinger{2};

// A connection beyond the limit has this long to ask for an open path.
constexpr std::chrono::seconds kReservedTime{1};
// An idle connection may be closed to make room after this long: a client that is about to send its
// next request keeps its connection.
constexpr std::chrono::seconds kIdleBeforeClose{1};
ApiError too_many_connections() {
  return {kTooManyConnections, "all connections of --max-connections are in use"};
}

std::string text_of(boost::beast::string_view view) {
  return std::string(view.data(), view.size());
}

}  // namespace

HttpConnection::HttpConnection(HttpContext& shared, IoThread& io, asio::ip::tcp::socket socket,
                               const asio::ip::address& client, Clock::time_point accepted)
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
      end_timer_(io.context),
      mailbox_(std::make_shared<Mailbox>(io.context, this)),
      buffer_(2 * kMaxHeaderBytes),
      body_share_(shared.state.body_budget()),
      accepted_(accepted),
      client_(tenant_of_address(client.to_string())) {
  io_.connections.insert(this);
  shared_.clients.add(client_);
  ++shared_.connections;
  error_code ignored;
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  socket_.non_blocking(true, ignored);
}

HttpConnection::~HttpConnection() {
  mailbox_->connection = nullptr;
  io_.connections.erase(this);
  if (idle_) io_.idle.erase(*idle_);
  shared_.clients.remove(client_);
  --shared_.connections;
}

void HttpConnection::start() {
  asio::co_spawn(
      io_.context, [self = shared_from_this()] { return self->run(); }, asio::detached);
}

void HttpConnection::start_reserved() {
  reserved_ = true;
  start();
}

bool HttpConnection::make_room(bool own_only) {
  const Clock::time_point latest = Clock::now() - kIdleBeforeClose;
  for (HttpConnection* const connection : io_.idle) {
    if (connection->idle_since_ > latest) return false;
    if (connection->must_close_ || (own_only && connection->client_ != client_)) continue;
    connection->must_close_ = true;
    error_code ignored;
    connection->socket_.close(ignored);
    return true;
  }
  return false;
}

void HttpConnection::refuse(bool patience) {
  shared_.state.metrics().admission_rejected("connections");
  const HttpReply reply = error_reply(too_many_connections());
  const std::string text =
      reply_head(request_, reply, fmt::format("Content-Length: {}\r\n", reply.body.size()), false,
                 {}) +
      reply.body;
  error_code ignored;
  socket_.write_some(asio::buffer(text), ignored);
  if (!patience) return;
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
    log_error("connection ended by an exception: {}", e.what());
    client_gone("exception");
  }
  on_gone_ = nullptr;
  stop_watching();
  error_code ignored;
  socket_.close(ignored);
}

asio::awaitable<bool> HttpConnection::serve_one() {
  request_ = {};
  request_.arrival = accepted_;
  reply_sent_ = false;
  stream_reply_.reset();
  stop_ = std::stop_source(std::nostopstate);
  if (!co_await wait_for_request()) co_return false;
  if (!co_await read_head()) co_return false;

  ++shared_.exchanges;
  const std::shared_ptr<void> counted(nullptr, [this](void*) {
    --shared_.exchanges;
    drop_body();
  });
  const Route* route = nullptr;
  HttpReply refusal;
  const bool admitted = admit_request(shared_, request_, route, refusal, reserved_);
  if (!admitted) route = nullptr;
  co_return co_await answer(route, std::move(refusal));
}

// Reads the body and lets the route's handler reply; without a route `refusal` is the reply. False:
// the connection is to be closed.
asio::awaitable<bool> HttpConnection::answer(const Route* route, HttpReply refusal) {
  std::optional<ApiError> failure;
  try {
    // No GET has a use for a body. (As an argument of the awaited function, GCC 12 compiles this
    // condition wrongly: it reads `method` of a route that is null.)
    const bool unwanted = route == nullptr || route->method == "GET";
    const bool readable = co_await read_body(unwanted);
    if (gone_ != nullptr || reply_sent_) co_return false;
    deadline_.clear();
    if (!readable) must_close_ = true;
    if (route != nullptr)
      co_await dispatch(*route);
    else
      co_await reply(std::move(refusal));
  } catch (const std::bad_alloc&) {
    failure = ApiError{kOutOfMemory, "the server has no memory left for this request"};
  } catch (const std::exception& e) {
    log_error("a request ended by an exception: {}", e.what());
    failure = ApiError{kInternalError, "the request failed"};
  }
  stop_watching();
  on_gone_ = nullptr;
  if (failure) {
    // What the handler has left behind is unknown: the connection ends.
    drop_body();
    must_close_ = true;
    if (gone_ == nullptr && !reply_sent_ && !streaming()) co_await reply(error_reply(*failure));
  }
  if (gone_ != nullptr) {
    if (!reply_sent_) count_reply(499);
    co_return false;
  }
  if (must_close_) co_await linger();
  co_return request_.keep_alive && !must_close_;
}

// Until the first byte of a request is there. False: the connection is to be closed.
asio::awaitable<bool> HttpConnection::wait_for_request() {
  const ServerConfig& config = shared_.state.config();
  // The first request arrived when its connection was accepted, if its bytes were there before this
  // thread was. If the client was silent, it arrives with its first byte.
  error_code ignored;
  const bool was_silent = first_request_ && buffer_.size() == 0 && socket_.available(ignored) == 0;
  if (buffer_.size() == 0) {
    deadline_.set_in(reserved_        ? kReservedTime
                     : first_request_ ? std::chrono::seconds(config.header_timeout)
                                      : std::chrono::seconds(config.idle_timeout));
    idle_since_ = Clock::now();
    idle_ = io_.idle.insert(io_.idle.end(), this);
    const auto [error] = co_await socket_.async_wait(asio::socket_base::wait_read, kTuple);
    if (idle_) io_.idle.erase(*std::exchange(idle_, std::nullopt));
    if (timed_out_ && reserved_ && !must_close_)
      co_return co_await reject_unreadable(asio::error::timed_out);
    if (error || timed_out_ || must_close_) co_return false;
  }
  const bool first = std::exchange(first_request_, false);
  if (!first || was_silent) request_.arrival = Clock::now();
  if (reserved_)
    deadline_.set_in(kReservedTime);
  else
    deadline_.set((first ? accepted_ : request_.arrival) +
                  std::chrono::seconds(config.header_timeout));
  co_return true;
}

// Reads a request's head into parser_ and request_. Blank lines before it are skipped (RFC 9112,
// 2.2). False: the connection is to be closed; a reply that could help was sent.
asio::awaitable<bool> HttpConnection::read_head() {
  constexpr size_t kRead = 16 << 10;
  constexpr int kMaxBlankLines = 8;
  HeadScanner scanner;
  for (int blank_lines = 0;;) {
    std::string_view bytes(static_cast<const char*>(buffer_.data().data()), buffer_.size());
    while (bytes.starts_with("\r\n") && blank_lines < kMaxBlankLines) {
      ++blank_lines;
      buffer_.consume(2);
      bytes.remove_prefix(2);
    }
    const HeadScanner::State state = bytes == "\r" && blank_lines < kMaxBlankLines
                                         ? HeadScanner::State::incomplete
                                         : scanner.scan(bytes.substr(0, kMaxHeaderBytes));
    if (state == HeadScanner::State::complete) break;
    if (state == HeadScanner::State::malformed) {
      ApiError reason{kMalformedRequest,
                      fmt::format("the request is not HTTP/1.1: {}", scanner.reason())};
      co_return co_await reject(std::move(reason));
    }
    if (bytes.size() >= kMaxHeaderBytes)
      co_return co_await reject_unreadable(http::error::header_limit);
    const auto [error, count] = co_await socket_.async_read_some(buffer_.prepare(kRead), kTuple);
    if (error) co_return co_await reject_unreadable(error);
    buffer_.commit(count);
  }
  parser_.emplace();
  parser_->header_limit(kMaxHeaderBytes);
  parser_->body_limit(shared_.state.config().max_body_bytes);
  error_code error;
  parser_->put(asio::buffer(buffer_.data().data(), scanner.size()), error);
  if (!error && !parser_->is_header_done()) error = http::error::bad_field;
  buffer_.consume(scanner.size());
  if (error) co_return co_await reject_unreadable(error);
  take_head();
  if (auto reason = judge_head(parser_->get())) co_return co_await reject(std::move(*reason));
  co_return true;
}

void HttpConnection::take_head() {
  const auto& head = parser_->get();
  request_.method = text_of(head.method_string());
  const std::string target_text = text_of(head.target());
  const Target target = split_target(target_text);
  request_.path = percent_decode(target.path);
  request_.host =
      target.authority.empty() ? text_of(head[http::field::host]) : std::string(target.authority);
  request_.sec_fetch_site = text_of(head["Sec-Fetch-Site"]);
  request_.preflight_headers = text_of(head[http::field::access_control_request_headers]);
  request_.content_type = text_of(head[http::field::content_type]);
  request_.content_encoding = text_of(head[http::field::content_encoding]);
  request_.authorization = text_of(head[http::field::authorization]);
  // Anthropic's clients send the key so.
  if (const auto key = head["X-Api-Key"]; request_.authorization.empty() && !key.empty())
    request_.authorization = "Bearer " + text_of(key);
  request_.origin = text_of(head[http::field::origin]);
  request_.request_id = text_of(head["X-Request-Id"]);
  if (!usable_request_id(request_.request_id)) request_.request_id = make_request_id();
  const std::string traceparent = text_of(head["traceparent"]);
  if (shared_.state.span_exporter() != nullptr || usable_traceparent(traceparent))
    request_.trace = make_trace_context(traceparent);
  for (const auto& [header, field] : {std::pair{kObjectiveHeader, &request_.objective},
                                      std::pair{kFairnessHeader, &request_.fairness_id}}) {
    *field = text_of(head[boost::beast::string_view(header.data(), header.size())]);
    if (!usable_request_id(*field)) field->clear();
  }
  request_.tenant = client_;
  request_.http_1_1 = head.version() >= 11;
  request_.keep_alive = head.keep_alive() && !reserved_;
  request_.head = request_.method == "HEAD";
  if (request_.head) request_.method = "GET";
}

// Reads the body where it is wanted. False where it was left in the socket.
asio::awaitable<bool> HttpConnection::read_body(bool refused) {
  const bool chunked = parser_->chunked();
  const uint64_t length = chunked ? 0 : parser_->content_length().value_or(0);
  if (!chunked && length == 0) co_return true;
  const bool expects = request_.http_1_1 && parser_->get().count(http::field::expect) > 0;
  if (refused) {
    if (expects || chunked || length > kMaxRefusedBody) co_return false;
    co_return co_await skip_body(size_t(length));
  }
  // A body takes its share of --max-body-bytes-in-flight as it arrives. One that cannot fit is
  // refused before it is read.
  if (!body_share_.has_room_for(size_t(length))) co_return co_await refuse_body_bytes();
  if (expects) {
    constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
    const Buffers buffers{asio::buffer(kContinue)};
    if (!co_await send(buffers)) co_return false;
    deadline_.set(request_.arrival + std::chrono::seconds(shared_.state.config().header_timeout));
  }
  if (chunked) co_return co_await read_chunked_body();
  co_return co_await read_sized_body(size_t(length));
}

asio::awaitable<bool> HttpConnection::skip_body(size_t bytes) {
  std::array<char, 4096> rubbish;
  for (;;) {
    const size_t here = std::min(bytes, buffer_.size());
    buffer_.consume(here);
    bytes -= here;
    if (bytes == 0) co_return true;
    const auto [error, count] = co_await socket_.async_read_some(
        asio::buffer(rubbish.data(), std::min(bytes, rubbish.size())), kTuple);
    if (error) co_return co_await reject_unreadable(error);
    bytes -= count;
  }
}

// Memory is taken as the bytes arrive, whatever was announced.
asio::awaitable<bool> HttpConnection::read_sized_body(size_t bytes) {
  constexpr size_t kFirst = 64 << 10;
  std::string& body = request_.body;
  const size_t here = std::min(bytes, buffer_.size());
  if (!body_share_.grow_to(here)) co_return co_await refuse_body_bytes();
  body.assign(static_cast<const char*>(buffer_.data().data()), here);
  buffer_.consume(here);
  while (body.size() < bytes) {
    const size_t have = body.size();
    const size_t want = std::min(bytes, std::max(kFirst, 2 * have));
    if (!body_share_.grow_to(want)) co_return co_await refuse_body_bytes();
    body.reserve(want);
    body.resize(want);
    const auto [error, count] =
        co_await asio::async_read(socket_, asio::buffer(body.data() + have, want - have), kTuple);
    if (error) co_return co_await reject_unreadable(error);
  }
  co_return true;
}

asio::awaitable<bool> HttpConnection::read_chunked_body() {
  constexpr size_t kRead = 16 << 10;
  ChunkedBody decoder(shared_.state.config().max_body_bytes);
  for (;;) {
    if (!body_share_.grow_to(request_.body.size() + buffer_.size()))
      co_return co_await refuse_body_bytes();
    std::string_view bytes(static_cast<const char*>(buffer_.data().data()), buffer_.size());
    const ChunkedBody::State state = decoder.read(bytes, request_.body);
    buffer_.consume(buffer_.size() - bytes.size());
    if (state == ChunkedBody::State::complete) co_return true;
    if (state == ChunkedBody::State::malformed)
      co_return co_await reject_unreadable(http::error::bad_chunk);
    if (state == ChunkedBody::State::too_large)
      co_return co_await reject_unreadable(http::error::body_limit);
    const auto [error, count] = co_await socket_.async_read_some(buffer_.prepare(kRead), kTuple);
    if (error) co_return co_await reject_unreadable(error);
    buffer_.commit(count);
  }
}

// Always false.
asio::awaitable<bool> HttpConnection::refuse_body_bytes() {
  shared_.state.metrics().admission_rejected("body_bytes");
  ApiError reason{kTooManyBodyBytes,
                  fmt::format("the bodies of all requests together would exceed {} bytes "
                              "(--max-body-bytes-in-flight)",
                              shared_.state.config().max_body_bytes_in_flight)};
  drop_body();
  co_return co_await reject(std::move(reason));
}

void HttpConnection::drop_body() {
  request_.body = std::string();
  body_share_.release();
}

// The request cannot be read to its end. Replies where that can help; always false.
asio::awaitable<bool> HttpConnection::reject_unreadable(error_code error) {
  ApiError reason{kMalformedRequest,
                  fmt::format("the request is not HTTP/1.1: {}", error.message())};
  if (must_close_ || gone_ != nullptr) co_return false;
  if (timed_out_ && reserved_) {
    reason = too_many_connections();
  } else if (timed_out_) {
    reason = {kRequestTimeout, fmt::format("the request did not arrive within {} s",
                                           shared_.state.config().header_timeout)};
  } else if (error == http::error::body_limit) {
    reason = {kBodyTooLarge, fmt::format("the body is larger than {} bytes",
                                         shared_.state.config().max_body_bytes)};
  } else if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    reason = {kHeadersTooLarge,
              fmt::format("the headers are larger than {} bytes", kMaxHeaderBytes)};
  } else if (error.category() != make_error_code(http::error::end_of_stream).category()) {
    client_gone("client_disconnect");  // closed or reset: nobody reads a reply
    co_return false;
  }
  timed_out_ = false;
  co_return co_await reject(std::move(reason));
}

// Replies with `reason` and closes, because what follows in the socket cannot be trusted. Always
// false.
asio::awaitable<bool> HttpConnection::reject(ApiError reason) {
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
  shared_.state.metrics().http_request(request_.handler, known ? method : "other", status);
  if (!wants_records(shared_.state)) return;
  record_request(shared_.state,
                 {"HTTP", known ? method : "other", request_.handler, std::to_string(status),
                  status >= 500, request_.arrival, request_.request_id, request_.tenant,
                  request_.trace, std::exchange(asked_, std::nullopt),
                  std::exchange(figures_, std::nullopt), request_.objective, request_.fairness_id});
}

asio::awaitable<void> HttpConnection::reply(HttpReply reply) {
  if (shared_.state.leaving_or_draining()) request_.keep_alive = false;
  const bool keep = request_.keep_alive && !must_close_;
  const Route* route = reply.error ? find_route(request_.path) : nullptr;
  if (route != nullptr && route->dialect == Dialect::anthropic)
    reply.body = messages_error_json(*reply.error, request_.request_id);
  // 204 has no body and no length.
  const std::string framing =
      reply.status == 204 ? "" : fmt::format("Content-Length: {}\r\n", reply.body.size());
  const std::string head =
      reply_head(request_, reply, framing, keep, shared_.state.config().allowed_origins);
  if (request_.head) reply.body.clear();
  count_reply(reply.status);
  const Buffers buffers{asio::buffer(head), asio::buffer(reply.body)};
  co_await send(buffers);
}

void HttpConnection::begin_stream(HttpReply head) {
  if (shared_.state.leaving_or_draining()) request_.keep_alive = false;
  // HTTP/1.0: the end of the body is the end of the connection.
  const bool keep = request_.keep_alive && !must_close_ && request_.http_1_1;
  request_.keep_alive = keep;
  stream_head_ =
      reply_head(request_, head, request_.http_1_1 ? "Transfer-Encoding: chunked\r\n" : "", keep,
                 shared_.state.config().allowed_origins);
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
    deadline_.set_in(write_limit(shared_.state.config(), asio::buffer_size(buffers)));
    sending_ = true;
    const auto [write_error, bytes] = co_await asio::async_write(socket_, buffers, kTuple);
    sending_ = false;
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

asio::awaitable<void> HttpConnection::wait(Clock::time_point until) {
  if (gone_ != nullptr) co_return;
  if (!watching_) watch();
  if (!signalled_ && gone_ == nullptr) {
    signal_.expires_at(until);
    co_await signal_.async_wait(kTuple);
  }
  signalled_ = false;
}

}  // namespace kivi
