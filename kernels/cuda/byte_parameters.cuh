// SPDX-License-Identifier: Apache-2.0
// Parameters of 8 bits (kernels/kv_parameters.h) as f16, four pairs of positions at a time.
#pragma once

#include "kernels/cuda/ptx.cuh"
#include "kernels/kv_parameters.h"

namespace kivi::cuda {

// Eight scales and eight minima; `two_bits`: the codes have 2 bits, not 4. Everything is exact.
__device__ __forceinline__ void expand_parameters(uint2 scales, uint2 minima, bool two_bits,
                                                  uint4& scale, uint4& minimum) {
  static_assert(byte_minimum_unit(2) == 0.25f && byte_minimum_unit(4) == 0.5f);
  const __half2 unit = as_half2(two_bits ? 0x34003400u : 0x38003800u);
  const __half2 zero = as_half2(two_bits ? 0xdc80dc80u : 0xe080e080u);  // -(1024 + 128) units
  uint32_t s[4], m[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int order = i % 2 == 0 ? 0x4140 : 0x4342;  // two bytes, each with one of the second word
    s[i] = __byte_perm(i < 2 ? scales.x : scales.y, 0, order) << 7;
    // 1024 + u becomes (u - 128) units, then these times the scale.
    const __half2 u = as_half2(__byte_perm(i < 2 ? minima.x : minima.y, 0x64646464u, order));
    m[i] = multiply(as_u32(__hfma2(u, unit, zero)), s[i]);
  }
  scale = make_uint4(s[0], s[1], s[2], s[3]);
  minimum = make_uint4(m[0], m[1], m[2], m[3]);
}

}  // namespace kivi::cuda
