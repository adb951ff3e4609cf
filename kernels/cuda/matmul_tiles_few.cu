// SPDX-License-Identifier: Apache-2.0
// out = x W^T (+ bias) for 1 to 16 rows of x and a W of 4-bit codes, on Hopper.
//
// Bytes: W once, 8.6 to 9.3 bits for two codes. Operations: 2 t n k on tensor cores (mma.m16n8k16).
// Each warp copies W into a ring of stages of its own, 16 bytes a lane, so that no warp waits for
// another's copies.
//
// Mapping. A tile is 16 rows of W. A row is cut into runs of 256 columns, and the runs into slices
// of up to 16. Each warp of a block has the same run of a slice in every tile, so it copies that
// run of x once. The block goes from tile to tile, and for each tile adds up the sums of its warps:
// runs of a slice first, then slices. Warps do not wait for each other there (Meeting). All slices
// of a tile belong to one block where x fits its shared memory. Otherwise each slice has a block of
// its own, and the last of these blocks to end adds up their sums. The order of additions is the
// same both ways, and does not depend on timing.
//
// W is operand A and x is operand B, both in f16. A code is a subnormal, which is exact (decision
// 003). x in bf16 is first multiplied by a power of two for each row and run, so that f16 holds it
// (to_half). Sums of 32 or 128 columns leave the tensor cores in fp32, and the group's scale
// multiplies them there. Such a sum starts with the zero point times the negative sum of x, which a
// product by ones gives once a block.
//
// Copies of W start before the kernel that makes x has ended (overlap.cuh).
//
// Reference: CpuBackend::do_matmul_quantized with x as it is. Test: tests/cuda/quantized_test.cpp.
// Figures and what bounds it: docs/benchmarks/weights.md.
#include <algorithm>
#include <bit>

#include "kernels/cuda/few_rows.cuh"
#include "kernels/cuda/matmul_tiles.cuh"
#include "kernels/cuda/overlap.cuh"

namespace kivi::cuda {
namespace {

constexpr int kDepthMax = 12;
constexpr int kBuffersMax = 4;
constexpr int kZeroBytes = 512;  // in place of a row beyond x; what a stage reads of one
constexpr int kSharedWanted = 200 << 10;

struct FewTiles {
  TileProduct p;
  int local_slices;  // of a block: all of a row's or one
  int spread;        // blocks of a tile: 1 or the row's slices
  int depth;         // stages of a warp's ring
  int buffers;       // of the warps' sums
  int unit_shift;    // blocks that share a record, as a power of two
  int stage_bytes;
  int x_pitch;  // bytes of a row of x
  int zeros_at, factors_at, x_sums_at, sums_at, ring_at;
};

// Sizes for a format. SB: blocks of 32 columns under one scale. Columns: of a stage.
template <WeightKind Kind, int SB, int Columns>
struct Stages {
  static constexpr int kBlocks = Columns / kWeightBlock;
  static constexpr int kOfRun = kRunBlocks / kBlocks;
  // int4 alone has 80 bytes for each 32 columns.
  static constexpr int kScaleBytesMax = Kind == WeightKind::int4 && SB == 1 ? 80 * kBlocks : 512;
  static_assert(kBlocks % SB == 0 && kBlocks * 64 <= kZeroBytes && kZeroBytes == 32 * 16);

  // The record of a stage's block.
  static __device__ __forceinline__ int record_of(const TileProduct& p, int block) {
    if constexpr (Kind == WeightKind::q4_k) return 0;
    if constexpr (Kind == WeightKind::int4)
      return p.stage_records == 1 ? 0 : block * kWeightBlock / p.unit_columns;
    return block;
  }
};

// The rows of x that a lane reads in shared memory: row 8 nt + g, or zeros.
template <int NT>
struct XRows {
  const unsigned char* row[NT];
  uint32_t mask[NT];

