// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/waiting_calls.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace kivi {

WaitingCalls::Ticket WaitingCalls::add(std::chrono::milliseconds limit,
                                       std::function<void()> late) {
  const std::lock_guard lock(mutex_);
  const Ticket ticket{Clock::now() + limit, next_++};
  calls_.emplace_hint(calls_.end(), ticket, std::move(late));
  if (ticket.until < armed_until_) arm(ticket.until);
  return ticket;
}

bool WaitingCalls::remove(const Ticket& ticket) {
  std::function<void()> dropped;  // destroyed without the lock
  const std::lock_guard lock(mutex_);
  const auto it = calls_.find(ticket);
  if (it == calls_.end()) return false;
  dropped = std::move(it->second);
  calls_.erase(it);
  return true;
}

void WaitingCalls::arm(Clock::time_point until) {
  armed_until_ = until;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now());
  executor_.after(std::max(left, std::chrono::milliseconds(1)), [this, until] { sweep(until); });
}

void WaitingCalls::sweep(Clock::time_point armed_for) {
  std::vector<std::function<void()>> late;
  {
    const std::lock_guard lock(mutex_);
    const Clock::time_point now = Clock::now();
    while (!calls_.empty() && calls_.begin()->first.until <= now) {
      late.push_back(std::move(calls_.begin()->second));
      calls_.erase(calls_.begin());
    }
    // A timer that an earlier one has replaced ends here.
    if (armed_for == armed_until_) {
      armed_until_ = Clock::time_point::max();
      if (!calls_.empty()) arm(calls_.begin()->first.until);
    }
  }
  for (const auto& call : late) call();
}

}  // namespace kivi
