// SPDX-License-Identifier: Apache-2.0
// out = x W^T (+ bias) for 17 to 128 rows of x and a W of 4-bit codes without minima, by Hopper's
// products of a warpgroup (wgmma). What matmul_tiles.cu says holds here too; this page says what
// differs.
//
// Mapping. A warpgroup multiplies 64 rows of W by 64 or 128 rows of x, and a block has four of
// them, or three where registers allow no more: x is read once a block, so a block should be tall.
// W is operand A in registers, and x is operand B in shared memory, swizzled as wgmma.cuh says, in
// columns of 64. Stages have 128 columns. The sums of 32 or 64 columns by 64 rows of x are one
// group of products. Other warpgroups compute while one unpacks codes or multiplies sums by scales.
//
// Test: tests/cuda/quantized_test.cpp.
#include <algorithm>

#include "kernels/cuda/matmul_tiles.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace kivi::cuda {
namespace {

constexpr int kAlignment = 1024;  // of swizzled rows

// Sizes for up to Rows rows of x: 64 or 128.
template <int Rows>
struct Stage {
  static constexpr int kWarpgroups = Rows == 64 ? 4 : 3;
  static constexpr int kThreads = 128 * kWarpgroups;
  static constexpr int kRows = Rows;
  static constexpr int kHeight = 64 * kWarpgroups;
  static constexpr int kSubtiles = kHeight / kWeightTileRows;
  static constexpr int kStages = 4;
  static constexpr int kColumns = 128;
  static constexpr int kBlocks = kColumns / kWeightBlock;
  static constexpr int kScaleBytes = 320;
  static constexpr int kRowBytes = 128;               // of 64 columns of a row of x
  static constexpr int kXColumns = Rows * kRowBytes;  // of 64 columns of all rows
  static constexpr int kX = kColumns / 64 * kXColumns;
  static constexpr int kCodesAt = kX;
  static constexpr int kScalesAt = kCodesAt + kSubtiles * kBlocks * kBlockBytes;
  static constexpr int kBytes =
      (kScalesAt + kSubtiles * kScaleBytes + kAlignment - 1) / kAlignment * kAlignment;
  static constexpr int kSums = Rows / 8, kSumsOfEight = 1;
  static constexpr int kSummed = kThreads;
  static_assert(kStageColumnsMax % kColumns == 0);

  static __device__ __forceinline__ uint32_t x_at(int row, int chunk) {
    return chunk / 8 * kXColumns + row * kRowBytes + (chunk % 8 ^ row % 8) * 16;
  }
};

// Multiplies one stage. SB: blocks of 32 columns under one scale.
template <class T, int Rows, int SB>
__device__ __forceinline__ void multiply_stage(const TileProduct& p, int stage_of_tile,
                                               const unsigned char* stage,
                                               float (&sums)[Rows / 8][4]) {
  using S = Stage<Rows>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int block = stage_of_tile * S::kBlocks;
  // Positions 2t, 2t + 1 and 2t + 8, 2t + 9 of k are bytes of words t / 2 and 2 + t / 2 of a row.
  const auto* codes = stage + S::kCodesAt + warp * S::kBlocks * kBlockBytes + t / 2 * 64 + g * 8;
  const uint32_t bytes = t % 2 == 0 ? kFirstTwo : kLastTwo;
  const auto* scales =
      reinterpret_cast<const std::byte*>(stage + S::kScalesAt) + warp * S::kScaleBytes;
  const Operand x(shared_address(stage), 16, 8 * S::kRowBytes);
#pragma unroll
  for (int span = 0; span < S::kBlocks / SB; ++span) {
    if (block + span * SB >= p.blocks) break;
    const int record = p.stage_records == 1 ? 0 : span * SB * kWeightBlock / p.unit_columns;
    const TwoScales s = read_scales(p.kind, scales + record * p.record_bytes, block + span * SB, g);
    const uint32_t zero[2] = {two_zeros<T>(s.zero[0]), two_zeros<T>(s.zero[1])};
    const float scale[2] = {s.scale[0] * kCodeScale<T>, s.scale[1] * kCodeScale<T>};
    uint32_t a[SB][2][4];
#pragma unroll
    for (int j = 0; j < SB; ++j) {
      const auto* at = codes + (span * SB + j) * kBlockBytes;
      unpack<T>(*reinterpret_cast<const uint2*>(at), bytes,
                *reinterpret_cast<const uint2*>(at + 128), bytes, a[j]);
      subtract_zeros<T>(zero, a[j]);
    }
#pragma unroll
    for (int half = 0; half < Rows / 64; ++half) {
      float c[32];
      pin(c);
      wgmma_begin();
#pragma unroll
      for (int j = 0; j < SB; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int k = (span * SB + j) * 2 + h;  // in sixteens
          wgmma_rows<T>(c, a[j][h],
                        x.at(k / 4 * S::kXColumns + half * 64 * S::kRowBytes + k % 4 * 32),
                        j + h > 0);
        }
      wgmma_commit();
      wgmma_wait<0>();
      pin(c);
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        float& sum = sums[half * 8 + i / 4][i % 4];
        sum = fmaf(scale[i % 4 / 2], c[i], sum);
      }
    }
  }
}