  __device__ __forceinline__ XRows(const FewTiles& a, const unsigned char* memory, int lane) {
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
      const int r = nt * 8 + lane / 4;
      row[nt] = memory + (r < a.p.t ? r * a.x_pitch : a.zeros_at) + lane % 4 * 16;
      mask[nt] = r < a.p.t ? ~0u : 0;
    }
  }
  // From `block` on.
  __device__ __forceinline__ const unsigned char* at(int nt, int block) const {
    return row[nt] + (uint32_t(block * 64) & mask[nt]);
  }
};

// Copies the warp's runs of x into shared memory as f16. factors: [run, 8 NT], of bf16 alone.
template <class T, int NT>
__device__ __forceinline__ void copy_x(const FewTiles& a, unsigned char* memory, int first_slice,
                                       float* factors) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const TileProduct& p = a.p;
  const int rows = a.local_slices * p.t;
  unsigned char* const to = memory + warp * (kRunColumns * 2) + place_in_run(lane);
  constexpr int kBatch = 8;
  const auto next = [&](int& slice, int& row) {
    if (++row == p.t) row = 0, ++slice;
  };
  int slice = 0, row = 0;
  for (int begin = 0; begin < rows; begin += kBatch) {
    uint4 v[kBatch];
    int s = slice, r = row;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int column = ((first_slice + s) * warps + warp) * kRunColumns + lane * 8;
      v[i] = make_uint4(0, 0, 0, 0);
      if (begin + i < rows && column < p.k)
        v[i] = *reinterpret_cast<const uint4*>(p.x + (r * p.x_stride + column) * 2);
      next(s, r);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (begin + i >= rows) break;
      const int run = slice * warps + warp;
      if constexpr (!std::is_same_v<T, __half>) {
        const float factor = to_half(v[i]);
        if (lane == 0) factors[run * (8 * NT) + row] = factor;
      }
      store_in_order(to + row * a.x_pitch + slice * warps * (kRunColumns * 2), v[i]);
      next(slice, row);
    }
  }
  *reinterpret_cast<uint4*>(memory + a.zeros_at + lane * 16) = make_uint4(0, 0, 0, 0);
  __syncwarp();
}

// Writes the sums of x of each SB blocks of the warp's runs, [8 NT] floats: products by ones.
template <int NT, int SB>
__device__ __forceinline__ void sum_x(const FewTiles& a, const XRows<NT>& x, float* x_sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  constexpr uint32_t kOne = kOnes<__half>;
  const uint32_t one[4] = {kOne, kOne, kOne, kOne};
  for (int slice = 0; slice < a.local_slices; ++slice) {
    const int run = slice * warps + warp;
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
      const unsigned char* const from = x.at(nt, run * kRunBlocks);
      const uint32_t step = 64 & x.mask[nt];
#pragma unroll
      for (int unit = 0; unit < kRunBlocks / SB; ++unit) {
        float c[2][4] = {};
#pragma unroll
        for (int j = 0; j < SB; ++j) {
          const uint4 v = *reinterpret_cast<const uint4*>(from + (unit * SB + j) * step);
          multiply_add<__half>(c[0], one, make_uint2(v.x, v.y));
          multiply_add<__half>(c[1], one, make_uint2(v.z, v.w));
        }
        if (lane < 4)
          *reinterpret_cast<float2*>(x_sums + (run * (kRunBlocks / SB) + unit) * (8 * NT) + nt * 8 +
                                     lane * 2) = make_float2(c[0][0] + c[1][0], c[0][1] + c[1][1]);
      }
    }
  }
  __syncwarp();
}

// Where a byte of a block's codes lies in shared memory, if lanes copy it: without bank conflicts
// of lanes that read 8 bytes each.
__device__ __forceinline__ int swizzled(int at) { return at ^ (at >> 2 & 32); }

// Fills the ring of a warp: the stages of its runs of all the block's tiles, one after the other.
template <class S>
class Filler {
 public:
  __device__ __forceinline__ Filler(const TileProduct& p, int unit_shift, int first_block,
                                    int slice_blocks, int stages, int tile, int groups)
      : tile_(stages > 0 ? tile : p.tiles),
        block_(first_block),
        unit_shift_(unit_shift),
        first_block_(first_block),
        slice_blocks_(slice_blocks - (S::kOfRun - 1) * S::kBlocks),
        stages_(stages),
        groups_(groups),
        codes_(p.codes + int64_t(tile) * p.blocks * kBlockBytes),
        scales_(p.scales + int64_t(tile) * p.tile_scales) {
    const int lane = threadIdx.x % 32;
    codes_ += lane * 16;
    scales_ += lane * 16;
    // The lane has no scales if it is beyond the records of a stage.
    scales_end_ = lane * 16 < p.stage_records * p.record_bytes ? p.tile_scales : 0;
  }

