// SPDX-License-Identifier: Apache-2.0
// GrpcProbe: asks the server's own gRPC port every few seconds whether it still answers, so that
// readiness says so when it does not.
#pragma once

#include <functional>
#include <memory>

#include "server/grpc/grpc_listener.h"

namespace kivi {

class GrpcProbe {
 public:
  // Called on the probe's thread when the answer changes. At first the port counts as answering.
  using Changed = std::function<void(bool answers)>;

  // `listener` listens, and outlives the probe.
  GrpcProbe(GrpcListener& listener, Changed changed);
  ~GrpcProbe();  // ends the thread; takes two seconds at most
  GrpcProbe(const GrpcProbe&) = delete;
  GrpcProbe& operator=(const GrpcProbe&) = delete;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// One call of grpc.health.v1.Health/Check over a connection of its own. True where the reply's
// headers came within two seconds, whatever they say.
bool probe_once(GrpcListener& listener);

}  // namespace kivi
