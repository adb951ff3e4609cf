// SPDX-License-Identifier: Apache-2.0
// out = x W^T (+ bias) for 1 to 8 rows of x and a W of codes of 4, 5, 6 or 8 bits, on Hopper.
//
// Bytes: W once, 4.3 to 8.5 bits a code. Operations: 2 t n k on tensor cores (mma.m16n8k16).
// Codes go from global memory to registers, 16 bytes a lane, and never through shared memory:
// asynchronous copies of 16 bytes a lane halve the rate (decision 046).
//
// Mapping. A tile is 16 rows of W. A warp multiplies two tiles at a time, so that each lane's 16
// bytes are operands A of four products (two of codes of 8 bits), and x is read once for both
// tiles. A row is cut into runs of 256 columns, and the runs into slices of up to 16. Each warp of
// a block has the same run of a slice in every tile, so it copies that run of x once
// (pair_rows.cuh). It leaves its sums of a pair of tiles in one of many slots in shared memory, and
// goes on. When the slots are full, or at the end, the block adds up the runs. Where a row has
// several slices, each has a block, and the last of these blocks to end adds up the slices. The
// order of additions depends on k alone.
//
// W is operand A and x is operand B, both in f16. A code is a subnormal, which is exact (decision
// 003). x in bf16 is first multiplied by a power of two for each row and run, so that f16 holds it
// (to_half). Scales multiply the sums of 32 or 128 columns in fp32, and zero points and minima
// multiply sums of x (pair_scales.cuh). A lane holds 4 rows of a tile: rows 4q to 4q + 3, q = lane
// / 4 % 4, of the first tile in lanes 0 to 15, and of the second tile in the others.
//
// Loads of W start before the kernel that makes x has ended (overlap.cuh).
//
// Reference: CpuBackend::do_matmul_quantized with x as it is. Test: tests/cuda/quantized_test.cpp.
// Figures: docs/benchmarks/weights.md.
#include <algorithm>
#include <bit>

#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/pair_rows.cuh"
#include "kernels/cuda/pair_scales.cuh"

namespace kivi::cuda {
namespace {

constexpr int kUnits = kRunColumns / kUnitColumns;  // of a run
constexpr int kPairRows = 2 * kWeightTileRows;
constexpr int kPairPitch = kPairRows + 4;  // no bank conflicts of 16-byte writes

struct PairProduct {
  TileProduct p;
  int slices;      // of a row; a block has one of them
  int unit_shift;  // blocks that share a record, as a power of two
  int slots;       // pairs of tiles whose sums fit the block's shared memory
  int x_pitch;     // bytes of a row of x
  int factors_at, x_sums_at, sums_at;
};

// 128 columns of the lane's four rows.
template <class F>
struct Unit {
  uint4 codes[kUnitBlocks][kCodeParts<F::kBits>];  // low nibbles, or bytes
  uint4 upper[F::kBits == 6 ? 2 : 1];              // the bits above, of block t
  typename F::Unit scales;
};

// Codes of a block, two rows of a lane, as operands A of two products h: columns below 16 (h = 0)
// and the others. They are c 2^-24, or 16 c 2^-24 where h = 1.
__device__ __forceinline__ void unpack_rows(uint32_t first, uint32_t second, uint32_t (&a)[2][4]) {
  constexpr uint32_t kLow = 0x000F000Fu, kHigh = 0x00F000F0u;
  const uint32_t rows[2] = {first, second};
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const uint32_t word = rows[row];
    a[0][row] = word & kLow;
    a[0][2 + row] = word >> 8 & kLow;
    a[1][row] = word & kHigh;
    a[1][2 + row] = word >> 8 & kHigh;
  }
}

// The same of bytes. words: of the columns below 16, and of the others, of a row. All are c 2^-24.
__device__ __forceinline__ void unpack_bytes(const uint32_t (&words)[2], int row,
                                             uint32_t (&a)[2][4]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    a[h][row] = words[h] & 0x00FF00FFu;
    a[h][2 + row] = __byte_perm(words[h], 0, 0x4341);
  }
}

