// SPDX-License-Identifier: Apache-2.0
// HttpConnection is the socket of one client. It reads requests one after the other and hands each
// to the handler of its route. Handlers use it to reply, to stream and to wait.
#pragma once

#include <array>
#include <atomic>
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
#include "server/request_record.h"

namespace kivi {

// The context of an io thread and the connections on it. Only that thread touches the members,
// except for the context.
struct IoThread {
  std::unordered_set<HttpConnection*> connections;
  std::list<HttpConnection*> idle;  // between requests, the longest idle first
  boost::asio::io_context context{1};
};

// Only the io thread may call the members. Any thread may call what notifier() returns.
class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  HttpConnection(HttpContext& shared, IoThread& io, boost::asio::ip::tcp::socket socket,
                 const boost::asio::ip::address& client, Clock::time_point accepted);
  ~HttpConnection();

  // Serves requests until either side closes.
  void start();
  // The same for a connection beyond max_connections. It serves one request if its path is open to
  // anyone. Other requests are told that there are too many connections.
  void start_reserved();
  // Tells the client that there are too many connections, and closes. Without `patience` it closes
  // at once, and the client may lose the reply.
  void refuse(bool patience);
  // Closes a connection of this thread that has been idle for a while, to make room for this one.
  // The longest idle one is closed first. With `own_only` it is one of the same client. Returns
  // false if there is none.
  bool make_room(bool own_only);
  // Returns how many connections this one's client has open, this one included.
  int of_client() const { return shared_.clients.of(client_); }
  // Called when the server stops. The request in progress ends as if the client were gone.
  void close();

  // ---- for handlers ----

  const HttpRequest& request() const { return request_; }
  RateLimiter::Permit& permit() { return request_.permit; }
  HttpContext& shared() { return shared_; }

  // What the access line and the span of the request say beside its status. Before the last bytes.
  void note(RequestAsked asked, RequestFigures figures) {
    asked_ = std::move(asked);
    figures_ = std::move(figures);
  }

  // Sends the whole reply, counts it and logs it.
  boost::asio::awaitable<void> reply(HttpReply reply);

  // Sends a reply in pieces. The head goes out with the first piece. write_stream sends `data` and
  // clears it. `last` ends the reply. Returns false if the client is gone.
  void begin_stream(HttpReply head);
  bool streaming() const { return stream_reply_.has_value(); }
  boost::asio::awaitable<bool> write_stream(std::string& data, bool last);

  // Returns a function that ends a wait(). Any thread may call it.
  std::function<void()> notifier();
  // Waits until the notifier is called, the client is gone, or `until`. A call of the notifier
  // since the last wait counts. The socket is watched, so a client that goes away is noticed at
  // once.
  boost::asio::awaitable<void> wait(Clock::time_point until);

  // Frees the memory of the body, which is not needed any more.
  void drop_body();
  // Begins to watch the client while a worker works for the request.
  void begin_long_work();
  // Stop is requested when the client is gone. Any thread, after begin_long_work.
  std::stop_token stop_token() const { return stop_.get_token(); }

  // Why the request can have no reply any more, or null while it can.
  const char* gone() const { return gone_; }
  // Sets a function that is called once, when the client is found gone.
  void on_gone(std::function<void()> action) { on_gone_ = std::move(action); }

 private:
  using Buffers = std::array<boost::asio::const_buffer, 3>;
  using Parser = boost::beast::http::request_parser<boost::beast::http::empty_body>;
  // What notifiers hold: they may outlive the connection, and each other.
  struct Mailbox {
    Mailbox(boost::asio::io_context& io, HttpConnection* owner) : context(io), connection(owner) {}
    boost::asio::io_context& context;
    std::atomic<bool> posted{false};
    HttpConnection* connection;  // io thread only; null once it is gone
  };

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

  std::optional<RequestAsked> asked_;
  std::optional<RequestFigures> figures_;
  std::optional<HttpReply> stream_reply_;
  std::string stream_head_;  // not yet sent

  bool watching_ = false;
  unsigned watch_generation_ = 0;
};

}  // namespace kivi
