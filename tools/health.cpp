// SPDX-License-Identifier: Apache-2.0
// kivi health: asks the server on this machine whether it can serve (GET /health/ready). For a
// container's health check: the image has no other HTTP client.
#include <fmt/format.h>
#include <netdb.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <memory>

#include "tools/commands.h"

namespace kivi {
namespace {

constexpr timeval kTimeout{2, 0};  // each of: connect, send, receive

class Socket {
 public:
  explicit Socket(const addrinfo& address)
      : fd_(socket(address.ai_family, address.ai_socktype | SOCK_CLOEXEC, address.ai_protocol)) {
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &kTimeout, sizeof(kTimeout));
    setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &kTimeout, sizeof(kTimeout));
    connected_ = fd_ >= 0 && connect(fd_, address.ai_addr, address.ai_addrlen) == 0;
  }
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  bool connected() const { return connected_; }
  // The server is this machine's own, so its certificate is not verified. Where it asks its clients
  // for one, its own certificate is shown.
  bool start_tls(const ServerConfig& config) {
    const std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)> context(SSL_CTX_new(TLS_client_method()),
                                                               SSL_CTX_free);
    if (context == nullptr) return false;
    if (!config.ssl_ca_certs.empty()) {
      const std::string& key =
          config.ssl_keyfile.empty() ? config.ssl_certfile : config.ssl_keyfile;
      SSL_CTX_use_certificate_chain_file(context.get(), config.ssl_certfile.c_str());
      SSL_CTX_use_PrivateKey_file(context.get(), key.c_str(), SSL_FILETYPE_PEM);
    }
    tls_.reset(SSL_new(context.get()));
    return tls_ != nullptr && SSL_set_fd(tls_.get(), fd_) == 1 && SSL_connect(tls_.get()) == 1;
  }
  bool write(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = tls_ ? SSL_write(tls_.get(), bytes.data(), int(bytes.size()))
                                : send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      bytes.remove_prefix(size_t(sent));
    }
    return true;
  }
  // At least `bytes_wanted`, or what there is until the peer closes or the time is out.
  std::string read(size_t bytes_wanted) {
    std::string text;
    char buffer[256];
    while (text.size() < bytes_wanted) {
      const ssize_t received = tls_ ? SSL_read(tls_.get(), buffer, sizeof(buffer))
                                    : recv(fd_, buffer, sizeof(buffer), 0);
      if (received <= 0) break;
      text.append(buffer, size_t(received));
    }
    return text;
  }

 private:
  int fd_;
  bool connected_ = false;
  std::unique_ptr<SSL, void (*)(SSL*)> tls_{nullptr, SSL_free};  // null: plain
};

// "HTTP/1.1 200" of the reply to GET `path`; error: nobody answers at host and the config's port.
Result<std::string> status_line(const std::string& host, const ServerConfig& config,
                                const std::string& path) {
  const int port = config.port;
  constexpr size_t kStatusBytes = sizeof("HTTP/1.1 200") - 1;
  const bool six = host.find(':') != std::string::npos;  // an IPv6 address
  const std::string where =
      six ? fmt::format("[{}]:{}", host, port) : fmt::format("{}:{}", host, port);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int code = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
      code != 0)
    return Error{ErrorCode::not_found, fmt::format("{}: {}", where, gai_strerror(code)), "host"};
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(found, freeaddrinfo);
  for (const addrinfo* address = found; address != nullptr; address = address->ai_next) {
    Socket socket(*address);
    if (!socket.connected()) continue;
    if (!config.ssl_certfile.empty() && !socket.start_tls(config)) continue;
    socket.write(
        fmt::format("GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", path, where));
    const std::string reply = socket.read(kStatusBytes);
    if (reply.size() >= kStatusBytes) return reply.substr(0, kStatusBytes);
  }
  return Error{
      ErrorCode::unavailable,
      fmt::format("no server answers at {} within 2 seconds. Check --host and --port", where),
      "port"};
}

}  // namespace

int run_health(const Arguments& args) {
  // Flags, variables and file of `kivi serve` say where it listens. A check needs no model.
  Environment environment = process_environment();
  environment.insert(environment.begin(), {"KIVI_MODEL", "-"});
  Settings settings;
  const Result<ParseOutcome> outcome = parse_settings(kServe, args, environment, settings);
  if (!outcome.ok()) return report(outcome.error());
  if (!outcome->help.empty()) {
    // The first two paragraphs of this help are about kivi serve.
    const std::string& help = outcome->help;
    const size_t flags = help.find("\n\n", help.find("\n\n") + 2);
    fmt::print(
        "Usage: kivi health [flags]\n\n"
        "Asks the server on this machine whether it is ready. Exits with status 0 if it is, else "
        "with 1.\n"
        "The flags are those of kivi serve. They say at which address and port it listens.\n{}",
        help.substr(flags + 1));
    return 0;
  }
  const ServerConfig& config = settings.server;
  if (config.port <= 0)
    return report(Error{
        ErrorCode::invalid,
        fmt::format("--port is {}, must be the port of an HTTP server", config.port), "port"});
  std::string host = config.host;
  if (host.empty() || host == "0.0.0.0") host = "127.0.0.1";
  if (host == "::") host = "::1";
  ::signal(SIGPIPE, SIG_IGN);  // OpenSSL writes without MSG_NOSIGNAL
  const Result<std::string> status = status_line(host, config, "/health/ready");
  if (!status.ok()) return report(status.error());
  const bool ready = status->ends_with(" 200");
  fmt::print("{}\n", ready ? "ready" : *status);
  return ready ? 0 : kExitFailed;
}

}  // namespace kivi