// Adds bits 4 and up to a row's codes of a block in operands A (unpack_rows). words: of the
// row (UpperBits), of which the lane has quads t and 4 + t.
template <int Bits>
__device__ __forceinline__ void add_upper_bits(const uint32_t (&words)[Bits - 4], int row,
                                               uint32_t (&a)[2][4]) {
  const int t = threadIdx.x % 4;
  constexpr uint32_t kFirst = Bits == 5 ? 0x00100010u : 0x00300030u, kSecond = kFirst << 4;
  const uint32_t low = words[0], high = words[Bits - 5];
  // In each byte of `first`, the bits of quad t begin at bit 4. Those of quad 4 + t begin 4 bits
  // higher in `second`, which is the place for 16 times a code.
  const uint32_t first = __funnelshift_l(low, low, 4 - (Bits - 4) * t);
  const uint32_t second = Bits == 5 ? first : __funnelshift_l(high, high, 8 - (Bits - 4) * t);
  a[0][row] |= first & kFirst;
  a[0][2 + row] |= first >> 8 & kFirst;
  a[1][row] |= second & kSecond;
  a[1][2 + row] |= __funnelshift_r(second, second, 8) & kSecond;
}

// Rows 2m and 2m + 1 of the lane, block j of a unit, as operands A.
template <class F>
__device__ __forceinline__ void make_operands(const Unit<F>& w, int j, int m, uint32_t (&a)[2][4]) {
  const auto of_row = [&](const uint4& rows, int row) {
    return m == 0 ? (row == 0 ? rows.x : rows.y) : (row == 0 ? rows.z : rows.w);
  };
  if constexpr (F::kBits == 8) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const uint32_t words[2] = {of_row(w.codes[j][0], row), of_row(w.codes[j][1], row)};
      unpack_bytes(words, row, a);
    }
    return;
  }
  unpack_rows(of_row(w.codes[j][0], 0), of_row(w.codes[j][0], 1), a);
  if constexpr (kUpperWords<F::kBits> != 0) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      uint32_t upper[kUpperWords<F::kBits>];
#pragma unroll
      for (int i = 0; i < kUpperWords<F::kBits>; ++i)
        upper[i] = of_lane(of_row(w.upper[i], row), j);
      add_upper_bits<F::kBits>(upper, row, a);
    }
  }
}

// Goes through a warp's run of pairs of tiles, and loads a unit at a time.
template <class F>
class Loader {
 public:
  __device__ __forceinline__ Loader(const PairProduct& a, bool works, int first_block, int tile,
                                    int end_tile)
      : tile_(works ? tile : end_tile), end_tile_(end_tile) {
    const int lane = threadIdx.x % 32, t = lane % 4, quad = lane / 4 % 4;
    step_ = F::step(a.p, a.unit_shift, first_block);
    codes_ = a.p.codes + first_block * kBytes + t * 64 + quad * 16;
    scales_ = a.p.scales + F::first(a.p, a.unit_shift, first_block, t, quad);
  }
  __device__ __forceinline__ void load(const TileProduct& p, int unit, Unit<F>& w) const {
    const bool more = tile_ < end_tile_;
    const int lane = threadIdx.x % 32;
    // Beyond the last tile, lanes load what others load.
    const int tile = min(tile_ + lane / 16, end_tile_ - 1);
    const std::byte* const codes =
        codes_ + int64_t(tile) * p.blocks * kBytes + unit * (kUnitBlocks * kBytes);
#pragma unroll
    for (int j = 0; j < kUnitBlocks; ++j)
#pragma unroll
      for (int i = 0; i < kCodeParts<F::kBits>; ++i)
        load_16(more, w.codes[j][i], codes + j * kBytes + i * kNibbleBytes);
#pragma unroll
    for (int i = 0; i < kUpperWords<F::kBits>; ++i)
      load_16(more, w.upper[i], codes + lane % 4 * (kBytes - 64) + kNibbleBytes + i * 64);
    F::load(more, unit, w.scales, scales_ + int64_t(tile) * p.tile_scales + (unit > 0 ? step_ : 0),
            lane % 4, lane / 4 % 4);
  }
  __device__ __forceinline__ void move_on() { tile_ += 2; }

 private:
  static constexpr int kBytes = block_bytes(F::kBits);
  int tile_;
  const int end_tile_;
  int step_;
  const std::byte *codes_, *scales_;
};

