// SPDX-License-Identifier: Apache-2.0
// out = x W^T (+ bias) for 17 to 128 rows of x and a W of 4-bit codes, by Hopper's products of a
// warpgroup (wgmma). W is rounded to 16 bits, as it is where a slab of it is written out
// (products.cpp), but in registers.
//
// Bytes: W once. Operations: 2 t n k on tensor cores.
//
// Mapping. Four warpgroups multiply 64 rows of W each by all rows of x. W is operand A in
// registers, and x is operand B in shared memory, swizzled as wgmma.cuh says, in columns of 64.
// While the tensor cores multiply 32 columns, the warps make 16-bit numbers of the next 32. Four
// more warps copy: each fills a stage of 128 columns by itself, codes and scales by bulk copies, x
// in pieces of 16 bytes. Full and empty barriers stand between them.
//
// Work is cut into equal pieces as in matmul_tiles.cu.
//
// Test: tests/cuda/quantized_test.cpp.
#include <algorithm>

#include "kernels/cuda/matmul_tiles.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/wgmma_rows.cuh"

namespace kivi::cuda {
namespace {

constexpr int kAlignment = 1024;  // of swizzled rows
constexpr int kConsumers = 512;   // threads that multiply
constexpr int kProducerWarps = 4;
constexpr int kSharedMax = 227 << 10;

// Sizes for up to Rows rows of x: 32, 64 or 128.
template <int Rows>
struct Stage {
  static constexpr int kThreads = kConsumers + 32 * kProducerWarps;
  // Registers of a thread. With fewer than 112 for 128 rows of x, products would wait for each
  // other (C7512). The kernel starts with 96 for each thread, and these are no more.
  static constexpr int kConsumerRegisters = Rows == 128 ? 112 : 104;
  static constexpr int kProducerRegisters = Rows == 128 ? 32 : 40;
  static_assert(kConsumers * kConsumerRegisters + 32 * kProducerWarps * kProducerRegisters <=
                96 * kThreads);
  static constexpr int kTiles = 1;  // of 64 rows of W, of a warpgroup
  static constexpr int kHeight = kConsumers / 2 * kTiles;
  static constexpr int kSubtiles = kHeight / kWeightTileRows;
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
  static constexpr int kStages = std::min(6, (kSharedMax - 2 * kAlignment) / kBytes);
  static constexpr int kSums = kTiles * Rows / 8;
  static constexpr int kSummed = kConsumers;
  // A warp that begins a stage must know that the stage's last use but one has ended. It does if no
  // more warps than stages take turns.
  static_assert(kStages >= kProducerWarps);
  static_assert(kStageColumnsMax % kColumns == 0);

  static constexpr int row_of(int i) { return i % (Rows / 8) * 8; }
  static __device__ __forceinline__ void meet() {
    asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
  }
  static __device__ __forceinline__ uint32_t x_at(int row, int chunk) {
    return chunk / 8 * kXColumns + row * kRowBytes + (chunk % 8 ^ row % 8) * 16;
  }
};

// W = scale * (128 + code) + minimum, for a lane's two rows.
struct Line {
  float scale[2], minimum[2];
};

[[maybe_unused]] __device__ __forceinline__ Line line_of(const TwoScales& s) {
  Line line;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    line.scale[row] = s.scale[row];
    line.minimum[row] = fmaf(-s.scale[row], float(s.zero[row]) + 128.0f, s.minimum[row]);
  }
  return line;
}

// Bytes `first` and `second` (selectors of __byte_perm) of four codes as two numbers of W.
template <class T>
__device__ __forceinline__ uint32_t two_weights(uint32_t codes, const uint32_t (&bytes)[2],
                                                float scale, float minimum) {
  float w[2];
#pragma unroll
  for (int i = 0; i < 2; ++i)
    w[i] = fmaf(scale, __uint_as_float(__byte_perm(codes, 0x43000000u, bytes[i])), minimum);
  if constexpr (std::is_same_v<T, __half>) {
    return as_u32(__floats2half2_rn(w[0], w[1]));
  } else {
    const __nv_bfloat162 two = __floats2bfloat162_rn(w[0], w[1]);
    return *reinterpret_cast<const uint32_t*>(&two);
  }
}

// Codes of a block, rows 2 g and 2 g + 1, as operands A of two products. `at`: the lane's word of
// positions 2t and 2t + 1 of k.
template <class T>
__device__ __forceinline__ void make_weights(const unsigned char* at, const Line& line,
                                             uint32_t (&a)[2][4]) {
  const uint32_t select = 0x7044u + threadIdx.x % 2 * 0x0200u,
                 bytes[2] = {select, select + 0x0100u};
  const uint2 words[2] = {*reinterpret_cast<const uint2*>(at),
                          *reinterpret_cast<const uint2*>(at + 128)};
#pragma unroll
  for (int part = 0; part < 2; ++part)
#pragma unroll
    for (int row = 0; row < 2; ++row)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t word = row == 0 ? words[part].x : words[part].y;
        a[h][2 * part + row] =
            two_weights<T>(word >> (4 * h) & kNibbles, bytes, line.scale[row], line.minimum[row]);
      }
}

