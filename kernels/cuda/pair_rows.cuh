// SPDX-License-Identifier: Apache-2.0
// x in shared memory for matmul_tiles_pairs.cu: runs of columns, and sums of them.
//
// The 64 bytes of 32 columns of x lie there as lanes read them: columns 4t, 4t + 2, 4t + 1 and
// 4t + 3, then the same of 16 + 4t, for each t = lane % 4. This is the order in which codes become
// operand A.
#pragma once

#include "kernels/cuda/pair_sums.cuh"

namespace kivi::cuda {

// A row is cut into runs of columns. Each warp multiplies the same run of every tile.
constexpr int kRunColumns = 256;
constexpr int kRunBlocks = kRunColumns / kWeightBlock;
static_assert(kRunBlocks == kPairBlocksMin);
constexpr int kWarpsMax = 16;
constexpr int kPairRowsMax = 8;        // rows of x
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

// The sums of a warp's run of x, in shared memory, for kPairRowsMax rows:
//   units, blocks          [units or blocks of the run, row], f32
//   operand, two_operands  [row, t] two or four words of operands B; then [row] f32 that undo their
//                          power of two
template <XSums Sums>
constexpr int kOperandBytes = Sums == XSums::two_operands ? 64 : 32;  // of a row
template <XSums Sums>
constexpr int kXSumBytes = kPairRowsMax*(Sums == XSums::units    ? kRunColumns / kUnitColumns * 4
                                         : Sums == XSums::blocks ? kRunBlocks * 4
                                                                 : kOperandBytes<Sums> + 4);

// Where a lane finds the sums of a unit's columns of rows 2t and 2t + 1.
template <XSums Sums>
__device__ __forceinline__ const float* x_sums_of_unit(const unsigned char* sums, int unit) {
  constexpr int kOfUnit = Sums == XSums::units ? 1 : kUnitBlocks;
  return reinterpret_cast<const float*>(sums) + unit * kOfUnit * kPairRowsMax + threadIdx.x % 4 * 2;
}

// sum: of the lane's eight columns of a row. Writes the sums of the row's run.
template <XSums Sums>
__device__ __forceinline__ void write_x_sums(unsigned char* to, int row, float sum) {
  constexpr uint32_t kAll = 0xffffffffu;
  constexpr float kScale = -1 / kCodeScale<__half>;
  constexpr bool kBlocks = Sums == XSums::operand;
  const int lane = threadIdx.x % 32;
  sum += __shfl_xor_sync(kAll, sum, 1);
  if constexpr (Sums != XSums::two_operands) sum += __shfl_xor_sync(kAll, sum, 2);
  if constexpr (Sums == XSums::units) {
    sum += __shfl_xor_sync(kAll, sum, 4);
    sum += __shfl_xor_sync(kAll, sum, 8);
    if (lane % 16 == 0) reinterpret_cast<float*>(to)[lane / 16 * kPairRowsMax + row] = sum * kScale;
  } else if constexpr (Sums == XSums::blocks) {
    if (lane % 4 == 0) reinterpret_cast<float*>(to)[lane / 4 * kPairRowsMax + row] = sum * kScale;
  } else {
    // As in to_half, the largest of the run gets an exponent of 14.
    const uint32_t most = __reduce_max_sync(kAll, __float_as_uint(sum) & 0x7FFFFFFFu);
    const int exponent = max(int(most >> 23), 15);
    sum *= __uint_as_float(uint32_t(268 - exponent) << 23);
    const __half high = __float2half_rn(sum), low = __float2half_rn(sum - __half2float(high));
    // A word of lane t has the sums of blocks t and 4 + t. Of 16 columns it has sums 2t and 2t + 1,
    // and the next word has 8 more.
    const int i = kBlocks ? lane / 4 : lane / 2;
    const int t = kBlocks ? i % 4 : i % 8 / 2, word = kBlocks ? 0 : i / 8;
    auto* const halves = reinterpret_cast<__half*>(to + row * kOperandBytes<Sums>) +
                         t * (kOperandBytes<Sums> / 8) + word * 2 + (kBlocks ? i / 4 : i % 2);
    constexpr int kLanes = kBlocks ? 4 : 2;  // that have the same sum
    if (lane % kLanes == 0) halves[0] = high;
    if (lane % kLanes == 1) halves[kOperandBytes<Sums> / 16] = low;
    if (lane == 0)
      reinterpret_cast<float*>(to + kPairRowsMax * kOperandBytes<Sums>)[row] =
          __uint_as_float(uint32_t(exponent - 14) << 23);
  }
}

template <XSums Sums>
__device__ __forceinline__ RunSums<Sums> read_run_sums(int rows, const unsigned char* from) {
  RunSums<Sums> sums = {};
  if constexpr (Sums != XSums::operand && Sums != XSums::two_operands) return sums;
  const int lane = threadIdx.x % 32;
  // Columns of products are independent, so lanes of rows beyond x may read any row.
  const unsigned char* const of_row = from + min(lane / 4, rows - 1) * kOperandBytes<Sums>;
  constexpr int kWords = RunSums<Sums>::kWords;
#pragma unroll
  for (int i = 0; i < kWords; ++i)
    sums.b[i] = reinterpret_cast<const uint32_t*>(of_row)[lane % 4 * kWords + i];
  sums.factor =
      reinterpret_cast<const float2*>(from + kPairRowsMax * kOperandBytes<Sums>)[lane % 4];
  return sums;
}

// Copies the warp's run of x, the 256 columns from `first_column` on, into shared memory as f16,
// with zeros for columns below `own_column` and from p.k on. Writes what its products are
// multiplied by to factors [kPairRowsMax] (bf16 alone), and the sums of columns to x_sums.
template <class T, XSums Sums>
__device__ __forceinline__ void copy_x(const TileProduct& p, int own_column, int first_column,
                                       unsigned char* to, int pitch, float* factors,
                                       unsigned char* x_sums) {
  const int lane = threadIdx.x % 32, column = first_column + lane * 8;
  const bool inside = column >= own_column && column < p.k;
  const std::byte* const from = p.x + column * 2;
  to += place_in_run(lane);
  uint4 v[kPairRowsMax] = {};
#pragma unroll
  for (int row = 0; row < kPairRowsMax; ++row)
    if (row < p.t && inside) v[row] = *reinterpret_cast<const uint4*>(from + row * p.x_stride * 2);
#pragma unroll
  for (int row = 0; row < kPairRowsMax; ++row) {
    if (row >= p.t) break;
    if constexpr (!std::is_same_v<T, __half>) {
      const float factor = to_half(v[row]);
      if (lane == 0) factors[row] = factor;
    }
    store_in_order(to + row * pitch, v[row]);
    const uint32_t words[4] = {v[row].x, v[row].y, v[row].z, v[row].w};
    float sum = 0;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const float2 two = __half22float2(as_half2(words[w]));
      sum += two.x + two.y;
    }
    write_x_sums<Sums>(x_sums, row, sum);
  }
  __syncwarp();
}

}  // namespace kivi::cuda
