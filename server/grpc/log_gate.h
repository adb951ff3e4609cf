// SPDX-License-Identifier: Apache-2.0
// Limits how often one kind of line is logged. For lines that strangers cause.
#pragma once

#include <atomic>
#include <chrono>

#include "engine/request.h"

namespace kivi {

class LogGate {
 public:
  // True at most once in ten seconds. Any thread.
  bool open() {
    const Clock::time_point now = Clock::now();
    Clock::time_point before = last_;
    return (before == Clock::time_point{} || now - before >= kInterval) &&
           last_.compare_exchange_strong(before, now);
  }

 private:
  static constexpr std::chrono::seconds kInterval{10};
  std::atomic<Clock::time_point> last_{};
};

}  // namespace kivi
