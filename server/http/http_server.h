// SPDX-License-Identifier: Apache-2.0
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
#include "server/tls_relay.h"

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

  // Shares the bytes of bodies in flight with the other front end. Before start().
  void set_body_budget(std::shared_ptr<BodyBudget> budget) {
    shared_.set_body_budget(std::move(budget));
  }

  // Binds, listens and starts the io threads; from now on /health answers (503, loading). Errors
  // name the address.
  Status start();
  // Any thread, after start(): reads the certificates again, for connections that come later. On an
  // error the old ones stay. Nothing happens without TLS.
  Status reload_certificates();
  // The port that is listened on; after start().
  int port() const { return port_; }
  // The model is loaded: requests are taken. It must live until stop() has returned.
  void set_model(const ServedModel& model);
  // From now on these API keys count. Any thread.
  void set_api_keys(const std::vector<std::string>& keys) { shared_.keys().replace(keys); }
  // New completions are refused with 503; what runs goes on.
  void begin_drain();
  // Any thread: whether the gRPC port answers. While it does not, /health/ready is 503.
  void set_grpc_answers(bool answers) { shared_.set_grpc_answers(answers); }
  // Waits until no request is being answered; false if some are left after `timeout`.
  bool wait_idle(std::chrono::milliseconds timeout);
  // Closes every connection (unfinished requests are cancelled) and joins the io threads.
  void stop();

 private:
  boost::asio::awaitable<void> accept();
  void open_relayed(IoThread& io, int descriptor, const boost::asio::ip::address& client);
  void open(IoThread& io, boost::asio::ip::tcp::socket socket,
            const boost::asio::ip::address& client, Clock::time_point accepted);

  const ServerConfig& config_;
  HttpContext shared_;
  std::vector<std::unique_ptr<IoThread>> io_;
  std::vector<boost::asio::executor_work_guard<boost::asio::io_context::executor_type>> work_;
  std::optional<boost::asio::ip::tcp::acceptor> acceptor_;  // on io_[0]
  std::unique_ptr<TlsCertificates> certificates_;           // null: no TLS
  std::optional<TlsRelay> relay_;                           // with certificates
  std::vector<std::thread> threads_;
  int port_ = -1;
  std::atomic<bool> stopping_{false};
};

}  // namespace kivi
