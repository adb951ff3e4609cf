// SPDX-License-Identifier: Apache-2.0
// Flash attention over ragged prompt chunks (and any step with several rows a sequence).
//
//   out[r, h] = softmax(scale * q[r, h] K^T) V   causal, sliding window, GQA
//
// q [t, hq d] f16; K and V of a sequence: first the history [0, past) from staging (modes stage and
// seal) or from pages and slab (mode append), then the step's own rows kv [t, 2 hk d] f16.
// out [t, hq d] f16 or bf16. Softmax and accumulation in f32.
//
// Mapping: one block of 4 warps owns 128 query rows (64 of head size 256) of one sequence and one
// KV head, where the hq / hk heads of the group are packed beside the tokens (row = token * group +
// head), so a tile of keys is read once for the whole group. Keys and values pass through shared
// memory in tiles of 64 tokens, aligned to places (place_shift), two stages deep. f16 sources (own
// rows, staging, f16 pages, slab) arrive by cp.async, a tile of own rows, of staging or of one f16
// page as rows of one stride; codes are dequantized by the threads as they load. Each warp keeps 32
// query rows, so that a fragment of keys or values read from shared memory serves two products: S =
// Q K^T and O += P V by mma.m16n8k16, P stays in registers (FlashAttention-2, Dao 2023, section 3).
// A warp skips tiles behind its rows and before its window. Codes that kv_dequantize has put into
// scratch are read from there.
//
// Cost: 4 d FLOP a (query, key) pair; bytes are negligible beside it. Reference: kernels/cpu
// kv_attend. Test: tests/cuda/prefill_attend_test.cpp.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "kernels/cuda/prefill_attend.h"
#include "kernels/cuda/prefill_state.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/kv_parameters.h"

