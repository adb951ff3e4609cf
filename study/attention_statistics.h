// SPDX-License-Identifier: Apache-2.0
// Computes the attention probabilities of one layer and sequence on the host: how sparse they are,
// and how far simulated keys move them. It is a plain loop over every kRowStride-th query, which is
// enough for means.
#pragma once

#include <span>
#include <vector>

#include "study/kv_quantizer.h"

namespace kivi {

// The queries of one sequence. The first one is at position 0.
struct QueryRows {
  int tokens = 0, heads = 0, head_dim = 0;
  std::vector<float> data;  // [tokens, heads, head_dim]
  float scale = 1;          // of q . k
  int window = 0;           // sliding window, 0: none
};

inline constexpr int kRowStride = 8;  // queries at positions 7, 15, 23, ...

// Returns softmax(q K^T scale) of the query at `token` in `head`, over the tokens that the query
// sees, oldest first. Its KV head is head / (heads / keys.heads).
std::vector<float> probabilities(const QueryRows& q, const KvRows& keys, int head, int token);

// Sums over rows. Divide them by `rows` for means.
struct SparsitySums {
  AttentionSparsity sums;
  int64_t rows = 0;
  void add(std::span<const float> row);
};

// Returns the sum over query heads of ||A' - A|| / ||A||, for each of `simulations` of the keys.
// Also adds every row of A that sees enough tokens to `sparsity`.
std::vector<double> score_errors(const QueryRows& q, const KvRows& keys,
                                 std::span<const KvRows> simulations, SparsitySums& sparsity);

}  // namespace kivi
