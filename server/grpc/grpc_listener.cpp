// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/grpc_listener.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <utility>

#include "base/log.h"
#include "engine/request.h"
#include "server/grpc/log_gate.h"
#include "server/grpc/received_bytes.h"

namespace kivi {
namespace {

// How long the listener waits before it accepts again when no descriptor is left. The kernel keeps
// the connection in its backlog meanwhile.
constexpr int kPauseMs = 100;
// What a connection may send before the headers of one of its calls have been judged, and how often
// that is checked while there is such a connection.
constexpr uint64_t kUnjudgedBytes = 1 << 20;
constexpr uint64_t kUnjudgedBytesPerSecond = 64 << 10;
constexpr int kCheckMs = 250;
// A connection that has begun no call makes room for another one after this long: a client that is
// about to send its first call keeps its connection.
constexpr std::chrono::seconds kIdleBeforeClose{1};
// Threads that hand connections over. One that reads a flood is freed when the flood is ended.
constexpr int kTakers = 2;

// Whom a limit per source counts together. A single user of IPv6 usually has a whole /64.
using Source = std::array<unsigned char, 16>;

Source source_of(const sockaddr_storage& address) {
  Source source{};
  if (address.ss_family == AF_INET6) {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
    const bool mapped = IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr);
    std::memcpy(source.data(), v6.sin6_addr.s6_addr, mapped ? 16 : 8);
  } else {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
    source[10] = source[11] = 0xff;  // as IPv6 maps it
    std::memcpy(source.data() + 12, &v4.sin_addr, 4);
  }
  return source;
}

bool same_address(const sockaddr_storage& a, const sockaddr_storage& b) {
  if (port_of(a) != port_of(b)) return false;
  if (a.ss_family == AF_INET6 && b.ss_family == AF_INET6)
    return std::memcmp(&reinterpret_cast<const sockaddr_in6&>(a).sin6_addr,
                       &reinterpret_cast<const sockaddr_in6&>(b).sin6_addr, sizeof(in6_addr)) == 0;
  return source_of(a) == source_of(b);
}

// Host names may stand in brackets, as gRPC's addresses of IPv6 do.
std::string bare_host(const std::string& host) {
  if (host.size() > 2 && host.front() == '[' && host.back() == ']')
    return host.substr(1, host.size() - 2);
  return host;
}

// An accepted connection. The listener's mutex guards all but `judged`.
struct Client {
  std::string address;
  int descriptor = -1;  // as handed out
  int plain = -1;       // behind a relay
  Clock::time_point opened = Clock::now();
  std::atomic<bool> judged{false};
};

std::string text_of(const sockaddr_storage& address) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  const void* bytes =
      address.ss_family == AF_INET6
          ? static_cast<const void*>(&reinterpret_cast<const sockaddr_in6&>(address).sin6_addr)
          : &reinterpret_cast<const sockaddr_in&>(address).sin_addr;
  inet_ntop(address.ss_family, bytes, text.data(), socklen_t(text.size()));
  return text.data();
}

// Returns true if the peer has sent more than a connection may that has begun no allowed call.
bool sent_too_much(int descriptor, const Client& client) {
  const auto age = std::chrono::duration_cast<std::chrono::seconds>(Clock::now() - client.opened);
  return received_bytes(descriptor) >
         kUnjudgedBytes + kUnjudgedBytesPerSecond * uint64_t(age.count());
}

}  // namespace

