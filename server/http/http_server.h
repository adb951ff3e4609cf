// SPDX-License-Identifier: Apache-2.0
// HttpServer is the HTTP front end: its listening socket and its io threads.
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

// One owner. `state` must outlive it. The engine's notifications are posted to the
// io contexts: the engine must be gone before the destructor, and must still be there for stop().
class HttpServer {
 public:
  explicit HttpServer(ServerState& state);
  ~HttpServer();  // stops
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // Binds, listens and starts the io threads; from now on /health answers (503, loading). Errors
  // name the address.
  Status start();
  // Reads the certificates again, for later connections. On an error the old ones stay. Without TLS
  // it does nothing. Any thread, after start().
  Status reload_certificates();
  // The port of the listening socket, after start().
  int port() const { return port_; }
  // Waits until no request is being answered. Returns false if some are left after `timeout`.
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
  ClientCounts tls_clients_;                                // connections that relay_ has
  std::optional<TlsRelay> relay_;                           // with certificates
  std::vector<std::thread> threads_;
  int port_ = -1;
  std::atomic<bool> stopping_{false};
};

}  // namespace kivi
