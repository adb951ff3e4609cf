// SPDX-License-Identifier: Apache-2.0
#include "server/server_state.h"

#include "base/log.h"
#include "server/json_writer.h"

namespace kivi {

ServerState::ServerState(const ServerConfig& config, Metrics& metrics)
    : config_(config),
      metrics_(metrics),
      keys_(config.api_keys),
      rate_limiter_(RateLimiter::make(rate_limits_of(config))),
      body_budget_(config.max_body_bytes_in_flight) {}

void ServerState::set_model(const ServedModel& model) {
  model_.store(&model, std::memory_order_release);
  ServerPhase loading = ServerPhase::loading;  // a drain that came first stays
  phase_.compare_exchange_strong(loading, ServerPhase::ready);
  if (changed_) changed_();
}

void ServerState::begin_leaving() {
  phase_.store(ServerPhase::leaving, std::memory_order_release);
  if (changed_) changed_();
}

void ServerState::begin_drain() {
  phase_.store(ServerPhase::draining, std::memory_order_release);
  if (changed_) changed_();
}

void ServerState::set_grpc_answers(bool answers) {
  grpc_answers_ = answers;
  if (changed_) changed_();
}

std::optional<ApiError> ServerState::admit(const std::string& tenant, RateLimiter::Permit& permit) {
  const auto over = rate_limiter_->admit(tenant, permit);
  if (!over) return std::nullopt;
  metrics_.admission_rejected("rate_limit");
  ApiError error{kRateLimited, over->message};
  error.retry_after = over->retry_after;
  return error;
}

void ServerState::note_unknown_fields(const std::vector<std::string>& names) {
  // Names are the clients' choice, and may be as long as a body.
  constexpr size_t kMaxNoted = 256, kShownBytes = 100;
  for (const std::string& name : names) {
    const std::string shown = name.substr(0, kShownBytes);
    {
      const std::lock_guard lock(mutex_);
      if (noted_.size() >= kMaxNoted || !noted_.insert(shown).second) continue;
    }
    std::string quoted;
    append_json_string(quoted, shown);
    log_warning("unknown request field {} is ignored (noted once)", quoted);
  }
}

}  // namespace kivi
