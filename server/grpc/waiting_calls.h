// SPDX-License-Identifier: Apache-2.0
// WaitingCalls holds the calls that wait for their client: for its request message, or until it has
// read a reply. Each has a time limit. One timer serves them all, because most clients are quick.
#pragma once

#include <chrono>
#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>

#include "engine/request.h"
#include "server/grpc/grpc_executor.h"

namespace kivi {

// Any thread.
class WaitingCalls {
 public:
  struct Ticket {
    Clock::time_point until;
    uint64_t number = 0;
    auto operator<=>(const Ticket&) const = default;
  };

  // `executor` must be stopped before this object goes.
  explicit WaitingCalls(GrpcExecutor& executor) : executor_(executor) {}

  // Calls `late` on the executor after `limit`, unless the ticket was removed before.
  Ticket add(std::chrono::milliseconds limit, std::function<void()> late);
  // Returns false if `late` was called or is about to be called.
  bool remove(const Ticket& ticket);

 private:
  void arm(Clock::time_point until);
  void sweep(Clock::time_point armed_for);

  GrpcExecutor& executor_;
  std::mutex mutex_;  // guards the rest
  std::map<Ticket, std::function<void()>> calls_;
  uint64_t next_ = 0;
  Clock::time_point armed_until_ = Clock::time_point::max();  // of the earliest timer
};

}  // namespace kivi
