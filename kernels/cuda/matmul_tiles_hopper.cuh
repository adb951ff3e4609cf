// SPDX-License-Identifier: Apache-2.0
// out = x W^T (+ bias) for a W of codes of 4 to 8 bits and 9 and more rows of x, or fewer where
// matmul_tiles_pairs.cu does not have the product, by Hopper's products of a warpgroup (wgmma).
//
// Bytes: W once for each 128, 160 or 192 rows of x. Operations: 2 t n k on tensor cores.
//
// Mapping. A tile is 256 rows of W by up to 64 rows of x, 192 by up to 160, or 128 by up to 192.
// Four, three or two warpgroups multiply 64 rows of W each. W is operand A in registers, and x is
// operand B in shared memory, swizzled as wgmma.cuh says, in columns of 64. While the tensor cores
// multiply 32 columns, the warps make numbers of the next 32. One thread brings stages of 128
// columns by four tensor copies: codes, scales and two columns of x. Full and empty barriers stand
// between them.
//
// Where one scale holds for 128 columns and x has up to 64 rows in a tile, codes less their zero
// points are multiplied, which is exact, and the sums of a stage are scaled. Otherwise W is rounded
// to 16 bits in registers, as it is where a slab of it is written out (products.cpp).
//
// Work is cut into equal pieces as in matmul_tiles.cu. Blocks that share a tile add up its parts
// together (hopper_tile_parts.cuh). All of them are on the device at a time, since there are no
// more than multiprocessors. The order of additions is that of the blocks, so results do not depend
// on timing.
//
// Test: tests/cuda/quantized_test.cpp. Figures: docs/benchmarks/weights.md.
#pragma once

#include <cuda.h>

#include <algorithm>

#include "kernels/cuda/hopper_tile_work.cuh"
#include "kernels/cuda/matmul_tiles_hopper.h"
#include "kernels/cuda/tensor_map_encoder.cuh"
#include "kernels/cuda/weights_of_blocks.cuh"
#include "kernels/cuda/wgmma_rows.cuh"