namespace kivi::cuda {
namespace {

constexpr int kTile = 64;  // keys a tile
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
template <int kDim>
constexpr int kWarpRows = kDim > 128 ? 16 : 32;  // packed query rows; registers bound them
template <int kDim>
constexpr int kRows = kWarps* kWarpRows<kDim>;

// Decodes of these head sizes have no kernel of their own.
template <int kDim>
constexpr bool kAttendsDecodes = kDim != 64 && kDim != 128;

__device__ __forceinline__ uint32_t pack_half2(float a, float b) {
  return as_u32(__floats2half2_rn(a, b));
}

__device__ __forceinline__ float half_bits_to_float(uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}

// A scale and its minimum, by their indices in a region of parameters.
__device__ __forceinline__ float2 parameters_at(const std::byte* region, int parameter_bits,
                                                int code_bits, int scale, int minimum) {
  if (parameter_bits == 16) {
    const auto* plane = reinterpret_cast<const uint16_t*>(region);
    return {half_bits_to_float(plane[scale]), half_bits_to_float(plane[minimum])};
  }
  const float step = half_bits_to_float(byte_scale_value(int(region[scale])).bits);
  return {step, float(int(region[minimum]) - 128) * (byte_minimum_unit(code_bits) * step)};
}

// Eight dequantized halves of channels [c, c + 8) of one token of a page block.
template <bool kKeys>
__device__ uint4 dequantize_chunk(const KvLayout& layout, const std::byte* block, int token,
                                  int c) {
  const KvFormat& f = layout.format;
  const auto* codes = reinterpret_cast<const uint32_t*>(
      block + (kKeys ? layout.key_codes_offset() : layout.value_codes_offset()));
  const std::byte* parameters =
      block + (kKeys ? layout.key_parameters_offset() : layout.value_parameters_offset());
  const int bits = kKeys ? f.key_bits : f.value_bits;
  float x[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const CodePosition p = kKeys ? layout.key_code(token, c + i) : layout.value_code(token, c + i);
    const uint32_t code = (codes[p.word] >> p.bit) & ((1u << bits) - 1);
    if (f.kind == KvKind::f8) {
      const __half_raw h = __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t(code), __NV_E4M3);
      x[i] = half_bits_to_float(h.x);
    } else {
      const int s = kKeys ? layout.key_scale(token, c + i) : layout.value_scale(token, c + i);
      const int m = kKeys ? layout.key_minimum(token, c + i) : layout.value_minimum(token, c + i);
      const float2 p = parameters_at(parameters, f.parameter_bits, bits, s, m);
      x[i] = fmaf(p.x, float(code), p.y);
    }
  }
  return {pack_half2(x[0], x[1]), pack_half2(x[2], x[3]), pack_half2(x[4], x[5]),
          pack_half2(x[6], x[7])};
}

// The rows of a tile of history that scratch holds.
template <bool kKeys, int kDim>
__device__ const __half* scratch_rows(const PrefillArguments& a, const PrefillWork& work, int head,
                                      int tile) {
  const int64_t block = work.block + int64_t(tile - work.tile_begin);
  return reinterpret_cast<const __half*>(a.cache.store.scratch) +
         ((block * a.cache.store.layout.shape.heads + head) * 2 + (kKeys ? 0 : 1)) * kHistoryTile *
             kDim;
}

// The step's own row of a token.
template <bool kKeys, int kDim>
__device__ const __half* own_row(const PrefillArguments& a, const StepSequence& s, int head,
                                 int token) {
  const int64_t row = s.row_begin + token - s.past;
  const int heads = a.cache.store.layout.shape.heads;
  return a.kv + (row * 2 * heads + (kKeys ? 0 : heads) + head) * kDim;
}

// Where the 16-byte chunk (8 channels from c) of one token's key or value lies in f16, or nullptr
// if it must be dequantized from row `row` of `block`.
template <bool kKeys, int kDim>
__device__ const void* source_of(const PrefillArguments& a, const StepSequence& s,
                                 const PrefillWork& work, int head, int token, int c,
                                 const std::byte*& block, int& row) {
  const KvLayout& layout = a.cache.store.layout;
  constexpr Side kSide = kKeys ? Side::key : Side::value;
  const KvPlace place = read_place(layout, s, token, kSide);
  if (place.region == KvRegion::own) return own_row<kKeys, kDim>(a, s, head, token) + c;
  const __half* rows;
  row = place.row;
  if (s.mode == KvMode::append && work.block >= 0) {
    const int at = token + place_shift(layout.format, s.mode);
    row = at % kHistoryTile;
    rows = scratch_rows<kKeys, kDim>(a, work, head, at / kHistoryTile);
  } else {
    const KvLocator locator = a.cache.locator(s, a.layer, head);
    if (place.region == KvRegion::codes) {
      block = locator.page_block(place.page);
      return nullptr;
    }
    rows = reinterpret_cast<const __half*>(locator.rows(place, kSide));
  }
  return rows + row * kDim + swizzled_channel(row, c, kDim);
}

// A whole tile of f16 rows of one stride; null: it has to be put together token by token.
struct TileSource {
  const __half* rows = nullptr;
  int64_t stride = 0;
  bool swizzled = false;  // as the tile is
};

// Of the places [first, first + kTile).
template <bool kKeys, int kDim>
__device__ TileSource tile_source(const PrefillArguments& a, const StepSequence& s,
                                  const PrefillWork& work, int head, int first) {
  const KvLayout& layout = a.cache.store.layout;
  constexpr Side kSide = kKeys ? Side::key : Side::value;
  const int token = first - place_shift(layout.format, s.mode);
  if (token >= s.past)
    return {own_row<kKeys, kDim>(a, s, head, token), int64_t(2) * layout.shape.heads * kDim, false};
  if (token + kTile > s.past) return {};
  static_assert(KvLayout::kStagingTokens == kTile);
  if (s.mode == KvMode::append && work.block >= 0)
    return {scratch_rows<kKeys, kDim>(a, work, head, first / kTile), kDim, true};
  if (s.mode == KvMode::append && layout.format.kind != KvKind::f16) return {};
  const KvPlace place = read_place(layout, s, token, kSide);
  const KvLocator locator = a.cache.locator(s, a.layer, head);
  return {reinterpret_cast<const __half*>(locator.rows(place, kSide)) + place.row * kDim, kDim,
          true};
}

// Brings the places [first, first + kTile) of one side into `tile` (rows of kDim halves, swizzled);
// those without a token, and at or beyond `end`, become zeros.
template <bool kKeys, int kDim>
__device__ __forceinline__ void load_tile(const PrefillArguments& a, const StepSequence& s,
                                          const PrefillWork& work, int head, int first, int end,
                                          __half* tile) {
  constexpr int kChunks = kDim / 8;
  const TileSource source = tile_source<kKeys, kDim>(a, s, work, head, first);
  if (source.rows != nullptr) {
    const uint32_t target = shared_address(tile);
#pragma unroll
    for (int j = 0; j < (kTile * kChunks + kThreads - 1) / kThreads; ++j) {
      const int i = int(threadIdx.x) + j * kThreads, row = i / kChunks, c = i % kChunks * 8;
      if (kTile * kChunks % kThreads != 0 && row >= kTile) break;
      const int swizzled = swizzled_channel(row, c, kDim);
      copy_async_16(target + (row * kDim + swizzled) * 2,
                    source.rows + row * source.stride + (source.swizzled ? swizzled : c),
                    first + row < end);
    }
    return;
  }
  for (int i = threadIdx.x; i < kTile * kChunks; i += kThreads) {
    const int row = i / kChunks, c = (i % kChunks) * 8;
    __half* target = tile + row * kDim + swizzled_channel(row, c, kDim);
    const int token = first + row - place_shift(a.cache.store.layout.format, s.mode);
    if (first + row >= end || token < 0) {
      *reinterpret_cast<uint4*>(target) = uint4{0, 0, 0, 0};
      continue;
    }
    const std::byte* block = nullptr;
    int row_of_block = 0;
    const void* from = source_of<kKeys, kDim>(a, s, work, head, token, c, block, row_of_block);
    if (from != nullptr)
      copy_async_16(shared_address(target), from, true);
    else
      *reinterpret_cast<uint4*>(target) =
          dequantize_chunk<kKeys>(a.cache.store.layout, block, row_of_block, c);
  }
}

// Where the lanes of ldmatrix find their rows of a swizzled tile: a row of the lane's own and one
// of two chunks of 8 channels, `k` pairs of chunks further. Rows that are whole runs of 128 bytes
// begin at multiples of 128, so that going on is one XOR with a constant.
template <int kDim>
struct LaneRows {
  uint32_t base;

