// SPDX-License-Identifier: Apache-2.0
// The percentile of a sample. All reports use this definition.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace kivi {

// Interpolates linearly between the closest ranks, as numpy.percentile does. `sorted` is ascending.
// Returns 0 if it is empty. `percent` is from 0 to 100.
inline double percentile(const std::vector<double>& sorted, double percent) {
  if (sorted.empty()) return 0;
  const double rank = percent / 100 * double(sorted.size() - 1);
  const auto low = size_t(std::floor(rank));
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (sorted[high] - sorted[low]) * (rank - double(low));
}

}  // namespace kivi
