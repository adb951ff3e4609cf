// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/grpc_probe.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "base/log.h"
#include "engine/request.h"

namespace kivi {
namespace {

constexpr std::chrono::seconds kInterval{5};
constexpr std::chrono::milliseconds kTimeout{2000};
// So many failures in a row, because a busy machine may be late once.
constexpr int kFailures = 3;

class Socket {
 public:
  explicit Socket(int family)
      : descriptor_(socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) {}
  ~Socket() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int get() const { return descriptor_; }

  // False where nothing happened before `until`.
  bool wait(short events, Clock::time_point until) const {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
    pollfd entry{.fd = descriptor_, .events = events, .revents = 0};
    return left > 0 && poll(&entry, 1, int(left)) == 1;
  }

 private:
  int descriptor_;
};

// A server that listens on every address is asked on the loopback.
sockaddr_storage reachable(sockaddr_storage address) {
  if (address.ss_family == AF_INET6) {
    auto& v6 = reinterpret_cast<sockaddr_in6&>(address);
    if (IN6_IS_ADDR_UNSPECIFIED(&v6.sin6_addr)) v6.sin6_addr = in6addr_loopback;
  } else {
    auto& v4 = reinterpret_cast<sockaddr_in&>(address);
    if (v4.sin_addr.s_addr == htonl(INADDR_ANY)) v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  }
  return address;
}

void set_port_zero(sockaddr_storage& address) {
  if (address.ss_family == AF_INET6)
    reinterpret_cast<sockaddr_in6&>(address).sin6_port = 0;
  else
    reinterpret_cast<sockaddr_in&>(address).sin_port = 0;
}

// A frame of HTTP/2 (RFC 9113, section 4.1).
std::string frame(char type, char flags, char stream, std::string_view payload) {
  std::string out{
      '\0', char(payload.size() >> 8), char(payload.size()), type, flags, '\0', '\0', '\0', stream};
  return out.append(payload);
}

// A header that does not touch the tables of HPACK (RFC 7541, section 6.2.2).
std::string header(std::string_view name, std::string_view value) {
  std::string out{'\0', char(name.size())};
  out.append(name).push_back(char(value.size()));
  return out.append(value);
}

constexpr char kData = 0, kHeaders = 1, kSettings = 4;
constexpr char kEndStream = 1, kEndHeaders = 4;

// The whole client side of one call: preface, settings, headers, an empty message.
std::string request_bytes() {
  const std::string headers = header(":method", "POST") + header(":scheme", "http") +
                              header(":path", "/grpc.health.v1.Health/Check") +
                              header(":authority", "localhost") +
                              header("content-type", "application/grpc") + header("te", "trailers");
  return "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(kSettings, 0, 0, "") +
         frame(kHeaders, kEndHeaders, 1, headers) +
         frame(kData, kEndStream, 1, std::string_view("\0\0\0\0\0", 5));
}

// Whether `received` holds the head of a HEADERS frame. All frames before it are complete.
bool has_headers(std::string_view received) {
  constexpr size_t kHead = 9;
  while (received.size() >= kHead) {
    if (received[3] == kHeaders) return true;
    const auto byte = [&](size_t i) { return size_t(static_cast<unsigned char>(received[i])); };
    const size_t length = byte(0) << 16 | byte(1) << 8 | byte(2);
    if (received.size() < kHead + length) return false;
    received.remove_prefix(kHead + length);
  }
  return false;
}

}  // namespace

bool probe_once(GrpcListener& listener) {
  const Clock::time_point until = Clock::now() + kTimeout;
  const sockaddr_storage target = reachable(listener.address());
  const Socket socket(target.ss_family);
  // Bound before it connects, so that the listener can be told whom to expect.
  sockaddr_storage own = target;
  set_port_zero(own);
  socklen_t length = sizeof(own);
  const socklen_t size = target.ss_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  if (socket.get() < 0 || bind(socket.get(), reinterpret_cast<const sockaddr*>(&own), size) != 0 ||
      getsockname(socket.get(), reinterpret_cast<sockaddr*>(&own), &length) != 0)
    return false;
  listener.expect_probe(own);
  if (connect(socket.get(), reinterpret_cast<const sockaddr*>(&target), size) != 0 &&
      (errno != EINPROGRESS || !socket.wait(POLLOUT, until)))
    return false;
  static const std::string kRequest = request_bytes();  // far smaller than a socket's buffer
  if (send(socket.get(), kRequest.data(), kRequest.size(), MSG_NOSIGNAL) !=
      ssize_t(kRequest.size()))
    return false;
  std::string received;
  std::array<char, 1024> buffer;
  while (!has_headers(received)) {
    if (!socket.wait(POLLIN, until)) return false;
    const ssize_t bytes = recv(socket.get(), buffer.data(), buffer.size(), 0);
    if (bytes <= 0) return false;
    received.append(buffer.data(), size_t(bytes));
  }
  return true;
}

struct GrpcProbe::Impl {
  Impl(GrpcListener& l, Changed c) : listener(l), changed(std::move(c)) {}

  void run(const std::stop_token& stop) {
    std::mutex mutex;
    std::condition_variable_any ended;
    std::unique_lock lock(mutex);
    bool answers = true;
    for (int failures = 0;;) {
      ended.wait_for(lock, stop, kInterval, [] { return false; });
      if (stop.stop_requested()) return;
      failures = probe_once(listener) ? 0 : failures + 1;
      const bool now = answers ? failures < kFailures : failures == 0;
      if (now == std::exchange(answers, now)) continue;
      if (now)
        log_info("gRPC: the port {} answers again", listener.port());
      else
        log_error("gRPC: the port {} did not answer {} probes in a row; health is not ready",
                  listener.port(), kFailures);
      changed(now);
    }
  }

  GrpcListener& listener;
  const Changed changed;
  std::jthread thread{[this](const std::stop_token& stop) { run(stop); }};
};

GrpcProbe::GrpcProbe(GrpcListener& listener, Changed changed)
    : impl_(std::make_unique<Impl>(listener, std::move(changed))) {}

GrpcProbe::~GrpcProbe() = default;

}  // namespace kivi
