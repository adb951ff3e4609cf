// SPDX-License-Identifier: Apache-2.0
// The parameters of a group, and their form in 8 bits each (docs/design/kv-format.md, section 11).
//
//   scale    the upper half of an f16 without its sign: 5 bits of exponent, 3 of mantissa
//   minimum  m + 128, where m in [-127, 127] counts quarters (2 bits) or halves (4 bits) of a scale
//
// Both numbers are f16 without any rounding: the product of 4 and 7 significant bits has 11.
#pragma once

#include <cstdint>

#include "kernels/half.h"

namespace kivi {

struct GroupParameters {
  f16 scale;
  f16 minimum;
};

struct ByteParameters {
  uint8_t scale = 0;
  uint8_t minimum = 128;
  friend constexpr bool operator==(const ByteParameters&, const ByteParameters&) = default;
};

inline constexpr int kByteScaleMax = 0xf7;  // 61,440: the next one is infinity
inline constexpr int kByteMinimumMax = 127;

// What one step of `minimum` is worth, in scales.
KIVI_HOST_DEVICE constexpr float byte_minimum_unit(int code_bits) {
  return code_bits == 2 ? 0.25f : 0.5f;
}

// The scale as 8 bits: the nearest number of that form, ties upwards; or the next above.
KIVI_HOST_DEVICE constexpr int byte_scale_nearest(f16 x) { return (x.bits + 0x40) >> 7; }
KIVI_HOST_DEVICE constexpr int byte_scale_above(f16 x) { return (x.bits + 0x7f) >> 7; }
KIVI_HOST_DEVICE constexpr f16 byte_scale_value(int scale) { return {uint16_t(scale << 7)}; }

constexpr GroupParameters to_group_parameters(ByteParameters p, int code_bits) {
  const f16 scale = byte_scale_value(p.scale);
  const float minimum =
      float(int(p.minimum) - 128) * (byte_minimum_unit(code_bits) * to_float(scale));
  return {scale, to_f16(minimum)};
}

}  // namespace kivi
