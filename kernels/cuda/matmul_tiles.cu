// SPDX-License-Identifier: Apache-2.0
// out = x W^T (+ bias) for 1 to 64 rows of x and a W of 4-bit codes.
//
// Bytes: W once, 8.6 to 9.3 bits for two codes. Operations: 2 t n k on tensor cores (mma.m16n8k16).
//
// Mapping. A block of 8 warps multiplies 64, 128 or 256 rows of W, 32 rows a warp, by all rows of
// x. Where it has fewer than 256 rows, several warps share rows and each takes a part of the
// columns. W is operand A and x is operand B, so that W is unpacked once for all rows of x. Codes,
// scales and x come through shared memory, 3 or 4 stages deep: on Hopper one warp starts bulk
// copies of W, and all threads copy x. Codes become 16-bit integers, which is exact: subnormals in
// f16 (decision 003), 128 + code in bf16. Sums of 32 or 128 columns leave the tensor cores in fp32
// and are multiplied by the group's scale there. Products by ones give the sums of x that minima
// and, up to 16 rows of x, zero points multiply; with more rows, zero points are subtracted from
// codes.
//
// Work is cut evenly: the stages of all tiles of rows stand in one line, and each of a fixed
// number of blocks takes an equal piece of it. Where several blocks share a tile, each writes its
// sums, and the last one to arrive adds them up in the order of the blocks, so that results do not
// depend on timing. Copies of W start before the kernel that makes x has ended (overlap.cuh).
//
// Reference: CpuBackend::do_matmul_quantized with x as it is. Test: tests/cuda/quantized_test.cpp.
#include <algorithm>

#include "kernels/cuda/matmul_tiles.cuh"
#include "kernels/cuda/matmul_tiles.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/prefill_attend.h"
#include "kernels/weight_codec.h"

namespace kivi::cuda {
namespace {

// Sizes for up to 8 NT rows of x.
template <int NT>
struct Stage {
  static constexpr int kThreads = 256;
  static constexpr int kRows = NT * 8;
  static constexpr int kRowWarps = NT == 1 ? 2 : NT == 2 ? 4 : 8;
  static constexpr int kColumnWarps = kThreads / 32 / kRowWarps;
  static constexpr int kHeight = kRowWarps * 32;
  static constexpr int kResident = NT <= 2 ? 2 : 1;  // blocks of a multiprocessor
  static constexpr int kSubtiles = kHeight / kWeightTileRows;
  static constexpr int kStages = NT <= 2 ? 3 : 4;
  static constexpr int kColumns = NT <= 2 ? 128 * kColumnWarps : 64;
  static constexpr int kBlocks = kColumns / kWeightBlock;
  static constexpr int kWarpBlocks = kBlocks / kColumnWarps;  // of one warp
  static constexpr int kScaleBytes = std::max(320, 80 * kBlocks);
  static constexpr int kCodes = kSubtiles * kBlocks * kBlockBytes;
  static constexpr int kXPitch = kColumns * 2 + 32;  // no bank conflicts of 8-byte reads
  static constexpr int kXAt = kCodes;
  static constexpr int kCodesAt = 0, kScalesAt = kXAt + kRows * kXPitch;
  static constexpr int kBytes = kScalesAt + kSubtiles * kScaleBytes;
  static constexpr int kSums = 2 * NT;
  static constexpr int kSummed = kRowWarps * 32;  // threads that hold a tile's sums at its end
  static_assert(kStageColumnsMax % kColumns == 0);
  static_assert(kBytes % 16 == 0);

  static constexpr int row_of(int i) { return i / 2 * 8; }
  static __device__ __forceinline__ void meet() { __syncthreads(); }

  static __device__ __forceinline__ uint32_t x_at(int row, int chunk) {
    return kXAt + row * kXPitch + chunk * 16;
  }
};

// The sums of a lane: for each eight rows of x (nt) and each of two tiles of W (mt), in the order
// 2 nt + mt, rows 2 g and 2 g + 1 of W by rows 2t and 2t + 1 of x.
template <int NT>
using Sums = float[2 * NT][4];

// Where a lane reads its part of a stage.
template <int NT>
struct Lane {
  using S = Stage<NT>;
  const unsigned char *codes, *x;
  const std::byte* scales;
  int own, block, g;  // first block of the warp in the stage, in the row; row of the fragments

