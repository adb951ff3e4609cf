// SPDX-License-Identifier: Apache-2.0
// What the kernels for matrices of codes of 4 to 8 bits share (matmul_tiles*.cu):
// their arguments, how work is cut into units, copies into shared memory, codes as 16-bit numbers,
// and sums that several blocks share.
//
// A kernel describes what it holds of a unit, a stage, as a type S:
//   kThreads               threads of a block
//   kHeight, kColumns      rows and columns of W
//   kSubtiles, kBlocks     the same in tiles of 16 rows and in blocks of 32 columns
//   kScaleBytes            room for the records of a tile of 16 rows
//   kCodesAt, kScalesAt    where they begin in the stage's shared memory
//   kRows, x_at()          rows of x, and where 8 of its columns are there
//   kStages, kBytes        stages in shared memory, and the size of one
//   kSums, kSummed         sums of a thread in fours, and how many threads have sums
//   row_of(i)              the first of the eight rows of x that four i belongs to
//   meet()                 a barrier of the threads that call join_blocks
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "kernels/cuda/matmul_tiles.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/vector.cuh"
#include "kernels/cuda/weight_tiles.cuh"
#include "kernels/weight_codec.h"

namespace kivi::cuda {

constexpr int kStageColumnsMax = 512;
constexpr int kBlockBytes = 256;  // codes of 16 rows by 32 columns
// Bytes of a word that __byte_perm puts into the lower bytes of two halves.
constexpr uint32_t kFirstTwo = 0x4140, kLastTwo = 0x4342;

struct TileProduct {
  const std::byte* codes;
  const std::byte* scales;
  const std::byte* x;
  const void* bias;  // or null
  void* out;
  float4* partials;
  int* counters;
  int64_t x_stride, out_stride;  // elements
  int t, n, k;
  int blocks;          // of 32 columns, of a row
  int tiles;           // of 16 rows
  int stages_of_tile;  // stages of a tile of S::kHeight rows: the units of work
  int units;
  WeightKind kind;    // scales_like
  int bits;           // of a code
  int unit_columns;   // that share a record
  int record_bytes;   // of 16 rows
  int tile_scales;    // bytes of a tile's records
  int stage_records;  // that a stage reads
  bool out_f32;
  bool pairs;  // two neighbors of `out` are one aligned store
};

// What a product of `rows` rows has whatever x and W are: the rest is zero.
inline TileProduct start_product(int64_t rows, const Weight& w, const Tensor& bias,
                                 const Tensor& out, const TileProductWorkspace& workspace) {
  TileProduct p{};
  p.codes = w.codes;
  p.scales = w.scales;
  p.bias = bias.empty() ? nullptr : bias.data;
  p.out = out.data;
  p.partials = static_cast<float4*>(workspace.partials);
  p.counters = workspace.counters;
  p.out_stride = out.row_stride;
  p.t = int(rows);
  p.n = int(w.rows);
  p.k = int(w.columns);
  p.out_f32 = out.dtype == DType::f32;
  p.pairs = out.row_stride % 2 == 0 && reinterpret_cast<uintptr_t>(out.data) % 4 == 0;
  return p;
}

// Whether there is a counter for each tile.
inline bool has_counters(int64_t rows, const Weight& w, const TileProductWorkspace& workspace) {
  return (w.rows + kTileProductHeight - 1) / kTileProductHeight *
             ((rows + kTileProductWidth - 1) / kTileProductWidth) <=
         workspace.counters_count;
}

// Products of up to kTileProductRowsHopper rows, by W rounded to 16 bits. Of `p`, the launcher sets
// what depends on the size of a stage.
cudaError_t matmul_tiles_hopper(const TileProduct& p, DType type,
                                const TileProductWorkspace& workspace, int multiprocessors,
                                cudaStream_t stream);

// Products of up to kTileProductRowsExact rows on Hopper. Returns false, and starts nothing, where
// the workspace is too small, for rows of fewer than 8 blocks, and for int4 with a scale for 128
// columns or more whose rows are no multiple of 128 columns.
bool matmul_tiles_pairs(const TileProduct& p, DType type, const TileProductWorkspace& workspace,
                        int multiprocessors, cudaStream_t stream, cudaError_t& error);

// `bytes`: 16, or 0 for zeros.
__device__ __forceinline__ void copy_16_or_zeros(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void end_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int Pending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// The upper bytes of two codes as two numbers of T: in f16 c 2^-24, in bf16 128 + c.
template <class T>
constexpr uint32_t kUpperBytes = std::is_same_v<T, __half> ? 0 : 0x43434343u;
// What the code 0 is.
template <class T>
constexpr float kCodeOffset = std::is_same_v<T, __half> ? 0.0f : 128.0f;
// What is subtracted from two codes as numbers of T: a zero point, twice.
template <class T>
__device__ __forceinline__ uint32_t two_zeros(uint32_t zero) {
  const uint32_t twice = zero | zero << 16;
  if constexpr (std::is_same_v<T, __half>) return twice;
  return twice | 0x43004300u;
}
template <class T>
__device__ __forceinline__ uint32_t subtract(uint32_t a, uint32_t b) {
  if constexpr (std::is_same_v<T, __half>) return as_u32(__hsub2(as_half2(a), as_half2(b)));
  const auto d =
      __hsub2(*reinterpret_cast<__nv_bfloat162*>(&a), *reinterpret_cast<__nv_bfloat162*>(&b));
  return *reinterpret_cast<const uint32_t*>(&d);
}
// What the sums of products by codes are multiplied by to undo two_codes.
template <class T>
constexpr float kCodeScale = std::is_same_v<T, __half> ? 16777216.0f : 1.0f;
template <class T>
constexpr uint32_t kOnes = std::is_same_v<T, __half> ? 0x3C003C00u : 0x3F803F80u;

// Codes of a block, rows 2 g (x) and 2 g + 1 (y), as operands A of two products h (columns 16 h and
// up): rows g and g + 8 of A. Bytes `first` (a selector of __byte_perm) of `low` are positions 2t
// and 2t + 1 of k, and bytes `second` of `high` are positions 2t + 8 and 2t + 9.
template <class T>
__device__ __forceinline__ void unpack(uint2 low, uint32_t first, uint2 high, uint32_t second,
                                       uint32_t (&a)[2][4]) {
  const uint32_t lows[2] = {low.x, low.y}, highs[2] = {high.x, high.y};
#pragma unroll
  for (int row = 0; row < 2; ++row)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      a[h][row] = __byte_perm(lows[row] >> (4 * h) & kNibbles, kUpperBytes<T>, first);
      a[h][2 + row] = __byte_perm(highs[row] >> (4 * h) & kNibbles, kUpperBytes<T>, second);
    }
}
// Subtracts the zero points of the rows of A.
template <class T>
__device__ __forceinline__ void subtract_zeros(const uint32_t (&zero)[2], uint32_t (&a)[2][4]) {
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int i = 0; i < 4; ++i) a[h][i] = subtract<T>(a[h][i], zero[i % 2]);
}

