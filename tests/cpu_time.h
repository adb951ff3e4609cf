// SPDX-License-Identifier: Apache-2.0
// CPU time: what a bound on time is held against, so that a busy machine breaks no test.
#pragma once

#include <time.h>

namespace kivi {

// Seconds that this thread has computed.
inline double cpu_seconds() {
  timespec now = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return double(now.tv_sec) + double(now.tv_nsec) * 1e-9;
}

}  // namespace kivi
