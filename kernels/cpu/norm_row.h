// SPDX-License-Identifier: Apache-2.0
// The norm of one row, for the ops that norm rows of activations (norm.cpp) and heads of q and k
// (rope.cpp).
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/tensor.h"

namespace kivi {

struct NormRow {
  float* x;            // [n]; gets x + delta
  const float* delta;  // [n] or null
  const void* weight;  // [n] of `type`
  const void* bias;    // [n] of `type`, or null
  DType type;
  int64_t n;
  NormKind kind;
  float eps;
  float* out;  // [n]; may be x
};

// out = norm(x + delta) * weight (+ bias), by Backend::norm's formulas.
void normalize_row(const NormRow& row);

}  // namespace kivi
