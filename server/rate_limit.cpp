// SPDX-License-Identifier: Apache-2.0
#include "server/rate_limit.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace kivi {
namespace {

// A bucket that has waited exactly long enough may lack this much, because its level is rounded.
constexpr double kRounding = 1e-6;

bool holds_one(double level) { return level >= 1 - kRounding; }

// Seconds until a bucket at `level` holds one again.
int seconds_until_one(double level, double per_minute) {
  const double seconds = std::ceil((1 - kRounding - level) * 60 / per_minute);
  return int(std::clamp(seconds, 1.0, 86400.0));
}

}  // namespace

RateLimits rate_limits_of(const ServerConfig& config) {
  return {config.limit_requests_per_minute, config.limit_tokens_per_minute,
          config.limit_concurrent_requests};
}

std::shared_ptr<RateLimiter> RateLimiter::make(const RateLimits& limits, ClockFunction clock,
                                               size_t tenants_max) {
  return std::shared_ptr<RateLimiter>(new RateLimiter(limits, std::move(clock), tenants_max));
}

RateLimiter::RateLimiter(const RateLimits& limits, ClockFunction clock, size_t tenants_max)
    : limits_(limits), clock_(std::move(clock)), tenants_max_(std::max<size_t>(1, tenants_max)) {}

std::optional<RateRefusal> RateLimiter::admit(const std::string& tenant, Permit& permit) {
  permit.reset();
  if (!limits_.any()) return std::nullopt;
  {
    const std::lock_guard lock(mutex_);
    Account* account = account_of(tenant, clock_());
    if (account == nullptr)
      return RateRefusal{
          fmt::format("{} clients are being served, which is the most that the "
                      "server keeps account of",
                      tenants_max_)};
    if (auto refusal = judge(*account)) return refusal;
    account->requests -= 1;
    ++account->running;
  }
  permit.limiter_ = weak_from_this();
  permit.tenant_ = tenant;
  return std::nullopt;
}

size_t RateLimiter::tenants() const {
  const std::lock_guard lock(mutex_);
  return accounts_.size();
}

std::optional<RateRefusal> RateLimiter::judge(const Account& account) const {
  if (limits_.concurrent_requests > 0 && account.running >= limits_.concurrent_requests)
    return RateRefusal{fmt::format("{} requests of this key or address are running, at most {} may",
                                   account.running, limits_.concurrent_requests)};
  if (limits_.requests_per_minute > 0 && !holds_one(account.requests))
    return RateRefusal{fmt::format("this key or address has sent its {} requests of this minute",
                                   limits_.requests_per_minute),
                       seconds_until_one(account.requests, limits_.requests_per_minute)};
  if (limits_.tokens_per_minute > 0 && !holds_one(account.tokens))
    return RateRefusal{fmt::format("this key or address has used its {} tokens of this minute",
                                   limits_.tokens_per_minute),
                       seconds_until_one(account.tokens, double(limits_.tokens_per_minute))};
  return std::nullopt;
}

RateLimiter::Account* RateLimiter::account_of(const std::string& tenant, Clock::time_point now) {
  auto found = accounts_.find(tenant);
  if (found == accounts_.end()) {
    if (accounts_.size() >= tenants_max_ && !forget_one()) return nullptr;
    recency_.push_front(tenant);
    found = accounts_
                .emplace(tenant, Account{recency_.begin(), now, double(limits_.requests_per_minute),
                                         double(limits_.tokens_per_minute)})
                .first;
  }
  Account& account = found->second;
  recency_.splice(recency_.begin(), recency_, account.recency);
  fill(account, now);
  return &account;
}

void RateLimiter::fill(Account& account, Clock::time_point now) const {
  const double minutes = std::chrono::duration<double>(now - account.updated).count() / 60;
  if (minutes <= 0) return;
  account.updated = now;
  const auto filled = [minutes](double level, double per_minute) {
    return std::min(per_minute, level + minutes * per_minute);
  };
  account.requests = filled(account.requests, limits_.requests_per_minute);
  account.tokens = filled(account.tokens, double(limits_.tokens_per_minute));
}

// Forgets the tenant seen least recently that has no running request; false if there is none.
bool RateLimiter::forget_one() {
  for (auto it = recency_.rbegin(); it != recency_.rend(); ++it) {
    const auto account = accounts_.find(*it);
    if (account->second.running > 0) continue;
    recency_.erase(account->second.recency);
    accounts_.erase(account);
    return true;
  }
  return false;
}

void RateLimiter::take_tokens(const std::string& tenant, int64_t tokens) {
  const std::lock_guard lock(mutex_);
  const auto found = accounts_.find(tenant);  // it is there while a request of it runs
  if (found == accounts_.end()) return;
  fill(found->second, clock_());
  found->second.tokens -= double(tokens);
}

void RateLimiter::end(const std::string& tenant) {
  const std::lock_guard lock(mutex_);
  if (const auto found = accounts_.find(tenant); found != accounts_.end()) --found->second.running;
}

RateLimiter::Permit& RateLimiter::Permit::operator=(Permit&& other) noexcept {
  if (this == &other) return *this;
  reset();
  limiter_ = std::exchange(other.limiter_, {});
  tenant_ = std::exchange(other.tenant_, {});
  used_ = std::exchange(other.used_, 0);
  return *this;
}

void RateLimiter::Permit::used(int64_t tokens) {
  if (tokens <= used_) return;
  if (const auto limiter = limiter_.lock()) limiter->take_tokens(tenant_, tokens - used_);
  used_ = tokens;
}

void RateLimiter::Permit::reset() {
  if (const auto limiter = std::exchange(limiter_, {}).lock()) limiter->end(tenant_);
  used_ = 0;
}

}  // namespace kivi