// W = (high + low) * (code - zero) for a lane's two rows. All are two equal numbers of bf16. `high`
// and `low` have 16 bits of the scale together. zero: 128 more than the zero point.
struct PairLine {
  uint32_t high[2], low[2], zero[2];
};

[[maybe_unused]] __device__ __forceinline__ __nv_bfloat162 as_bf16s(uint32_t v) {
  return *reinterpret_cast<const __nv_bfloat162*>(&v);
}
[[maybe_unused]] __device__ __forceinline__ uint32_t bits_of(__nv_bfloat162 v) {
  return *reinterpret_cast<const uint32_t*>(&v);
}

[[maybe_unused]] __device__ __forceinline__ PairLine pair_line_of(const TwoScales& s) {
  PairLine line;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const __nv_bfloat162 high = __float2bfloat162_rn(s.scale[row]);
    line.high[row] = bits_of(high);
    line.low[row] = bits_of(__float2bfloat162_rn(s.scale[row] - __low2float(high)));
    line.zero[row] = two_zeros<__nv_bfloat16>(s.zero[row]);
  }
  return line;
}

// The same weights, two at a time. Before they are rounded to bf16, they are wrong by 2^-17 of them
// at most.
template <class T>
__device__ __forceinline__ void make_weights(const unsigned char* at, const PairLine& line,
                                             uint32_t (&a)[2][4]) {
  constexpr uint32_t kLow = 0x000F000Fu, kOf128 = 0x43004300u;  // 128 + code
  const uint32_t bytes = threadIdx.x % 2 == 0 ? kFirstTwo : kLastTwo;
  const uint2 words[2] = {*reinterpret_cast<const uint2*>(at),
                          *reinterpret_cast<const uint2*>(at + 128)};
#pragma unroll
  for (int part = 0; part < 2; ++part)
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const uint32_t two = __byte_perm(row == 0 ? words[part].x : words[part].y, 0, bytes);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const __nv_bfloat162 code =
            __hsub2(as_bf16s((two >> (4 * h) & kLow) | kOf128), as_bf16s(line.zero[row]));
        a[h][2 * part + row] = bits_of(
            __hfma2(code, as_bf16s(line.high[row]), __hmul2(code, as_bf16s(line.low[row]))));
      }
    }
}

// int4 alone has one scale for four blocks, and it has no minimum.
template <class T, int SB>
using LineOf = std::conditional_t<!std::is_same_v<T, __half> && SB == 4, PairLine, Line>;

// Keeps the compiler from moving accesses to sums over this place.
template <int M, int N>
__device__ __forceinline__ void pin_all(float (&sums)[M][N][4]) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int i = 0; i < N; ++i) pin(sums[m][i]);
}

