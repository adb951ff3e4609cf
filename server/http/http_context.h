// HttpContext: what all HTTP connections and handlers share.
#pragma once

#include <atomic>
#include <boost/asio/thread_pool.hpp>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "engine/serving/completion.h"
#include "server/metrics.h"
#include "server/rate_limit.h"
#include "server/server_config.h"

namespace kivi {

enum class ServerPhase { loading, ready, draining };

// Any thread.
class HttpContext {
 public:
  HttpContext(const ServerConfig& config, Metrics& metrics) : config_(config), metrics_(metrics) {}

  const ServerConfig& config() const { return config_; }
  Metrics& metrics() { return metrics_; }
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

  // Logs each unknown field's name once, the first few hundred of them.
  void note_unknown_fields(const std::vector<std::string>& names);

  // For work that would keep an io thread from its other connections (tokenizing long prompts).
  boost::asio::thread_pool& worker() { return worker_; }

  std::atomic<int> connections{0};  // open ones
  std::atomic<int> exchanges{0};    // requests whose header is in and whose reply is not out

 private:
  const ServerConfig& config_;
  Metrics& metrics_;
  std::shared_ptr<RateLimiter> rate_limiter_ = RateLimiter::make(rate_limits_of(config_));
  std::atomic<ServerPhase> phase_{ServerPhase::loading};
  std::atomic<const ServedModel*> model_{nullptr};
  boost::asio::thread_pool worker_{1};
  std::mutex mutex_;  // guards noted_
  std::set<std::string> noted_;
};

}  // namespace kivi