int port_of(const sockaddr_storage& address) {
  return ntohs(address.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                   : reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

struct GrpcListener::Impl {
  ~Impl() {
    for (const int descriptor : {listening, epoll, stopping})
      if (descriptor >= 0) close(descriptor);
  }

  void run();
  // False: no descriptor is left.
  bool accept_all();
  void admit(int descriptor, const sockaddr_storage& peer);
  void forget(int watched);
  // Ends the oldest connection that has begun no call which is allowed, for a newcomer from
  // `source`. With `own_only`, of that source. False where there is none.
  bool make_room(const Source& source, bool own_only);
  bool is_probe(const sockaddr_storage& peer);
  // Ends the unjudged connections that have sent too much; whether any unjudged one is left.
  bool check_unjudged();

  Options options;
  Take take;
  Refused refused;
  sockaddr_storage address{};
  int listening = -1, epoll = -1, stopping = -1;
  std::thread thread;
  boost::asio::thread_pool takers{kTakers};
  std::atomic<int> connections{0};
  std::mutex mutex;  // guards probe and clients
  std::optional<sockaddr_storage> probe;
  std::unordered_map<int, std::shared_ptr<Client>> clients;  // by descriptor, and by plain one

  // Of the thread. `watched` holds a duplicate of each connection's descriptor: its hang-up says
  // that the taker has shut the socket down, or that the peer has reset it.
  struct Watched {
    Source source;
    std::shared_ptr<Client> client;
  };
  std::unordered_map<int, Watched> watched;
  std::map<Source, int> per_source;
  LogGate refusal_log, failure_log, excess_log;
};

GrpcListener::GrpcListener() : impl_(std::make_unique<Impl>()) {}

GrpcListener::~GrpcListener() { stop(); }

Status GrpcListener::listen(const Options& options) {
  Impl& impl = *impl_;
  impl.options = options;
  const auto failed = [&](const std::string& why) {
    return Error{ErrorCode::invalid,
                 fmt::format("grpc_port {}: cannot listen on {}:{}: {}", options.port, options.host,
                             options.port, why),
                 "grpc_port"};
  };
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(bare_host(options.host).c_str(),
                                    std::to_string(options.port).c_str(), &hints, &found);
      error != 0)
    return failed(gai_strerror(error));
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, &freeaddrinfo);
  impl.listening =
      socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, found->ai_protocol);
  impl.epoll = epoll_create1(EPOLL_CLOEXEC);
  impl.stopping = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (impl.listening < 0 || impl.epoll < 0 || impl.stopping < 0) return failed(strerror(errno));
  const int on = 1;
  setsockopt(impl.listening, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  socklen_t length = sizeof(impl.address);
  if (bind(impl.listening, found->ai_addr, found->ai_addrlen) != 0 ||
      ::listen(impl.listening, SOMAXCONN) != 0 ||
      getsockname(impl.listening, reinterpret_cast<sockaddr*>(&impl.address), &length) != 0)
    return failed(strerror(errno));
  for (const int descriptor : {impl.listening, impl.stopping}) {
    epoll_event event{.events = EPOLLIN, .data = {.fd = descriptor}};
    if (epoll_ctl(impl.epoll, EPOLL_CTL_ADD, descriptor, &event) != 0)
      return failed(strerror(errno));
  }
  return ok_status();
}

void GrpcListener::start(Take take, Refused refused) {
  impl_->take = std::move(take);
  impl_->refused = std::move(refused);
  impl_->thread = std::thread([this] { impl_->run(); });
}

void GrpcListener::stop() {
  if (!impl_->thread.joinable()) return;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(impl_->stopping, &one, sizeof(one));
  impl_->thread.join();
  impl_->takers.join();
}

const sockaddr_storage& GrpcListener::address() const { return impl_->address; }

int GrpcListener::port() const { return port_of(impl_->address); }

int GrpcListener::connections() const { return impl_->connections; }

void GrpcListener::expect_probe(const sockaddr_storage& address) {
  const std::lock_guard lock(impl_->mutex);
  impl_->probe = address;
}

std::string GrpcListener::judge(int descriptor) {
  const std::lock_guard lock(impl_->mutex);
  const auto found = impl_->clients.find(descriptor);
  if (found == impl_->clients.end()) return {};
  found->second->judged = true;
  return found->second->address;
}

void GrpcListener::relayed(int descriptor, int plain) {
  const std::lock_guard lock(impl_->mutex);
  const auto found = impl_->clients.find(descriptor);
  if (found == impl_->clients.end()) return;
  const std::shared_ptr<Client> client = found->second;
  client->plain = plain;
  impl_->clients.insert_or_assign(plain, client);
}

void GrpcListener::Impl::run() {
  std::array<epoll_event, 64> events;
  bool paused = false, unjudged = false;
  for (;;) {
    // While the listener pauses, the level-triggered listening socket would wake it at once.
    const int count =
        epoll_wait(epoll, events.data(), int(events.size()), unjudged ? kCheckMs : -1);
    bool incoming = false;
    for (int i = 0; i < count; ++i) {
      const int descriptor = events[size_t(i)].data.fd;
      if (descriptor == stopping) {
        // A taker that still reads an unjudged connection comes back when this has ended.
        for (const auto& [copy, connection] : watched)
          if (!connection.client->judged) shutdown(copy, SHUT_RDWR);
        while (!watched.empty()) forget(watched.begin()->first);
        close(std::exchange(listening, -1));
        return;
      }
      if (descriptor == listening)
        incoming = true;
      else if ((events[size_t(i)].events & EPOLLHUP) != 0)
        forget(descriptor);
    }
    // After the hang-ups: a new connection may get a number for which one of these events waits,
    // and would be forgotten while it is open.
    if (incoming) paused = !accept_all();
    unjudged = check_unjudged();
    if (std::exchange(paused, false))
      std::this_thread::sleep_for(std::chrono::milliseconds(kPauseMs));
  }
}