  // Starts the next stage's copies, if there is one. All lanes call it.
  __device__ __forceinline__ void start(const TileProduct& p, uint32_t to, uint32_t barrier) {
    if (tile_ >= p.tiles) return;
    const int lane = threadIdx.x % 32;
    const std::byte* const codes = codes_ + block_ * kBlockBytes;
    const int scales_at = (block_ >> unit_shift_) * p.record_bytes;
    const std::byte* const scales = scales_ + scales_at;
    const uint32_t scales_to = to + S::kBlocks * kBlockBytes;
    const uint32_t codes_to = to + swizzled(lane * 16);
    if (block_ + S::kBlocks <= p.blocks) {
#pragma unroll
      for (int i = 0; i < S::kBlocks; i += 2)
        copy_16(codes_to + i * kBlockBytes, codes + i * kBlockBytes);
    } else {
#pragma unroll
      for (int i = 0; i < S::kBlocks; i += 2)
        if (block_ + i + lane / 16 < p.blocks)
          copy_16(codes_to + i * kBlockBytes, codes + i * kBlockBytes);
    }
    const int scales_left = scales_end_ - scales_at;
    if (lane * 16 < scales_left) copy_16(scales_to + lane * 16, scales);
    if constexpr (S::kScaleBytesMax > 512)
      if (512 + lane * 16 < min(scales_left, p.stage_records * p.record_bytes))
        copy_16(scales_to + 512 + lane * 16, scales + 512);
    copies_arrive(barrier);
    ++stage_;
    if (stage_ == stages_) {
      stage_ = 0;
      block_ = first_block_;
      tile_ += groups_;
      codes_ += int64_t(groups_) * p.blocks * kBlockBytes;
      scales_ += int64_t(groups_) * p.tile_scales;
    } else {
      block_ += stage_ % S::kOfRun == 0 ? slice_blocks_ : S::kBlocks;
    }
  }

 private:
  int tile_, stage_ = 0, block_;
  const int unit_shift_, first_block_, slice_blocks_, stages_, groups_;
  int scales_end_;
  const std::byte *codes_, *scales_;
};

// Codes of a block, rows 2 g (x) and 2 g + 1 (y), as operands A of two products h, in the order of
// x in shared memory: c 2^-24 for columns below 16 (h = 0), and 16 c 2^-24 for the others.
__device__ __forceinline__ void unpack_pairs(uint2 word, uint32_t (&a)[2][4]) {
  constexpr uint32_t kLow = 0x000F000Fu, kHigh = 0x00F000F0u;
  const uint32_t rows[2] = {word.x, word.y};
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const uint32_t odd = rows[row] >> 8;
    a[0][row] = rows[row] & kLow;
    a[1][row] = rows[row] & kHigh;
    a[0][2 + row] = odd & kLow;
    a[1][2 + row] = odd & kHigh;
  }
}
constexpr float kScale = kCodeScale<__half>;

// Multiplies a stage, which begins with `block` of the row. from: its columns of x. x_sum: the
// lane's sums of them.
template <int NT, WeightKind Kind, int SB, int Columns>
__device__ __forceinline__ void multiply_stage(const TileProduct& p, const unsigned char* stage,
                                               const unsigned char* const (&from)[NT],
                                               const float* x_sum, int block,
                                               float (&sums)[NT][4]) {
  using S = Stages<Kind, SB, Columns>;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int at = t * 64 + g * 8;
  const unsigned char* const codes = stage + swizzled(at);
  const auto* const scales = reinterpret_cast<const std::byte*>(stage + S::kBlocks * kBlockBytes);
#pragma unroll
  for (int unit = 0; unit < S::kBlocks; unit += SB) {
    if (unit > 0 && block + unit >= p.blocks) break;
    const TwoScales s =
        read_scales(Kind, scales + S::record_of(p, unit) * p.record_bytes, block + unit, g);
    float c[NT][2][4] = {};
    float2 of_x[NT];
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
      of_x[nt] = *reinterpret_cast<const float2*>(x_sum + unit / SB * (8 * NT) + nt * 8);
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const float zero = -float_of(s.zero[row]) / kScale;
        c[nt][0][2 * row] = zero * of_x[nt].x;
        c[nt][0][2 * row + 1] = zero * of_x[nt].y;
      }
    }
    // Beyond the last block, codes are anything and x is zero.