// Fills stages. Each of the producer warps takes every kProducerWarps-th unit.
template <class S>
__device__ __forceinline__ void produce(const TileProduct& p, int first, int last, uint32_t shared,
                                        uint32_t full, uint32_t empty) {
  const int warp = (int(threadIdx.x) - kConsumers) / 32, lane = threadIdx.x % 32;
  const int chunk = lane % 16;
  const std::byte* x = p.x + (lane / 16 * p.x_stride + chunk * 8) * 2;
  for (int unit = first + warp; unit < last; unit += kProducerWarps) {
    const int number = unit - first, slot = number % S::kStages, round = number / S::kStages;
    const TilePlace at{unit / p.stages_of_tile, unit % p.stages_of_tile};
    const uint32_t stage = shared + slot * S::kBytes;
    if (round > 0) barrier_wait(empty + 8 * slot, (round - 1) % 2);
    copy_weights<S>(p, at, stage, full + 8 * slot);
    if (number < kProducerWarps) wait_for_previous();
    const int column = at.stage * S::kColumns;
    const int bytes = column + chunk * 8 < p.k ? 16 : 0;
    const std::byte* from = bytes == 0 ? x : x + column * 2;
#pragma unroll 8
    for (int row = lane / 16; row < p.t; row += 2) {
      copy_16_or_zeros(stage + S::x_at(row, chunk), from, bytes);
      from += 4 * p.x_stride;
    }
    end_copies();
    wait_for_copies<0>();
    fence_before_async_copy();  // threads copied x, and wgmma reads it
    barrier_arrive(full + 8 * slot);
  }
}

// Multiplies one stage. SB: blocks under one scale, or 1. Returns after `begun()` was called, which
// is when products of the stage before have ended; the last block's products are under way.
template <class T, int Rows, int SB, class Begun>
__device__ __forceinline__ void multiply_stage(const TileProduct& p, int stage_of_tile,
                                               const unsigned char* stage, bool adds,
                                               uint32_t (&a)[2][Stage<Rows>::kTiles][2][4],
                                               float (&sums)[Stage<Rows>::kTiles][Rows / 8][4],
                                               const Begun& begun) {
  using S = Stage<Rows>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int block = stage_of_tile * S::kBlocks;
  // The lane's warp has subtiles 4 kTiles (warp / 4) + 4 m + warp % 4.
  const int subtile = warp / 4 * 4 * S::kTiles + warp % 4;
  const unsigned char* codes =
      stage + S::kCodesAt + subtile * S::kBlocks * kBlockBytes + t / 2 * 64 + g * 8;
  const auto* scales =
      reinterpret_cast<const std::byte*>(stage + S::kScalesAt) + subtile * S::kScaleBytes;
  const SharedOperand x(shared_address(stage), 16, 8 * S::kRowBytes);
  using L = LineOf<T, SB>;
  L line[S::kTiles];
#pragma unroll
  for (int j = 0; j < S::kBlocks; ++j) {
#pragma unroll
    for (int m = 0; m < S::kTiles; ++m) {
      if (j % SB == 0) {
        const int record = p.stage_records == 1 ? 0 : j * kWeightBlock / p.unit_columns;
        const TwoScales of_rows = read_scales(
            p.kind, scales + m * 4 * S::kScaleBytes + record * p.record_bytes, block + j, g);
        if constexpr (std::is_same_v<L, Line>)
          line[m] = line_of(of_rows);
        else
          line[m] = pair_line_of(of_rows);
      }
      // What lies beyond the last block is no part of W.
      if (block + j >= p.blocks) line[m] = L{};
      make_weights<T>(codes + (m * 4 * S::kBlocks + j) * kBlockBytes, line[m], a[j % 2][m]);
    }
    wgmma_begin();
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int m = 0; m < S::kTiles; ++m) {
        const int k = j * 2 + h;  // in sixteens
        wgmma_rows<T>(sums[m], a[j % 2][m][h], x.at(k / 4 * S::kXColumns + k % 4 * 32),
                      adds || k > 0);
      }
    wgmma_commit();
    wgmma_wait<1>();
    if (j == 0) begun();
  }
}

