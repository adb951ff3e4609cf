// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/pending_reads.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace kivi {

uint64_t PendingReads::add(std::function<void()> late) {
  const std::lock_guard lock(mutex_);
  const Clock::time_point until = Clock::now() + limit_;
  reads_.emplace_hint(reads_.end(), next_, Read{until, std::move(late)});
  if (!std::exchange(armed_, true)) arm(until);
  return next_++;
}

bool PendingReads::remove(uint64_t ticket) {
  std::function<void()> dropped;  // destroyed without the lock
  const std::lock_guard lock(mutex_);
  const auto it = reads_.find(ticket);
  if (it == reads_.end()) return false;
  dropped = std::move(it->second.late);
  reads_.erase(it);
  return true;
}

void PendingReads::arm(Clock::time_point until) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now());
  executor_.after(std::max(left, std::chrono::milliseconds(1)), [this] { sweep(); });
}

void PendingReads::sweep() {
  std::vector<std::function<void()>> late;
  {
    const std::lock_guard lock(mutex_);
    const Clock::time_point now = Clock::now();
    while (!reads_.empty() && reads_.begin()->second.until <= now) {
      late.push_back(std::move(reads_.begin()->second.late));
      reads_.erase(reads_.begin());
    }
    armed_ = !reads_.empty();
    if (armed_) arm(reads_.begin()->second.until);
  }
  for (const auto& call : late) call();
}

}  // namespace kivi
