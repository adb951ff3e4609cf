// SPDX-License-Identifier: Apache-2.0
// ServerState: what both front ends share: the configuration, the model once it is loaded, the
// phase of the server's life, API keys, limits and metrics.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "engine/serving/completion.h"
#include "server/api_error.h"
#include "server/auth.h"
#include "server/body_budget.h"
#include "server/metrics.h"
#include "server/rate_limit.h"
#include "server/server_config.h"

namespace kivi {

// In this order. A server that is leaving tells everybody to go elsewhere and still takes work; one
// that drains takes none.
enum class ServerPhase { loading, ready, leaving, draining };

class SpanExporter;

// Any thread. Outlives the front ends.
class ServerState {
 public:
  ServerState(const ServerConfig& config, Metrics& metrics);
  ServerState(const ServerState&) = delete;
  ServerState& operator=(const ServerState&) = delete;

  const ServerConfig& config() const { return config_; }
  Metrics& metrics() { return metrics_; }
  ApiKeys& keys() { return keys_; }
  RateLimiter& rate_limiter() { return *rate_limiter_; }
  // Bytes of the request bodies and messages that both front ends are reading or using.
  BodyBudget& body_budget() { return body_budget_; }
  Clock::time_point started() const { return started_; }

  ServerPhase phase() const { return phase_.load(std::memory_order_acquire); }
  bool draining() const { return phase() == ServerPhase::draining; }
  bool leaving_or_draining() const { return phase() >= ServerPhase::leaving; }
  // Null while the model is loading. Once set it stays until the front ends have stopped.
  const ServedModel* model() const { return model_.load(std::memory_order_acquire); }
  void set_model(const ServedModel& model);
  // Health says draining from now on, and connections end with their next reply. New work is taken.
  void begin_leaving();
  // New work is refused from now on; what runs goes on.
  void begin_drain();

  // False while the server's own gRPC port does not answer its probes: the server is not ready
  // then.
  bool grpc_answers() const { return grpc_answers_.load(std::memory_order_relaxed); }
  void set_grpc_answers(bool answers);

  // Calls `changed` after every change of phase or answers, on the thread that made it. Before the
  // server starts.
  void on_change(std::function<void()> changed) { changed_ = std::move(changed); }

  // Where the spans of requests go; null = nowhere. Set it before the server starts.
  SpanExporter* span_exporter() const { return span_exporter_; }
  void set_span_exporter(SpanExporter* exporter) { span_exporter_ = exporter; }

  // The admission of new work of `tenant`: fills in its permit, or counts the refusal and returns
  // it.
  std::optional<ApiError> admit(const std::string& tenant, RateLimiter::Permit& permit);

  // Logs each unknown field of requests once, the first few hundred of them.
  void note_unknown_fields(const std::vector<std::string>& names);

 private:
  const ServerConfig config_;
  Metrics& metrics_;
  ApiKeys keys_;
  const std::shared_ptr<RateLimiter> rate_limiter_;
  BodyBudget body_budget_;
  const Clock::time_point started_ = Clock::now();
  std::atomic<ServerPhase> phase_{ServerPhase::loading};
  std::atomic<const ServedModel*> model_{nullptr};
  std::atomic<bool> grpc_answers_{true};
  std::function<void()> changed_;
  SpanExporter* span_exporter_ = nullptr;
  std::mutex mutex_;  // guards noted_
  std::set<std::string> noted_;
};

}  // namespace kivi
