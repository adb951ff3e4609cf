// SPDX-License-Identifier: Apache-2.0
// Codes of keys and values as operand A of a product (docs/design/decode-attention.md, section 4).
#pragma once

#include "kernels/cuda/ptx.cuh"

namespace kivi::cuda {

inline constexpr float kCodeUnit = 0x1p-24f;  // what one code step of operand A is worth
inline constexpr float kValueNormal = 16.f;   // P' carries it, so that small scales stay normal
inline constexpr uint32_t kOnes = 0x3c003c00;

__device__ constexpr int power_of_pair(int bits, int pair) {
  return bits == 2 ? pair % 4 : bits == 4 ? pair % 2 : 0;
}
__device__ __forceinline__ uint32_t pair_weight(int bits, int pair, float scale) {
  return as_u32(__float2half2_rn(scale / float(1 << (bits * power_of_pair(bits, pair)))));
}

// Fragment register of pair `slot` of a word of codes. Codes of 2 and 4 bits stay in place; e4m3
// becomes f16. SUMS: the last pair comes with the others of the upper bytes, each times
// 2^(BITS * p). That saves a mask; operand B is then that of scale_pairs() with SUMS.
template <int BITS, bool SUMS = false>
__device__ __forceinline__ uint32_t fragment(uint32_t word, int slot) {
  if constexpr (BITS == 8) {
#if __CUDA_ARCH__ >= 890
    uint32_t y;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(y) : "h"(uint16_t(word >> (16 * slot))));
    return y;
#else
    // Exponent and mantissa one place lower give 2^-8 of the value, subnormals included.
    const uint32_t spread = __byte_perm(word, 0, slot == 0 ? 0x1404 : 0x3424);
    const uint32_t y = (spread & 0x80008000u) | ((spread >> 1) & 0x3f803f80u);
    return multiply(y, 0x5c005c00u);  // 256
#endif
  } else {
    constexpr int kInPlace = 8 / BITS;  // pairs of the low byte of each half
    constexpr uint32_t kMask = BITS == 2 ? 0x00030003u : 0x000f000fu;
    if (slot < kInPlace) return word & (kMask << (BITS * slot));
    const uint32_t upper = SUMS ? __byte_perm(word, 0, 0x4341) : word >> 8;
    return SUMS && slot == 2 * kInPlace - 1 ? upper : upper & (kMask << (BITS * (slot - kInPlace)));
  }
}

// Operand B for the fragments of four pairs, of which `first` is the first one: x times a scale.
// SUMS: less what the sum that is the last fragment of a word makes of the pair already.
template <int BITS, bool SUMS>
__device__ __forceinline__ void scale_pairs(uint32_t* y, const uint32_t* x, uint4 scale,
                                            int first) {
  constexpr int kPairs = 16 / BITS;  // of a word
  const uint32_t of[4] = {scale.x, scale.y, scale.z, scale.w};
  if (SUMS) y[3] = multiply(x[3], of[3]);
#pragma unroll
  for (int i = 0; i < (SUMS ? 3 : 4); ++i)
    y[i] = SUMS && (first + i) % kPairs >= kPairs / 2 ? multiply_subtract(x[i], of[i], y[3])
                                                      : multiply(x[i], of[i]);
}

// Codes of pair `slot` of a word as numbers: code * scale + minimum.
template <int BITS>
__device__ __forceinline__ uint32_t numbers(uint32_t word, int slot, uint32_t scale,
                                            uint32_t minimum) {
  constexpr int kInPlace = 8 / BITS;
  constexpr uint32_t kMask = BITS == 2 ? 0x00030003u : 0x000f000fu;
  const int shift = BITS * (slot % kInPlace);
  // 1024 + c 2^shift is exact, and so is c.
  const uint32_t lifted =
      masked_or(slot < kInPlace ? word : word >> 8, kMask << shift, 0x64006400u);
  const float unit = 1.f / float(1 << shift);
  const __half2 code =
      __hfma2(as_half2(lifted), __float2half2_rn(unit), __float2half2_rn(-1024.f * unit));
  return as_u32(__hfma2(code, as_half2(scale), as_half2(minimum)));
}

template <int N>
__device__ __forceinline__ void load_words(uint32_t (&w)[N], const std::byte* from) {
  static_assert(N == 2 || N % 4 == 0);
  if constexpr (N == 2) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    w[0] = v.x, w[1] = v.y;
  } else {
#pragma unroll
    for (int i = 0; i < N / 4; ++i) {
      const uint4 v = *reinterpret_cast<const uint4*>(from + i * 512);
      w[4 * i] = v.x, w[4 * i + 1] = v.y, w[4 * i + 2] = v.z, w[4 * i + 3] = v.w;
    }
  }
}

}  // namespace kivi::cuda
