// SPDX-License-Identifier: Apache-2.0
// GrpcListener: the listening socket of the gRPC front end. It accepts connections itself and hands
// their descriptors to the gRPC library, so that limits hold before the library sees a byte.
//
// Why not the library's own listener: version 1.51 never accepts again after the process ran out of
// file descriptors (CVE-2023-4785), and it has no limit of connections. It also takes any number of
// header bytes before it tells us of a call, in quadratic time (CVE-2023-33953). So a connection
// that has begun no call which judge() was told of may send 1 MiB and 64 KiB a second.
#pragma once

#include <sys/socket.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "base/result.h"

namespace kivi {

class GrpcListener {
 public:
  struct Options {
    std::string host;
    int port = 0;  // 0: any free port
    // Open ones. Beyond a limit, a connection that has begun no call makes room.
    int connections_max = 0;
    int connections_per_source = 0;  // of one IPv4 address, or of one /64 of IPv6
    // A connection ends when its peer has taken none of the bytes that wait for it for this long.
    std::chrono::seconds unread_limit{60};
  };
  // Takes over a connected descriptor: non-blocking, close-on-exec, without Nagle's delay. Whoever
  // takes it must call shutdown() on the socket before it closes the descriptor. `is_probe`: the
  // peer is the address that expect_probe() named. Called on one of a few threads of the listener,
  // because the library may read from the connection before it returns.
  using Take = std::function<void(int descriptor, bool is_probe)>;
  // A connection was closed because a limit was reached. Called on the listener's thread.
  using Refused = std::function<void()>;

  GrpcListener();
  ~GrpcListener();  // stop()
  GrpcListener(const GrpcListener&) = delete;
  GrpcListener& operator=(const GrpcListener&) = delete;

  // Binds and listens. Error invalid, with field grpc_port, where the address cannot be had.
  Status listen(const Options& options);
  // Starts to accept; after listen().
  void start(Take take, Refused refused);
  // Closes the listening socket and joins the thread. Connections stay with their takers.
  void stop();

  // The bound address, after listen().
  const sockaddr_storage& address() const;
  int port() const;
  // Open connections, without the probe's. Any thread.
  int connections() const;
  // The next connection from exactly this address is the server's own probe: no limit holds for it.
  // Any thread.
  void expect_probe(const sockaddr_storage& address);
  // The headers of a call are in order, on the connection that `descriptor` was handed out for:
  // its bytes are not counted any more. Returns the client's address, without its port; "" where
  // the descriptor is none of the listener's. Any thread.
  std::string judge(int descriptor);
  // From now on `plain` stands for `descriptor` in judge(): a relay speaks TLS between them. Any
  // thread.
  void relayed(int descriptor, int plain);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The port of an IPv4 or IPv6 address.
int port_of(const sockaddr_storage& address);

}  // namespace kivi
