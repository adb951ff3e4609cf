// SPDX-License-Identifier: Apache-2.0
// Operand is what an op writes for the products that read it: rows of numbers, or the codes that
// these products would make of the rows anyway. It is a view and owns nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "kernels/tensor.h"

namespace kivi {

struct Operand {
  // [t, k] a. Where the rows are quantized, shape and dtype say what they stand for, and there is
  // no data.
  Tensor rows;
  // Quantized rows as ProductInput::e4m3_rows rounds them: row i stands for scales[i] times its
  // codes. Null where the rows are numbers.
  uint8_t* codes = nullptr;  // [t, k] e4m3, contiguous, aligned to 256 bytes
  float* scales = nullptr;   // [t], aligned to 256 bytes

  Operand() = default;
  // NOLINTNEXTLINE(google-explicit-constructor): rows of numbers are an operand.
  Operand(const Tensor& numbers) : rows(numbers) {}

  bool quantized() const { return codes != nullptr; }
  int64_t count() const { return rows.rows(); }
  int64_t columns() const { return rows.shape[1]; }
};

// Returns quantized rows of this shape that lie in the memory of `rows` [t, k], or nothing if they
// do not fit there. They fit if k is at least 16 and t k at least 340.
std::optional<Operand> quantized_in(const Tensor& rows);

// What ProductInput::e4m3_rows makes of one row x [k]: codes [k] and a scale, which is NaN if an
// element is not finite.
void quantize_e4m3_row(std::span<const float> x, uint8_t* codes, float& scale);

}  // namespace kivi
