// SPDX-License-Identifier: Apache-2.0
// Parameters of 8 bits (kernels/kv_parameters.h) as f16.
#pragma once

#include "kernels/cuda/ptx.cuh"
#include "kernels/kv_parameters.h"

namespace kivi::cuda {

// Four scales and four minima; `two_bits`: the codes have 2 bits, not 4. Everything is exact.
__device__ __forceinline__ void expand_parameters(uint32_t scales, uint32_t minima, bool two_bits,
                                                  uint32_t* scale, uint32_t* minimum) {
  static_assert(byte_minimum_unit(2) == 0.25f && byte_minimum_unit(4) == 0.5f);
  const __half2 unit = as_half2(two_bits ? 0x34003400u : 0x38003800u);
  const __half2 zero = as_half2(two_bits ? 0xdc80dc80u : 0xe080e080u);  // -(1024 + 128) units
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int order = i == 0 ? 0x4140 : 0x4342;  // two bytes, each with one of the second word
    scale[i] = __byte_perm(scales, 0, order) << 7;
    // 1024 + u becomes (u - 128) units, then these times the scale.
    const __half2 u = as_half2(__byte_perm(minima, 0x64646464u, order));
    minimum[i] = multiply(as_u32(__hfma2(u, unit, zero)), scale[i]);
  }
}

}  // namespace kivi::cuda
