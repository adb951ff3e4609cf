// SPDX-License-Identifier: Apache-2.0
// What the sampler's kernels share: rows, results, and the order of tokens.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/philox.h"
#include "kernels/sampling.h"

namespace kivi::cuda {

struct SamplerRow {
  float temperature, top_p, min_p;
  int32_t top_k, position, forced, logprobs;
  uint64_t seed;

  // True if one block has to read the whole row more than once (sampler_filter.cu).
  __host__ __device__ bool is_filtered(int vocab) const {
    const bool filters = (top_k > 0 && top_k < vocab) || top_p < 1.f || min_p > 0.f;
    return logprobs >= 0 || (forced < 0 && temperature > 0 && filters);
  }
};

struct Best {
  float value;
  int32_t id;
};

constexpr Best kNothing = {-INFINITY, 0x7fffffff};

struct SamplerPart {
  Best largest;
  Best chosen;
  int broken;  // holds NaN or +infinity
};

struct SamplerLaunch {
  const float* logits;
  int64_t stride;
  int vocab;
  int part_size;       // tokens of a part, a multiple of 4
  int part_count;      // of a row, at most kSamplerParts
  SamplerPart* parts;  // [rows][kSamplerParts]
  unsigned* arrived;   // [rows], zeros between launches
  const SamplerRow* rows;
  int32_t* ids;
  TokenLogprob* results;
  int results_stride;
};

inline constexpr int kSamplerParts = 32;  // at most, a row: a warp joins them

__device__ __forceinline__ Best better(Best a, Best b) {
  return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a;
}

__device__ inline Best warp_best(Best x) {
#pragma unroll
  for (int o = 16; o > 0; o /= 2) {
    const Best y = {__shfl_xor_sync(0xffffffffu, x.value, o),
                    __shfl_xor_sync(0xffffffffu, x.id, o)};
    x = better(x, y);
  }
  return x;
}

// In every thread. scratch: one for each warp.
template <int kThreads>
__device__ Best block_best(Best x, Best* scratch) {
  x = warp_best(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  x = scratch[0];
  for (int w = 1; w < kThreads / 32; ++w) x = better(x, scratch[w]);
  return x;
}

// The best of a row's parts, in every thread.
__device__ inline Best best_part(const SamplerPart* parts, int count, Best SamplerPart::*which) {
  const int lane = int(threadIdx.x % 32);
  Best x = kNothing;
  if (lane < count) {
    const Best* best = &(parts[lane].*which);
    x = {__ldcg(&best->value), __ldcg(&best->id)};
  }
  return warp_best(x);
}

// The row's largest logit, in every thread; token 0 where nothing is finite.
__device__ inline Best row_largest(const SamplerLaunch& a, int row) {
  const Best x = best_part(a.parts + row * kSamplerParts, a.part_count, &SamplerPart::largest);
  return x.id == kNothing.id ? Best{0, 0} : x;
}

// Returns true if the row holds NaN or +infinity, or nothing finite. Call it in all threads of a
// warp.
__device__ inline bool row_broken(const SamplerLaunch& a, int row) {
  const SamplerPart* parts = a.parts + row * kSamplerParts;
  const int lane = int(threadIdx.x % 32);
  const bool broken = lane < a.part_count && __ldcg(&parts[lane].broken) != 0;
  const Best largest = best_part(parts, a.part_count, &SamplerPart::largest);
  return __any_sync(0xffffffffu, broken) || largest.id == kNothing.id;
}

// The first result of a row: the token, as its complement where the row is broken.
__device__ inline TokenLogprob first_result(int32_t choice, bool broken) {
  return {broken ? ~choice : choice, 0};
}

// Gumbel noise of one of a Philox block's four tokens.
__device__ __forceinline__ float gumbel_noise(uint32_t word) {
  return -logf(-logf(uniform_of(word)));
}

// Rows with is_filtered. Grid: rows.
void launch_filtered(const SamplerLaunch& a, int rows, cudaStream_t stream);

}  // namespace kivi::cuda