// c += A B, as `mma` (ptx.cuh) says, for either type.
template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint2 b) {
  if constexpr (std::is_same_v<T, __half>)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

// The first unit of a block's piece. The launcher keeps units times blocks below 2^31.
__device__ __forceinline__ int first_unit(int block, int units) {
  return int(unsigned(block) * unsigned(units) / gridDim.x);
}
// The block whose piece holds a unit.
__device__ __forceinline__ int block_of(int unit, int units) {
  return int(((unsigned(unit) + 1) * gridDim.x - 1) / unsigned(units));
}

// Where a block is: a tile of S::kHeight rows, and a stage of it.
struct TilePlace {
  int tile, stage;
  __device__ __forceinline__ void move_on(int stages_of_tile) {
    if (++stage < stages_of_tile) return;
    stage = 0;
    ++tile;
  }
};

#if __CUDA_ARCH__ >= 900
constexpr int kCopyArrivals = 1;
#else
constexpr int kCopyArrivals = 32;
#endif

// Copies codes and scales of a unit. One warp calls it. `barrier` expects kCopyArrivals, and its
// phase completes when all is there.
template <class S>
__device__ __forceinline__ void copy_weights(const TileProduct& p, TilePlace at, uint32_t stage,
                                             uint32_t barrier) {
  const int lane = threadIdx.x % 32;
  const int first = at.tile * S::kSubtiles, block = at.stage * S::kBlocks;
  const int record = at.stage * S::kColumns / p.unit_columns * p.record_bytes;
  const int subtiles = min(S::kSubtiles, p.tiles - first);
  const int code_bytes = min(S::kBlocks, p.blocks - block) * kBlockBytes;
  const int scale_bytes = min(p.stage_records * p.record_bytes, p.tile_scales - record);
  const std::byte* codes = p.codes + (int64_t(first) * p.blocks + block) * kBlockBytes;
  const std::byte* scales = p.scales + int64_t(first) * p.tile_scales + record;
  const int64_t code_stride = int64_t(p.blocks) * kBlockBytes;
  const uint32_t codes_to = stage + S::kCodesAt, scales_to = stage + S::kScalesAt;
#if __CUDA_ARCH__ >= 900
  static_assert(S::kSubtiles <= 16);
  if (lane == 0)
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                 "r"(subtiles * (code_bytes + scale_bytes))
                 : "memory");
  __syncwarp();
  // W passes through once: first to leave the level-2 cache.
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  const auto copy = [&](uint32_t to, const std::byte* from, int bytes) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
        "[%1], %2, [%3], %4;" ::"r"(to),
        "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
        : "memory");
  };
  const int sub = lane % 16;
  if (sub < subtiles) {
    if (lane < 16)
      copy(codes_to + sub * S::kBlocks * kBlockBytes, codes + sub * code_stride, code_bytes);
    else
      copy(scales_to + sub * S::kScaleBytes, scales + int64_t(sub) * p.tile_scales, scale_bytes);
  }
