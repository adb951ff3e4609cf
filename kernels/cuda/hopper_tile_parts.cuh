// SPDX-License-Identifier: Apache-2.0
// The tiles of products by wgmma (matmul_tiles_hopper.cuh, matmul_e4m3_hopper.cu): their sizes, and
// how the blocks that share a tile add up its parts.
//
// A block's sums of a tile are fours: two neighboring rows of W by two rows of x. A part, the sums
// of one block, lies in the workspace as fours of all threads. Those blocks whose work ends with
// the tile wait for all parts, and each adds up a share of the fours, in the order of the blocks.
#pragma once

#include <cuda.h>

#include <algorithm>

#include "kernels/cuda/matmul_tiles.cuh"

namespace kivi::cuda {

// What depends on the rows of x of a tile: the threads that multiply, since the sums of many rows
// need many registers.
template <int Rows>
constexpr int kConsumers = Rows <= 64    ? 512
                           : Rows <= 160 ? 384
                                         : 256;
template <int Rows>
constexpr int kHeight = kConsumers<Rows> / 2;  // rows of W
template <int Rows>
constexpr int kSubtiles = kHeight<Rows> / kWeightTileRows;

// Fours of a tile's sums.
template <int Rows>
constexpr int kPart = Rows / 8 * kConsumers<Rows>;

struct HopperProduct {
  CUtensorMap codes, scales, x;
  TileProduct p;
  int chunks;             // of rows of x, of a tile of W
  const float* x_scales;  // of each row of x, if W and x are e4m3. p.scales: of each row of W
};

// Which two rows of 16 rows of W a lane's fours are of. Codes lie in tiles so that a lane has rows
// 2 g and 2 g + 1 (kernels/weight_codec.h). Rows of e4m3 become neighbors by make_neighbors().
enum class RowOrder { tiles, e4m3 };
template <RowOrder Order>
__device__ __forceinline__ int first_row_of(int lane) {
  const int g = lane / 4;
  return Order == RowOrder::tiles ? 2 * g : g / 2 * 2 + g % 2 * 8;
}
// Sums of rows g and g + 8 of a product become those of neighbors: rows g and g + 1 where g is
// even, rows g + 7 and g + 8 elsewhere. All lanes of a warp call it.
template <int N>
__device__ __forceinline__ void make_neighbors(float (&sums)[N][4]) {
  const bool odd = threadIdx.x / 4 % 2 == 1;
#pragma unroll
  for (int i = 0; i < N; ++i)
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      float &first = sums[i][x], &second = sums[i][2 + x];
      const float taken = __shfl_xor_sync(0xffffffffu, odd ? first : second, 4);
      first = odd ? taken : first;
      second = odd ? second : taken;
    }
}

constexpr int largest_divisor(int n, int most) {
  int divisor = std::min(n, most);
  while (n % divisor != 0) --divisor;
  return divisor;
}

// A barrier of the threads that multiply.
template <int Rows>
__device__ __forceinline__ void meet() {
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumers<Rows>) : "memory");
}
// The consumers have written an early part, and go on. The warp that tells of it waits.
template <int Rows>
__device__ __forceinline__ void early_part_is_written() {
  asm volatile("bar.arrive 2, %0;" ::"n"(kConsumers<Rows> + 32) : "memory");
}
template <int Rows>
__device__ __forceinline__ void wait_for_early_part() {
  asm volatile("bar.sync 2, %0;" ::"n"(kConsumers<Rows> + 32) : "memory");
}

// A tile, and which blocks have parts of it. Those whose work ends in the tile join the parts.
struct TileParts {
  int tile, first, last;  // blocks
  int joining;            // blocks from `first` on
  bool first_is_second;   // the first block has another part before

