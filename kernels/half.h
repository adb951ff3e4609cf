// SPDX-License-Identifier: Apache-2.0
// fp16 and bf16 as bit patterns, and their conversions to and from fp32 (round to nearest even).
// These scalar functions define every 16-bit value in the program. The vector code of kernels/cpu
// and the hardware conversions of kernels/cuda must produce the same bits.
#pragma once

#include <bit>
#include <cstdint>

#if defined(__CUDACC__)
#define KIVI_HOST_DEVICE __host__ __device__
#else
#define KIVI_HOST_DEVICE
#endif

namespace kivi {

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

inline constexpr float kF16Max = 65504.0f;

constexpr float to_float(f16 h) {
  const uint32_t sign = uint32_t(h.bits & 0x8000u) << 16;
  const uint32_t exponent = (h.bits >> 10) & 0x1f;
  uint32_t mantissa = h.bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  // Subnormal: mantissa * 2^-24 is exact in fp32.
  const float magnitude = float(mantissa) * 5.9604644775390625e-8f;
  return sign ? -magnitude : magnitude;
}

constexpr f16 to_f16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  const uint16_t sign = uint16_t((u >> 16) & 0x8000u);
  const uint32_t a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};   // NaN
  if (a >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // >= 65520 rounds to infinity
  if (a >= 0x38800000u) {                                   // normal in fp16
    const uint32_t r = a + 0xfffu + ((a >> 13) & 1u);
    return {uint16_t(sign | ((r - 0x38000000u) >> 13))};
  }
  if (a < 0x33000000u) return {sign};  // < 2^-25 rounds to zero; 2^-25 itself ties to even (zero)
  const uint32_t shift = 126u - (a >> 23);  // 14..24
  const uint32_t m = (a & 0x7fffffu) | 0x800000u;
  const uint32_t half = 1u << (shift - 1);
  uint32_t q = m >> shift;
  const uint32_t rest = m & ((1u << shift) - 1);
  if (rest > half || (rest == half && (q & 1u))) ++q;
  return {uint16_t(sign | q)};
}

// Rounds to fp16, clamps overflow to +-65504, and turns NaN into 0. Keys and values enter the store
// in this way, so that one bad element cannot poison its group (docs/design/kv-format.md, section
// 1).
constexpr f16 to_f16_saturated(float x) {
  if (!(x == x)) return {0};
  if (x > kF16Max) x = kF16Max;
  if (x < -kF16Max) x = -kF16Max;
  return to_f16(x);
}

constexpr float to_float(bf16 h) { return std::bit_cast<float>(uint32_t(h.bits) << 16); }

constexpr bf16 to_bf16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {uint16_t((u >> 16) | 0x40u)};
  return {uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

}  // namespace kivi