template <class T, int Rows, int SB>
__global__ void __launch_bounds__(Stage<Rows>::kThreads, 1)
    matmul_tiles_hopper_kernel(const __grid_constant__ TileProduct p) {
  using S = Stage<Rows>;
  extern __shared__ unsigned char unaligned[];
  unsigned char* const memory =
      unaligned + (kAlignment - shared_address(unaligned) % kAlignment) % kAlignment;
  __shared__ uint64_t barriers[S::kStages];  // complete when a stage's part of W is there
  constexpr int kStages = S::kStages;
  const int first = first_unit(int(blockIdx.x), p.units),
            last = first_unit(int(blockIdx.x) + 1, p.units);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t shared = shared_address(memory), barrier = shared_address(barriers);
  let_next_start();
  if (threadIdx.x == 0)
    for (int i = 0; i < kStages; ++i) barrier_init(barrier + 8 * i, kCopyArrivals);
  InputCopy<S> input(p, memory);
  fence_before_async_copy();
  __syncthreads();
  TilePlace at{first / p.stages_of_tile, first % p.stages_of_tile}, ahead = at, ahead_x = at;
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (warp == 0 && first + i < last)
      copy_weights<S>(p, ahead, shared + i * S::kBytes, barrier + 8 * i);
    ahead.move_on(p.stages_of_tile);
  }
  wait_for_previous();
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (first + i < last) input.copy(p, ahead_x.stage, shared + i * S::kBytes);
    ahead_x.move_on(p.stages_of_tile);
    end_copies();
  }
  float sums[Rows / 8][4] = {};
  int here = 0, there = kStages - 1;  // stages in shared memory: of `at`, of `ahead`
  uint32_t parity = 0;
  for (int unit = first; unit < last; ++unit) {
    wait_for_copies<kStages - 2>();
    fence_before_async_copy();  // x was copied by threads, and wgmma reads it
    barrier_wait(barrier + 8 * here, parity);
    __syncthreads();
    if (unit + kStages - 1 < last) {
      if (warp == 0) copy_weights<S>(p, ahead, shared + there * S::kBytes, barrier + 8 * there);
      input.copy(p, ahead.stage, shared + there * S::kBytes);
    }
    end_copies();
    ahead.move_on(p.stages_of_tile);
    there = there + 1 == kStages ? 0 : there + 1;
    multiply_stage<T, Rows, SB>(p, at.stage, memory + here * S::kBytes, sums);
    if (++here == kStages) here = 0, parity ^= 1;
    const int tile = at.tile;
    at.move_on(p.stages_of_tile);
    if (unit + 1 < last && at.tile == tile) continue;
    const int begin = tile * p.stages_of_tile;
    const bool whole = first <= begin && begin + p.stages_of_tile <= last;
    if (join_blocks<S>(p, tile, whole, sums)) {
      const int n = tile * S::kHeight + warp * 16 + lane / 4 * 2;
#pragma unroll
      for (int i = 0; i < S::kSums; ++i) {
        const int row = i * 8 + lane % 4 * 2;
        store_two<T>(p, row, n, sums[i][0], sums[i][2]);
        store_two<T>(p, row + 1, n, sums[i][1], sums[i][3]);
      }
    }
#pragma unroll
    for (int i = 0; i < S::kSums; ++i) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0;
  }
}

template <class T, int Rows, int SB>
cudaError_t launch(TileProduct p, const TileProductWorkspace& workspace, int multiprocessors,
                   cudaStream_t stream) {
  using S = Stage<Rows>;
  constexpr size_t kShared = size_t(S::kStages) * S::kBytes + kAlignment;
  constexpr size_t kPartials = size_t(2) * S::kSums * S::kSummed * sizeof(float4);  // of a block
  p.stages_of_tile = (p.k + S::kColumns - 1) / S::kColumns;
  p.stage_records = std::max(1, S::kColumns / p.unit_columns);
  const int64_t units = int64_t(p.stages_of_tile) * ((p.n + S::kHeight - 1) / S::kHeight);
  p.units = int(units);
  const int64_t blocks =
      std::min({units, int64_t(multiprocessors), int64_t(workspace.partials_bytes / kPartials),
                (int64_t(1) << 31) / units - 1});
  const auto kernel = matmul_tiles_hopper_kernel<T, Rows, SB>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kShared));
  if (error != cudaSuccess) return error;
  return launch_overlapped(kernel, dim3(unsigned(blocks)), dim3(S::kThreads), kShared, stream, p);
}

template <class T, int Rows>
cudaError_t launch_format(const TileProduct& p, const TileProductWorkspace& workspace,
                          int multiprocessors, cudaStream_t stream) {
  if (p.unit_columns >= 64) return launch<T, Rows, 2>(p, workspace, multiprocessors, stream);
  return launch<T, Rows, 1>(p, workspace, multiprocessors, stream);
}

}  // namespace

cudaError_t matmul_tiles_hopper(TileProduct p, DType type, const TileProductWorkspace& workspace,
                                int multiprocessors, cudaStream_t stream) {
  return with_half_type(type, [&]<class T>() {
    if (p.t <= 64) return launch_format<T, 64>(p, workspace, multiprocessors, stream);
    return launch_format<T, 128>(p, workspace, multiprocessors, stream);
  });
}

}  // namespace kivi::cuda
