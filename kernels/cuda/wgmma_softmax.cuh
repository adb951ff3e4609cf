// SPDX-License-Identifier: Apache-2.0
// The online softmax between the two products of attention on wgmma: of a tile of scores whose rows
// lie in a warpgroup's registers as those of C (wgmma.cuh).
#pragma once

#include <cmath>

#include "kernels/cuda/ptx.cuh"

namespace kivi::cuda {

// The running maximum of two rows (of scores before scaling), this lane's part of their sums, and
// the factors of what was summed up before the last tile.
struct Softmax {
  float maximum[2] = {-INFINITY, -INFINITY};  // of rows g and g + 8
  float sum[2] = {};
  float shrink[2] = {1, 1};

  // Whether some lane's factors are not 1: seldom, once the first tiles have been seen. The vote
  // takes the sums in, so that all exponentials come before it.
  __device__ __forceinline__ bool moved() const {
    return __any_sync(0xffffffffu, shrink[0] != 1 || shrink[1] != 1 || !(sum[0] + sum[1] >= 0));
  }

  // Takes the scores of a tile in. They become exponentials.
  template <int kScores>
  __device__ __forceinline__ void update(float (&scores)[kScores], float scale_log2) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float largest = maximum[i];
#pragma unroll
      for (int n = 0; n < kScores / 4; ++n)
        largest = fmaxf(largest, fmaxf(scores[4 * n + 2 * i], scores[4 * n + 2 * i + 1]));
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
      const float base = largest == -INFINITY ? 0.f : largest * scale_log2;
      shrink[i] = largest == maximum[i] ? 1.f : exp2_fast(fmaf(maximum[i], scale_log2, -base));
      maximum[i] = largest;
      float added[2] = {};
#pragma unroll
      for (int n = 0; n < kScores / 4; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& x = scores[4 * n + 2 * i + j];
          x = exp2_fast(fmaf(x, scale_log2, -base));
          added[j] += x;
        }
      sum[i] = fmaf(sum[i], shrink[i], added[0] + added[1]);
    }
  }
};

// O of two rows, after their maximum has moved.
template <int kDim>
__device__ __forceinline__ void rescale(float (&o)[kDim / 2], const float (&shrink)[2]) {
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
    o[4 * n] *= shrink[0], o[4 * n + 1] *= shrink[0];
    o[4 * n + 2] *= shrink[1], o[4 * n + 3] *= shrink[1];
  }
}

// Scores as operand A of the second product.
template <int kPairs>
__device__ __forceinline__ void pack(const float (&scores)[2 * kPairs], uint32_t (&p)[kPairs]) {
#pragma unroll
  for (int i = 0; i < kPairs; ++i)
    p[i] = as_u32(__floats2half2_rn(scores[2 * i], scores[2 * i + 1]));
}

}  // namespace kivi::cuda
