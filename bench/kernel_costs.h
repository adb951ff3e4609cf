// SPDX-License-Identifier: Apache-2.0
// What an op of one layer must move and multiply, exactly: the figures that measured times are
// divided into. Bytes are those of the contract (kernels/backend.h), each read or written once;
// whatever a kernel reads besides (padding, a page twice) is not credited to it. Pure arithmetic.
#pragma once

#include <cstdint>

#include "kernels/kv_page.h"

namespace kivi {

struct OpCost {
  int64_t bytes = 0;
  double flops = 0;  // of matrix products: 2 a multiply-add; 0 where there are none
  friend bool operator==(const OpCost&, const OpCost&) = default;
};

// Letters: t rows, n hidden, k inputs, f intermediate, hq and hk heads of d channels. `a`, `w`,
// `out`, `q`: bytes of an element of activations, weights, output, queries.
OpCost embed_cost(int64_t t, int64_t n, int w, int a);
OpCost norm_cost(int64_t t, int64_t n, int w, int a, bool bias);
OpCost add_norm_cost(int64_t t, int64_t n, int w, int a, bool bias);
OpCost add_cost(int64_t t, int64_t n, int a);
OpCost matmul_cost(int64_t t, int64_t k, int64_t n, int w, int a, int out);
OpCost rope_cost(int64_t t, int64_t hq, int64_t hk, int64_t d, int a, int q);
OpCost gated_activation_cost(int64_t t, int64_t f, int a);
OpCost activate_cost(int64_t t, int64_t f, int a);
OpCost gather_rows_cost(int64_t t, int64_t n, int a);
OpCost sample_cost(int64_t t, int64_t vocab);
// `cost` of an op whose output [t, n] is quantized rows in place of rows of activations.
OpCost quantized_output(OpCost cost, int64_t t, int64_t n, int a);

// Bytes that one layer holds of a sequence of `tokens`: codes, scales and minima, 16-bit rows.
int64_t layer_bytes_held(const KvLayout& layout, int tokens);

// One sequence: `past` tokens in the store and `rows` new ones. The store and the new keys and
// values are counted; queries and output (small beside them in decoding) are not.
OpCost attend_cost(const KvLayout& layout, int64_t hq, int past, int rows);
// The new rows are read, those that stay in 16 bits written; what leaves the residual is read from
// it, what is quantized is written as codes and parameters.
OpCost append_cost(const KvLayout& layout, int past, int rows);

}  // namespace kivi
