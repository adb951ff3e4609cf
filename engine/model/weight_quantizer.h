// SPDX-License-Identifier: Apache-2.0
// Quantizes rows of a 16-bit checkpoint while it is loaded (--quantization). There is no
// calibration: each row is rounded by itself.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/weight.h"

namespace kivi {

// Columns that share a scale in --quantization int4.
inline constexpr int kInt4Group = 128;

// Writes the codes and records (WeightRow) of the numbers of one row. Numbers are finite.
//
//   e4m3  scale = max |x| / 448; codes are x / scale, rounded to nearest even.
//   int4  For each group, 16 levels between a low and a high end. The ends are the least and the
//         largest number, both drawn in by the factor (1, 0.97, ... 0.55) that makes the sum of
//         squared errors least. Zero points are whole numbers, so that zero has a code.
void quantize_row(const WeightFormat& format, std::span<const float> numbers,
                  std::span<uint8_t> codes, std::span<std::byte> records);

}  // namespace kivi
