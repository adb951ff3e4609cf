// HttpServer: the listening socket, the io threads, and the life of the HTTP front end: loading,
// ready, draining, stopped.
#pragma once

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "server/http/http_connection.h"
#include "server/http/http_context.h"

namespace kivi {

// One owner. `config` and `metrics` must outlive it. The engine's notifications are posted to the
// io contexts: the engine must be gone before the destructor, and must still be there for stop().
class HttpServer {
 public:
  HttpServer(const ServerConfig& config, Metrics& metrics);
  ~HttpServer();  // stops
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // Shares the rate limits with the other front end. Before start().
  void set_rate_limiter(std::shared_ptr<RateLimiter> limiter) {
    shared_.set_rate_limiter(std::move(limiter));
  }

  // Binds, listens and starts the io threads; from now on /health answers (503, loading). Errors
  // name the address.
  Status start();
  // The port that is listened on; after start().
  int port() const { return port_; }
  // The model is loaded: requests are taken. It must live until stop() has returned.
  void set_model(const ServedModel& model);
  // New completions are refused with 503; what runs goes on.
  void begin_drain();
  // Waits until no request is being answered; false if some are left after `timeout`.
  bool wait_idle(std::chrono::milliseconds timeout);
  // Closes every connection (unfinished requests are cancelled) and joins the io threads.
  void stop();

 private:
  boost::asio::awaitable<void> accept();
  void open(IoThread& io, boost::asio::ip::tcp::socket socket, Clock::time_point accepted);

  const ServerConfig& config_;
  HttpContext shared_;
  std::vector<std::unique_ptr<IoThread>> io_;
  std::vector<boost::asio::executor_work_guard<boost::asio::io_context::executor_type>> work_;
  std::optional<boost::asio::ip::tcp::acceptor> acceptor_;  // on io_[0]
  std::vector<std::thread> threads_;
  int port_ = -1;
  std::atomic<bool> stopping_{false};
};

}  // namespace kivi
