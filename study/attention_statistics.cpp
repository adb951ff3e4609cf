// SPDX-License-Identifier: Apache-2.0
#include "study/attention_statistics.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace kivi {

namespace {

// Keys of one KV head as [tokens, d] f32.
std::vector<float> head_of(const KvRows& keys, int head) {
  const size_t d = size_t(keys.head_dim), columns = size_t(keys.columns());
  std::vector<float> out(size_t(keys.tokens) * d);
  for (size_t t = 0; t < size_t(keys.tokens); ++t)
    for (size_t c = 0; c < d; ++c)
      out[t * d + c] = to_float(keys.data[t * columns + size_t(head) * d + c]);
  return out;
}

// Four sums at a time, so that one does not wait for the other.
float dot(const float* a, const float* b, int n) {
  float sum[4] = {};
  int i = 0;
  for (; i + 4 <= n; i += 4)
    for (int j = 0; j < 4; ++j) sum[j] += a[i + j] * b[i + j];
  for (; i < n; ++i) sum[0] += a[i] * b[i];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// The softmax of one row into `out` (one entry a token that is seen). keys [tokens, d].
void softmax_row(const QueryRows& q, const std::vector<float>& keys, int head, int token,
                 std::vector<float>& out) {
  const int d = q.head_dim;
  const float* query = &q.data[(size_t(token) * size_t(q.heads) + size_t(head)) * size_t(d)];
  const int first = q.window > 0 ? std::max(0, token + 1 - q.window) : 0;
  out.resize(size_t(token + 1 - first));
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = q.scale * dot(query, &keys[(size_t(first) + i) * size_t(d)], d);
  const float largest = *std::ranges::max_element(out);
  double sum = 0;
  for (float& x : out) sum += x = std::exp(x - largest);
  for (float& x : out) x = float(x / sum);
}

}  // namespace

std::vector<float> probabilities(const QueryRows& q, const KvRows& keys, int head, int token) {
  std::vector<float> row;
  softmax_row(q, head_of(keys, head / (q.heads / keys.heads)), head, token, row);
  return row;
}

void SparsitySums::add(std::span<const float> row) {
  std::vector<float> sorted(row.begin(), row.end());
  std::ranges::sort(sorted, std::greater<>());
  const auto top = [&](double share) {
    const auto count = std::max<size_t>(1, size_t(share * double(sorted.size())));
    double sum = 0;
    for (size_t i = 0; i < count; ++i) sum += sorted[i];
    return sum;
  };
  size_t needed = 0;
  for (double sum = 0; needed < sorted.size() && sum < 0.9; ++needed) sum += sorted[needed];
  const auto small = std::ranges::count_if(sorted, [&](float p) { return p < sorted[0] * 0.01f; });
  const double count = double(sorted.size());
  sums.top_1_percent += top(0.01);
  sums.top_5_percent += top(0.05);
  sums.top_10_percent += top(0.10);
  sums.tokens_for_90 += double(needed) / count;
  sums.below_1_percent += double(small) / count;
  ++rows;
}

std::vector<double> score_errors(const QueryRows& q, const KvRows& keys,
                                 std::span<const KvRows> simulations, SparsitySums& sparsity) {
  std::vector<double> errors(simulations.size());
  std::vector<float> exact, moved;
  for (int head = 0; head < q.heads; ++head) {
    const int kv_head = head / (q.heads / keys.heads);
    const std::vector<float> k = head_of(keys, kv_head);
    std::vector<std::vector<float>> k_moved;
    for (const KvRows& s : simulations) k_moved.push_back(head_of(s, kv_head));
    double norm = 0;
    std::vector<double> difference(simulations.size());
    for (int token = kRowStride - 1; token < q.tokens; token += kRowStride) {
      softmax_row(q, k, head, token, exact);
      if (int(exact.size()) >= kSparsityTokensMin) sparsity.add(exact);
      for (const float p : exact) norm += double(p) * p;
      for (size_t s = 0; s < simulations.size(); ++s) {
        softmax_row(q, k_moved[s], head, token, moved);
        for (size_t i = 0; i < exact.size(); ++i) {
          const double e = double(moved[i]) - exact[i];
          difference[s] += e * e;
        }
      }
    }
    for (size_t s = 0; s < simulations.size(); ++s)
      if (norm > 0) errors[s] += std::sqrt(difference[s] / norm);
  }
  return errors;
}

}  // namespace kivi