#pragma unroll
    for (int j = unit; j < unit + SB; ++j) {
      const uint2 word = *reinterpret_cast<const uint2*>(codes + j * kBlockBytes);
      uint32_t w[2][4];
      unpack_pairs(word, w);
#pragma unroll
      for (int nt = 0; nt < NT; ++nt) {
        const uint4 v = *reinterpret_cast<const uint4*>(from[nt] + j * 64);
        multiply_add<__half>(c[nt][0], w[0], make_uint2(v.x, v.y));
        multiply_add<__half>(c[nt][1], w[1], make_uint2(v.z, v.w));
      }
    }
#pragma unroll
    for (int nt = 0; nt < NT; ++nt)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& sum = sums[nt][i];
        sum = fmaf(s.scale[i / 2] * kScale, fmaf(c[nt][1][i], 1.0f / 16, c[nt][0][i]), sum);
        if constexpr (has_minimum(Kind))
          sum = fmaf(s.minimum[i / 2], i % 2 == 0 ? of_x[nt].x : of_x[nt].y, sum);
      }
  }
}

// A buffer in which the sums of a block's warps meet. The tiles take the buffers in turn. A warp
// leaves its sums of a tile and goes on. Some warps add them up one tile later, so that nearly no
// one waits.
struct Meeting {
  uint32_t full, empty;  // barriers of all buffers: sums are there; sums are added up
  int buffers, reducers, warps;
  int buffer = 0, first_reducer = 0;
  uint32_t phase = 0;

  __device__ __forceinline__ void init() const {
    for (int i = 0; i < buffers; ++i) {
      barrier_init(full + 8 * i, warps);
      barrier_init(empty + 8 * i, reducers);
    }
  }
  __device__ __forceinline__ Meeting next() const {
    Meeting m = *this;
    if (++m.buffer == buffers) m.buffer = 0, m.phase ^= 1;
    if ((m.first_reducer += reducers) >= warps) m.first_reducer -= warps;
    return m;
  }
  // The warp is a reducer if this is below `reducers`.
  __device__ __forceinline__ int rank_of(int warp) const {
    return (warp < first_reducer ? warp + warps : warp) - first_reducer;
  }
  // All lanes of a warp call these. The first round finds the buffers empty.
  __device__ __forceinline__ void wait_empty() const {
    barrier_wait(empty + 8 * buffer, phase ^ 1);
  }
  __device__ __forceinline__ void leave() const { warp_arrive(full + 8 * buffer); }
  __device__ __forceinline__ void wait_full() const { barrier_wait(full + 8 * buffer, phase); }
  __device__ __forceinline__ void give_back() const { warp_arrive(empty + 8 * buffer); }
};

