// SPDX-License-Identifier: Apache-2.0
// KernelTimer: how long one call of an op takes on a device, by the device's own clock.
#pragma once

#include <cstdint>
#include <functional>

#include "kernels/backend.h"

namespace kivi {

class KernelTimer {
 public:
  explicit KernelTimer(Backend& backend) : backend_(backend) {}

  // Seconds of one op(copy), where `copy` goes round [0, copies): a place in the rotating inputs.
  // On a device that records graphs the calls are recorded, at least 8 of them, and replayed; gaps
  // between launches count. The median of several samples.
  double seconds(int copies, const std::function<void(int copy)>& op);

  // The same for what may not be recorded (sampling): `calls` runs its op that many times and
  // leaves nothing behind; the host's part counts where it is not hidden.
  double seconds_unrecorded(const std::function<void(int calls)>& calls);

 private:
  double sample(const std::function<void()>& work, int times);

  Backend& backend_;
  uint64_t key_ = 0;  // of the last recording; none is used twice
  int next_ = 0;      // copy that comes next where nothing is recorded
};

}  // namespace kivi