// Adds the products of a unit to sums: for each two rows of the lane (m), rows 4q + 2m and
// 4q + 2m + 1 of W by rows 2t and 2t + 1 of x. from: the unit's columns of x. x_sums: the lane's
// sums of them.
__device__ __forceinline__ void multiply_unit(const Unit<LargeGroups>& w, const unsigned char* from,
                                              const float* x_sums, float (&sums)[2][4]) {
  float c[2][2][4] = {};
  const uint32_t zeros = w.scales.zeros & 0x7F7F7F7Fu;
  const float2 of_x = *reinterpret_cast<const float2*>(x_sums);
#pragma unroll
  for (int row = 0; row < 4; ++row) {
    const float zero = byte_of(zeros, row);
    c[row / 2][0][row % 2 * 2] = zero * of_x.x;
    c[row / 2][0][row % 2 * 2 + 1] = zero * of_x.y;
  }
#pragma unroll
  for (int j = 0; j < kUnitBlocks; ++j) {
    const uint4 v = *reinterpret_cast<const uint4*>(from + j * 64);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      uint32_t rows[2][4];
      make_operands<LargeGroups>(w, j, m, rows);
      multiply_add_here(c[m][0], rows[0], v.x, v.y);
      multiply_add_here(c[m][1], rows[1], v.z, v.w);
    }
  }
  const uint4& s = w.scales.scales;
  const uint32_t scales[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float scale = __uint_as_float(scales[2 * m + i / 2]) * kCodeScale<__half>;
      sums[m][i] = fmaf(scale, fmaf(c[m][1][i], 1.0f / 16, c[m][0][i]), sums[m][i]);
    }
}

// Adds the products of a unit where each block has scales. The sums are what F::Run::finish takes.
template <class F>
__device__ __forceinline__ void multiply_unit(const Unit<F>& w, const unsigned char* from,
                                              const float* x_sums, float (&sums)[2][4]) {
  constexpr float kSecond = F::kBits == 8 ? 1.0f : 1.0f / 16;  // as operands are made
#pragma unroll
  for (int j = 0; j < kUnitBlocks; ++j) {
    const uint4 v = *reinterpret_cast<const uint4*>(from + j * 64);
    float2 of_x = {};
    if constexpr (F::kXSums == XSums::blocks)
      of_x = *reinterpret_cast<const float2*>(x_sums + j * kPairRowsMax);
    const BlockScales s = F::block(w.scales, j);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      uint32_t rows[2][4];
      make_operands<F>(w, j, m, rows);
      float c[2][4];
      multiply_here(c[0], rows[0], v.x, v.y);
      multiply_here(c[1], rows[1], v.z, v.w);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row_of = 2 * m + i / 2;
        if constexpr (F::kXSums == XSums::two_operands) {
          sums[m][i] = fmaf(s.other[row_of], c[1][i], fmaf(s.scale[row_of], c[0][i], sums[m][i]));
          continue;
        }
        float sum = fmaf(c[1][i], kSecond, c[0][i]);
        if constexpr (F::kXSums == XSums::blocks)
          sum = fmaf(s.zero[row_of], i % 2 == 0 ? of_x.x : of_x.y, sum);
        sums[m][i] = fmaf(s.scale[row_of], sum, sums[m][i]);
      }
    }
  }
}

// Leaves a warp's sums of a pair of tiles: [row of x, kPairPitch].
template <class T>
__device__ __forceinline__ void leave_sums(int rows, const float* factors,
                                           const float (&sums)[2][4], float* to) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = lane % 4 * 2 + i;
    if (row >= rows) continue;
    const float factor = std::is_same_v<T, __half> ? 1.0f : factors[row];
    *reinterpret_cast<float4*>(to + row * kPairPitch + lane / 4 * 4) = make_float4(
        sums[0][i] * factor, sums[0][2 + i] * factor, sums[1][i] * factor, sums[1][2 + i] * factor);
  }
}

// The sum of a slice's runs, which lie `stride` apart.
__device__ __forceinline__ float sum_of_runs(const float* from, int runs, int stride) {
  float sum = 0;
  if (runs == kWarpsMax) {
#pragma unroll
    for (int run = 0; run < kWarpsMax; ++run) sum += from[run * stride];
  } else {
#pragma unroll 4
    for (int run = 0; run < runs; ++run) sum += from[run * stride];
  }
  return sum;
}