bool GrpcListener::Impl::accept_all() {
  // A bound on the turn, so that hang-ups are seen during a flood of connections.
  constexpr int kMaxPerTurn = 256;
  for (int i = 0; i < kMaxPerTurn; ++i) {
    sockaddr_storage peer{};
    socklen_t length = sizeof(peer);
    const int descriptor = accept4(listening, reinterpret_cast<sockaddr*>(&peer), &length,
                                   SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (descriptor >= 0) {
      admit(descriptor, peer);
      continue;
    }
    if (errno == EAGAIN) return true;
    if (errno == EINTR || errno == ECONNABORTED) continue;
    if (failure_log.open()) log_warning("gRPC: cannot accept a connection: {}", strerror(errno));
    return false;
  }
  return true;
}

void GrpcListener::Impl::admit(int descriptor, const sockaddr_storage& peer) {
  const int on = 1;
  setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  const int unread_ms = int(std::chrono::milliseconds(options.unread_limit).count());
  setsockopt(descriptor, IPPROTO_TCP, TCP_USER_TIMEOUT, &unread_ms, sizeof(unread_ms));
  const auto hand_over = [this, descriptor](bool from_probe) {
    boost::asio::post(takers, [this, descriptor, from_probe] { take(descriptor, from_probe); });
  };
  if (is_probe(peer)) return hand_over(true);
  const Source source = source_of(peer);
  const auto held = per_source.find(source);
  const bool own = held != per_source.end() && held->second >= options.connections_per_source;
  int copy = -1;
  if ((!own && int(watched.size()) < options.connections_max) || make_room(source, own))
    copy = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  epoll_event event{.events = EPOLLET, .data = {.fd = copy}};  // EPOLLHUP needs no asking
  if (copy < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, copy, &event) != 0) {
    if (copy >= 0) close(copy);
    close(descriptor);
    if (refusal_log.open())
      log_warning(
          "gRPC: a connection is refused: {} are open (at most {}, and {} from one address)",
          watched.size(), options.connections_max, options.connections_per_source);
    return refused();
  }
  auto client = std::make_shared<Client>();
  client->address = text_of(peer);
  client->descriptor = descriptor;
  {
    const std::lock_guard lock(mutex);
    clients.insert_or_assign(descriptor, client);
  }
  watched.emplace(copy, Watched{source, std::move(client)});
  ++per_source[source];
  ++connections;
  hand_over(false);
}

void GrpcListener::Impl::forget(int copy) {
  const auto it = watched.find(copy);
  if (it == watched.end()) return;
  if (const auto held = per_source.find(it->second.source); --held->second == 0)
    per_source.erase(held);
  {
    // A number may belong to a later connection by now.
    const std::lock_guard lock(mutex);
    const std::shared_ptr<Client>& client = it->second.client;
    for (const int number : {client->descriptor, client->plain})
      if (const auto known = clients.find(number);
          known != clients.end() && known->second == client)
        clients.erase(known);
  }
  watched.erase(it);
  --connections;
  // Closing alone would leave the registration as long as the taker's descriptor is open.
  epoll_ctl(epoll, EPOLL_CTL_DEL, copy, nullptr);
  close(copy);
}

bool GrpcListener::Impl::make_room(const Source& source, bool own_only) {
  int oldest = -1;
  Clock::time_point opened = Clock::now() - kIdleBeforeClose;
  for (const auto& [copy, connection] : watched) {
    const Client& client = *connection.client;
    if (client.judged || client.opened > opened || (own_only && connection.source != source))
      continue;
    oldest = copy;
    opened = client.opened;
  }
  if (oldest < 0) return false;
  shutdown(oldest, SHUT_RDWR);  // the library closes its descriptor
  forget(oldest);
  return true;
}

bool GrpcListener::Impl::check_unjudged() {
  bool left = false;
  for (const auto& [copy, connection] : watched) {
    if (connection.client->judged) continue;
    left = true;
    if (!sent_too_much(copy, *connection.client)) continue;
    shutdown(copy, SHUT_RDWR);  // the hang-up follows
    refused();
    if (excess_log.open())
      log_warning(
          "gRPC: a connection of {} is ended: it has sent more than {} bytes and begun no call "
          "that "
          "is allowed",
          connection.client->address, kUnjudgedBytes);
  }
  return left;
}

bool GrpcListener::Impl::is_probe(const sockaddr_storage& peer) {
  const std::lock_guard lock(mutex);
  if (!probe || !same_address(*probe, peer)) return false;
  probe.reset();
  return true;
}

}  // namespace kivi
