// SPDX-License-Identifier: Apache-2.0
// What the kernels for up to 16 rows of x and 4-bit codes share (matmul_tiles_few.cu,
// matmul_tiles_pairs.cu): runs of columns, and x in shared memory.
//
// The 64 bytes of 32 columns of x lie there as lanes read them: columns 4t, 4t + 2, 4t + 1 and
// 4t + 3, then the same of 16 + 4t, for each t = lane % 4. This is the order in which codes become
// operand A.
#pragma once

#include "kernels/cuda/matmul_tiles.cuh"

namespace kivi::cuda {

// A row is cut into runs of columns. Each warp multiplies the same run of every tile.
constexpr int kRunColumns = 256;
constexpr int kRunBlocks = kRunColumns / kWeightBlock;
constexpr int kWarpsMax = 16;
constexpr int kSharedMax = 225 << 10;  // bytes of a block

// Runs of a slice that hold columns.
__device__ __forceinline__ int runs_of(const TileProduct& p, int slice, int warps) {
  return min(warps, (p.blocks + kRunBlocks - 1) / kRunBlocks - slice * warps);
}

// Eight neighbors of a row as f16, and what their products are multiplied by. The largest of 256
// columns gets an exponent of 14. What is less than 2^-31 of it is rounded, by less than 2^-39 of
// it: that is far below the rounding of fp32 sums.
__device__ __forceinline__ float to_half(uint4& v) {
  uint32_t* const words = reinterpret_cast<uint32_t*>(&v);
  uint32_t most = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) most = max(most, max(words[i] & 0x7FFFu, words[i] >> 16 & 0x7FFFu));
  const int exponent = max(int(__reduce_max_sync(0xffffffffu, most) >> 7), 15);
  const float factor = __uint_as_float(uint32_t(268 - exponent) << 23);
#pragma unroll
  for (int i = 0; i < 4; ++i)
    words[i] = as_u32(__floats2half2_rn(__uint_as_float(words[i] << 16) * factor,
                                        __uint_as_float(words[i] & 0xFFFF0000u) * factor));
  return __uint_as_float(uint32_t(exponent - 14) << 23);
}

// Where a lane's eight columns of a run go in shared memory. The lane has quads 2m and 2m + 1 of a
// block, m = lane % 4.
__device__ __forceinline__ int place_in_run(int lane) {
  return lane / 4 * 64 + lane % 2 * 32 + lane % 4 / 2 * 8;
}
__device__ __forceinline__ void store_in_order(unsigned char* at, const uint4& v) {
  *reinterpret_cast<uint2*>(at) =
      make_uint2(__byte_perm(v.x, v.y, 0x5410), __byte_perm(v.x, v.y, 0x7632));
  *reinterpret_cast<uint2*>(at + 16) =
      make_uint2(__byte_perm(v.z, v.w, 0x5410), __byte_perm(v.z, v.w, 0x7632));
}

}  // namespace kivi::cuda