  __device__ __forceinline__ TileParts(const TileProduct& p, int tile) : tile(tile) {
    const int begin = tile * p.stages_of_tile, end = begin + p.stages_of_tile;
    first = block_of(begin, p.units);
    last = block_of(end - 1, p.units);
    joining = last - first + (first_unit(last + 1, p.units) <= end ? 1 : 0);
    first_is_second = first_unit(first, p.units) < begin;
  }
  [[maybe_unused]] __device__ __forceinline__ bool whole() const { return first == last; }
  template <int Rows>
  __device__ __forceinline__ float4* part(const TileProduct& p, int block) const {
    const int second = block == first && first_is_second ? 1 : 0;
    return p.partials + (2 * block + second) * kPart<Rows>;
  }
};

[[maybe_unused]] __device__ __forceinline__ void add_to(float4& sum, const float4& v) {
  sum.x += v.x;
  sum.y += v.y;
  sum.z += v.z;
  sum.w += v.w;
}

// Stores a four: two rows of W by two rows of x. It is four i of a thread.
template <class T, int Rows, RowOrder Order>
__device__ __forceinline__ void store_four(const HopperProduct& a, int tile, int thread, int i,
                                           const float4& c) {
  const int n = tile / a.chunks * kHeight<Rows> + thread / 32 * kWeightTileRows +
                first_row_of<Order>(thread % 32);
  const int row = tile % a.chunks * Rows + i * 8 + thread % 4 * 2;
  if constexpr (Order == RowOrder::tiles) {
    store_two<T>(a.p, row, n, c.x, c.z);
    store_two<T>(a.p, row + 1, n, c.y, c.w);
  } else {
    if (row >= a.p.t || n >= a.p.n) return;
    const auto* scales = reinterpret_cast<const float*>(a.p.scales);
    const float first = scales[n], second = n + 1 < a.p.n ? scales[n + 1] : 0.0f;
    const float x = a.x_scales[row], next = row + 1 < a.p.t ? a.x_scales[row + 1] : 0.0f;
    store_two<T>(a.p, row, n, c.x * (first * x), c.z * (second * x));
    store_two<T>(a.p, row + 1, n, c.y * (first * next), c.w * (second * next));
  }
}

// Leaves a block's part of a tile for others.
template <int Rows>
__device__ __forceinline__ void leave_part(const TileProduct& p, const TileParts& parts, int fours,
                                           const float (&sums)[Rows / 8][4]) {
  float4* const own = parts.part<Rows>(p, int(blockIdx.x)) + threadIdx.x;
#pragma unroll
  for (int i = 0; i < Rows / 8; ++i)
    if (i < fours)
      __stcg(own + i * kConsumers<Rows>,
             make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]));
}

[[maybe_unused]] __device__ __forceinline__ void tell(int* counter) {
  __threadfence();
  atomicAdd(counter, 1);
}

// Waits until `parts` blocks have told that theirs are written. One thread calls it, and another
// `tell` afterwards, so that the last of `joining` blocks can clear the counter.
[[maybe_unused]] __device__ __forceinline__ void wait_for_parts(int* counter, int parts) {
  int count;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
  } while (count < parts);
}

// Adds up fours [begin, end) of all parts of a tile in the order of blocks, and stores the sums.
// The loads of Parts parts of Fours fours are under way at a time.
template <class T, int Rows, RowOrder Order, int Fours, int Parts>
__device__ __forceinline__ void add_share(const HopperProduct& a, const TileParts& parts, int begin,
                                          int end) {
  constexpr int kThreads = kConsumers<Rows>;
  for (int at = begin + int(threadIdx.x); at < end; at += Fours * kThreads) {
    float4 sums[Fours];
#pragma unroll
    for (int four = 0; four < Fours; ++four) sums[four] = make_float4(0, 0, 0, 0);
#pragma unroll 1
    for (int block = parts.first; block <= parts.last; block += Parts) {
      float4 v[Fours][Parts];
#pragma unroll
      for (int four = 0; four < Fours; ++four)
#pragma unroll
        for (int i = 0; i < Parts; ++i) {
          v[four][i] = make_float4(0, 0, 0, 0);
          if (block + i <= parts.last && at + four * kThreads < end)
            v[four][i] = __ldcg(parts.part<Rows>(a.p, block + i) + at + four * kThreads);
        }
#pragma unroll
      for (int four = 0; four < Fours; ++four)
#pragma unroll
        for (int i = 0; i < Parts; ++i) add_to(sums[four], v[four][i]);
    }
#pragma unroll
    for (int four = 0; four < Fours; ++four) {
      const int place = at + four * kThreads;
      if (place < end)
        store_four<T, Rows, Order>(a, parts.tile, place % kThreads, place / kThreads, sums[four]);
    }
  }
}