template <class T, int NT, WeightKind Kind, int SB, int Columns>
__global__ void __launch_bounds__(kWarpsMax * 32, NT == 1 ? 2 : 1)
    matmul_tiles_few_kernel(const __grid_constant__ FewTiles a) {
  using S = Stages<Kind, SB, Columns>;
  const TileProduct& p = a.p;
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ uint64_t barriers[kWarpsMax][kDepthMax];  // complete when a stage is there
  __shared__ uint64_t full[kBuffersMax], empty[kBuffersMax];
  __shared__ bool is_last;
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be the warp's
  const int spread = a.spread;
  const int group = spread == 1 ? blockIdx.x : blockIdx.x / spread;
  const int groups = spread == 1 ? gridDim.x : gridDim.x / spread;
  const int first_slice = blockIdx.x - group * spread;
  let_next_start();

  const int slice_blocks = warps * kRunBlocks;
  const int first_block = first_slice * slice_blocks + warp * kRunBlocks;
  // The warp's runs of a tile that hold columns, and their stages. The last run may have fewer.
  const int blocks = max(0, p.blocks - first_block);
  const int runs = min(a.local_slices, (blocks + slice_blocks - 1) / slice_blocks);
  const int stages =
      runs == 0
          ? 0
          : (runs - 1) * S::kOfRun +
                min(S::kOfRun, (blocks - (runs - 1) * slice_blocks + S::kBlocks - 1) / S::kBlocks);

  const uint32_t barrier = shared_address(barriers[warp]);
  unsigned char* const ring = memory + a.ring_at + warp * a.depth * a.stage_bytes;
  const uint32_t ring_address = shared_address(ring);
  if (lane == 0) {
#pragma unroll 1
    for (int i = 0; i < a.depth; ++i) barrier_init(barrier + 8 * i, 32);
  }
  fence_before_async_copy();
  __syncwarp();
  Filler<S> filler(p, a.unit_shift, first_block, slice_blocks, stages, group, groups);
#pragma unroll 1
  for (int i = 0; i < a.depth; ++i)
    filler.start(p, ring_address + i * a.stage_bytes, barrier + 8 * i);

  wait_for_previous();
  auto* const factors = reinterpret_cast<float*>(memory + a.factors_at);
  copy_x<T, NT>(a, memory, first_slice, factors);
  const XRows<NT> x(a, memory, lane);
  auto* const x_sums = reinterpret_cast<float*>(memory + a.x_sums_at);
  sum_x<NT, SB>(a, x, x_sums);

  // Sums of a tile: [slice, warp, row of x, row of the tile].
  auto* const joined = reinterpret_cast<float*>(memory + a.sums_at);
  const int outputs = p.t * kWeightTileRows;
  Meeting meeting{shared_address(full), shared_address(empty), a.buffers,
                  min((outputs + 31) / 32, warps), warps};
  if (threadIdx.x == 0) meeting.init();
  __syncthreads();
  const auto parts_of = [&](const Meeting& m) {
    return joined + m.buffer * a.local_slices * warps * outputs;
  };
  // Adds up the sums of a tile, if that is this warp's turn.
  const auto reduce = [&](const Meeting& m, int tile) {
    const int rank = m.rank_of(warp);
    if (rank >= m.reducers) return;
    const float* const parts = parts_of(m);
    m.wait_full();
    for (int i = rank * 32 + lane; i < outputs; i += m.reducers * 32) {
      float total = 0;
      for (int slice = 0; slice < a.local_slices; ++slice) {
        const float* const of_slice = parts + slice * warps * outputs + i;
        const int runs_in = runs_of(p, first_slice + slice, warps);
        float sum = 0;
#pragma unroll 4
        for (int run = 0; run < runs_in; ++run) sum += of_slice[run * outputs];
        total += sum;
      }
      if (spread == 1)
        store_one<T>(p, i / kWeightTileRows, tile * kWeightTileRows + i % kWeightTileRows, total);
      else
        reinterpret_cast<float*>(p.partials)[(tile * spread + first_slice) * outputs + i] = total;
    }
    m.give_back();
  };
  const bool late = a.buffers > 1;
  Meeting before = meeting;
  int slot = 0, slot_at = 0, last = group;
  uint32_t parity = 0;
  for (int tile = group; tile < p.tiles; tile += groups) {
    float* const parts = parts_of(meeting);
    for (int slice = 0; slice < runs; ++slice) {
      const int run = slice * warps + warp, block = first_block + slice * slice_blocks;
      const unsigned char* from[NT];
#pragma unroll
      for (int nt = 0; nt < NT; ++nt) from[nt] = x.at(nt, run * kRunBlocks);
      const float* const x_sum = x_sums + run * (kRunBlocks / SB) * (8 * NT) + lane % 4 * 2;
      float sums[NT][4] = {};
#pragma unroll
      for (int stage = 0; stage < S::kOfRun; ++stage) {
        const int at = stage * S::kBlocks;
        if (stage > 0 && block + at >= p.blocks) break;
        barrier_wait(barrier + 8 * slot, parity);
        const unsigned char* stage_from[NT];
#pragma unroll
        for (int nt = 0; nt < NT; ++nt) stage_from[nt] = from[nt] + (at * 64 & x.mask[nt]);
        multiply_stage<NT, Kind, SB, Columns>(p, ring + slot_at, stage_from,
                                              x_sum + at / SB * (8 * NT), block + at, sums);
        __syncwarp();
        filler.start(p, ring_address + slot_at, barrier + 8 * slot);
        slot_at += a.stage_bytes;
        if (++slot == a.depth) slot = slot_at = 0, parity ^= 1;
      }
      if (slice == 0) meeting.wait_empty();
      float* const own = parts + run * outputs + lane / 4 * 2;
#pragma unroll
      for (int nt = 0; nt < NT; ++nt)
#pragma unroll
        for (int column = 0; column < 2; ++column) {
          const int row = nt * 8 + lane % 4 * 2 + column;
          if (row >= p.t) continue;
          const float factor = std::is_same_v<T, __half> ? 1.0f : factors[run * (8 * NT) + row];
          *reinterpret_cast<float2*>(own + row * kWeightTileRows) =
              make_float2(sums[nt][column] * factor, sums[nt][2 + column] * factor);
        }
    }
    if (runs == 0) meeting.wait_empty();
    meeting.leave();
    if (!late)
      reduce(meeting, tile);
    else if (tile > group)
      reduce(before, tile - groups);
    before = meeting;
    meeting = meeting.next();
    last = tile;
  }
  if (late) reduce(before, last);
  if (spread == 1) return;

  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = atomicAdd(p.counters + group, 1) == spread - 1;
    if (is_last) p.counters[group] = 0;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  const int tiles = (p.tiles - group + groups - 1) / groups;
  for (int i = threadIdx.x; i < tiles * outputs; i += blockDim.x) {
    const int tile = group + i / outputs * groups, output = i % outputs;
    const float* const from =
        reinterpret_cast<const float*>(p.partials) + tile * spread * outputs + output;
    float total = 0;
#pragma unroll 4
    for (int slice = 0; slice < spread; ++slice) total += __ldcg(from + slice * outputs);
    store_one<T>(p, output / kWeightTileRows, tile * kWeightTileRows + output % kWeightTileRows,
                 total);
  }
}