namespace kivi::cuda {

// Sizes for up to Rows rows of x. SB: blocks of 32 columns under one scale, or 1. Bits: of a code.
template <int Rows, int SB, int Bits>
struct HopperStage {
  static constexpr int kRows = Rows, kColumns = kHopperBlocks * kWeightBlock;
  static constexpr int kRowBytes = 128;               // of 64 columns of a row of x
  static constexpr int kXColumns = Rows * kRowBytes;  // of 64 columns of all rows
  static constexpr int kX = kColumns / 64 * kXColumns;
  static constexpr int kCodeBytes = kSubtiles<Rows> * kHopperBlocks * block_bytes(Bits);
  static constexpr int kCodesAt = kX;
  static constexpr int kScalesAt = kCodesAt + kCodeBytes;
  static constexpr int kScaleBytes =
      SB == kHopperBlocks ? 80 : 320;  // at most, of a tile of 16 rows
  static constexpr int kBytes =
      (kScalesAt + kSubtiles<Rows> * kScaleBytes + kAlignment - 1) / kAlignment * kAlignment;
  static constexpr int kStages = std::min(6, (kSharedMax - 2 * kAlignment) / kBytes);
};

// int4 alone has one scale for all blocks of a stage, and it has no minimum.
template <int Rows, int SB>
constexpr bool kScalesSums = (SB == kHopperBlocks) && (Rows <= kTileProductRowsExactGroups);
// The line of a stage where one scale holds for all of it, and of a block elsewhere.
template <class T, int Rows>
using StageLine =
    std::conditional_t<kScalesSums<Rows, kHopperBlocks>, CodeLine,
                       std::conditional_t<std::is_same_v<T, __half>, ZeroLine, PairLine>>;
template <class T, int Bits>
using LineOfBlock = std::conditional_t<Bits == 8, ByteLine<T>,
                                       std::conditional_t<Bits == 6, HalfLines<T>, RestLine<T>>>;
template <class T, int Rows, int SB, int Bits>
using LineOf = std::conditional_t<SB == kHopperBlocks, StageLine<T, Rows>, LineOfBlock<T, Bits>>;

template <bool kFirst, class A, class B>
__device__ __forceinline__ auto& first_if(A& first, B& second) {
  if constexpr (kFirst)
    return first;
  else
    return second;
}

// Fills a block's stages. One thread calls it.
template <class S, int Bits>
__device__ __forceinline__ void produce(const HopperProduct& a, const HopperBlock<S>& block) {
  constexpr int kRows = S::kRows;
  const uint32_t shared = shared_address(block.memory);
  const TileProduct& p = a.p;
  const CachePolicies policies(a);
  const int bytes = S::kX + S::kCodeBytes + kSubtiles<kRows> * p.stage_records * p.record_bytes;
  const auto copy_codes = [&](TilePlace at, int slot) {
    const uint32_t stage = shared + slot * S::kBytes, barrier = block.full + 8 * slot;
    expect_bytes(barrier, bytes);
    const int row = at.tile / a.chunks * kSubtiles<kRows>;
    const int record = at.stage * S::kColumns / p.unit_columns;
    copy_box(stage + S::kCodesAt, a.codes, at.stage * (kHopperBlocks * block_bytes(Bits) / 8), row,
             barrier, policies.of_w);
    copy_box(stage + S::kScalesAt, a.scales, record * (p.record_bytes / 4), row, barrier,
             policies.of_w);
  };
  const auto copy_x = [&](TilePlace at, int slot) {
    const uint32_t stage = shared + slot * S::kBytes, barrier = block.full + 8 * slot;
    const int row = at.tile % a.chunks * kRows;
#pragma unroll
    for (int part = 0; part < S::kColumns / 64; ++part)
      copy_box(stage + part * S::kXColumns, a.x, at.stage * S::kColumns + part * 64, row, barrier,
               policies.of_x);
  };
  fill_stages(p, block, copy_codes, copy_x);
}

// Where a lane reads in a stage, in shared memory.
template <class T, int Rows, int SB, int Bits>
struct LanePlace {
  uint32_t codes, upper, scales, zeros, selector;
  uint32_t record_at;  // of block lane % 4: bytes from the start of a stage
  __device__ __forceinline__ LanePlace(const TileProduct& p, uint32_t stage) {
    using S = HopperStage<Rows, SB, Bits>;
    const uint32_t subtile = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const uint32_t tile = stage + S::kCodesAt + subtile * (kHopperBlocks * block_bytes(Bits));
    codes = tile + t / 2 * 64 + g * 8;
    upper = tile + kNibbleBytes + g * 8;
    const uint32_t record = stage + S::kScalesAt + subtile * S::kScaleBytes;
    scales = record + g * 8;
    zeros = record + 64 + g * 2;
    selector = LineOf<T, Rows, SB, Bits>::selector();
    const uint32_t in_stage = p.stage_records == 1 ? 0 : t * kWeightBlock / p.unit_columns;
    record_at = S::kScalesAt + (subtile * p.stage_records + in_stage) * p.record_bytes;
  }
  // The same for each stage, in registers. The compiler would compute it again for each.
  __device__ __forceinline__ void keep() {
    codes = kept(codes);
    if constexpr (kUpperWords<Bits> != 0) upper = kept(upper);
    if constexpr (SB == kHopperBlocks)
      scales = kept(scales), zeros = kept(zeros);
    else
      record_at = kept(record_at);
    selector = kept(selector);
  }
  // at: of a stage, if this is of the first.
  __device__ __forceinline__ LanePlace moved(uint32_t at) const {
    LanePlace there = *this;
    there.codes += at;
    there.upper += at;
    there.scales += at;
    there.zeros += at;
    return there;
  }
};

// The line of block lane % 4 of a stage, for the lane's two rows. The four lanes of these rows read
// each other's lines. record: of that block. block: the stage's first one. What lies beyond the
// last column of W is multiplied by zeros.
template <int Bits>
__device__ __forceinline__ void read_line_of_block(WeightKind kind, const unsigned char* record,
                                                   int block, auto& line) {
  const auto scales_of = [&](int half) {
    return read_scales<Bits>(kind, reinterpret_cast<const std::byte*>(record),
                             block + threadIdx.x % 4, threadIdx.x % 32 / 4, half);
  };
  read_block_line(scales_of, line);
}

// Multiplies one stage, whose products are added to sums, or are the first of sums that are not
// scaled. Calls `begun()` when products of the stage before have ended. Calls `ended()` where its
// own have ended at the end. at: of the stage in `memory`. first: in the first stage.
template <class T, int Rows, int SB, int Bits, class Begun, class Ended>
__device__ __forceinline__ void multiply_stage(const TileProduct& p, int stage_of_tile,
                                               const unsigned char* memory, int at,
                                               const LanePlace<T, Rows, SB, Bits>& first, bool adds,
                                               uint32_t (&a)[2][2][4], float (&sums)[Rows / 8][4],
                                               const Begun& begun, const Ended& ended) {
  using S = HopperStage<Rows, SB, Bits>;
  constexpr bool kScales = kScalesSums<Rows, SB>;
  using L = LineOf<T, Rows, SB, Bits>;
  const SharedOperand x(shared_address(memory) + at, 16, 8 * S::kRowBytes);
  float products[kScales ? Rows / 8 : 1][4];
  auto& c = first_if<kScales>(products, sums);
  L line, of_block;  // of the whole stage, or of the lane's block and of the one that is multiplied
  const LanePlace<T, Rows, SB, Bits> lane = first.moved(at);
  LaneWords<Bits> words = read_words<Bits>(lane.codes, lane.upper);
  if constexpr (SB == kHopperBlocks)
    read_line<T>(read_lane_scales(lane.scales, lane.zeros), line);
  else
    read_line_of_block<Bits>(p.kind, memory + at + lane.record_at, stage_of_tile * kHopperBlocks,
                             line);
#pragma unroll
  for (int j = 0; j < kHopperBlocks; ++j) {
    if constexpr (SB != kHopperBlocks) of_block = line_of_lane(line, j);
    make_weights<T>(words, lane.selector, SB == kHopperBlocks ? line : of_block, a[j % 2]);
    wgmma_begin();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int k = j * 2 + h;  // in sixteens
      wgmma_rows<T>(c, a[j % 2][h], x.at(k / 4 * S::kXColumns + k % 4 * 32),
                    (!kScales && adds) || k > 0);
    }
    wgmma_commit();
    if (j + 1 < kHopperBlocks) {
      const int next = (j + 1) * block_bytes(Bits);
      words = read_words<Bits>(lane.codes + next, lane.upper + next);
    }
    wgmma_wait<1>();
    if (!kScales && j == 0) begun();
  }
  if constexpr (kScales) {
    wgmma_wait<0>();
    pin_all(products);
    ended();
#pragma unroll
    for (int i = 0; i < Rows / 8; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[i][e] = fmaf(line.scale[e / 2], products[i][e], sums[i][e]);
  }
}

template <class T, int Rows, int SB, int Bits>
__global__ void __launch_bounds__(kThreadsOfBlock<Rows>, 1)
    matmul_tiles_hopper_kernel(const __grid_constant__ HopperProduct a) {
#if KIVI_WGMMA
  using S = HopperStage<Rows, SB, Bits>;
  const TileProduct& p = a.p;
  extern __shared__ unsigned char unaligned[];
  const HopperBlock<S> block(p, unaligned);
  if (!block.multiplies()) {
    block.run_producers(p, [&] { produce<S, Bits>(a, block); });
    return;
  }
  registers_up<kConsumerRegisters<Rows>>();
  wait_for_previous();  // before this kernel writes
  float sums[Rows / 8][4];
  uint32_t weights[2][2][4];
  int slot = 0;  // stage in shared memory
  uint32_t parity = 0;
  LanePlace<T, Rows, SB, Bits> place(p, shared_address(block.memory));
  place.keep();
  for (int unit = block.first; unit < block.last;) {
    const int tile = unit / p.stages_of_tile, begin = tile * p.stages_of_tile;
    const int end = min(block.last, begin + p.stages_of_tile), start = unit;
    int before = slot;
    if constexpr (kScalesSums<Rows, SB>) {
#pragma unroll
      for (int i = 0; i < Rows / 8; ++i) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0;
    }
    for (; unit < end; ++unit) {
      barrier_wait(block.full + 8 * slot, parity);
      multiply_stage<T, Rows, SB, Bits>(
          p, unit - begin, block.memory, slot * S::kBytes, place, unit > start, weights, sums,
          [&] {
            if (unit > start && block.lane == 0) barrier_arrive(block.empty + 8 * before);
          },
          [&] {
            if (block.lane == 0) barrier_arrive(block.empty + 8 * slot);
          });
      before = slot;
      if (++slot == S::kStages) slot = 0, parity ^= 1;
    }
    if constexpr (!kScalesSums<Rows, SB>) {
      wgmma_wait<0>();
      pin_all(sums);
      if (block.lane == 0) barrier_arrive(block.empty + 8 * before);
    }
    finish_tile<T, Rows, RowOrder::tiles>(a, tile, sums);
  }
#endif
}

template <class T, int Rows, int SB, int Bits>
cudaError_t launch_hopper(const TileProduct& product, const TileProductWorkspace& workspace,
                          int multiprocessors, cudaStream_t stream) {
  using S = HopperStage<Rows, SB, Bits>;
  HopperProduct a{};
  a.p = product;
  TileProduct& p = a.p;
  p.stage_records = std::max(1, S::kColumns / p.unit_columns);
  const int blocks = cut_work<S>(a, workspace, multiprocessors);
  if (blocks == 0) return cudaErrorInvalidValue;
  const int words = p.record_bytes / 4;
  if (!make_map(a.codes, CU_TENSOR_MAP_DATA_TYPE_UINT64, p.codes,
                p.blocks * (block_bytes(Bits) / 8), p.tiles, p.blocks * block_bytes(Bits),
                kHopperBlocks * block_bytes(Bits) / 8, kSubtiles<Rows>,
                CU_TENSOR_MAP_SWIZZLE_NONE) ||
      !make_map(a.scales, CU_TENSOR_MAP_DATA_TYPE_UINT32, p.scales, p.tile_scales / 4, p.tiles,
                p.tile_scales, p.stage_records * words, kSubtiles<Rows>,
                CU_TENSOR_MAP_SWIZZLE_NONE) ||
      !make_map(a.x, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, p.x, p.k, p.t, p.x_stride * 2, 64, Rows,
                CU_TENSOR_MAP_SWIZZLE_128B))
    return cudaErrorNotSupported;
  return launch_hopper_kernel<S>(matmul_tiles_hopper_kernel<T, Rows, SB, Bits>, a, blocks, stream);
}

// Rows of x of a tile, for more than 96 rows. The costs are times of two tiles
// (docs/design/decisions/035-weights-rounded-in-registers.md).
inline int tile_rows(int t) {
  struct Choice {
    int rows, cost;
  };
  constexpr Choice kChoices[] = {{192, 22}, {160, 18}, {128, 16}};
  const auto cost = [&](const Choice& c) { return (t + c.rows - 1) / c.rows * c.cost; };
  return std::ranges::min_element(kChoices, {}, cost)->rows;
}

template <class T, int SB, int Bits>
cudaError_t matmul_tiles_hopper_as(const TileProduct& p, const TileProductWorkspace& workspace,
                                   int multiprocessors, cudaStream_t stream) {
  const auto with = [&]<int Rows>() {
    return launch_hopper<T, Rows, SB, Bits>(p, workspace, multiprocessors, stream);
  };
  return with_tile_rows(p.t, with, [&](int t) {
    const int rows = tile_rows(t);
    if (rows == 192) return with.template operator()<192>();
    if (rows == 160) return with.template operator()<160>();
    return with.template operator()<128>();
  });
}

}  // namespace kivi::cuda
