// SPDX-License-Identifier: Apache-2.0
// Divides a budget of bytes among the layers of a cache: which choice each layer gets so that the
// sum of costs is least.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"

namespace kivi {

// What a layer may get.
struct LayerChoice {
  int64_t bytes = 0;
  double cost = 0;  // at least 0
};

// Returns the index of one choice for each layer. Of all selections of at most `budget` bytes it
// has the least cost, and of those the fewest bytes. Exact: a knapsack with one item of each layer,
// solved over the sums of bytes that are reached, of which there are few if the choices' bytes are
// multiples of a few numbers. Error invalid, with the bytes, if even the smallest choices exceed
// the budget.
Result<std::vector<int>> spend_budget(std::span<const std::vector<LayerChoice>> layers,
                                      int64_t budget);

}  // namespace kivi