  __device__ LaneRows(const __half* tile, int row, int chunk)
      : base(shared_address(tile) + (row * kDim + swizzled_channel(row, chunk * 8, kDim)) * 2),
        row_(row),
        chunk_(chunk) {}
  // The same place of the other stage's tile; `bytes` is a multiple of 128.
  __device__ LaneRows moved(uint32_t bytes) const {
    LaneRows there = *this;
    there.base += bytes;
    return there;
  }
  // `rows`: a multiple of 8 further.
  __device__ uint32_t at(int rows, int k) const {
    if constexpr (kDim % 64 == 0) return (base ^ (k % 4 * 32)) + k / 4 * 128 + rows * kDim * 2;
    const int here = swizzled_channel(row_, chunk_ * 8, kDim);
    const int there = swizzled_channel(row_, k * 16 + chunk_ * 8, kDim);
    return base + (there - here + rows * kDim) * 2;
  }

 private:
  int row_, chunk_;
};

// What the noise of a tile's keys adds to the scores of a decode: minus scale / 24 times the sum
// over channels of (q D)^2, for keys that are codes (docs/design/kv-format.md, section 9). `first`:
// the tile's paged position; q: the warp's `rows` rows; noise [rows][2]: of 32 keys each.
template <int kDim>
__device__ __noinline__ void find_key_noise(const PrefillArguments& a, const StepSequence& s,
                                            int head, int first, const __half* q, int rows,
                                            float (*noise)[2]) {
  const KvLayout& layout = a.cache.store.layout;
  const int halves = min(kTile, keys_paged(layout.format, s.past) - first) / 32;
  const int lane = threadIdx.x % 32;
  const KvLocator locator = a.cache.locator(s, a.layer, head);
  const std::byte* parameters = nullptr;
  if (halves > 0)
    parameters = locator.page_block(first / layout.page_tokens()) + layout.key_parameters_offset();
  const float factor = -a.scale_log2 * 0.69314718056f / 24;
  for (int i = 0; i < 2 * rows; ++i) {
    float sum = 0;
    for (int c = lane; i % 2 < halves && c < kDim; c += 32) {
      const int token = first % layout.page_tokens() + i % 2 * 32;
      const float2 p =
          parameters_at(parameters, layout.format.parameter_bits, layout.format.key_bits,
                        layout.key_scale(token, c), layout.key_minimum(token, c));
      const float x = __half2float(q[i / 2 * kDim + swizzled_channel(i / 2, c, kDim)]) * p.x;
      sum += x * x;
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (lane == 0) noise[i / 2][i % 2] = factor * sum;
  }
  __syncwarp();
}

// Two blocks a multiprocessor, or one where queries, keys and values are twice as wide: 255
// registers. Grid (KV heads, tiles of rows, sequences).
template <int kDim, class Out>
__global__ void __launch_bounds__(kThreads, kDim > 128 ? 1 : 2)
    prefill_attend_kernel(const __grid_constant__ PrefillArguments a, Out* __restrict__ out) {
  constexpr int kWarpRows = cuda::kWarpRows<kDim>, kRows = cuda::kRows<kDim>;
  constexpr int kChannelTiles = kDim / 16, kRowTiles = kWarpRows / 16;
  extern __shared__ __align__(128) unsigned char shared[];
  auto* q_tile = reinterpret_cast<__half*>(shared);  // [kRows, d]
  __half* k_tiles = q_tile + kRows * kDim;           // [2, kTile, d]
  __half* v_tiles = k_tiles + 2 * kTile * kDim;      // [2, kTile, d]

  [[maybe_unused]] __shared__ float noise[kAttendsDecodes<kDim> ? kWarps : 1][kWarpRows][2];
  PrefillWork work;
  work.block = -1;
  if (a.work_count > 0)
    work = a.work[blockIdx.z];
  else
    work.sequence = int(blockIdx.z);
  const StepSequence s = a.cache.sequences[work.sequence];
  if (a.work_count == 0 && !s.is_decode()) return;
  const int heads_kv = a.cache.store.layout.shape.heads;
  const int group = a.heads_q / heads_kv;
  const int head = blockIdx.x;
  const int packed = s.row_count * group;  // query rows of this sequence and KV head
  // The last rows see the most keys: start them first.
  const int tile_index = (packed + kRows - 1) / kRows - 1 - int(blockIdx.y);
  if (tile_index < 0) return;
  const int row_first = tile_index * kRows;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;

  // Q: packed row p is token p / group, head `head * group + p % group`.
  constexpr int kChunks = kDim / 8;
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, c = (i % kChunks) * 8;
    const int p = min(row_first + row, packed - 1);
    const int64_t q_row = s.row_begin + p / group;
    copy_async_16(shared_address(q_tile + row * kDim + swizzled_channel(row, c, kDim)),
                  a.q + (q_row * a.heads_q + head * group + p % group) * kDim + c,
                  row_first + row < packed);
  }

  // Positions are places from here on.
  const int shift = place_shift(a.cache.store.layout.format, s.mode), past = s.past + shift;
  const int position_first = past + row_first / group;
  const int position_last = past + (min(row_first + kRows, packed) - 1) / group;
  const int end = work.is_last ? position_last + 1 : work.tile_end * kTile;
  const int begin = max(a.window > 0 ? (position_first - a.window + 1) / kTile * kTile : 0,
                        work.tile_begin * kTile);

  if (begin < end) {
    load_tile<true, kDim>(a, s, work, head, begin, end, k_tiles);
    load_tile<false, kDim>(a, s, work, head, begin, end, v_tiles);
  }
  asm volatile("cp.async.commit_group;" ::: "memory");

  float o[kRowTiles][kDim / 8][4] = {};
  // Of this lane's rows: g and g + 8 of each tile of 16. Maxima are of scores before scaling.
  float maximum[kRowTiles][2], sum[kRowTiles][2];
  int position[kRowTiles][2];
  const int warp_row = row_first + warp * kWarpRows;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int p = warp_row + m * 16 + g + 8 * i;
      position[m][i] = p < packed ? past + p / group : -1;
      maximum[m][i] = -INFINITY, sum[m][i] = 0;
    }
  // The warp's first and last positions; none where it has no rows.
  const int warp_first = past + warp_row / group;
  const int warp_last =
      warp_row < packed ? past + (min(warp_row + kWarpRows, packed) - 1) / group : -1;
  if (!work.is_first) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int p = warp_row + m * 16 + g + 8 * i;
        if (p >= packed) continue;
        const int64_t row = state_row(a, s, head, group, p);
        const float* from = states_of(a, work.region, kDim) + row * kDim;
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
          const float2 pair = *reinterpret_cast<const float2*>(from + n * 8 + 2 * t);
          o[m][n][2 * i] = pair.x, o[m][n][2 * i + 1] = pair.y;
        }
        const float2 state = state_sums(a, work.region, kDim)[row];
        maximum[m][i] = state.x;
        sum[m][i] = t == 0 ? state.y : 0.f;  // the lanes' sums are added up at the end
      }
  }
  const LaneRows<kDim> q_rows(q_tile, warp * kWarpRows + lane % 16, lane / 16);
  // Of a pair of n-tiles: tokens 0-7 and 8-15, channels in two halves; of values transposed.
  const LaneRows<kDim> key_rows(k_tiles, lane / 16 * 8 + lane % 8, lane / 8 % 2);
  const LaneRows<kDim> value_rows(v_tiles, lane / 8 % 2 * 8 + lane % 8, lane / 16);

  for (int first = begin, stage = 0; first < end; first += kTile, stage ^= 1) {
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    __syncthreads();
    if (first + kTile < end) {  // the other stage was last read before the barrier
      load_tile<true, kDim>(a, s, work, head, first + kTile, end,
                            k_tiles + (stage ^ 1) * kTile * kDim);
      load_tile<false, kDim>(a, s, work, head, first + kTile, end,
                             v_tiles + (stage ^ 1) * kTile * kDim);
      asm volatile("cp.async.commit_group;" ::: "memory");
    }
    if (first > warp_last || (a.window > 0 && first + kTile <= warp_first - a.window + 1)) continue;
    const LaneRows<kDim> keys = key_rows.moved(uint32_t(stage * kTile * kDim * 2));
    const LaneRows<kDim> values = value_rows.moved(uint32_t(stage * kTile * kDim * 2));

    float scores[kRowTiles][kTile / 8][4] = {};
#pragma unroll
    for (int k = 0; k < kChannelTiles; ++k) {
      uint32_t q[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) load_matrices(q[m], q_rows.at(m * 16, k));
#pragma unroll
      for (int n = 0; n < kTile / 16; ++n) {
        uint32_t b[4];
        load_matrices(b, keys.at(n * 16, k));
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma(scores[m][2 * n], q[m][0], q[m][1], q[m][2], q[m][3], b[0], b[1]);
          mma(scores[m][2 * n + 1], q[m][0], q[m][1], q[m][2], q[m][3], b[2], b[3]);
        }
      }
    }

    if constexpr (kAttendsDecodes<kDim>) {
      const int to_paged = first - shift - a.cache.store.layout.format.sinks;
      if (a.work_count == 0 && a.cache.store.layout.format.key_bias && to_paged >= 0) {
        const int rows = min(kWarpRows, packed - warp_row);
        find_key_noise<kDim>(a, s, head, to_paged, q_tile + warp * kWarpRows * kDim, rows,
                             noise[warp]);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
          for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              const int row = m * 16 + g + i / 2 * 8;
              if (row < rows) scores[m][n][i] += noise[warp][row][n / 4];
            }
        __syncwarp();
      }
    }

    // Mask, running maximum, exponentials (base 2: scale carries log2 e).
    const bool inside = first >= shift && first + kTile - 1 <= warp_first &&
                        (a.window == 0 || first > warp_last - a.window);
    if (!inside) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
        for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int key = first + n * 8 + 2 * t + i % 2, at = position[m][i / 2];
            if (key < shift || key > at || (a.window > 0 && key <= at - a.window))
              scores[m][n][i] = -INFINITY;
          }
    }
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float largest = maximum[m][i];
#pragma unroll
        for (int n = 0; n < kTile / 8; ++n)
          largest = fmaxf(largest, fmaxf(scores[m][n][2 * i], scores[m][n][2 * i + 1]));
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
        const float base = largest == -INFINITY ? 0.f : largest * a.scale_log2;
        // Exactly 1 where the maximum stayed: `base` is rounded, the product here is not.
        const float shrink =
            largest == maximum[m][i] ? 1.f : exp2_fast(fmaf(maximum[m][i], a.scale_log2, -base));
        maximum[m][i] = largest;
        sum[m][i] *= shrink;
        if (__any_sync(0xffffffffu, shrink != 1)) {  // seldom, once the first tiles have been seen
#pragma unroll
          for (int n = 0; n < kDim / 8; ++n) o[m][n][2 * i] *= shrink, o[m][n][2 * i + 1] *= shrink;
        }
