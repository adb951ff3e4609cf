// SPDX-License-Identifier: Apache-2.0
// Attention probabilities of one layer and sequence on the host: how sparse they are, and how far
// simulated keys move them. A plain loop: every kRowStride-th query is enough for means.
#pragma once

#include <span>
#include <vector>

#include "study/kv_quantizer.h"

namespace kivi {

// Queries of one sequence that begins at position 0.
struct QueryRows {
  int tokens = 0, heads = 0, head_dim = 0;
  std::vector<float> data;  // [tokens, heads, head_dim]
  float scale = 1;          // of q . k
  int window = 0;           // sliding window, 0: none
};

inline constexpr int kRowStride = 8;  // queries at positions 7, 15, 23, ...

// softmax(q K^T scale) of the query at `token` in `head`, over the tokens that it sees, oldest
// first. KV head: head / (heads / keys.heads).
std::vector<float> probabilities(const QueryRows& q, const KvRows& keys, int head, int token);

// Sums over rows; divide by `rows`.
struct SparsitySums {
  AttentionSparsity sums;
  int64_t rows = 0;
  void add(std::span<const float> row);
};

// ||A' - A|| / ||A|| for each of `simulations` of the keys: the sum over query heads. Also adds
// every row of A that sees enough tokens to `sparsity`.
std::vector<double> score_errors(const QueryRows& q, const KvRows& keys,
                                 std::span<const KvRows> simulations, SparsitySums& sparsity);

}  // namespace kivi