#else
  for (int sub = 0; sub < subtiles; ++sub) {
    for (int i = lane * 16; i < code_bytes; i += 32 * 16)
      copy_16_or_zeros(codes_to + sub * S::kBlocks * kBlockBytes + i, codes + sub * code_stride + i,
                       16);
    for (int i = lane * 16; i < scale_bytes; i += 32 * 16)
      copy_16_or_zeros(scales_to + sub * S::kScaleBytes + i,
                       scales + int64_t(sub) * p.tile_scales + i, 16);
  }
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
#endif
}

// Copies the columns of x that a stage needs: threads take 16 bytes each, always of the same rows
// and columns of a stage. S::x_at(row, chunk) says where they go.
template <class S>
class InputCopy {
 public:
  // Fills the places of rows beyond x with zeros, in all stages.
  __device__ __forceinline__ InputCopy(const TileProduct& p, unsigned char* memory) {
    const int row = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
    column_ = chunk * 8;
    from_ = p.x + (row * p.x_stride + column_) * 2;
    pass_bytes_ = kRowsOfPass * p.x_stride * 2;
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int at = row + i * kRowsOfPass;
      to_[i] = at < S::kRows ? S::x_at(at, chunk) : 0;
      passes_ = at < p.t ? i + 1 : passes_;
      if (at < p.t || at >= S::kRows) continue;
      for (int stage = 0; stage < S::kStages; ++stage)
        *reinterpret_cast<uint4*>(memory + stage * S::kBytes + to_[i]) = make_uint4(0, 0, 0, 0);
    }
  }
  __device__ __forceinline__ void copy(const TileProduct& p, int stage_of_tile, uint32_t stage) {
    const int begin = stage_of_tile * S::kColumns;
    const int bytes = begin + column_ < p.k ? 16 : 0;
    const std::byte* from = bytes == 0 ? from_ : from_ + begin * 2;
#pragma unroll
    for (int i = 0; i < kPasses; ++i)
      if (i < passes_) copy_16_or_zeros(stage + to_[i], from + i * pass_bytes_, bytes);
  }

 private:
  static constexpr int kChunks = S::kColumns * 2 / 16;  // of a row
  static constexpr int kRowsOfPass = S::kThreads / kChunks;
  static constexpr int kPasses = (S::kRows + kRowsOfPass - 1) / kRowsOfPass;
  static_assert(S::kThreads % kChunks == 0);
  const std::byte* from_;
  int64_t pass_bytes_;
  int column_, passes_ = 0;
  uint32_t to_[kPasses];
};

// Stores row n of W of one row of x.
template <class T>
__device__ __forceinline__ void store_one(const TileProduct& p, int row, int n, float sum) {
  if (n >= p.n) return;
  if (p.bias != nullptr) sum += as_float(static_cast<const T*>(p.bias)[n]);
  const int64_t at = row * p.out_stride + n;
  if (p.out_f32)
    static_cast<float*>(p.out)[at] = sum;
  else
    static_cast<T*>(p.out)[at] = from_float<T>(sum);
}

