// SPDX-License-Identifier: Apache-2.0
// The Hadamard transform of one head, on the host (docs/design/kv-format.md, section 10).
#pragma once

#include <cmath>

namespace kivi {

// x [d] times the Hadamard matrix of Sylvester's construction, divided by sqrt(d). The matrix is
// symmetric and its own inverse: transforming twice gives x. d is a power of two.
inline void hadamard_transform(float* x, int d) {
  for (int h = d / 2; h >= 1; h /= 2)
    for (int i = 0; i < d; i += 2 * h)
      for (int j = i; j < i + h; ++j) {
        const float a = x[j], b = x[j + h];
        x[j] = a + b;
        x[j + h] = a - b;
      }
  const float factor = 1 / std::sqrt(float(d));
  for (int i = 0; i < d; ++i) x[i] *= factor;
}

}  // namespace kivi