#pragma unroll
        for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
          for (int j = 2 * i; j < 2 * i + 2; ++j) {
            scores[m][n][j] = exp2_fast(fmaf(scores[m][n][j], a.scale_log2, -base));
            sum[m][i] += scores[m][n][j];
          }
      }

#pragma unroll
    for (int k = 0; k < kTile / 16; ++k) {
      uint32_t p[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          p[m][i] = pack_half2(scores[m][2 * k + i / 2][i % 2 * 2],
                               scores[m][2 * k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
      for (int n = 0; n < kChannelTiles; ++n) {
        uint32_t b[4];
        load_matrices_transposed(b, values.at(k * 16, n));
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma(o[m][2 * n], p[m][0], p[m][1], p[m][2], p[m][3], b[0], b[1]);
          mma(o[m][2 * n + 1], p[m][0], p[m][1], p[m][2], p[m][3], b[2], b[3]);
        }
      }
    }
  }

#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sum[m][i] += __shfl_xor_sync(0xffffffffu, sum[m][i], 1);
      sum[m][i] += __shfl_xor_sync(0xffffffffu, sum[m][i], 2);
      const int p = warp_row + m * 16 + g + 8 * i;
      if (p >= packed) continue;
      if (!work.is_last) {
        const int64_t at = state_row(a, s, head, group, p);
        float* to = states_of(a, work.region, kDim) + at * kDim;
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n)
          *reinterpret_cast<float2*>(to + n * 8 + 2 * t) = {o[m][n][2 * i], o[m][n][2 * i + 1]};
        if (t == 0) state_sums(a, work.region, kDim)[at] = {maximum[m][i], sum[m][i]};
        continue;
      }
      const float inverse = 1.f / sum[m][i];
      const int64_t row = s.row_begin + p / group;
      Out* target = out + (row * a.heads_q + head * group + p % group) * kDim;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n)
        store_pair(target + n * 8 + 2 * t, o[m][n][2 * i] * inverse, o[m][n][2 * i + 1] * inverse);
    }
}