// How a product is laid out over blocks and their shared memory. depth is 0 where it does not fit.
struct Layout {
  int warps, slices, local_slices, per_multiprocessor;
  int depth = 0, buffers = 2, bytes = 0;
  int x_pitch, zeros_at, factors_at, x_sums_at, sums_at, ring_at;
};

// Places what a block keeps, and a ring as deep as `bytes` allow.
void place(Layout& l, int rows, int row_tiles, int scale_blocks, int stage_bytes, int bytes) {
  const int runs = l.local_slices * l.warps;
  l.x_pitch = runs * kRunColumns * 2 + 64;  // no bank conflicts of 16-byte reads
  l.zeros_at = rows * l.x_pitch;
  l.factors_at = l.zeros_at + kZeroBytes;
  l.x_sums_at = l.factors_at + runs * row_tiles * 8 * 4;
  l.sums_at = l.x_sums_at + runs * kRunBlocks / scale_blocks * row_tiles * 8 * 4;
  l.ring_at = l.sums_at + l.buffers * runs * rows * kWeightTileRows * 4;
  l.depth = std::clamp((bytes - l.ring_at) / (l.warps * stage_bytes), 0, kDepthMax);
  l.bytes = l.ring_at + l.depth * l.warps * stage_bytes;
}

Layout layout_of_product(int k, int rows, int row_tiles, int scale_blocks, int stage_bytes) {
  constexpr int kDepthWanted = 4;
  Layout l{};
  const int runs = (k + kRunColumns - 1) / kRunColumns;
  l.slices = (runs + kWarpsMax - 1) / kWarpsMax;
  l.warps = (runs + l.slices - 1) / l.slices;
  l.per_multiprocessor = std::max(1, kWarpsMax / l.warps);
  for (const int most : {kSharedWanted, kSharedMax})
    for (const int local : {l.slices, 1})
      for (const int buffers : {kBuffersMax, 2, 1}) {
        l.local_slices = local;
        l.buffers = buffers;
        place(l, rows, row_tiles, scale_blocks, stage_bytes, most / l.per_multiprocessor);
        if (l.depth >= kDepthWanted) return l;
      }
  return l;
}