template <class T, class F>
__global__ void __launch_bounds__(kWarpsMax * 32, 1)
    matmul_tiles_pairs_kernel(const __grid_constant__ PairProduct a) {
  const TileProduct& p = a.p;
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ bool is_last;
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be the warp's
  const int groups = gridDim.x / a.slices, group = blockIdx.x / a.slices;
  const int slice = blockIdx.x - group * a.slices;
  const int first_tile = int(unsigned(group) * unsigned(p.tiles) / unsigned(groups));
  const int end_tile = int(unsigned(group + 1) * unsigned(p.tiles) / unsigned(groups));
  let_next_start();

  // The last run of a row ends with the row. Where the row is no whole number of runs, it begins
  // among the columns of the run before, which x has as zeros there.
  const int own_block = (slice * warps + warp) * kRunBlocks;
  const int first_block = min(own_block, p.blocks - kRunBlocks);
  const bool works = own_block < p.blocks;
  Loader<F> loader(a, works, first_block, first_tile, end_tile);
  Unit<F> w[kUnits] = {};
#pragma unroll
  for (int unit = 0; unit < kUnits; ++unit) loader.load(p, unit, w[unit]);
  loader.move_on();

  wait_for_previous();
  float* const factors = reinterpret_cast<float*>(memory + a.factors_at) + warp * kPairRowsMax;
  unsigned char* const x_sums = memory + a.x_sums_at + warp * kXSumBytes<F::kXSums>;
  unsigned char* const x = memory + warp * (kRunColumns * 2);
  if (works)
    copy_x<T, F::kXSums>(p, own_block * kWeightBlock, first_block * kWeightBlock, x, a.x_pitch,
                         factors, x_sums);
  const RunSums<F::kXSums> run_sums = read_run_sums<F::kXSums>(p.t, x_sums);
  // Columns of products are independent, so lanes of rows beyond x may read any row.
  const unsigned char* const from = x + min(lane / 4, p.t - 1) * a.x_pitch + lane % 4 * 16;

  // Sums: [slot, run, row of x, kPairPitch].
  auto* const joined = reinterpret_cast<float*>(memory + a.sums_at);
  const int outputs = p.t * kPairRows, pitch = p.t * kPairPitch, runs = runs_of(p, slice, warps);
  int slot = 0, round_tile = first_tile;
#pragma unroll 1
  for (int tile = first_tile; tile < end_tile; tile += 2) {
    if (works) {
      float sums[2][4] = {};
      typename F::Run run;
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        multiply_unit(w[unit], from + unit * (kUnitColumns * 2),
                      x_sums_of_unit<F::kXSums>(x_sums, unit), sums);
        run.take(unit, w[unit].scales);
        loader.load(p, unit, w[unit]);
        __syncwarp();  // loads stay before the next unit
      }
      loader.move_on();
      run.finish(run_sums, sums);
      leave_sums<T>(p.t, factors, sums, joined + (slot * warps + warp) * pitch);
    }
    const bool more = tile + 2 < end_tile;
    if (++slot < a.slots && more) continue;
    __syncthreads();
    for (int i = threadIdx.x; i < slot * outputs; i += blockDim.x) {
      const int of_slot = i / outputs, output = i - of_slot * outputs, row = output / kPairRows;
      const int n = round_tile * kWeightTileRows + of_slot * kPairRows + output % kPairRows;
      if (n >= end_tile * kWeightTileRows) continue;
      const float* const parts =
          joined + of_slot * warps * pitch + row * kPairPitch + output % kPairRows;
      const float sum = sum_of_runs(parts, runs, pitch);
      if (a.slices == 1)
        store_one<T>(p, row, n, sum);
      else
        reinterpret_cast<float*>(p.partials)[(slice * p.t + row) * p.tiles * kWeightTileRows + n] =
            sum;
    }
    if (more) __syncthreads();
    slot = 0;
    round_tile = tile + 2;
  }
  if (a.slices == 1) return;

  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicAdd(p.counters + group, 1) == a.slices - 1;
    if (is_last) p.counters[group] = 0;
    __threadfence();
  }
  __syncthreads();
  if (!is_last) return;
  const int columns = (end_tile - first_tile) * kWeightTileRows, all = p.tiles * kWeightTileRows;
  for (int i = threadIdx.x; i < columns * p.t; i += blockDim.x) {
    const int row = i / columns, n = first_tile * kWeightTileRows + (i - row * columns);
    const float* const parts = reinterpret_cast<const float*>(p.partials) + row * all + n;
    float sum = 0;
#pragma unroll 4
    for (int s = 0; s < a.slices; ++s) sum += __ldcg(parts + s * p.t * all);
    store_one<T>(p, row, n, sum);
  }
}