template <int kDim, class Out>
cudaError_t launch(const PrefillArguments& a, Out* out, dim3 grid, cudaStream_t stream) {
  constexpr int bytes = (kRows<kDim> + 4 * kTile) * kDim * 2;
  static_assert(kDim <= 128 || bytes + 4 * kWarps * kWarpRows<kDim> * 2 == kWidePrefillShared);
  auto* kernel = prefill_attend_kernel<kDim, Out>;
  if (cudaError_t e =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
      e != cudaSuccess) {
    return e;
  }
  kernel<<<grid, kThreads, bytes, stream>>>(a, out);
  return cudaGetLastError();
}

}  // namespace

cudaError_t prefill_attend(const PrefillArguments& a, void* out, DType out_type, int head_dim,
                           int count, int rows_max, cudaStream_t stream) {
  const int group = a.heads_q / a.cache.store.layout.shape.heads;
  return launch_prefill(head_dim, out, out_type, [&]<int kDim>(auto* typed) {
    const int tiles = (rows_max * group + kRows<kDim> - 1) / kRows<kDim>;
    const dim3 grid(unsigned(a.cache.store.layout.shape.heads), unsigned(tiles), unsigned(count));
    return launch<kDim>(a, typed, grid, stream);
  });
}

}  // namespace kivi::cuda
