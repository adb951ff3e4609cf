// SPDX-License-Identifier: Apache-2.0
// GrpcServer is the gRPC front end (proto/kivi/v1/kivi.proto), with health checking and reflection.
// It may start before the model is loaded; until then calls end with UNAVAILABLE.
#pragma once

#include <memory>

#include "base/result.h"
#include "server/server_state.h"

namespace kivi {

class GrpcServer {
 public:
  // `state` outlives the server. The engine's notifications are posted to the server's executor:
  // the engine must be gone before the destructor, and must still be there for stop().
  explicit GrpcServer(ServerState& state);
  ~GrpcServer();  // stop()
  GrpcServer(const GrpcServer&) = delete;
  GrpcServer& operator=(const GrpcServer&) = delete;

  // Listens on host:grpc_port. Health: NOT_SERVING. Error invalid, with field grpc_port, where the
  // address cannot be had. The server asks its own port every few seconds whether it still answers
  // (GrpcProbe), and tells `state`. Health is SERVING while the state is ready and the port
  // answers.
  Status start();
  // Any thread, after start(): reads the certificates again, for connections that come later. On an
  // error the old ones stay. Nothing happens without TLS.
  Status reload_certificates();
  // The bound port, after start().
  int port() const;

  // Calls of Generate and Complete that are running.
  int running() const;
  // Cancels what is left and returns when all is gone. Not from a call's thread.
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kivi