  __device__ __forceinline__ Lane(const unsigned char* stage, int stage_of_tile) {
    const int lane = threadIdx.x % 32, t = lane % 4, row_warp = threadIdx.x / 32 % S::kRowWarps;
    g = lane / 4;
    own = int(threadIdx.x) / S::kSummed * S::kWarpBlocks;
    block = stage_of_tile * S::kBlocks + own;
    codes = stage + (2 * row_warp * S::kBlocks + own) * kBlockBytes + t * 64 + g * 8;
    x = stage + S::kXAt + g * S::kXPitch + own * 64 + t * 8;
    scales =
        reinterpret_cast<const std::byte*>(stage) + S::kScalesAt + 2 * row_warp * S::kScaleBytes;
  }
  // Columns 4t to 4t + 3 and 16 + 4t to 16 + 4t + 3 of block j of the warp, of two tiles of W.
  template <class T>
  __device__ __forceinline__ void unpack_block(int j, uint32_t (&a)[2][2][4]) const {
#pragma unroll
    for (int mt = 0; mt < 2; ++mt) {
      const uint2 word =
          *reinterpret_cast<const uint2*>(codes + (mt * S::kBlocks + j) * kBlockBytes);
      unpack<T>(word, kFirstTwo, word, kLastTwo, a[mt]);
    }
  }
  __device__ __forceinline__ uint2 x_of(int nt, int j, int h) const {
    return *reinterpret_cast<const uint2*>(x + nt * 8 * S::kXPitch + j * 64 + h * 32);
  }
  __device__ __forceinline__ TwoScales scales_of(const TileProduct& p, int mt, int j) const {
    const int record = p.stage_records == 1 ? 0 : (own + j) * kWeightBlock / p.unit_columns;
    return read_scales(p.kind, scales + mt * S::kScaleBytes + record * p.record_bytes, block + j,
                       g);
  }
};

// Multiplies one stage by up to 16 rows of x. SB: blocks of 32 columns under one scale. Zero points
// and the offset of codes in bf16 become a part of the minimum: a product by ones gives the sums of
// x that it multiplies.
template <class T, int NT, int SB>
__device__ __forceinline__ void multiply_few(const TileProduct& p, const Lane<NT>& lane,
                                             Sums<NT>& sums) {
  using S = Stage<NT>;
  const uint32_t one[4] = {kOnes<T>, kOnes<T>, kOnes<T>, kOnes<T>};
#pragma unroll
  for (int span = 0; span < S::kWarpBlocks; span += SB) {
    if (lane.block + span >= p.blocks) break;
    float c[2][NT][4] = {}, ones[NT][4] = {};
#pragma unroll
    for (int j = span; j < span + SB; ++j) {
      uint32_t a[2][2][4];
      lane.template unpack_block<T>(j, a);
#pragma unroll
      for (int nt = 0; nt < NT; ++nt)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const uint2 b = lane.x_of(nt, j, h);
#pragma unroll
          for (int mt = 0; mt < 2; ++mt) multiply_add<T>(c[mt][nt], a[mt][h], b);
          multiply_add<T>(ones[nt], one, b);
        }
    }
#pragma unroll
    for (int mt = 0; mt < 2; ++mt) {
      const TwoScales s = lane.scales_of(p, mt, span);
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const float minimum =
            fmaf(-s.scale[row], float(s.zero[row]) + kCodeOffset<T>, s.minimum[row]);
        const float scale = s.scale[row] * kCodeScale<T>;
#pragma unroll
        for (int nt = 0; nt < NT; ++nt)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& sum = sums[2 * nt + mt][2 * row + i];
            sum = fmaf(minimum, ones[nt][i], fmaf(scale, c[mt][nt][2 * row + i], sum));
          }
      }
    }
  }
}

