// SPDX-License-Identifier: Apache-2.0
// The part of HttpConnection that notices a client's end while a request is worked on, and that
// wakes the request's handler.
#include <poll.h>

#include <boost/asio/post.hpp>

#include "engine/limits.h"
#include "server/http/http_connection.h"
#include "server/http/http_head.h"

namespace kivi {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;

// How often a client is looked at whose end the reactor does not report.
constexpr std::chrono::milliseconds kEndInterval{200};

}  // namespace

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

void HttpConnection::client_gone(const char* why) {
  if (gone_ != nullptr) return;
  gone_ = why;
  if (stop_.stop_possible()) stop_.request_stop();
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

void HttpConnection::begin_long_work() {
  stop_ = std::stop_source();
  if (!watching_) watch();
}

void HttpConnection::stop_watching() {
  if (!watching_) return;
  watching_ = false;
  ++watch_generation_;
  end_timer_.cancel();
  error_code ignored;
  socket_.cancel(ignored);
}

// Bytes during a reply are the next request's (pipelining). They are kept up to a limit, beyond
// which they stay in the socket until this reply is out. Only the client's end is watched for then.
void HttpConnection::on_readable(error_code error, unsigned generation) {
  if (error || generation != watch_generation_) return;
  constexpr size_t kRead = 4096;
  if (buffer_.size() + kRead > kMaxHeaderBytes) return watch_for_end();
  const size_t bytes = socket_.read_some(buffer_.prepare(kRead), error);
  if (error == asio::error::eof) {
    half_closed();
    if (gone_ == nullptr) watch_for_end();
    return;
  }
  if (error && error != asio::error::would_block) return client_gone("client_disconnect");
  if (!error) buffer_.commit(bytes);
  watch();
}

// Watches for a reset and for the end of the stream, without reading. The reactor reports the first
// alone, so the timer asks for the second.
void HttpConnection::watch_for_end() {
  const unsigned generation = ++watch_generation_;
  socket_.async_wait(asio::socket_base::wait_error,
                     [self = shared_from_this(), generation](error_code error) {
                       if (!error) self->look_for_end(generation);
                     });
  look_again(generation);
}

void HttpConnection::look_again(unsigned generation) {
  end_timer_.expires_after(kEndInterval);
  end_timer_.async_wait([self = shared_from_this(), generation](error_code error) {
    if (error || generation != self->watch_generation_) return;
    self->look_for_end(generation);
    if (self->gone_ == nullptr) self->look_again(generation);
  });
}

void HttpConnection::look_for_end(unsigned generation) {
  if (generation != watch_generation_ || gone_ != nullptr) return;
  pollfd state{socket_.native_handle(), POLLRDHUP, 0};
  if (poll(&state, 1, 0) <= 0) return;
  if ((state.revents & (POLLERR | POLLHUP | POLLNVAL)) != 0)
    client_gone("client_disconnect");
  else if ((state.revents & POLLRDHUP) != 0 && !half_closed_)
    half_closed();
}

// The client has sent its last byte. It may have closed the connection, or wait for its reply with
// the other half open (RFC 9112, 9.6), which looks the same. Only a client that has closed answers
// further bytes with a reset, so we send some that mean nothing: an interim response before the
// reply, a comment within a stream of events.
void HttpConnection::half_closed() {
  half_closed_ = true;
  request_.keep_alive = request_.keep_alive && buffer_.size() > 0;
  if (sending_) return;  // the bytes under way do the same
  std::string_view probe = "HTTP/1.1 100 Continue\r\n\r\n";
  if (streaming())
    probe = request_.http_1_1 ? "3\r\n:\n\n\r\n" : ":\n\n";
  else if (!request_.http_1_1)
    return client_gone("client_disconnect");  // HTTP/1.0 has no interim responses
  error_code error;
  const size_t sent = socket_.write_some(asio::buffer(probe), error);
  if (error == asio::error::would_block) return;
  if (error || sent != probe.size()) client_gone("client_disconnect");
}

}  // namespace kivi
