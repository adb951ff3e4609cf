// SPDX-License-Identifier: Apache-2.0
// How a block rounds one row to e4m3 (ProductInput::e4m3_rows), for the kernel that does nothing
// else and for those that make the row (weight_ops.cu, elementwise.cu).
#pragma once

#include <cuda_fp8.h>

#include "kernels/cuda/vector.cuh"

namespace kivi::cuda {

// Where a quantized row goes. Null codes: nowhere.
struct Codes {
  uint8_t* codes = nullptr;  // [t, k]
  float* scales = nullptr;   // [t]
};

template <class T>
__device__ __forceinline__ float max_of(const Vector8<T>& v, float most) {
#pragma unroll
  for (int i = 0; i < 8; ++i) most = fmaxf(most, fabsf(as_float(v.x[i])));
  return most;
}

// The factor of row blockIdx.x, whose scale it writes; `most` is the largest magnitude that this
// thread has seen of the row. All threads of the block. `scratch` has 32 floats, and nothing else
// uses them.
__device__ __forceinline__ float row_factor(float most, float* scales, float* scratch) {
  constexpr float kE4m3Max = 448;
  constexpr float kSmallest = 1e-30f;  // smaller maxima count as zero
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, offset));
  const int warps = blockDim.x / 32;
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = most;
  __syncthreads();
  most = scratch[0];
  for (int w = 1; w < warps; ++w) most = fmaxf(most, scratch[w]);
  if (most < kSmallest) most = 0;
  if (threadIdx.x == 0) scales[blockIdx.x] = most / kE4m3Max;
  return most > 0 ? kE4m3Max / most : 0;
}

// Eight codes; `to` is aligned to 8 bytes.
template <class T>
__device__ __forceinline__ void store_codes(const Vector8<T>& v, float factor, uint8_t* to) {
  uint16_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    pairs[i] = __nv_cvt_float2_to_fp8x2(
        make_float2(as_float(v.x[2 * i]) * factor, as_float(v.x[2 * i + 1]) * factor),
        __NV_SATFINITE, __NV_E4M3);
  *reinterpret_cast<uint2*>(to) =
      make_uint2(pairs[0] | uint32_t(pairs[1]) << 16, pairs[2] | uint32_t(pairs[3]) << 16);
}

}  // namespace kivi::cuda
