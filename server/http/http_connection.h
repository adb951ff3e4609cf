// SPDX-License-Identifier: Apache-2.0
// HttpConnection: one client's socket. Reads requests one after the other, hands each to its
// route's handler, and gives handlers the means to reply, to stream and to wait.
#pragma once

#include <array>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <unordered_set>

#include "server/deadline.h"
#include "server/http/http_context.h"
#include "server/http/http_message.h"
#include "server/http/http_routes.h"

namespace kivi {

// An io thread's context and the connections that live on it. All but the context is touched by
// that thread alone.
struct IoThread {
  std::unordered_set<HttpConnection*> connections;
  std::list<HttpConnection*> idle;  // between requests, the longest idle first
  boost::asio::io_context context{1};
};

// All members on the io thread, but for what notifier() returns.
class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  HttpConnection(HttpContext& shared, IoThread& io, boost::asio::ip::tcp::socket socket,
                 const boost::asio::ip::address& client, Clock::time_point accepted);
  ~HttpConnection();

  // Serves requests until either side closes.
  void start();
  // The same for a connection beyond max_connections: one request is served, if its path is open to
  // anyone. All others are told that there are too many connections.
  void start_reserved();
  // Tells the client that there are too many connections, and closes. Without `patience` at once,
  // and the client may lose the reply.
  void refuse(bool patience);
  // Closes a connection of this thread that has been idle for a while, to make room for this one.
  // The longest idle one goes first; with `own_only`, of the same client. False where there is
  // none.
  bool make_room(bool own_only);
  // How many connections this one's client has open, with this one.
  int of_client() const { return shared_.clients.of(client_); }
  // The server stops: the request in progress ends as if the client were gone.
  void close();

  // ---- for handlers ----

  const HttpRequest& request() const { return request_; }
  RateLimiter::Permit& permit() { return request_.permit; }
  HttpContext& shared() { return shared_; }

  // The whole reply. Counted and logged.
  boost::asio::awaitable<void> reply(HttpReply reply);

  // A reply in pieces: the head goes out with the first one. write_stream sends `data` (and clears
  // it); false: the client is gone. `last` ends the reply.
  void begin_stream(HttpReply head);
  bool streaming() const { return stream_reply_.has_value(); }
  boost::asio::awaitable<bool> write_stream(std::string& data, bool last);

  // A function for any thread that ends a wait().
  std::function<void()> notifier();
  // Until the notifier was called since the last wait, the client is gone, or `until`. Watches the
  // socket: a client that goes away during a wait is noticed at once.
  boost::asio::awaitable<void> wait(Clock::time_point until);

  // The body is not needed any more: its memory is free for others.
  void drop_body();
  // Watches the client from now on, while a worker works for the request.
  void begin_long_work();
  // Any thread, after begin_long_work: stop is requested when the client is gone.
  std::stop_token stop_token() const { return stop_.get_token(); }

  // Why the request can have no reply any more; null while it can.
  const char* gone() const { return gone_; }
  // Called at the moment the client is found gone, once.
  void on_gone(std::function<void()> action) { on_gone_ = std::move(action); }

 private:
  using Buffers = std::array<boost::asio::const_buffer, 3>;
  using Parser = boost::beast::http::request_parser<boost::beast::http::empty_body>;
  struct Mailbox;

  boost::asio::awaitable<void> run();
  // False: the connection is to be closed.
  boost::asio::awaitable<bool> serve_one();
  boost::asio::awaitable<bool> wait_for_request();
  boost::asio::awaitable<bool> read_head();
  boost::asio::awaitable<bool> read_body(bool refused);
  boost::asio::awaitable<bool> read_sized_body(size_t bytes);
  boost::asio::awaitable<bool> read_chunked_body();
  boost::asio::awaitable<bool> skip_body(size_t bytes);
  boost::asio::awaitable<bool> refuse_body_bytes();
  boost::asio::awaitable<bool> answer(const Route* route, HttpReply refusal);
  boost::asio::awaitable<void> dispatch(const Route& route);
  boost::asio::awaitable<bool> reject_unreadable(boost::system::error_code error);
  boost::asio::awaitable<bool> reject(ApiError reason);
  boost::asio::awaitable<bool> send(Buffers buffers);
  boost::asio::awaitable<void> linger();
  void take_head();
  void count_reply(int status);
  void client_gone(const char* why);
  void watch();
  void stop_watching();
  void on_readable(boost::system::error_code error, unsigned generation);
  void watch_for_end();
  void look_for_end(unsigned generation);
  void look_again(unsigned generation);
  void half_closed();

  HttpContext& shared_;
  IoThread& io_;
  boost::asio::ip::tcp::socket socket_;
  Deadline deadline_;
  boost::asio::steady_timer signal_;
  bool signalled_ = false;
  boost::asio::steady_timer end_timer_;  // of watch_for_end
  std::shared_ptr<Mailbox> mailbox_;

  boost::beast::flat_buffer buffer_;  // bytes read and not parsed
  std::optional<Parser> parser_;
  HttpRequest request_;
  BodyShare body_share_;
  std::stop_source stop_{std::nostopstate};
  bool reserved_ = false;                                     // start_reserved
  std::optional<std::list<HttpConnection*>::iterator> idle_;  // its place in IoThread::idle
  Clock::time_point idle_since_;
  Clock::time_point accepted_;
  std::string client_;  // its address, as tenant_of_address() has it
  bool first_request_ = true;
  bool timed_out_ = false;
  bool must_close_ = false;  // what follows in the socket cannot be made sense of
  bool reply_sent_ = false;
  bool sending_ = false;      // a write waits for the client
  bool half_closed_ = false;  // the client sends nothing more, but may read
  const char* gone_ = nullptr;
  std::function<void()> on_gone_;

  std::optional<HttpReply> stream_reply_;
  std::string stream_head_;  // not yet sent

  bool watching_ = false;
  unsigned watch_generation_ = 0;
};

}  // namespace kivi
