// SPDX-License-Identifier: Apache-2.0
// PendingReads holds the calls whose request message has not arrived yet. All have the same time
// limit. One timer serves them all, because most messages arrive at once.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>

#include "engine/request.h"
#include "server/grpc/grpc_executor.h"

namespace kivi {

// Any thread.
class PendingReads {
 public:
  // `executor` must be stopped before this object goes.
  PendingReads(GrpcExecutor& executor, std::chrono::milliseconds limit)
      : executor_(executor), limit_(limit) {}

  // Calls `late` on the executor after the limit, unless the ticket was removed before.
  uint64_t add(std::function<void()> late);
  // Returns false if `late` was called or is about to be called.
  bool remove(uint64_t ticket);

 private:
  struct Read {
    Clock::time_point until;
    std::function<void()> late;
  };
  void arm(Clock::time_point until);
  void sweep();

  GrpcExecutor& executor_;
  const std::chrono::milliseconds limit_;
  std::mutex mutex_;  // guards the rest
  std::map<uint64_t, Read> reads_;
  uint64_t next_ = 0;  // tickets grow, so the map is in the order of `until`
  bool armed_ = false;
};

}  // namespace kivi