template <class T, class F>
cudaError_t launch(const TileProduct& p, const TileProductWorkspace& workspace, int multiprocessors,
                   cudaStream_t stream, bool& fits) {
  const int runs = (p.blocks + kRunBlocks - 1) / kRunBlocks;
  const int slices = (runs + kWarpsMax - 1) / kWarpsMax, warps = (runs + slices - 1) / slices;
  const int groups = std::min(p.tiles, std::max(1, multiprocessors / slices));
  // For as many rows as the kernel takes, so that a row's bits do not depend on their number.
  const int64_t partials = int64_t(p.tiles) * kWeightTileRows * slices * kPairRowsMax;
  fits = slices == 1 ||
         (groups <= workspace.counters_count && partials * 4 <= int64_t(workspace.partials_bytes) &&
          partials < int64_t(1) << 31);
  if (!fits) return cudaSuccess;
  PairProduct a{.p = p,
                .slices = slices,
                .unit_shift = std::countr_zero(unsigned(p.unit_columns / kWeightBlock)),
                .slots = 0,
                .x_pitch = warps * kRunColumns * 2 + 64,  // no bank conflicts of 16-byte reads
                .factors_at = 0,
                .x_sums_at = 0,
                .sums_at = 0};
  a.factors_at = p.t * a.x_pitch;
  a.x_sums_at = a.factors_at + warps * kPairRowsMax * 4;
  a.sums_at = a.x_sums_at + warps * kXSumBytes<F::kXSums>;
  const int slot_bytes = warps * p.t * kPairPitch * 4;
  const int pairs = ((p.tiles + groups - 1) / groups + 1) / 2;
  a.slots = std::min(pairs, (kSharedMax - a.sums_at) / slot_bytes);
  static_assert(kPairRowsMax * (kWarpsMax * (kRunColumns * 2 + kPairPitch * 4 + 4) + 64) +
                    kWarpsMax * kXSumBytes<F::kXSums> <=
                kSharedMax);  // at least one slot
  const auto kernel = matmul_tiles_pairs_kernel<T, F>;
  if (const cudaError_t error = prefer_shared_memory(kernel, kSharedMax); error != cudaSuccess)
    return error;
  return launch_overlapped(kernel, dim3(unsigned(groups * slices)), dim3(unsigned(warps) * 32),
                           size_t(a.sums_at + a.slots * slot_bytes), stream, a);
}

template <class T>
cudaError_t launch_format(const TileProduct& p, const TileProductWorkspace& workspace,
                          int multiprocessors, cudaStream_t stream, bool& fits) {
  const auto with = [&]<class F>() {
    return launch<T, F>(p, workspace, multiprocessors, stream, fits);
  };
  const bool four = p.bits == 4;
  switch (p.kind) {
    case WeightKind::int4:
      return p.unit_columns >= kUnitColumns ? with.template operator()<LargeGroups>()
                                            : with.template operator()<SmallGroups>();
    case WeightKind::q4_0:
      if (p.bits == 8) return with.template operator()<BlockScale<8>>();
      return four ? with.template operator()<BlockScale<4>>()
                  : with.template operator()<BlockScale<5>>();
    case WeightKind::q4_1:
      return four ? with.template operator()<BlockScaleMinimum<4>>()
                  : with.template operator()<BlockScaleMinimum<5>>();
    case WeightKind::q4_k:
      return four ? with.template operator()<Superblock<4>>()
                  : with.template operator()<Superblock<5>>();
    default:
      return with.template operator()<SixBits>();
  }
}

}  // namespace

bool matmul_tiles_pairs(const TileProduct& p, DType type, const TileProductWorkspace& workspace,
                        int multiprocessors, cudaStream_t stream, cudaError_t& error) {
  // A unit has one record of int4 at most, so the last run may not begin within one.
  const bool cuts_units = p.kind == WeightKind::int4 && p.tile_scales > p.record_bytes &&
                          p.unit_columns >= kUnitColumns && p.blocks % kUnitBlocks != 0;
  if (p.blocks < kRunBlocks || cuts_units || !std::has_single_bit(unsigned(p.unit_columns)))
    return false;
  bool fits = false;
  error = with_half_type(type, [&]<class T>() {
    return launch_format<T>(p, workspace, multiprocessors, stream, fits);
  });
  return fits;
}

}  // namespace kivi::cuda
