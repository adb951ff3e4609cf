// SPDX-License-Identifier: Apache-2.0
// Shows the progress of loading: one log line a phase with its time and rate; in between, a line
// that rewrites itself on a terminal, or a log line every few seconds elsewhere.
#pragma once

#include <cstdint>
#include <string>

#include "engine/request.h"

namespace kivi {

// One thread.
class LoadReporter {
 public:
  explicit LoadReporter(bool terminal) : terminal_(terminal) {}
  // As LoadProgress: bytes.
  void progress(const std::string& phase, int64_t done, int64_t total);
  // The phase in progress, if any, has ended.
  void finish();

 private:
  std::string line() const;

  const bool terminal_;
  std::string phase_;
  Clock::time_point started_, shown_;
  int64_t done_ = 0, total_ = 0;
};

}  // namespace kivi
