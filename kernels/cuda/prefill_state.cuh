// SPDX-License-Identifier: Apache-2.0
// Softmax states that prefill attention hands on from launch to launch (PrefillArguments::states),
// and how results are written.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/prefill_attend.h"

namespace kivi::cuda {

// Row of the states of packed row `p` (token * group + query head of the group) of a sequence.
__device__ __forceinline__ int64_t state_row(const PrefillArguments& a, const StepSequence& s,
                                             int head, int group, int p) {
  return (int64_t(s.row_begin) + p / group) * a.heads_q + head * group + p % group;
}

// The region of states that a launch's work reads and writes: [t hq, d] weighted sums of values.
__device__ __forceinline__ float* states_of(const PrefillArguments& a, int region, int head_dim) {
  return a.states + int64_t(region) * a.rows * a.heads_q * (head_dim + 2);
}

// The same region's [t hq] maximum (of scores before scaling) and sum.
__device__ __forceinline__ float2* state_sums(const PrefillArguments& a, int region, int head_dim) {
  return reinterpret_cast<float2*>(states_of(a, region, head_dim) +
                                   int64_t(a.rows) * a.heads_q * head_dim);
}

__device__ __forceinline__ void store_pair(__half* out, float a, float b) {
  *reinterpret_cast<__half2*>(out) = __floats2half2_rn(a, b);
}
__device__ __forceinline__ void store_pair(__nv_bfloat16* out, float a, float b) {
  *reinterpret_cast<__nv_bfloat162*>(out) = __floats2bfloat162_rn(a, b);
}

// Brings 16 bytes to shared memory, or zeros.
__device__ __forceinline__ void copy_async_16(uint32_t shared, const void* global, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(inside ? 16 : 0)
               : "memory");
}

}  // namespace kivi::cuda
