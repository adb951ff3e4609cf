// SPDX-License-Identifier: Apache-2.0
// RunningRate: how much of something was done in a second lately. It is the ratio of two sums, so
// large pieces of work count more than small ones.
#pragma once

#include <cmath>

namespace kivi {

class RunningRate {
 public:
  // Adds `amount` of work that took `seconds`. Earlier work loses weight: after kMemorySeconds of
  // work, it counts 1 / e of what it did.
  void add(double amount, double seconds) {
    if (amount <= 0 || seconds <= 0) return;
    const double kept = std::exp(-seconds / kMemorySeconds);
    amount_ = kept * amount_ + amount;
    seconds_ = kept * seconds_ + seconds;
  }
  double per_second() const { return seconds_ > 0 ? amount_ / seconds_ : 0; }  // 0: not known

 private:
  static constexpr double kMemorySeconds = 10;
  double amount_ = 0;
  double seconds_ = 0;
};

}  // namespace kivi
