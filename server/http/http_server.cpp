// SPDX-License-Identifier: Apache-2.0
#include "server/http/http_server.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "base/log.h"
#include "engine/limits.h"
#include "server/tenant.h"

namespace kivi {
namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

namespace {

// Connections that are refused and stay for a moment, so that their clients read why. A flood gets
// no such courtesy.
constexpr int kMaxLingering = 256;

// An exception (memory, say) ends the handler that it leaves, not the server.
void run_io(asio::io_context& context) {
  for (;;) {
    try {
      context.run();
      return;
    } catch (const std::exception& e) {
      log_error("an HTTP handler ended by an exception: {}", e.what());
    }
  }
}

}  // namespace

HttpServer::HttpServer(ServerState& state)
    : config_(state.config()),
      shared_(state),
      tls_clients_(shared_.clients.each_max() + kReservedConnections) {
  for (int i = 0; i < std::max(1, config_.io_threads); ++i) {
    io_.push_back(std::make_unique<IoThread>());
    work_.push_back(asio::make_work_guard(io_.back()->context));
  }
}

HttpServer::~HttpServer() { stop(); }

Status HttpServer::start() {
  error_code error;
  const auto failed = [&](const char* what) {
    return Error{
        ErrorCode::unavailable,
        fmt::format("cannot {} {}:{}: {}", what, config_.host, config_.port, error.message()),
        "port"};
  };
  KIVI_ASSIGN_OR_RETURN(certificates_, TlsCertificates::load(config_, "http/1.1"));
  if (certificates_)
    relay_.emplace(
        *certificates_,
        TlsRelay::Options{.threads = std::max(1, config_.io_threads),
                          .connections_max = config_.max_connections + kReservedConnections,
                          .handshake_timeout = std::chrono::seconds(config_.header_timeout)});
  tcp::resolver resolver(io_[0]->context);
  const auto found =
      resolver.resolve(config_.host, std::to_string(config_.port), tcp::resolver::passive, error);
  if (error || found.empty()) return failed("resolve");
  const tcp::endpoint endpoint = *found.begin();
  acceptor_.emplace(io_[0]->context);
  acceptor_->open(endpoint.protocol(), error);
  if (error) return failed("open a socket for");
  acceptor_->set_option(tcp::acceptor::reuse_address(true), error);
  acceptor_->bind(endpoint, error);
  if (error) return failed("bind");
  acceptor_->listen(asio::socket_base::max_listen_connections, error);
  if (error) return failed("listen on");
  port_ = acceptor_->local_endpoint(error).port();
  asio::co_spawn(io_[0]->context, accept(), asio::detached);
  for (const auto& io : io_) threads_.emplace_back([&context = io->context] { run_io(context); });
  return ok_status();
}

asio::awaitable<void> HttpServer::accept() {
  constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);
  asio::steady_timer pause(io_[0]->context);
  for (size_t next = 0;; next = (next + 1) % io_.size()) {
    IoThread& io = *io_[next];
    auto [error, socket] = co_await acceptor_->async_accept(io.context, kTuple);
    if (error == asio::error::operation_aborted || !acceptor_->is_open()) co_return;
    if (error) {
      // No file descriptors left, mostly: those that are open will be closed some time.
      log_warning("accept: {}", error.message());
      pause.expires_after(std::chrono::milliseconds(100));
      co_await pause.async_wait(kTuple);
      continue;
    }
    try {
      error_code unknown;
      const asio::ip::address client = socket.remote_endpoint(unknown).address();
      if (relay_) {
        // open() limits the connections of an address, but only after their handshakes. Here those
        // count, too, whose handshake never ends.
        const std::string name = tenant_of_address(client.to_string());
        if (tls_clients_.of(name) >= tls_clients_.each_max()) continue;  // closes the socket
        tls_clients_.add(name);
        const std::shared_ptr<void> counted(nullptr,
                                            [this, name](void*) { tls_clients_.remove(name); });
        relay_->serve(socket.release(), [this, &io, client, counted](int descriptor) {
          open_relayed(io, descriptor, client);
        });
        continue;
      }
      asio::post(io.context, [this, &io, client, socket = std::move(socket),
                              accepted = Clock::now()]() mutable {
        open(io, std::move(socket), client, accepted);
      });
    } catch (const std::exception& e) {
      log_error("a connection was dropped by an exception: {}", e.what());
    }
  }
}

// A connection whose TLS the relay speaks. It is no TCP socket, but it is used as one: nothing but
// reads, writes and shutdowns matters.
void HttpServer::open_relayed(IoThread& io, int descriptor, const asio::ip::address& client) {
  tcp::socket socket(io.context);
  error_code failed;
  socket.assign(tcp::v4(), descriptor, failed);
  if (failed) {
    ::close(descriptor);
    return;
  }
  asio::post(io.context,
             [this, &io, client, socket = std::move(socket), accepted = Clock::now()]() mutable {
               open(io, std::move(socket), client, accepted);
             });
}

void HttpServer::open(IoThread& io, tcp::socket socket, const asio::ip::address& client,
                      Clock::time_point accepted) {
  if (stopping_) return;
  const auto connection =
      std::make_shared<HttpConnection>(shared_, io, std::move(socket), client, accepted);
  // Of this client alone, and of all.
  const int own = connection->of_client() - shared_.clients.each_max();
  const int beyond = std::max(shared_.clients.within() - config_.max_connections, own);
  if (beyond <= 0 || connection->make_room(/*own_only=*/own > 0))
    connection->start();
  else if (beyond <= kReservedConnections)
    connection->start_reserved();
  else
    connection->refuse(/*patience=*/own <= 0 && beyond <= kMaxLingering);
}

Status HttpServer::reload_certificates() {
  return certificates_ ? certificates_->reload() : ok_status();
}

bool HttpServer::wait_idle(std::chrono::milliseconds timeout) {
  // Once, at the end of a process: looking now and then is good enough.
  const Clock::time_point end = Clock::now() + timeout;
  while (shared_.exchanges > 0) {
    if (Clock::now() >= end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

void HttpServer::stop() {
  if (threads_.empty()) return;
  stopping_ = true;  // connections that were accepted and are not open yet
  asio::post(io_[0]->context, [this] {
    error_code ignored;
    acceptor_->close(ignored);
  });
  if (relay_) relay_->stop_accepting();
  for (const auto& io : io_)
    asio::post(io->context, [&io = *io] {
      // close() may end a connection, which takes it out of the set.
      const std::vector<HttpConnection*> open(io.connections.begin(), io.connections.end());
      for (HttpConnection* connection : open)
        if (io.connections.contains(connection)) connection->close();
    });
  work_.clear();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  relay_.reset();         // has handed the last bytes over
  shared_.worker.join();  // nothing can be given to it any more
}

}  // namespace kivi