template <class T, int NT, WeightKind Kind, int SB, int Columns>
cudaError_t launch(TileProduct p, const TileProductWorkspace& workspace, int multiprocessors,
                   cudaStream_t stream, bool& fits) {
  using S = Stages<Kind, SB, Columns>;
  const int unit_blocks = p.unit_columns / kWeightBlock;
  fits = std::has_single_bit(unsigned(unit_blocks));
  if (!fits) return cudaSuccess;
  p.stage_records = std::max(1, Columns / p.unit_columns);
  const int stage_bytes = S::kBlocks * kBlockBytes + p.stage_records * p.record_bytes;
  const Layout l = layout_of_product(p.k, p.t, NT, SB, stage_bytes);
  const int spread = l.slices / l.local_slices;
  const int groups =
      std::min(p.tiles, std::max(1, l.per_multiprocessor * multiprocessors / spread));
  const int64_t partials = int64_t(p.tiles) * spread * p.t * kWeightTileRows;
  fits = l.depth > 0 && (spread == 1 || (groups <= workspace.counters_count &&
                                         partials * 4 <= int64_t(workspace.partials_bytes) &&
                                         partials < int64_t(1) << 31));
  if (!fits) return cudaSuccess;
  const FewTiles a{.p = p,
                   .local_slices = l.local_slices,
                   .spread = spread,
                   .depth = l.depth,
                   .buffers = l.buffers,
                   .unit_shift = std::countr_zero(unsigned(unit_blocks)),
                   .stage_bytes = stage_bytes,
                   .x_pitch = l.x_pitch,
                   .zeros_at = l.zeros_at,
                   .factors_at = l.factors_at,
                   .x_sums_at = l.x_sums_at,
                   .sums_at = l.sums_at,
                   .ring_at = l.ring_at};
  const auto kernel = matmul_tiles_few_kernel<T, NT, Kind, SB, Columns>;
  if (const cudaError_t error = prefer_shared_memory(kernel, kSharedMax); error != cudaSuccess)
    return error;
  return launch_overlapped(kernel, dim3(unsigned(groups * spread)), dim3(unsigned(l.warps) * 32),
                           size_t(l.bytes), stream, a);
}

template <class T, int NT>
cudaError_t launch_format(const TileProduct& p, const TileProductWorkspace& workspace,
                          int multiprocessors, cudaStream_t stream, bool& fits) {
  const auto with = [&]<WeightKind Kind, int SB, int Columns>() {
    return launch<T, NT, Kind, SB, Columns>(p, workspace, multiprocessors, stream, fits);
  };
  // More rows of x leave less room for stages.
  constexpr int kColumns = NT == 1 ? 256 : 128;
  switch (p.kind) {
    case WeightKind::int4:
      return p.unit_columns >= 128 ? with.template operator()<WeightKind::int4, 4, kColumns>()
                                   : with.template operator()<WeightKind::int4, 1, kColumns>();
    case WeightKind::q4_0:
      return with.template operator()<WeightKind::q4_0, 1, kColumns>();
    case WeightKind::q4_1:
      return with.template operator()<WeightKind::q4_1, 1, kColumns>();
    default:
      return with.template operator()<WeightKind::q4_k, 1, 256>();
  }
}

}  // namespace

bool matmul_tiles_few(const TileProduct& p, DType type, const TileProductWorkspace& workspace,
                      int multiprocessors, cudaStream_t stream, cudaError_t& error) {
  // matmul_tiles_pairs has nearly all products by one scale for 128 columns. Of what it leaves, the
  // kernel of matmul_tiles.cu takes less time where x has more than one slice
  // (docs/benchmarks/weights.md).
  if (p.kind == WeightKind::int4 && p.unit_columns >= 128 && p.k > kWarpsMax * kRunColumns)
    return false;
  bool fits = false;
  error = with_half_type(type, [&]<class T>() {
    return p.t <= 8 ? launch_format<T, 1>(p, workspace, multiprocessors, stream, fits)
                    : launch_format<T, 2>(p, workspace, multiprocessors, stream, fits);
  });
  return fits;
}

}  // namespace kivi::cuda
