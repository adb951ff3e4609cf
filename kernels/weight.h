// SPDX-License-Identifier: Apache-2.0
// Weight is a matrix that `Backend::matmul` multiplies by: plain numbers, or codes with scales. The
// comment at WeightKind says what each format means, and kernels/weight_codec.h defines where its
// bytes lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/tensor.h"

namespace kivi {

// How a matrix W [n, k] is stored. Columns run along k. `code` is an unsigned integer of the stated
// bits, and the formulas give W.
//
// clang-format off
//   plain  numbers of a DType (f32, f16 or bf16)
//   e4m3   8-bit floats; one f32 scale a row                      scale * e4m3
//   int4   4 bits; f32 scale and zero point of `group` columns    scale * (code - zero)
// GGUF's blocks (docs/gguf.md), of 32 columns with an f16 scale:
//   q4_0   4 bits    scale * (code - 8)        q4_1   4 bits, f16 minimum   scale * code + minimum
//   q5_0   5 bits    scale * (code - 16)       q5_1   5 bits, f16 minimum   scale * code + minimum
//   q8_0   8 bits    scale * (code - 128)
// and of 256 columns with f16 factors d and dmin:
//   q4_k   4 bits    d * s * code - dmin * m; 6-bit s and m of 32 columns
//   q5_k   5 bits    the same with 5 bits
//   q6_k   6 bits    d * s * (code - 32); signed 8-bit s of 16 columns
// clang-format on
enum class WeightKind : uint8_t {
  plain,
  e4m3,
  int4,
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  q4_k,
  q5_k,
  q6_k
};

struct WeightFormat {
  WeightKind kind = WeightKind::plain;
  // int4: columns that share a scale, a multiple of 32. The last group of a row may be shorter. 0 =
  // the whole row.
  int group = 0;
  // int4: the matrix has a column order of its own (Weight::order).
  bool reordered = false;

  friend constexpr bool operator==(const WeightFormat&, const WeightFormat&) = default;
};

// How x is rounded before it is multiplied by a quantized matrix. Absolute maxima below 1e-30 count
// as zero.
enum class ProductInput : uint8_t {
  plain,      // x stays as it is
  bytes,      // each 32 columns of a row: s * round(x / s), where s = max |x| / 127
  e4m3_rows,  // a whole row: s * e4m3(x * (448 / max |x|)), where s = max |x| / 448
};

// Returns text such as "q4_1", "int4 G128", "fp8", "16-bit".
std::string name_of(const WeightFormat& format);

// A view of a matrix on a device. It owns nothing.
struct Weight {
  WeightFormat format;
  Tensor plain;                       // [n, k], plain only
  const std::byte* codes = nullptr;   // weight_codes_bytes; not plain
  const std::byte* scales = nullptr;  // weight_scales_bytes; not plain
  int64_t rows = 0, columns = 0;      // n, k
  // Before the product, x is multiplied by the Hadamard matrix in runs of this many columns
  // (kernels/hadamard.h). 0 = there is no such product. A power of two that divides k; not for
  // plain matrices.
  int hadamard = 0;
  // Column i of the matrix belongs to column order[i] of x (after the Hadamard matrix). [k] i32,
  // device; empty = the same order. Not plain.
  Tensor order;

  Weight() = default;
  // NOLINTNEXTLINE(google-explicit-constructor): a plain matrix is a weight.
  Weight(const Tensor& matrix) : plain(matrix), rows(matrix.rows()), columns(matrix.shape[1]) {}

  bool is_plain() const { return format.kind == WeightKind::plain; }
  bool empty() const { return is_plain() ? plain.empty() : codes == nullptr; }
};

// Returns true if this matrix may be multiplied by rows that are quantized already (Operand). False
// if x is rotated or reordered first.
inline bool takes_quantized(const Weight& w) {
  return w.format.kind == WeightKind::e4m3 && w.hadamard == 0 && w.order.empty();
}

}  // namespace kivi
