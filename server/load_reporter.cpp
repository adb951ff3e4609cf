// SPDX-License-Identifier: Apache-2.0
#include "server/load_reporter.h"

#include <fmt/format.h>

#include <cstdio>

#include "base/log.h"

namespace kivi {

std::string LoadReporter::line() const {
  const double seconds = std::chrono::duration<double>(Clock::now() - started_).count();
  return fmt::format("{}: {:.1f} of {:.1f} MB, {:.2f} GB/s, {:.2f} s", phase_, double(done_) / 1e6,
                     double(total_) / 1e6, seconds > 0 ? double(done_) / 1e9 / seconds : 0,
                     seconds);
}

void LoadReporter::progress(const std::string& phase, int64_t done, int64_t total) {
  const Clock::time_point now = Clock::now();
  if (phase != phase_) {
    finish();
    phase_ = phase;
    started_ = shown_ = now;
  }
  done_ = done;
  total_ = total;
  const auto pause = terminal_ ? std::chrono::milliseconds(100) : std::chrono::milliseconds(5000);
  if (now - shown_ < pause) return;
  shown_ = now;
  if (terminal_)
    fmt::print(stderr, "\r\x1b[K{}", line());
  else
    log_info("{}", line());
}

void LoadReporter::finish() {
  if (phase_.empty()) return;
  if (terminal_) fmt::print(stderr, "\r\x1b[K");
  log_info("{}", line());
  phase_.clear();
}

}  // namespace kivi
