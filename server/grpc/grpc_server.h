// SPDX-License-Identifier: Apache-2.0
// GrpcServer: the gRPC front end (proto/kivi/v1/kivi.proto), with health checking and reflection.
// It may start before the model is loaded: calls then end with UNAVAILABLE.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/serving/completion.h"
#include "server/body_budget.h"
#include "server/metrics.h"
#include "server/rate_limit.h"
#include "server/server_config.h"

namespace kivi {

class GrpcServer {
 public:
  // `metrics` outlives the server. The engine's notifications are posted to the server's executor:
  // the engine must be gone before the destructor, and must still be there for stop().
  GrpcServer(const ServerConfig& config, Metrics& metrics);
  ~GrpcServer();  // stop()
  GrpcServer(const GrpcServer&) = delete;
  GrpcServer& operator=(const GrpcServer&) = delete;

  // Shares the rate limits with the other front end. Before start().
  void set_rate_limiter(std::shared_ptr<RateLimiter> limiter);

  // Shares the bytes of bodies in flight with the other front end. Before start().
  void set_body_budget(std::shared_ptr<BodyBudget> budget);

  // Listens on host:grpc_port. Health: NOT_SERVING. Error invalid, with field grpc_port, where the
  // address cannot be had. The server asks its own port every few seconds whether it still answers
  // (GrpcProbe); a change is told to `answers_changed`, on a thread of the server's own.
  Status start(std::function<void(bool answers)> answers_changed = {});
  // Any thread, after start(): reads the certificates again, for connections that come later. On an
  // error the old ones stay. Nothing happens without TLS.
  Status reload_certificates();
  // The bound port, after start().
  int port() const;

  // Any thread, once: calls are answered from now on. Health: SERVING. `model` must live until
  // stop() has returned.
  void set_model(const ServedModel& model);
  // Any thread: what health checks say, for a server that is paused.
  void set_serving(bool serving);

  // Any thread: from now on these API keys count.
  void set_api_keys(const std::vector<std::string>& keys);
  // Any thread: new calls end with UNAVAILABLE, running ones go on. Health: NOT_SERVING.
  void begin_drain();
  // Calls of Generate and Complete that are running.
  int running() const;
  // Cancels what is left and returns when all is gone. Not from a call's thread.
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kivi
