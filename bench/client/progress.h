// SPDX-License-Identifier: Apache-2.0
// A progress bar on standard error, where that is a terminal.
#pragma once

#include <string>

#include "bench/client/client.h"

namespace kivi::load {

class ProgressBar {
 public:
  // `total`: requests of the run. Draws nothing if !enabled or if standard error is no terminal.
  ProgressBar(std::string label, size_t total, bool enabled);
  ~ProgressBar();  // removes the bar
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void show(const RunState& state);

  // The bar's line for a run that is `seconds` old.
  static std::string line(const std::string& label, size_t total, int64_t started, int64_t ended,
                          int64_t failed, int64_t tokens, double seconds);

 private:
  const std::string label_;
  const size_t total_;
  const bool enabled_;
};

}  // namespace kivi::load
