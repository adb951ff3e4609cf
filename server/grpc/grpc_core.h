// SPDX-License-Identifier: Apache-2.0
// GrpcCore: what all calls of a GrpcServer share: the model (once it is loaded), the limits, the
// metrics, the executor, and which calls are running.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "engine/serving/completion.h"
#include "server/auth.h"
#include "server/body_budget.h"
#include "server/grpc/grpc_executor.h"
#include "server/grpc/pending_reads.h"
#include "server/metrics.h"
#include "server/rate_limit.h"
#include "server/server_config.h"

namespace kivi {

class Generation;

// Any thread, all members.
class GrpcCore {
 public:
  GrpcCore(const ServerConfig& config, Metrics& metrics);
  ~GrpcCore();  // ends the executor before the rest goes

  // The model; error unavailable while it is loading and when the server drains.
  Result<const ServedModel*> model() const;
  // The model, also when draining; null while it is loading.
  const ServedModel* loaded_model() const { return model_.load(std::memory_order_acquire); }
  void set_model(const ServedModel& model) { model_.store(&model, std::memory_order_release); }

  bool draining() const { return draining_.load(std::memory_order_relaxed); }
  void begin_drain() { draining_.store(true, std::memory_order_relaxed); }

  // Running calls by request id (ids are the callers': several calls may have the same).
  void add(const std::string& request_id, const std::shared_ptr<Generation>& call);
  void remove(const std::string& request_id, const Generation* call);
  // Ends the calls of that id with finish_reason abort; how many there were.
  int abort(const std::string& request_id);
  int running() const;

  // Logs the first such warning; a client that sends one sends many.
  void warn_once(const std::string& message);

  const ServerConfig& config() const { return config_; }
  Metrics& metrics() { return metrics_; }
  ApiKeys& keys() { return keys_; }
  const ApiKeys& keys() const { return keys_; }
  GrpcExecutor& executor() { return executor_; }
  PendingReads& pending_reads() { return pending_reads_; }
  // Who finds the client of a connection's descriptor, and notes that it has shown a call that is
  // allowed. Before the first call.
  void set_judge(std::function<std::string(int descriptor)> judge) { judge_ = std::move(judge); }
  // The client's address of a gRPC peer that is named "fd:N". Any thread.
  std::string judge(const std::string& peer) const;

  RateLimiter& rate_limiter() { return *rate_limiter_; }
  // Shares the limits with another front end. Before the first call.
  void set_rate_limiter(std::shared_ptr<RateLimiter> limiter) {
    rate_limiter_ = std::move(limiter);
  }
  // Bytes of messages that have been read and belong to calls that go on.
  BodyBudget& body_budget() { return *body_budget_; }
  // Shares the budget with another front end. Before the first call.
  void set_body_budget(std::shared_ptr<BodyBudget> budget) { body_budget_ = std::move(budget); }
  Clock::time_point started() const { return started_; }

 private:
  const ServerConfig config_;
  Metrics& metrics_;
  ApiKeys keys_;
  std::function<std::string(int)> judge_;
  std::shared_ptr<RateLimiter> rate_limiter_ = RateLimiter::make(rate_limits_of(config_));
  std::shared_ptr<BodyBudget> body_budget_ =
      std::make_shared<BodyBudget>(config_.max_body_bytes_in_flight);
  const Clock::time_point started_ = Clock::now();
  std::atomic<const ServedModel*> model_{nullptr};
  std::atomic<bool> draining_{false};
  std::atomic<bool> warned_{false};
  mutable std::mutex mutex_;  // guards calls_
  std::multimap<std::string, std::weak_ptr<Generation>> calls_;
  GrpcExecutor executor_;
  PendingReads pending_reads_;
};

}  // namespace kivi
