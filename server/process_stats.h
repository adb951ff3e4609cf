// SPDX-License-Identifier: Apache-2.0
// What the kernel says about this process, for the process_* metrics.
#pragma once

#include <cstdint>

namespace kivi {

struct ProcessStats {
  double cpu_seconds = 0;         // user + system
  double start_time_seconds = 0;  // unix time
  int64_t resident_bytes = 0;
  int64_t virtual_bytes = 0;
  int64_t open_fds = 0;
  int64_t max_fds = 0;
};

// Reads /proc; what cannot be read stays 0. Any thread.
ProcessStats read_process_stats();

}  // namespace kivi
