// SPDX-License-Identifier: Apache-2.0
#include "bench/client/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace kivi::load {

ProgressBar::ProgressBar(std::string label, size_t total, bool enabled)
    : label_(std::move(label)), total_(total), enabled_(enabled && isatty(STDERR_FILENO) == 1) {}

ProgressBar::~ProgressBar() {
  if (enabled_) fmt::print(stderr, "\r\033[K");
}

std::string ProgressBar::line(const std::string& label, size_t total, int64_t started,
                              int64_t ended, int64_t failed, int64_t tokens, double seconds) {
  constexpr size_t kWidth = 30;
  const size_t full = total == 0 ? kWidth : std::min(kWidth, size_t(ended) * kWidth / total);
  std::string bar;
  for (size_t i = 0; i < kWidth; ++i) bar += i < full ? "█" : "░";
  std::string text =
      fmt::format("{} {} {}/{}, {} in flight, {:.0f} tokens/s, {:.0f} s", label, bar, ended, total,
                  started - ended, double(tokens) / std::max(seconds, 1e-3), seconds);
  if (failed > 0) text += fmt::format(", {} failed", failed);
  return text;
}

void ProgressBar::show(const RunState& state) {
  if (!enabled_) return;
  fmt::print(
      stderr, "\r\033[K{}",
      line(label_, total_, state.started, state.ended, state.failed, state.tokens, state.now()));
  std::fflush(stderr);
}

}  // namespace kivi::load