// Stores two neighboring rows of W of one row of x.
template <class T>
__device__ __forceinline__ void store_two(const TileProduct& p, int row, int n, float first,
                                          float second) {
  if (row >= p.t || n >= p.n) return;
  const bool both = n + 1 < p.n;
  if (p.bias != nullptr) {
    const auto* bias = static_cast<const T*>(p.bias);
    first += as_float(bias[n]);
    if (both) second += as_float(bias[n + 1]);
  }
  const int64_t at = row * p.out_stride + n;
  if (p.out_f32) {
    auto* out = static_cast<float*>(p.out) + at;
    out[0] = first;
    if (both) out[1] = second;
    return;
  }
  auto* out = static_cast<T*>(p.out) + at;
  if (both && p.pairs) {
    alignas(4) const T two[2] = {from_float<T>(first), from_float<T>(second)};
    *reinterpret_cast<uint32_t*>(out) = *reinterpret_cast<const uint32_t*>(two);
    return;
  }
  out[0] = from_float<T>(first);
  if (both) out[1] = from_float<T>(second);
}

// The block's part of tile `tile` is done. Where it is not all of the tile, adds the parts of all
// blocks up. Returns false where another block will. Every thread returns the same.
template <class S>
__device__ __forceinline__ bool join_blocks(const TileProduct& p, int tile, bool whole,
                                            float (&sums)[S::kSums][4]) {
  if (whole) return true;
  __shared__ bool is_last;
  const bool holds = threadIdx.x < S::kSummed;
  const int begin = tile * p.stages_of_tile;
  const int first = block_of(begin, p.units),
            last = block_of(begin + p.stages_of_tile - 1, p.units);
  // A block has at most two parts, at its beginning and at its end. Only the first of the tile's
  // blocks may have begun with another tile.
  constexpr int kPart = S::kSums * S::kSummed;
  const bool is_second = first_unit(first, p.units) < begin;
  const auto part = [&](int block) {
    return p.partials + (2 * block + (block == first && is_second ? 1 : 0)) * kPart + threadIdx.x;
  };
  if (holds) {
    float4* const own = part(int(blockIdx.x));
#pragma unroll
    for (int i = 0; i < S::kSums; ++i) {
      const float(&c)[4] = sums[i];
      if (S::row_of(i) < p.t) own[i * S::kSummed] = make_float4(c[0], c[1], c[2], c[3]);
    }
  }
  __threadfence();
  S::meet();
  if (threadIdx.x == 0) {
    is_last = atomicAdd(p.counters + tile, 1) == last - first;
    if (is_last) p.counters[tile] = 0;
  }
  S::meet();
  if (!is_last) return false;
  __threadfence();
  if (!holds) return true;
  // Loads of several fours and blocks are under way at a time: one after the other, their latency
  // took longer than the product of a small matrix.
  constexpr int kFours = S::kSums % 4 == 0 ? 4 : 2, kAhead = S::kSums > 8 ? 2 : 3;
  static_assert(S::kSums % kFours == 0);
#pragma unroll
  for (int begin = 0; begin < S::kSums; begin += kFours) {
#pragma unroll
    for (int i = begin; i < begin + kFours; ++i)
      sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0;
#pragma unroll 1
    for (int block = first; block <= last; block += kAhead) {
      float4 v[kAhead][kFours];
#pragma unroll
      for (int ahead = 0; ahead < kAhead; ++ahead)
#pragma unroll
        for (int i = 0; i < kFours; ++i) {
          v[ahead][i] = make_float4(0, 0, 0, 0);
          if (block + ahead <= last && S::row_of(begin + i) < p.t)
            v[ahead][i] = __ldcg(part(block + ahead) + (begin + i) * S::kSummed);
        }
#pragma unroll
      for (int ahead = 0; ahead < kAhead; ++ahead)
#pragma unroll
        for (int i = 0; i < kFours; ++i) {
          float(&c)[4] = sums[begin + i];
          c[0] += v[ahead][i].x;
          c[1] += v[ahead][i].y;
          c[2] += v[ahead][i].z;
          c[3] += v[ahead][i].w;
        }
    }
  }
  return true;
}

}  // namespace kivi::cuda
