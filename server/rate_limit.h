// SPDX-License-Identifier: Apache-2.0
// RateLimiter: limits per tenant (tenant.h) of requests a minute, tokens a minute and requests at
// once. Both front ends share one, so that a key cannot have twice its share by speaking both.
//
// A limit per minute is a token bucket that holds the amount of one minute and fills evenly. A
// request takes one from the bucket of requests. How many tokens a request uses is known only when
// they have been computed. So a request is admitted if the bucket of tokens is not empty, and its
// tokens are taken as it uses them. The bucket may go below zero. Then its tenant waits until it is
// above zero again.
//
// At most `tenants_max` tenants are remembered. Beyond them, the tenant that was seen least
// recently and has no running request is forgotten. It would begin again with full buckets.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

#include "engine/request.h"
#include "server/server_config.h"

namespace kivi {

struct RateLimits {
  int requests_per_minute = 0;  // 0 is off, for all three
  int64_t tokens_per_minute = 0;
  int concurrent_requests = 0;

  bool any() const {
    return requests_per_minute > 0 || tokens_per_minute > 0 || concurrent_requests > 0;
  }
};

// Why a request is refused, and the seconds after which it may be sent again (at least 1).
struct RateRefusal {
  std::string message;
  int retry_after = 1;
};

class RateLimiter : public std::enable_shared_from_this<RateLimiter> {
 public:
  static constexpr size_t kTenantsMax = 65536;
  using ClockFunction = std::function<Clock::time_point()>;

  // A request that was admitted. It counts as running until this object is destroyed or reset. One
  // thread at a time may use it. It may outlive the limiter.
  class Permit {
   public:
    Permit() = default;
    Permit(Permit&& other) noexcept { *this = std::move(other); }
    Permit& operator=(Permit&& other) noexcept;
    ~Permit() { reset(); }

    // Sets how many tokens of prompt and output the request has used since its beginning.
    void used(int64_t tokens);
    void reset();

   private:
    friend class RateLimiter;
    std::weak_ptr<RateLimiter> limiter_;
    std::string tenant_;
    int64_t used_ = 0;
  };

  static std::shared_ptr<RateLimiter> make(const RateLimits& limits,
                                           ClockFunction clock = Clock::now,
                                           size_t tenants_max = kTenantsMax);

  // Admits a request of `tenant` and fills in its permit, or says why not. Any thread.
  std::optional<RateRefusal> admit(const std::string& tenant, Permit& permit);
  size_t tenants() const;

 private:
  // A level is never above what the bucket holds. It is brought up to date when it is looked at.
  struct Account {
    std::list<std::string>::iterator recency;
    Clock::time_point updated;
    double requests = 0;
    double tokens = 0;
    int running = 0;
  };
  using Accounts = std::unordered_map<std::string, Account>;

  RateLimiter(const RateLimits& limits, ClockFunction clock, size_t tenants_max);
  Account* account_of(const std::string& tenant, Clock::time_point now);
  void fill(Account& account, Clock::time_point now) const;
  std::optional<RateRefusal> judge(const Account& account) const;
  bool forget_one();
  void take_tokens(const std::string& tenant, int64_t tokens);
  void end(const std::string& tenant);

  const RateLimits limits_;
  const ClockFunction clock_;
  const size_t tenants_max_;
  mutable std::mutex mutex_;  // guards all below
  Accounts accounts_;
  std::list<std::string> recency_;  // tenants, the one seen last in front
};

RateLimits rate_limits_of(const ServerConfig& config);

}  // namespace kivi
