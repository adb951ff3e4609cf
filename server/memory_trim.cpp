// SPDX-License-Identifier: Apache-2.0
#include "server/memory_trim.h"

#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>

#include "base/log.h"
#include "server/process_stats.h"

namespace kivi {
namespace {

constexpr std::chrono::seconds kInterval{10};
// Resident memory above the least that was seen; below this, a trim is not worth its page faults.
constexpr int64_t kWorthwhileBytes = 32 << 20;
// A trim that gives back less than this makes the next one rarer: the memory is in use.
constexpr int64_t kLittleBytes = 4 << 20;
constexpr int kMaxPause = 60;  // intervals

int64_t resident_bytes() { return read_process_stats().resident_bytes; }

void run(const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any ended;
  std::unique_lock lock(mutex);
  int64_t least = resident_bytes();
  int pause = 1;  // intervals between two trims
  for (int left = 0;; --left) {
    ended.wait_for(lock, stop, kInterval, [] { return false; });
    if (stop.stop_requested()) return;
    const int64_t before = resident_bytes();
    least = std::min(least, before);
    if (before - least < kWorthwhileBytes) {
      pause = 1;
      left = 0;
      continue;
    }
    if (left > 0) continue;
    malloc_trim(0);
    const int64_t freed = before - resident_bytes();
    log_debug("memory trim: {} bytes went back to the system", freed);
    pause = freed < kLittleBytes ? std::min(2 * pause, kMaxPause) : 1;
    left = pause;
  }
}

}  // namespace

MemoryTrim::MemoryTrim() : thread_([](const std::stop_token& stop) { run(stop); }) {}

}  // namespace kivi
