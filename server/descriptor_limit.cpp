// SPDX-License-Identifier: Apache-2.0
#include "server/descriptor_limit.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>

#include "base/log.h"

namespace kivi {
namespace {

// For the model's files, the log, sockets of the server's own, and HTTP connections that are being
// refused (256 of them may linger).
constexpr long kReserve = 320;
// A gRPC connection has the library's descriptor and the listener's duplicate. TLS adds a pair of
// sockets inside the process.
constexpr long kPerGrpcConnection = 2;
constexpr long kPerHttpConnection = 1;
constexpr long kForTls = 2;
// Fewer connections than these are no server.
constexpr long kMinHttpConnections = 16;
constexpr long kMinGrpcConnections = 4;
// More are of no use, and some systems have a hard limit of a billion.
constexpr rlim_t kMaxDescriptors = 1 << 20;

struct Share {
  bool chosen = false;  // by the user
  long each = 0;        // descriptors of a connection
  long least = 0;
  int* limit = nullptr;

  long wanted() const { return each * (chosen ? *limit : least); }
};

}  // namespace

long raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return long(kMaxDescriptors);
  const rlim_t wanted = std::max(limit.rlim_cur, std::min(limit.rlim_max, kMaxDescriptors));
  rlimit raised = limit;
  raised.rlim_cur = wanted;
  if (wanted != limit.rlim_cur && setrlimit(RLIMIT_NOFILE, &raised) == 0) limit = raised;
  return long(std::min(limit.rlim_cur, kMaxDescriptors));
}

Status fit_connections(ServerConfig& config, long descriptors) {
  const long tls = config.ssl_certfile.empty() ? 0 : kForTls;
  Share http{config.max_connections != kDefaultMaxConnections, kPerHttpConnection + tls,
             kMinHttpConnections, &config.max_connections};
  Share grpc{config.max_grpc_connections != kDefaultMaxGrpcConnections, kPerGrpcConnection + tls,
             kMinGrpcConnections, &config.max_grpc_connections};
  if (config.port < 0) http = {.chosen = true, .limit = &config.max_connections};
  if (config.grpc_port < 0) grpc = {.chosen = true, .limit = &config.max_grpc_connections};
  const long least = kReserve + http.wanted() + grpc.wanted();
  if (least > descriptors)
    return Error{ErrorCode::invalid,
                 fmt::format("max_connections {} and max_grpc_connections {} need {} file "
                             "descriptors at least, and this process may open {}. Lower "
                             "--max-connections or --max-grpc-connections, or raise the limit of "
                             "descriptors (ulimit -n, or LimitNOFILE= of a systemd unit)",
                             *http.limit, *grpc.limit, least, descriptors),
                 http.chosen && config.port >= 0 ? "max_connections" : "max_grpc_connections"};
  // Limits that nobody chose share what is left, in the proportion of their defaults.
  long left = descriptors - kReserve;
  long shares = 0;
  for (const Share* share : {&http, &grpc}) {
    if (share->chosen)
      left -= share->wanted();
    else
      shares += share->each * *share->limit;
  }
  if (shares <= left) return ok_status();
  for (const Share* share : {&http, &grpc}) {
    if (share->chosen) continue;
    // In doubles: the products of large limits stay exact enough.
    const double part = double(left) / double(shares);
    *share->limit = int(std::max(double(share->least), part * *share->limit));
  }
  // The least of one may have taken what the other needs.
  while (http.each * *http.limit + grpc.each * *grpc.limit > descriptors - kReserve) {
    const Share& shrinks = !http.chosen && *http.limit > http.least ? http : grpc;
    if (shrinks.chosen || *shrinks.limit <= shrinks.least) break;
    --*shrinks.limit;
  }
  log_warning(
      "this process may open {} file descriptors: at most {} HTTP and {} gRPC connections are "
      "accepted. Raise the limit (ulimit -n, LimitNOFILE=) for more",
      descriptors, *http.limit, *grpc.limit);
  return ok_status();
}

}  // namespace kivi
