// SPDX-License-Identifier: Apache-2.0
#include "server/tls_relay.h"

#include <openssl/ssl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <future>
#include <thread>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/log.h"
#include "server/deadline.h"

namespace kivi {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);
// A record of TLS.
constexpr size_t kBufferBytes = 16 << 10;
// A client that is told of the end has this long to take what is left and to say goodbye.
constexpr std::chrono::seconds kGoodbye{5};
// All clients together, when the server stops.
constexpr std::chrono::seconds kLastGoodbyes{1};

class Connection;

// A thread's context and the connections that live on it. The set is touched by that thread alone.
struct Loop {
  asio::io_context context{1};
  std::unordered_set<Connection*> connections;
  bool stopped = false;
  asio::executor_work_guard<asio::io_context::executor_type> work = asio::make_work_guard(context);
};

// All members on the loop's thread.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Loop& loop, std::atomic<int>& count, tcp::socket socket, asio::ssl::context& context,
             std::chrono::seconds timeout, TlsRelay::Take take)
      : loop_(loop),
        count_(count),
        client_(std::move(socket), context),
        front_(loop.context),
        timeout_(timeout),
        take_(std::move(take)),
        deadline_(loop.context, [this] { close(); }) {
    loop_.connections.insert(this);
    ++count_;
  }
  ~Connection() {
    close();
    loop_.connections.erase(this);
    --count_;
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void start() {
    asio::co_spawn(
        loop_.context, [self = shared_from_this()] { return self->run(); }, asio::detached);
  }

  // Ends everything that waits.
  void close() {
    error_code ignored;
    client_.lowest_layer().shutdown(tcp::socket::shutdown_both, ignored);
    client_.lowest_layer().close(ignored);
    front_.close(ignored);
  }

 private:
  asio::awaitable<void> run() {
    deadline_.set_in(timeout_);
    const auto [error] = co_await client_.async_handshake(asio::ssl::stream_base::server, kTuple);
    deadline_.clear();
    if (error) co_return close();
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0)
      co_return close();
    error_code failed;
    front_.assign(asio::local::stream_protocol(), pair[0], failed);
    if (failed) {
      ::close(pair[0]);
      ::close(pair[1]);
      co_return close();
    }
    if (loop_.stopped) {
      ::close(pair[1]);
      co_return close();
    }
    take_(pair[1]);
    asio::co_spawn(
        loop_.context, [self = shared_from_this()] { return self->to_client(); }, asio::detached);
    co_await to_front();
  }

  // The client's end of file becomes the front end's.
  asio::awaitable<void> to_front() {
    std::array<char, kBufferBytes> buffer;
    for (;;) {
      const auto [error, bytes] = co_await client_.async_read_some(asio::buffer(buffer), kTuple);
      if (error) break;
      const auto [failed, written] =
          co_await asio::async_write(front_, asio::buffer(buffer.data(), bytes), kTuple);
      if (failed) break;
    }
    error_code ignored;
    front_.shutdown(asio::local::stream_protocol::socket::shutdown_send, ignored);
    // The front end ends its side soon. A client that only half-closes gets its reply until then.
    if (front_.is_open()) deadline_.set_in(kGoodbye);
  }

  asio::awaitable<void> to_client() {
    std::array<char, kBufferBytes> buffer;
    for (;;) {
      const auto [error, bytes] = co_await front_.async_read_some(asio::buffer(buffer), kTuple);
      if (error) break;
      const auto [failed, written] =
          co_await asio::async_write(client_, asio::buffer(buffer.data(), bytes), kTuple);
      if (failed) break;
    }
    deadline_.set_in(kGoodbye);
    co_await client_.async_shutdown(kTuple);  // its outcome does not matter
    close();
  }

  Loop& loop_;
  std::atomic<int>& count_;
  asio::ssl::stream<tcp::socket> client_;
  asio::local::stream_protocol::socket front_;
  const std::chrono::seconds timeout_;
  const TlsRelay::Take take_;
  Deadline deadline_;
};

}  // namespace

struct TlsRelay::Impl {
  const TlsCertificates& certificates;
  const Options options;
  std::atomic<int> count{0};
  std::atomic<size_t> next{0};
  std::vector<std::unique_ptr<Loop>> loops;
  std::vector<std::thread> threads;

  void open(Loop& loop, int descriptor, Take take) {
    tcp::socket socket(loop.context);
    error_code failed;
    // The family is of no consequence: the socket is connected already.
    socket.assign(tcp::v4(), descriptor, failed);
    if (failed || loop.stopped || count >= options.connections_max) {
      if (failed) {
        shutdown(descriptor, SHUT_RDWR);
        ::close(descriptor);
        return;
      }
      socket.shutdown(tcp::socket::shutdown_both, failed);
      return;
    }
    const std::shared_ptr<SSL_CTX> shared = certificates.context();
    SSL_CTX_up_ref(shared.get());
    asio::ssl::context context(shared.get());  // owns one reference; the connection takes its own
    std::make_shared<Connection>(loop, count, std::move(socket), context, options.handshake_timeout,
                                 std::move(take))
        ->start();
  }
};

TlsRelay::TlsRelay(const TlsCertificates& certificates, const Options& options)
    : impl_(new Impl{.certificates = certificates, .options = options}) {
  for (int i = 0; i < options.threads; ++i) impl_->loops.push_back(std::make_unique<Loop>());
  for (const auto& loop : impl_->loops)
    impl_->threads.emplace_back([&context = loop->context] {
      for (;;) {
        try {
          context.run();
          return;
        } catch (const std::exception& e) {  // memory, say: it costs one connection
          log_error("a TLS connection ended by an exception: {}", e.what());
        }
      }
    });
}

TlsRelay::~TlsRelay() { stop(); }

void TlsRelay::serve(int descriptor, Take take) {
  Loop& loop = *impl_->loops[impl_->next++ % impl_->loops.size()];
  asio::post(loop.context, [this, &loop, descriptor, take = std::move(take)]() mutable {
    impl_->open(loop, descriptor, std::move(take));
  });
}

void TlsRelay::stop_accepting() {
  for (const auto& loop : impl_->loops) {
    std::promise<void> done;
    asio::post(loop->context, [&] {
      loop->stopped = true;
      done.set_value();
    });
    done.get_future().wait();
  }
}

void TlsRelay::stop() {
  if (impl_->threads.empty()) return;
  // Connections whose front end has closed them are saying goodbye. Looking now and then is good
  // enough, once, at the end of a process.
  const Clock::time_point end = Clock::now() + kLastGoodbyes;
  while (impl_->count > 0 && Clock::now() < end)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  for (const auto& loop : impl_->loops)
    asio::post(loop->context, [&loop = *loop] {
      loop.stopped = true;
      const std::vector<Connection*> open(loop.connections.begin(), loop.connections.end());
      for (Connection* connection : open)
        if (loop.connections.contains(connection)) connection->close();
      loop.work.reset();
    });
  for (std::thread& thread : impl_->threads) thread.join();
  impl_->threads.clear();
}

}  // namespace kivi