// Adds up the parts of a tile in the order of blocks, and stores the sums. All consumers of a block
// whose work ends with this tile call it. fours: of a thread, with rows of x.
template <class T, int Rows, RowOrder Order>
__device__ __forceinline__ void join(const HopperProduct& a, const TileParts& parts, int fours,
                                     const float (&sums)[Rows / 8][4]) {
  const TileProduct& p = a.p;
  int* const counter = p.counters + parts.tile;
  if (parts.joining == 1) {  // the first block, and the second has told of its part long ago
    if (threadIdx.x == 0) {
      wait_for_parts(counter, 1);
      *counter = 0;
    }
    meet<Rows>();
    const float4* const other = parts.part<Rows>(p, parts.last) + threadIdx.x;
    // So many loads are under way at a time. Their registers lie beside those of the sums.
    constexpr int kAhead = largest_divisor(Rows / 8, kConsumers<Rows> == 256 ? 16 : 6);
#pragma unroll
    for (int begin = 0; begin < Rows / 8; begin += kAhead) {
      if (begin >= fours) break;
      float4 v[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        if (begin + i < fours) v[i] = __ldcg(other + (begin + i) * kConsumers<Rows>);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (begin + i >= fours) break;
        const float(&c)[4] = sums[begin + i];
        add_to(v[i], make_float4(c[0], c[1], c[2], c[3]));
        store_four<T, Rows, Order>(a, parts.tile, threadIdx.x, begin + i, v[i]);
      }
    }
    return;
  }
  leave_part<Rows>(p, parts, fours, sums);
  const int count = parts.last - parts.first + 1, own = int(blockIdx.x) - parts.first;
  meet<Rows>();
  if (threadIdx.x == 0) {
    tell(counter);
    wait_for_parts(counter, count);
  }
  meet<Rows>();
  // This comes after the barrier, so that no thread waits for what it returns.
  if (threadIdx.x == 0 && atomicAdd(counter, 1) == count + parts.joining - 1) *counter = 0;
  const int all = fours * kConsumers<Rows>;
  const int begin = own * all / parts.joining, end = (own + 1) * all / parts.joining;
  if (count > 4)
    add_share<T, Rows, Order, 2, 8>(a, parts, begin, end);
  else
    add_share<T, Rows, Order, 4, 4>(a, parts, begin, end);
}

// A block has all products of its part of a tile: stores sums, adds them up with others, or leaves
// them. All consumers call it.
template <class T, int Rows, RowOrder Order>
__device__ __forceinline__ void finish_tile(const HopperProduct& a, int tile,
                                            const float (&sums)[Rows / 8][4]) {
  const TileParts parts(a.p, tile);
  const int fours = (min(Rows, a.p.t - tile % a.chunks * Rows) + 7) / 8;
  if (parts.whole()) {
#pragma unroll
    for (int i = 0; i < Rows / 8; ++i)
      store_four<T, Rows, Order>(a, tile, threadIdx.x, i,
                                 make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]));
  } else if (int(blockIdx.x) - parts.first < parts.joining) {
    join<T, Rows, Order>(a, parts, fours, sums);
  } else {
    leave_part<Rows>(a.p, parts, fours, sums);
    early_part_is_written<Rows>();
  }
}

}  // namespace kivi::cuda