// The same for more rows of x, where registers hold the products of 8 rows at a time.
template <class T, int NT, bool Minimum>
__device__ __forceinline__ void multiply_many(const TileProduct& p, const Lane<NT>& lane,
                                              Sums<NT>& sums) {
  using S = Stage<NT>;
  const uint32_t one[4] = {kOnes<T>, kOnes<T>, kOnes<T>, kOnes<T>};
#pragma unroll
  for (int j = 0; j < S::kWarpBlocks; ++j) {
    if (lane.block + j >= p.blocks) break;
    uint32_t a[2][2][4];
    lane.template unpack_block<T>(j, a);
    TwoScales s[2];
#pragma unroll
    for (int mt = 0; mt < 2; ++mt) {
      s[mt] = lane.scales_of(p, mt, j);
      const uint32_t zero[2] = {two_zeros<T>(s[mt].zero[0]), two_zeros<T>(s[mt].zero[1])};
      subtract_zeros<T>(zero, a[mt]);
    }
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
      if (nt * 8 >= p.t) break;
      const uint2 b[2] = {lane.x_of(nt, j, 0), lane.x_of(nt, j, 1)};
      float ones[4] = {};
      if constexpr (Minimum) {
        multiply_add<T>(ones, one, b[0]);
        multiply_add<T>(ones, one, b[1]);
      }
#pragma unroll
      for (int mt = 0; mt < 2; ++mt) {
        float c[4] = {};
        multiply_add<T>(c, a[mt][0], b[0]);
        multiply_add<T>(c, a[mt][1], b[1]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& sum = sums[2 * nt + mt][i];
          sum = fmaf(s[mt].scale[i / 2] * kCodeScale<T>, c[i], sum);
          if constexpr (Minimum) sum = fmaf(s[mt].minimum[i / 2], ones[i % 2], sum);
        }
      }
    }
  }
}

// Adds up the sums of the warps that share rows. Threads below kSummed hold the result.
template <int NT>
__device__ __forceinline__ void join_warps(Sums<NT>& sums) {
  using S = Stage<NT>;
  if constexpr (S::kColumnWarps > 1) {
    __shared__ float4 others[S::kColumnWarps - 1][NT * 2][S::kSummed];
    const int thread = threadIdx.x % S::kSummed, column_warp = threadIdx.x / S::kSummed;
#pragma unroll
    for (int i = 0; i < NT * 2; ++i) {
      const float(&c)[4] = sums[i];
      if (column_warp > 0) others[column_warp - 1][i][thread] = make_float4(c[0], c[1], c[2], c[3]);
    }
    __syncthreads();
    if (column_warp > 0) return;
#pragma unroll
    for (int i = 0; i < NT * 2; ++i) {
      float(&c)[4] = sums[i];
#pragma unroll
      for (int w = 0; w < S::kColumnWarps - 1; ++w) {
        const float4 v = others[w][i][thread];
        c[0] += v.x;
        c[1] += v.y;
        c[2] += v.z;
        c[3] += v.w;
      }
    }
  }
}

