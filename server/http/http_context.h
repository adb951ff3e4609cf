// SPDX-License-Identifier: Apache-2.0
// HttpContext: what all HTTP connections and handlers share.
#pragma once

#include <algorithm>
#include <atomic>
#include <boost/asio/thread_pool.hpp>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "engine/serving/completion.h"
#include "server/auth.h"
#include "server/body_budget.h"
#include "server/metrics.h"
#include "server/rate_limit.h"
#include "server/server_config.h"

namespace kivi {

enum class ServerPhase { loading, ready, draining };

// How many connections each client has open. A client is an address as tenant_of_address() counts
// it: an IPv4 address, or a /64 of IPv6. Any thread.
class ClientCounts {
 public:
  // `each_max`: beyond so many, connections of one client do not count for others.
  explicit ClientCounts(int each_max) : each_max_(each_max) {}

  void add(const std::string& client) {
    const std::lock_guard lock(mutex_);
    if (++counts_[client] <= each_max_) ++within_;
  }
  void remove(const std::string& client) {
    const std::lock_guard lock(mutex_);
    const auto it = counts_.find(client);
    if (--it->second < each_max_) --within_;
    if (it->second == 0) counts_.erase(it);
  }
  int each_max() const { return each_max_; }
  // Connections of all clients, of each at most each_max().
  int within() const {
    const std::lock_guard lock(mutex_);
    return within_;
  }
  int of(const std::string& client) const {
    const std::lock_guard lock(mutex_);
    const auto it = counts_.find(client);
    return it == counts_.end() ? 0 : it->second;
  }

 private:
  const int each_max_;
  mutable std::mutex mutex_;  // guards the two below
  std::map<std::string, int> counts_;
  int within_ = 0;
};

// Any thread.
class HttpContext {
 public:
  HttpContext(const ServerConfig& config, Metrics& metrics)
      : clients((config.max_connections + 1) / 2),
        config_(config),
        metrics_(metrics),
        keys_(config.api_keys),
        is_local_(is_loopback(config.host)),
        worker_(size_t(std::max(kMinWorkers, config.io_threads))) {}

  const ServerConfig& config() const { return config_; }
  Metrics& metrics() { return metrics_; }
  ApiKeys& keys() { return keys_; }
  // Is the listening address reached from this machine only?
  bool is_local() const { return is_local_; }
  RateLimiter& rate_limiter() { return *rate_limiter_; }
  // Shares the limits with another front end. Before the first connection.
  void set_rate_limiter(std::shared_ptr<RateLimiter> limiter) {
    rate_limiter_ = std::move(limiter);
  }

  ServerPhase phase() const { return phase_.load(std::memory_order_acquire); }
  // Null while loading. Once set it stays until the io threads have ended.
  const ServedModel* model() const { return model_.load(std::memory_order_acquire); }
  void set_model(const ServedModel& model) {
    model_.store(&model, std::memory_order_release);
    ServerPhase loading = ServerPhase::loading;  // a drain that came first stays
    phase_.compare_exchange_strong(loading, ServerPhase::ready);
  }
  void begin_drain() { phase_.store(ServerPhase::draining, std::memory_order_release); }

  // False while the server's own gRPC port does not answer: the server is not ready then.
  bool grpc_answers() const { return grpc_answers_.load(std::memory_order_relaxed); }
  void set_grpc_answers(bool answers) { grpc_answers_ = answers; }

  // Logs each unknown field's name once, the first few hundred of them.
  void note_unknown_fields(const std::vector<std::string>& names);

  // For work that would keep an io thread from its other connections (parsing and tokenizing long
  // prompts). It has more than one thread, so that one long body does not hold up all others.
  boost::asio::thread_pool& worker() { return worker_; }

  // Bytes of request bodies that are being read or used.
  BodyBudget& body_budget() { return *body_budget_; }
  // Shares the budget with another front end. Before the first connection.
  void set_body_budget(std::shared_ptr<BodyBudget> budget) { body_budget_ = std::move(budget); }

  // One client has at most half of the connections, so that it cannot keep all others out.
  ClientCounts clients;
  std::atomic<int> connections{0};  // open ones
  std::atomic<int> exchanges{0};    // requests whose header is in and whose reply is not out

 private:
  static constexpr int kMinWorkers = 2;

  const ServerConfig& config_;
  Metrics& metrics_;
  ApiKeys keys_;
  const bool is_local_;
  std::shared_ptr<RateLimiter> rate_limiter_ = RateLimiter::make(rate_limits_of(config_));
  std::atomic<ServerPhase> phase_{ServerPhase::loading};
  std::atomic<const ServedModel*> model_{nullptr};
  std::atomic<bool> grpc_answers_{true};
  boost::asio::thread_pool worker_;
  std::shared_ptr<BodyBudget> body_budget_ =
      std::make_shared<BodyBudget>(config_.max_body_bytes_in_flight);
  std::mutex mutex_;  // guards noted_
  std::set<std::string> noted_;
};

}  // namespace kivi