template <class T, int Rows, int SB>
__global__ void __launch_bounds__(Stage<Rows>::kThreads, 1)
    matmul_tiles_hopper_kernel(const __grid_constant__ TileProduct p) {
#if KIVI_WGMMA
  using S = Stage<Rows>;
  extern __shared__ unsigned char unaligned[];
  unsigned char* const memory =
      unaligned + (kAlignment - shared_address(unaligned) % kAlignment) % kAlignment;
  __shared__ uint64_t barriers[2 * S::kStages];  // full, then empty
  const int first = first_unit(int(blockIdx.x), p.units),
            last = first_unit(int(blockIdx.x) + 1, p.units);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t full = shared_address(barriers), empty = full + 8 * S::kStages;
  let_next_start();
  if (threadIdx.x == 0)
    for (int i = 0; i < S::kStages; ++i) {
      barrier_init(full + 8 * i, kCopyArrivals + 32);
      barrier_init(empty + 8 * i, kConsumers / 32);
    }
  // Rows beyond x are zeros in all stages.
  for (int i = threadIdx.x; i < (Rows - p.t) * 16; i += S::kThreads)
    for (int stage = 0; stage < S::kStages; ++stage)
      *reinterpret_cast<uint4*>(memory + stage * S::kBytes + S::x_at(p.t + i / 16, i % 16)) =
          make_uint4(0, 0, 0, 0);
  fence_before_async_copy();
  __syncthreads();
  if (warp >= kConsumers / 32) {
    registers_down<S::kProducerRegisters>();
    produce<S>(p, first, last, shared_address(memory), full, empty);
    return;
  }
  registers_up<S::kConsumerRegisters>();
  wait_for_previous();  // before this kernel writes
  float sums[S::kTiles][Rows / 8][4];
  uint32_t a[2][S::kTiles][2][4];
  int slot = 0;  // stage in shared memory
  uint32_t parity = 0;
  for (int unit = first; unit < last;) {
    const int tile = unit / p.stages_of_tile, begin = tile * p.stages_of_tile;
    const int end = min(last, begin + p.stages_of_tile), start = unit;
    int before = slot;
    for (; unit < end; ++unit) {
      barrier_wait(full + 8 * slot, parity);
      multiply_stage<T, Rows, SB>(p, unit - begin, memory + slot * S::kBytes, unit > start, a, sums,
                                  [&] {
                                    if (unit > start && lane == 0)
                                      barrier_arrive(empty + 8 * before);
                                  });
      before = slot;
      if (++slot == S::kStages) slot = 0, parity ^= 1;
    }
    wgmma_wait<0>();
    pin_all(sums);
    if (lane == 0) barrier_arrive(empty + 8 * before);
    const bool whole = first <= begin && begin + p.stages_of_tile <= last;
    auto& all = reinterpret_cast<float(&)[S::kSums][4]>(sums);
    if (!join_blocks<S>(p, tile, whole, all)) continue;
#pragma unroll
    for (int m = 0; m < S::kTiles; ++m) {
      const int subtile = warp / 4 * 4 * S::kTiles + m * 4 + warp % 4;
      const int n = tile * S::kHeight + subtile * kWeightTileRows + lane / 4 * 2;
#pragma unroll
      for (int i = 0; i < Rows / 8; ++i) {
        const int row = i * 8 + lane % 4 * 2;
        store_two<T>(p, row, n, sums[m][i][0], sums[m][i][2]);
        store_two<T>(p, row + 1, n, sums[m][i][1], sums[m][i][3]);
      }
    }
  }
#endif
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
  if (p.kind == WeightKind::int4 && p.unit_columns >= 128)
    return launch<T, Rows, 4>(p, workspace, multiprocessors, stream);
  return launch<T, Rows, 1>(p, workspace, multiprocessors, stream);
}

}  // namespace

cudaError_t matmul_tiles_hopper(TileProduct p, DType type, const TileProductWorkspace& workspace,
                                int multiprocessors, cudaStream_t stream) {
  return with_half_type(type, [&]<class T>() {
    if (p.t <= 32) return launch_format<T, 32>(p, workspace, multiprocessors, stream);
    if (p.t <= 64) return launch_format<T, 64>(p, workspace, multiprocessors, stream);
    return launch_format<T, 128>(p, workspace, multiprocessors, stream);
  });
}

}  // namespace kivi::cuda
