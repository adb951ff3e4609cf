// SPDX-License-Identifier: Apache-2.0
#include "bench/kernel_costs.h"

#include <algorithm>

namespace kivi {
namespace {

constexpr int kHalf = 2;   // bytes of a 16-bit number
constexpr int kIndex = 4;  // bytes of an id

// Bytes of `tokens` quantized tokens of one head; keys share scale and minimum over G tokens of a
// channel, values over G channels of a token: two parameters for G elements, either way.
int64_t quantized_bytes(const KvLayout& layout, int64_t tokens, int bits) {
  const int64_t elements = tokens * layout.shape.head_dim;
  const int64_t codes = elements * bits / 8;
  if (layout.format.kind != KvKind::kivi) return codes;
  return codes + elements / layout.format.group * layout.parameter_pair_bytes();
}

}  // namespace

OpCost embed_cost(int64_t t, int64_t n, int w, int a) { return {t * (kIndex + n * (w + a)), 0}; }

OpCost norm_cost(int64_t t, int64_t n, int w, int a, bool bias) {
  return {2 * t * n * a + (bias ? 2 : 1) * n * w, 0};
}

OpCost add_norm_cost(int64_t t, int64_t n, int w, int a, bool bias) {
  return {4 * t * n * a + (bias ? 2 : 1) * n * w, 0};  // x, delta read; x, out written
}

OpCost add_cost(int64_t t, int64_t n, int a) { return {3 * t * n * a, 0}; }

OpCost matmul_cost(int64_t t, int64_t k, int64_t n, int w, int a, int out) {
  return {t * k * a + n * k * w + t * n * out, 2.0 * double(t) * double(k) * double(n)};
}

OpCost rope_cost(int64_t t, int64_t hq, int64_t hk, int64_t d, int a, int q) {
  return {t * (kIndex + (hq + 2 * hk) * d * a + hq * d * q + 2 * hk * d * kHalf), 0};
}

OpCost gated_activation_cost(int64_t t, int64_t f, int a) { return {3 * t * f * a, 0}; }
OpCost activate_cost(int64_t t, int64_t f, int a) { return {2 * t * f * a, 0}; }
OpCost gather_rows_cost(int64_t t, int64_t n, int a) { return {t * (kIndex + 2 * n * a), 0}; }
OpCost sample_cost(int64_t t, int64_t vocab) { return {t * vocab * 4, 0}; }

OpCost quantized_output(OpCost cost, int64_t t, int64_t n, int a) {
  constexpr int kScale = 4;
  return {cost.bytes + t * (n + kScale) - t * n * a, cost.flops};
}

int64_t layer_bytes_held(const KvLayout& layout, int tokens) {
  const KvFormat& format = layout.format;
  const int keys = keys_paged(format, tokens);
  const int values = values_paged(format, tokens);
  const int64_t rows = 2 * int64_t(tokens) - keys - values;  // of K and V, in 16 bits
  return layout.shape.heads * (quantized_bytes(layout, keys, format.key_bits) +
                               quantized_bytes(layout, values, format.value_bits) +
                               rows * layout.shape.head_dim * kHalf);
}

OpCost attend_cost(const KvLayout& layout, int64_t hq, int past, int rows) {
  const int64_t own = int64_t(rows) * 2 * layout.shape.heads * layout.shape.head_dim * kHalf;
  const double pairs = double(rows) * past + double(rows) * (double(rows) + 1) / 2;  // causal
  return {layer_bytes_held(layout, past) + own,
          4 * double(hq) * layout.shape.head_dim * pairs};  // q K^T and P V
}

OpCost append_cost(const KvLayout& layout, int past, int rows) {
  const KvFormat& format = layout.format;
  const int end = past + rows;
  int64_t head = int64_t(rows) * 2 * layout.shape.head_dim * kHalf;  // read
  const auto side = [&](int before, int after, int bits) {
    const int64_t from_residual = std::max(0, std::min(after, past) - before);
    const int64_t to_residual = end - std::max(after, past);
    head += quantized_bytes(layout, after - before, bits);
    head += (from_residual + to_residual) * layout.shape.head_dim * kHalf;
  };
  side(keys_paged(format, past), keys_paged(format, end), format.key_bits);
  side(values_paged(format, past), values_paged(format, end), format.value_bits);
  return {head * layout.shape.heads, 0};
}

}  // namespace kivi