template <class T, int NT, int SB, bool Minimum>
__global__ void __launch_bounds__(Stage<NT>::kThreads, Stage<NT>::kResident)
    matmul_tiles_kernel(const __grid_constant__ TileProduct p) {
  using S = Stage<NT>;
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ uint64_t barriers[S::kStages];  // complete when a stage's part of W is there
  constexpr int kStages = S::kStages;
  const int first = first_unit(int(blockIdx.x), p.units),
            last = first_unit(int(blockIdx.x) + 1, p.units);
  const int lane = threadIdx.x % 32, row_warp = threadIdx.x / 32;
  const uint32_t shared = shared_address(memory), barrier = shared_address(barriers);
  let_next_start();
  if (threadIdx.x == 0)
    for (int i = 0; i < kStages; ++i) barrier_init(barrier + 8 * i, kCopyArrivals);
  fence_before_async_copy();
  InputCopy<S> input(p, memory);
  __syncthreads();
  TilePlace at{first / p.stages_of_tile, first % p.stages_of_tile}, ahead = at, ahead_x = at;
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (row_warp == 0 && first + i < last)
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
  Sums<NT> sums = {};
  int here = 0, there = kStages - 1;  // stages in shared memory: of `at`, of `ahead`
  uint32_t parity = 0;
  for (int unit = first; unit < last; ++unit) {
    wait_for_copies<kStages - 2>();
    barrier_wait(barrier + 8 * here, parity);
    __syncthreads();
    if (unit + kStages - 1 < last) {
      if (row_warp == 0) copy_weights<S>(p, ahead, shared + there * S::kBytes, barrier + 8 * there);
      input.copy(p, ahead.stage, shared + there * S::kBytes);
    }
    end_copies();
    ahead.move_on(p.stages_of_tile);
    there = there + 1 == kStages ? 0 : there + 1;
    const Lane<NT> mine(memory + here * S::kBytes, at.stage);
    if constexpr (NT <= 2)
      multiply_few<T, NT, SB>(p, mine, sums);
    else
      multiply_many<T, NT, Minimum>(p, mine, sums);
    if (++here == kStages) here = 0, parity ^= 1;
    const int tile = at.tile;
    at.move_on(p.stages_of_tile);
    if (unit + 1 < last && at.tile == tile) continue;
    const int begin = tile * p.stages_of_tile;
    const bool whole = first <= begin && begin + p.stages_of_tile <= last;
    join_warps<NT>(sums);
    if (join_blocks<S>(p, tile, whole, sums) && threadIdx.x < S::kSummed) {
#pragma unroll
      for (int nt = 0; nt < NT; ++nt)
#pragma unroll
        for (int mt = 0; mt < 2; ++mt) {
          const int n = tile * S::kHeight + row_warp * 32 + mt * 16 + lane / 4 * 2;
          const int row = nt * 8 + lane % 4 * 2;
          store_two<T>(p, row, n, sums[2 * nt + mt][0], sums[2 * nt + mt][2]);
          store_two<T>(p, row + 1, n, sums[2 * nt + mt][1], sums[2 * nt + mt][3]);
        }
    }
#pragma unroll
    for (int i = 0; i < NT * 2; ++i) {
      float(&c)[4] = sums[i];
      c[0] = c[1] = c[2] = c[3] = 0;
    }
  }
}

bool is_aligned(const Tensor& m) {
  return m.row_stride % 8 == 0 && reinterpret_cast<uintptr_t>(m.data) % 16 == 0;
}

template <class T, int NT, int SB, bool Minimum>
cudaError_t launch(TileProduct p, const TileProductWorkspace& workspace, int multiprocessors,
                   cudaStream_t stream) {
  using S = Stage<NT>;
  constexpr size_t kShared = size_t(S::kStages) * S::kBytes;
  constexpr size_t kPartials = size_t(2) * NT * 2 * S::kSummed * sizeof(float4);  // of a block
  p.stages_of_tile = (p.k + S::kColumns - 1) / S::kColumns;
  p.stage_records = std::max(1, S::kColumns / p.unit_columns);
  const int64_t units = int64_t(p.stages_of_tile) * ((p.n + S::kHeight - 1) / S::kHeight);
  p.units = int(units);
  const int64_t blocks =
      std::min({units, int64_t(S::kResident) * multiprocessors,
                int64_t(workspace.partials_bytes / kPartials), (int64_t(1) << 31) / units - 1});
  const auto kernel = matmul_tiles_kernel<T, NT, SB, Minimum>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kShared));
  if (error != cudaSuccess) return error;
  return launch_overlapped(kernel, dim3(unsigned(blocks)), dim3(S::kThreads), kShared, stream, p);
}

template <class T, int NT>
cudaError_t launch_format(const TileProduct& p, const TileProductWorkspace& workspace,
                          int multiprocessors, cudaStream_t stream) {
  if constexpr (NT > 2)
    return has_minimum(p.kind) ? launch<T, NT, 1, true>(p, workspace, multiprocessors, stream)
                               : launch<T, NT, 1, false>(p, workspace, multiprocessors, stream);
  else
    return p.kind == WeightKind::int4 && p.unit_columns >= 128
               ? launch<T, NT, 4, true>(p, workspace, multiprocessors, stream)
               : launch<T, NT, 1, true>(p, workspace, multiprocessors, stream);
}

