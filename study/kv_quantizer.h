// SPDX-License-Identifier: Apache-2.0
// Quantizes and dequantizes keys or values of one sequence along either axis. This simulates the
// stores that the product has and some that it does not have.
#pragma once

#include <vector>

#include "kernels/half.h"
#include "study/kv_statistics.h"

namespace kivi {

// Keys or values of one layer and sequence: [tokens, heads, head_dim], contiguous.
struct KvRows {
  int tokens = 0, heads = 0, head_dim = 0;
  std::vector<f16> data;
  int columns() const { return heads * head_dim; }
};

// Groups begin at the first token and at each head's first channel. Tokens that do not fill a last
// group along the channel axis stay as they are, as in the product's residual. Along the token axis
// G must divide head_dim.
KvRows simulated(const KvRows& rows, const KvQuantizer& quantizer);

// Returns ||a - b|| / ||b|| of one head, and 0 if both are zero.
double relative_error(const KvRows& a, const KvRows& b, int head);

}  // namespace kivi
