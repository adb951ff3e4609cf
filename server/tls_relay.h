// SPDX-License-Identifier: Apache-2.0
// TlsRelay speaks TLS with clients and plain bytes with a front end. For each connection it makes a
// pair of sockets inside the process. The front end uses one of them as if it were its client.
//
// Why not TLS inside the front ends: gRPC's own TLS needs gRPC's own listener, which never accepts
// again after descriptors ran out. And HTTP connections stay free of TLS's hidden buffers.
#pragma once

#include <chrono>
#include <functional>
#include <memory>

#include "server/tls_certificates.h"

namespace kivi {

class TlsRelay {
 public:
  struct Options {
    int threads = 1;
    int connections_max = 0;  // handshakes under way and relayed connections together
    std::chrono::seconds handshake_timeout{20};
  };
  // Receives the socket of a pair that is for the front end: a non-blocking, close-on-exec stream
  // socket. Called once the handshake is done, on one of the threads of the relay.
  using Take = std::function<void(int descriptor)>;

  // `certificates` outlives the relay.
  TlsRelay(const TlsCertificates& certificates, const Options& options);
  ~TlsRelay();  // stop()
  TlsRelay(const TlsRelay&) = delete;
  TlsRelay& operator=(const TlsRelay&) = delete;

  // Serves the non-blocking TCP socket of a client, and owns it. A connection beyond the limit is
  // closed at once. Any thread.
  void serve(int descriptor, Take take);
  // Once this has returned, no Take is called any more. Open connections continue.
  void stop_accepting();
  // Closes all connections and joins the threads. No serve() may run at the same time or follow.
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kivi