// wgmma is there where flash prefill has it.
bool has_wgmma() { return has_prefill_hopper(128); }

// Whether a scale holds for a whole stage of the products by wgmma.
bool has_large_groups(const WeightFormat& format) {
  return format.kind == WeightKind::int4 && (format.group == 0 || format.group >= 128);
}

// Codes of more than 4 bits have kernels on Hopper alone.
bool is_wide(const WeightFormat& format) { return layout_of(format.kind).bits > 4; }

}  // namespace

bool has_tile_format(const WeightFormat& format) {
  switch (format.kind) {
    case WeightKind::int4:
      return format.group == 32 || format.group == 64 || format.group == 128 ||
             format.group == 256 || format.group % kStageColumnsMax == 0;
    case WeightKind::q4_0:
    case WeightKind::q4_1:
    case WeightKind::q4_k:
      return true;
    case WeightKind::q5_0:
    case WeightKind::q5_1:
    case WeightKind::q5_k:
    case WeightKind::q6_k:
    case WeightKind::q8_0:
      return has_wgmma();
    default:
      return false;
  }
}

int tile_product_rows() { return has_wgmma() ? kTileProductRowsHopper : kTileProductRows; }

int64_t tile_rows_max(const WeightFormat& format) {
  if (has_wgmma()) return kTileProductRowsHopper;
  return has_minimum(format.kind) ? 32 : 128;
}

bool rounds_weights(int64_t rows, const Weight& w) {
  const WeightFormat& format = w.format;
  if (rows > tile_rows_max(format)) return true;
  if (is_wide(format) && block_count(w.columns) < kPairBlocksMin) return true;
  return has_wgmma() &&
         rows > (has_large_groups(format) ? kTileProductRowsExactGroups : kTileProductRowsExact);
}

bool has_tile_product(const Tensor& x, const Weight& w, const Tensor& out,
                      const TileProductWorkspace& workspace) {
  return has_tile_format(w.format) && x.rows() >= 1 && x.rows() <= tile_product_rows() &&
         (out.dtype == x.dtype || out.dtype == DType::f32) && w.columns % 8 == 0 && is_aligned(x) &&
         has_counters(x.rows(), w, workspace);
}

cudaError_t matmul_tiles(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out,
                         const TileProductWorkspace& workspace, int multiprocessors,
                         cudaStream_t stream) {
  const int record_bytes = layout_of(w.format.kind).record_bytes * kWeightTileRows;
  const auto records = int(record_count(w.format, w.columns));
  constexpr int kWholeRow = 1 << 30;  // columns of a stage are a small part of it
  TileProduct p = start_product(x.rows(), w, bias, out, workspace);
  p.x = x.as<std::byte>();
  p.x_stride = x.row_stride;
  p.blocks = int(block_count(w.columns));
  p.tiles = int((w.rows + kWeightTileRows - 1) / kWeightTileRows);
  p.kind = scales_like(w.format.kind);
  p.bits = layout_of(w.format.kind).bits;
  p.unit_columns = records == 1 ? kWholeRow : int(unit_columns(w.format, w.columns));
  p.record_bytes = record_bytes;
  p.tile_scales = records * record_bytes;
  p.stage_records = 1;
  if (cudaError_t error = cudaSuccess;
      p.t <= kTileProductRowsExact && runs_hopper_code() &&
      matmul_tiles_pairs(p, x.dtype, workspace, multiprocessors, stream, error))
    return error;
  return with_half_type(x.dtype, [&]<class T>() {
    static_assert(kTileProductRowsExact == 8);
    if (p.t <= 8 && !is_wide(w.format))
      return launch_format<T, 1>(p, workspace, multiprocessors, stream);
    if (has_wgmma()) return matmul_tiles_hopper(p, x.dtype, workspace, multiprocessors, stream);
    if (p.t <= 16) return launch_format<T, 2>(p, workspace, multiprocessors, stream);
    return launch_format<T, 8>(p, workspace, multiprocessors, stream);
  });
}

}  // namespace kivi::cuda
