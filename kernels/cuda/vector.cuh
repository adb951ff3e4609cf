// SPDX-License-Identifier: Apache-2.0
// Eight 16-bit elements as one 16-byte access, seen as floats; and the dispatch over f16 and bf16.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/tensor.h"

namespace kivi::cuda {

__device__ __forceinline__ float as_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// fp16 with overflow clamped and NaN taken as 0, as to_f16_saturated.
__device__ __forceinline__ __half saturated_half(float x) {
  return __float2half_rn(x == x ? fminf(fmaxf(x, -65504.f), 65504.f) : 0.f);
}

// Two neighbors; p is a multiple of 4 bytes.
template <class T>
__device__ __forceinline__ float2 load_pair(const T* p) {
  alignas(4) T x[2];
  *reinterpret_cast<uint32_t*>(x) = *reinterpret_cast<const uint32_t*>(p);
  return {as_float(x[0]), as_float(x[1])};
}
__device__ __forceinline__ void store_saturated_pair(__half* p, float x, float y) {
  *reinterpret_cast<__half2*>(p) = __halves2half2(saturated_half(x), saturated_half(y));
}

template <class T>
struct alignas(16) Vector8 {
  T x[8];

  __device__ static Vector8 load(const T* p) {
    Vector8 v;
    *reinterpret_cast<uint4*>(&v) = *reinterpret_cast<const uint4*>(p);
    return v;
  }
  __device__ void store(T* p) const {
    *reinterpret_cast<uint4*>(p) = *reinterpret_cast<const uint4*>(this);
  }
};

// Calls f.operator()<T>() with the device type of a 16-bit dtype.
template <class F>
auto with_half_type(DType type, F&& f) {
  KIVI_VERIFY(type == DType::f16 || type == DType::bf16);
  return type == DType::f16 ? f.template operator()<__half>()
                            : f.template operator()<__nv_bfloat16>();
}

// Sum over a block of up to 1024 threads; every thread gets it. `scratch` has 32 floats. The order
// of additions depends on blockDim alone.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  const int warps = blockDim.x / 32;
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0;
  for (int w = 0; w < warps; ++w) total += scratch[w];
  return total;
}

}  // namespace kivi::cuda
