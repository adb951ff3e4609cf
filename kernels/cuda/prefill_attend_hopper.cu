// SPDX-License-Identifier: Apache-2.0
// Flash attention over ragged prompt chunks on Hopper's warpgroup products (wgmma). The same result
// as prefill_attend.cu, whose header says what is computed; head sizes 64 and 128.
//
// Mapping: a job is a tile of 128 packed query rows of one sequence and KV head, where row is token
// * group + head. A block a multiprocessor takes job after job. Two warpgroups multiply 64 rows
// each. A third one brings keys and values, 128 tokens at a time and two tiles deep, to shared
// memory. Sources are 16-bit: the step's own rows, staging, f16 pages, scratch (kv_dequantize). One
// thread starts tensor copies of whole tiles. The tile at the end of a history or of a sequence
// comes in 16-byte asynchronous copies, with zeros behind the end. Tiles go from the step's own
// last row back to the first row of the history, so that tiles with a causal edge come first.
//
// A warpgroup has S = Q K^T of one tile under way together with O += P V of the tile before, and
// takes the exponentials of S while the tensor cores still work on O. Named barriers let the two
// warpgroups issue products in turn, so that one multiplies while the other one takes exponentials
// (FlashAttention-3, Shah et al. 2024, section 3).
//
// Cost: 4 d FLOP a (query, key) pair; 4 d bytes from L2 a key for each 128 rows. Reference:
// kernels/cpu kv_attend. Test: tests/cuda/prefill_attend_test.cpp.
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "kernels/cuda/prefill_attend.h"
#include "kernels/cuda/prefill_state.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace kivi::cuda {
namespace {

constexpr int kGroups = 2;  // warpgroups that multiply
constexpr int kGroupThreads = 128;
constexpr int kThreads = (kGroups + 1) * kGroupThreads;
constexpr int kGroupRows = 64;  // packed query rows of a warpgroup
constexpr int kRows = kGroups * kGroupRows;
constexpr int kTile = 128;  // keys a tile
constexpr int kStages = 2;
constexpr int kRowBytes = 128;  // of a row of 64 halves in shared memory
constexpr int kLoaderRegisters = 40, kProductRegisters = 232;

template <int kDim>
struct Shared {
  static constexpr int kParts = kDim / 64;
  static constexpr int kQuery = kParts * kGroupRows * kRowBytes;  // of a warpgroup
  static constexpr int kSide = kParts * kTile * kRowBytes;        // keys or values of a stage
  static constexpr int kKeys = kStages * kGroups * kQuery;
  static constexpr int kValues = kKeys + kStages * kSide;
  static constexpr int kBarriers = kValues + kStages * kSide;
  static constexpr int kBytes = kBarriers + 6 * kStages * 8;
};

// Barriers of a stage: queries, keys and values have arrived, and have been used.
enum class Barrier {
  queries_full,
  keys_full,
  values_full,
  queries_empty,
  keys_empty,
  values_empty
};

__device__ __forceinline__ uint32_t barrier_at(uint32_t barriers, Barrier which, int stage) {
  return barriers + (int(which) * kStages + stage) * 8;
}
// One arrival a warp, when all its lanes are here.
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0)
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Waits for fill number `n` of a ring of stages to have arrived, or for room for it.
__device__ __forceinline__ void wait_full(uint32_t barriers, Barrier full, uint32_t n) {
  barrier_wait(barrier_at(barriers, full, int(n % kStages)), (n / kStages) & 1);
}
__device__ __forceinline__ void wait_empty(uint32_t barriers, Barrier empty, uint32_t n) {
  if (n >= kStages)
    barrier_wait(barrier_at(barriers, empty, int(n % kStages)), (n / kStages - 1) & 1);
}
// Named barriers of the block: 1 and 2 give a warpgroup its turn.
__device__ __forceinline__ void turn_wait(int group) {
  asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(kGroups * kGroupThreads) : "memory");
}
__device__ __forceinline__ void turn_give(int group) {
  asm volatile("bar.arrive %0, %1;" ::"r"(1 + group), "n"(kGroups * kGroupThreads) : "memory");
}
// A tile of query rows of one KV head, and the tiles of keys that it goes through.
struct Job {
  StepSequence s;
  PrefillWork work;
  int head, group, packed, row_first;
  // Positions, first and last ones of tiles, and `past`, the sequence's, are places (place_shift).
  int shift, past;
  int own_first, own_tiles;  // tiles of own rows, from place past + own_first * kTile
  int history_begin, history_end, history_tiles;  // places; tiles from history_begin

  // Tile number `i` of the block, counted from the last one: its first place and its end.
  __device__ __forceinline__ bool is_own(int i) const { return i < own_tiles; }
  __device__ __forceinline__ int first(int i) const {
    return i < own_tiles ? past + (own_first + own_tiles - 1 - i) * kTile
                         : history_begin + (history_tiles - 1 - (i - own_tiles)) * kTile;
  }
  __device__ __forceinline__ int end(int i) const {
    return i < own_tiles ? past + s.row_count : history_end;
  }
  __device__ __forceinline__ bool is_staged() const { return s.mode != KvMode::append; }
  __device__ __forceinline__ int count() const { return own_tiles + history_tiles; }
};

// Job number `round` of a block: jobs are sorted by weight within a sequence, so blocks take them
// in turn, forth and back. False: there is none.
__device__ __forceinline__ bool find_job(const PrefillArguments& a, int round, Job& job) {
  const int blocks = int(gridDim.x), block = int(blockIdx.x);
  int index = round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
  const int heads = a.store.layout.shape.heads;
  job.group = a.heads_q / heads;
  int w = 0, tiles = 0;
  for (;; ++w) {
    if (w == a.work_count) return false;
    tiles = (a.work[w].rows * job.group + kRows - 1) / kRows;
    if (index < tiles * heads) break;
    index -= tiles * heads;
  }
  job.work = a.work[w];
  job.s = a.sequences[job.work.sequence];
  const StepSequence& s = job.s;
  job.packed = s.row_count * job.group;
  job.head = index % heads;
  const int tile = tiles - 1 - index / heads;  // the last rows see the most keys
  job.row_first = tile * kRows;
  job.shift = place_shift(a.store.layout.format, s.mode);
  job.past = s.past + job.shift;
  const int position_first = job.past + job.row_first / job.group;
  const int position_last = job.past + (min(job.row_first + kRows, job.packed) - 1) / job.group;
  const int seen_first = a.window > 0 ? max(0, position_first - a.window + 1) : 0;
  job.history_begin =
      max(seen_first / kHistoryTile * kHistoryTile, job.work.tile_begin * kHistoryTile);
  job.history_end = job.work.is_last ? job.past : job.work.tile_end * kHistoryTile;
  job.history_tiles =
      job.s.past == 0 ? 0 : max(0, (job.history_end - job.history_begin + kTile - 1) / kTile);
  job.own_first = max(0, seen_first - job.past) / kTile;
  job.own_tiles = job.work.is_last ? (position_last - job.past) / kTile + 1 - job.own_first : 0;
  return true;
}

// --- the warpgroup that loads -------------------------------------------------------------------

// Rows of d halves that tensor copies bring to shared memory, 64 columns at a time.
struct TensorMaps {
  CUtensorMap own;  // [t, 2 hk d], permuted as they come
  // f16 pages from the layer's first on, or scratch: rows of blocks [blocks 2 64, d], permuted
  // already
  CUtensorMap history;
  CUtensorMap staging;  // the same of staging pages
};

// Where the two blocks of 64 tokens of a tile of history lie, in rows of their tensor; found before
// there is room for the tile.
struct TileBlocks {
  int row[kTile / kHistoryTile];
};

__device__ __forceinline__ TileBlocks find_blocks(const PrefillArguments& a, const Job& job,
                                                  int i) {
  TileBlocks blocks;
  const int heads = a.store.layout.shape.heads;
  const bool paged = job.work.block < 0 && !job.is_staged();
  const int stride = paged ? heads * a.store.layout.shape.layers : heads;  // blocks
#pragma unroll
  for (int h = 0; h < kTile / kHistoryTile; ++h) {
    const int tile = job.first(i) / kHistoryTile + h;
    int block = 0;
    if (!job.is_own(i) && tile * kHistoryTile < job.history_end) {
      if (job.work.block >= 0)
        block = job.work.block + tile - job.work.tile_begin;
      else
        block = a.page_table[(job.is_staged() ? job.s.staging_begin : job.s.pages_begin) + tile];
    }
    blocks.row[h] = (block * stride + job.head) * 2 * kHistoryTile;
  }
  return blocks;
}

__device__ __forceinline__ void copy_tensor(uint32_t to, const CUtensorMap& map, int column,
                                            int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

// The first block of the region that holds a job's history.
__device__ __forceinline__ const std::byte* first_block(const PrefillArguments& a, const Job& job) {
  if (job.work.block >= 0) return a.store.scratch;
  return job.is_staged() ? a.store.staging_block(a.layer, 0, 0) : a.store.page_block(a.layer, 0, 0);
}

// A whole tile, by one thread.
template <int kDim, bool kKeys>
__device__ __forceinline__ void copy_tile(const PrefillArguments& a, const TensorMaps& maps,
                                          const Job& job, int i, const TileBlocks& blocks,
                                          uint32_t to, uint32_t full) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(full),
               "n"(Shared<kDim>::kSide)
               : "memory");
#pragma unroll
  for (int part = 0; part < kDim / 64; ++part, to += kTile * kRowBytes) {
    if (job.is_own(i)) {
      const int heads = a.store.layout.shape.heads;
      copy_tensor(to, maps.own, ((kKeys ? 0 : heads) + job.head) * kDim + part * 64,
                  job.s.row_begin + job.first(i) - job.past, full);
      continue;
    }
    const CUtensorMap& map = job.is_staged() ? maps.staging : maps.history;
#pragma unroll
    for (int h = 0; h < kTile / kHistoryTile; ++h)
      copy_tensor(to + h * kHistoryTile * kRowBytes, map, part * 64,
                  blocks.row[h] + (kKeys ? 0 : kHistoryTile), full);
  }
}

// A tile that ends before its last row.
template <int kDim, bool kKeys>
__device__ __forceinline__ void load_tile(const PrefillArguments& a, const Job& job, int i,
                                          const TileBlocks& blocks, uint32_t to) {
  constexpr int kChunks = kDim / 8, kRowsAtOnce = kGroupThreads / kChunks;
  static_assert(kRowsAtOnce % 8 == 0);
  const int thread = int(threadIdx.x) % kGroupThreads;
  const int chunk = thread % kChunks, row0 = thread / kChunks;
  const int swizzled = (chunk % 8 ^ row0 % 8) * 16;
  const int left = job.end(i) - job.first(i) - row0;  // rows from row0 on that exist
  to += uint32_t(chunk / 8 * kTile * kRowBytes + row0 * kRowBytes + swizzled);
  if (job.is_own(i)) {
    const int heads = a.store.layout.shape.heads;
    const int64_t row = job.s.row_begin + (job.first(i) - job.past) + row0;
    const int64_t stride = int64_t(2) * heads * kDim;
    const __half* from = a.kv + row * stride + ((kKeys ? 0 : heads) + job.head) * kDim + chunk * 8;
#pragma unroll
    for (int j = 0; j < kTile / kRowsAtOnce; ++j) {
      const bool inside = j * kRowsAtOnce < left;
      copy_async_16(to + j * kRowsAtOnce * kRowBytes, inside ? from : a.kv, inside);
      from += kRowsAtOnce * stride;
    }
    return;
  }
  const std::byte* base = first_block(a, job);
  const int offset = row0 * kDim * 2 + chunk / 8 * kRowBytes + swizzled;
#pragma unroll
  for (int h = 0; h < kTile / kHistoryTile; ++h) {
    const std::byte* from =
        base + int64_t(blocks.row[h] + (kKeys ? 0 : kHistoryTile)) * (kDim * 2) + offset;
#pragma unroll
    for (int j = 0; j < kHistoryTile / kRowsAtOnce; ++j) {
      const bool inside = h * kHistoryTile + j * kRowsAtOnce < left;
      copy_async_16(to + (h * kHistoryTile + j * kRowsAtOnce) * kRowBytes,
                    inside ? from + j * kRowsAtOnce * kDim * 2 : base, inside);
    }
  }
}

// Packed row p is token p / group, head `head * group + p % group`.
template <int kDim>
__device__ __forceinline__ void load_queries(const PrefillArguments& a, const Job& job,
                                             uint32_t to) {
  constexpr int kChunks = kDim / 8, kRowsAtOnce = kGroupThreads / kChunks;
  const int thread = int(threadIdx.x) % kGroupThreads;
  const int chunk = thread % kChunks, row0 = thread / kChunks;
  to += uint32_t(chunk / 8 * kGroupRows * kRowBytes + (chunk % 8 ^ row0 % 8) * 16);
  for (int row = row0; row < kRows; row += kRowsAtOnce) {
    const int p = min(job.row_first + row, job.packed - 1);
    copy_async_16(
        to + uint32_t(row / kGroupRows * Shared<kDim>::kQuery + row % kGroupRows * kRowBytes),
        a.q + state_row(a, job.s, job.head, job.group, p) * kDim + chunk * 8,
        job.row_first + row < job.packed);
  }
}

// Brings queries, keys and values in the order of their use: of each job the queries, the keys of
// tile 0, then the keys of tile i and the values of tile i - 1.
template <int kDim>
class Loader {
 public:
  __device__ Loader(const PrefillArguments& a, const TensorMaps& maps, uint32_t shared)
      : a_(a), maps_(maps), shared_(shared), barriers_(shared + Shared<kDim>::kBarriers) {}

  __device__ __forceinline__ void run() {
    uint32_t filled = 0;  // tiles before this job
    for (int round = 0; find_job(a_, round, job_); ++round) {
      wait_empty(barriers_, Barrier::queries_empty, uint32_t(round));
      load_queries<kDim>(a_, job_,
                         shared_ + uint32_t(round % kStages * kGroups) * Shared<kDim>::kQuery);
      announce<1>(barrier_at(barriers_, Barrier::queries_full, round % kStages));
      const int count = job_.count();
      TileBlocks blocks{}, blocks_before{};
      for (int i = 0; i <= count; ++i) {
        blocks_before = blocks;
        if (i < count) {
          blocks = find_blocks(a_, job_, i);
          bring<true>(i, filled + uint32_t(i), blocks);
        }
        if (i > 0) bring<false>(i - 1, filled + uint32_t(i - 1), blocks_before);
      }
      filled += uint32_t(count);
    }
    announce<0>(0);
  }

 private:
  // Tile `i` of the job, number `n` of all.
  template <bool kKeys>
  __device__ __forceinline__ void bring(int i, uint32_t n, const TileBlocks& blocks) {
    const int stage = int(n % kStages);
    wait_empty(barriers_, kKeys ? Barrier::keys_empty : Barrier::values_empty, n);
    const uint32_t full =
        barrier_at(barriers_, kKeys ? Barrier::keys_full : Barrier::values_full, stage);
    const uint32_t to = shared_ + uint32_t((kKeys ? Shared<kDim>::kKeys : Shared<kDim>::kValues) +
                                           stage * Shared<kDim>::kSide);
    if (job_.end(i) - job_.first(i) < kTile) {
      load_tile<kDim, kKeys>(a_, job_, i, blocks, to);
      announce<1>(full);
      return;
    }
    if (threadIdx.x % kGroupThreads == 0)
      copy_tile<kDim, kKeys>(a_, maps_, job_, i, blocks, to, full);
    else if (threadIdx.x % kGroupThreads % 32 == 0)
      asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(full) : "memory");
    announce<0>(0);
  }

  // 16-byte copies are known to be complete when the next tile has been asked for: then their
  // writes are shown to wgmma. `barrier`: of the copies that were just issued; 0: none were.
  template <int kLeft>
  __device__ __forceinline__ void announce(uint32_t barrier) {
    if (kLeft > 0) asm volatile("cp.async.commit_group;" ::: "memory");
    if (issued_ != 0) {
      asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
      fence_before_async_copy();
      barrier_arrive(issued_);
    }
    issued_ = barrier;
  }

  const PrefillArguments& a_;
  const TensorMaps& maps_;
  const uint32_t shared_, barriers_;
  Job job_;
  uint32_t issued_ = 0;
};

// --- the warpgroups that multiply ---------------------------------------------------------------

// Softmax of one tile of scores: the running maximum (of scores before scaling) and this lane's
// part of the sum move on, scores become exponentials. Returns the factors of what was summed up
// before.
struct Softmax {
  float maximum[2] = {-INFINITY, -INFINITY};  // of rows g and g + 8
  float sum[2] = {};
  float shrink[2] = {1, 1};

  // Whether some lane's factors are not 1: seldom, once the first tiles have been seen. The vote
  // takes the sums in, so that all exponentials come before it.
  __device__ __forceinline__ bool moved() const {
    return __any_sync(0xffffffffu, shrink[0] != 1 || shrink[1] != 1 || !(sum[0] + sum[1] >= 0));
  }

  __device__ __forceinline__ void update(float (&scores)[kTile / 2], float scale_log2) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float largest = maximum[i];
#pragma unroll
      for (int n = 0; n < kTile / 8; ++n)
        largest = fmaxf(largest, fmaxf(scores[4 * n + 2 * i], scores[4 * n + 2 * i + 1]));
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
      const float base = largest == -INFINITY ? 0.f : largest * scale_log2;
      shrink[i] = largest == maximum[i] ? 1.f : exp2_fast(fmaf(maximum[i], scale_log2, -base));
      maximum[i] = largest;
      float added[2] = {};
#pragma unroll
      for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& x = scores[4 * n + 2 * i + j];
          x = exp2_fast(fmaf(x, scale_log2, -base));
          added[j] += x;
        }
      sum[i] = fmaf(sum[i], shrink[i], added[0] + added[1]);
    }
  }
};

template <int kDim>
__device__ __forceinline__ void rescale(float (&o)[kDim / 2], const float (&shrink)[2]) {
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
    o[4 * n] *= shrink[0], o[4 * n + 1] *= shrink[0];
    o[4 * n + 2] *= shrink[1], o[4 * n + 3] *= shrink[1];
  }
}

__device__ __forceinline__ void pack(const float (&scores)[kTile / 2], uint32_t (&p)[kTile / 4]) {
#pragma unroll
  for (int i = 0; i < kTile / 4; ++i)
    p[i] = as_u32(__floats2half2_rn(scores[2 * i], scores[2 * i + 1]));
}

// `filled`: tiles before this job.
template <int kDim, class Out>
__device__ __forceinline__ void multiply_tiles(const PrefillArguments& a, const Job& job, int round,
                                               uint32_t filled, int wg, uint32_t shared,
                                               Out* __restrict__ out) {
  const uint32_t barriers = shared + Shared<kDim>::kBarriers;
  const int thread = int(threadIdx.x) % kGroupThreads;
  const int warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  const StepSequence& s = job.s;
  const int group = job.group, packed = job.packed;
  const int group_row = job.row_first + wg * kGroupRows;  // first packed row of the warpgroup
  const uint32_t q_tile =
      shared + uint32_t((round % kStages * kGroups + wg) * Shared<kDim>::kQuery);

  // This lane's rows: their packed numbers and positions (-1: none).
  int position[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int p = group_row + warp * 16 + g + 8 * i;
    position[i] = p < packed ? job.past + p / group : -1;
  }
  const int position_first = group_row < packed ? job.past + group_row / group : -1;
  const int position_last = job.past + (min(group_row + kGroupRows, packed) - 1) / group;

  float o[kDim / 2];
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) o[i] = 0;
  Softmax softmax;
  if (!job.work.is_first) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (position[i] < 0) continue;
      const int64_t row = state_row(a, s, job.head, group, group_row + warp * 16 + g + 8 * i);
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const float2 pair = *reinterpret_cast<const float2*>(states_of(a, job.work.region, kDim) +
                                                             row * kDim + n * 8 + 2 * t);
        o[4 * n + 2 * i] = pair.x, o[4 * n + 2 * i + 1] = pair.y;
      }
      const float2 state = state_sums(a, job.work.region, kDim)[row];
      softmax.maximum[i] = state.x;
      softmax.sum[i] = t == 0 ? state.y : 0.f;  // the lanes' sums are added up at the end
    }
  }

  float scores[kTile / 2];
  uint32_t p[kTile / 4];
  const Operand query_operand(q_tile, 16, 8 * kRowBytes);
  const Operand key_operand(shared + Shared<kDim>::kKeys, 16, 8 * kRowBytes);
  const Operand value_operand(shared + Shared<kDim>::kValues, kTile * kRowBytes, 8 * kRowBytes);
  const auto score = [&](uint32_t n) {
    const Operand keys = key_operand.moved(n % kStages * Shared<kDim>::kSide);
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k)
      wgmma_shared(scores, query_operand.at(k / 4 * kGroupRows * kRowBytes + k % 4 * 32),
                   keys.at(k / 4 * kTile * kRowBytes + k % 4 * 32), k > 0);
  };
  const auto accumulate = [&](uint32_t n) {
    const Operand values = value_operand.moved(n % kStages * Shared<kDim>::kSide);
#pragma unroll
    for (int k = 0; k < kTile / 16; ++k)
      wgmma_registers(o, p + 4 * k, values.at(k * 16 * kRowBytes));
  };
  // What a row does not see becomes -inf.
  const auto mask = [&](int i) {
    const int first = job.first(i), end = job.end(i);
    const bool inside = first >= job.shift && first + kTile - 1 <= position_first &&
                        first + kTile <= end && (a.window == 0 || first > position_last - a.window);
    if (inside) return;
#pragma unroll
    for (int n = 0; n < kTile / 2; ++n) {
      const int key = first + n / 4 * 8 + 2 * t + n % 2, at = position[n / 2 % 2];
      if (key < job.shift || key > at || key >= end || (a.window > 0 && key <= at - a.window))
        scores[n] = -INFINITY;
    }
  };

  const auto release = [&](Barrier empty, uint32_t n) {
    barrier_arrive(barrier_at(barriers, empty, int(n % kStages)));
  };

  const int count = job.count();
  wait_full(barriers, Barrier::queries_full, uint32_t(round));
  if (count > 0) {
    wait_full(barriers, Barrier::keys_full, filled);
    wgmma_begin();
    score(filled);
    wgmma_commit();
    wgmma_wait<0>();
    pin(scores);
    release(Barrier::keys_empty, filled);
    mask(0);
    softmax.update(scores, a.scale_log2);
    rescale<kDim>(o, softmax.shrink);
    pack(scores, p);
    if (wg == 1 && count > 1) turn_give(0);
    for (int i = 1; i < count; ++i) {
      const uint32_t n = filled + uint32_t(i);
      wait_full(barriers, Barrier::keys_full, n);
      turn_wait(wg);
      pin(o);
      wgmma_begin();
      score(n);
      wgmma_commit();
      wait_full(barriers, Barrier::values_full, n - 1);
      wgmma_begin();
      accumulate(n - 1);
      wgmma_commit();
      if (wg == 0 || i + 1 < count) turn_give(1 - wg);
      wgmma_wait<1>();
      pin(scores);
      release(Barrier::keys_empty, n);
      mask(i);
      softmax.update(scores, a.scale_log2);
      // The exponentials are to be taken while O is under way: the compiler keeps them before a
      // branch that depends on them.
      if (softmax.moved()) {
        wgmma_wait<0>();
        pin(o);
        rescale<kDim>(o, softmax.shrink);
      } else {
        wgmma_wait<0>();
        pin(o);
      }
      release(Barrier::values_empty, n - 1);
      pack(scores, p);
    }
    release(Barrier::queries_empty, uint32_t(round));
    const uint32_t n = filled + uint32_t(count - 1);
    wait_full(barriers, Barrier::values_full, n);
    pin(o);
    wgmma_begin();
    accumulate(n);
    wgmma_commit();
    wgmma_wait<0>();
    pin(o);
    release(Barrier::values_empty, n);
  } else {
    release(Barrier::queries_empty, uint32_t(round));
  }

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float sum = softmax.sum[i];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (position[i] < 0) continue;
    const int64_t row = state_row(a, s, job.head, group, group_row + warp * 16 + g + 8 * i);
    if (!job.work.is_last) {
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n)
        *reinterpret_cast<float2*>(states_of(a, job.work.region, kDim) + row * kDim + n * 8 +
                                   2 * t) = {o[4 * n + 2 * i], o[4 * n + 2 * i + 1]};
      if (t == 0) state_sums(a, job.work.region, kDim)[row] = {softmax.maximum[i], sum};
      continue;
    }
    const float inverse = 1.f / sum;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n)
      store_pair(out + row * kDim + n * 8 + 2 * t, o[4 * n + 2 * i] * inverse,
                 o[4 * n + 2 * i + 1] * inverse);
  }
}

// One block a multiprocessor, or one a job where there are fewer.
template <int kDim, class Out>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_attend_hopper_kernel(const __grid_constant__ PrefillArguments a,
                                 const __grid_constant__ TensorMaps maps, Out* __restrict__ out) {
  if (KIVI_WGMMA != 0) {
    extern __shared__ __align__(1024) unsigned char memory[];
    const uint32_t shared = shared_address(memory);
    const int wg = __shfl_sync(0xffffffffu, int(threadIdx.x) / kGroupThreads, 0);  // uniform
    if (threadIdx.x == 0) {
      const uint32_t barriers = shared + Shared<kDim>::kBarriers;
      for (int stage = 0; stage < kStages; ++stage) {
        for (const Barrier full : {Barrier::queries_full, Barrier::keys_full, Barrier::values_full})
          barrier_init(barrier_at(barriers, full, stage), kGroupThreads / 32);
        for (const Barrier empty :
             {Barrier::queries_empty, Barrier::keys_empty, Barrier::values_empty})
          barrier_init(barrier_at(barriers, empty, stage), kGroups * kGroupThreads / 32);
      }
    }
    __syncthreads();
    if (wg == kGroups) {
      registers_down<kLoaderRegisters>();
      Loader<kDim>(a, maps, shared).run();
    } else {
      registers_up<kProductRegisters>();
      Job job;
      uint32_t filled = 0;
      for (int round = 0; find_job(a, round, job); ++round) {
        multiply_tiles<kDim>(a, job, round, filled, wg, shared, out);
        filled += uint32_t(job.count());
      }
    }
  }
}

// Rows of `columns` halves, of which a copy brings `box_rows` rows of 64 columns.
cudaError_t make_tensor_map(const void* data, int64_t rows, int64_t columns, int box_rows,
                            bool permutes, CUtensorMap& map) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &result);
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess
               ? reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function)
               : nullptr;
  }();
  if (encode == nullptr) return cudaErrorNotSupported;
  const cuuint64_t sizes[2] = {cuuint64_t(columns), cuuint64_t(std::max<int64_t>(rows, box_rows))};
  const cuuint64_t strides[1] = {cuuint64_t(columns) * 2};
  const cuuint32_t box[2] = {64, cuuint32_t(box_rows)}, steps[2] = {1, 1};
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, const_cast<void*>(data), sizes, strides, box,
             steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             permutes ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// A region that a step does not have is described, but not read.
cudaError_t make_tensor_maps(const PrefillArguments& a, int head_dim, TensorMaps& maps) {
  const KvLayout& layout = a.store.layout;
  const int64_t heads = layout.shape.heads;
  const auto blocks = [&](const std::byte* data, int64_t count, CUtensorMap& map) {
    return make_tensor_map(count > 0 ? static_cast<const void*>(data) : a.q,
                           count * 2 * kHistoryTile, head_dim, kHistoryTile, /*permutes=*/false,
                           map);
  };
  if (cudaError_t e = make_tensor_map(a.kv, a.rows, 2 * heads * head_dim, kTile,
                                      /*permutes=*/true, maps.own);
      e != cudaSuccess)
    return e;
  const bool f16 = layout.format.kind == KvKind::f16;
  const std::byte* history = f16 ? a.store.page_block(a.layer, 0, 0) : a.store.scratch;
  const int64_t count = f16 ? (a.store.page_count * layout.shape.layers - a.layer) * heads
                            : a.store.scratch_bytes / layout.staging_block_bytes();
  if (cudaError_t e = blocks(history, count, maps.history); e != cudaSuccess) return e;
  return blocks(a.store.staging_block(a.layer, 0, 0), a.store.staging_page_count * heads,
                maps.staging);
}

template <int kDim, class Out>
cudaError_t launch(const PrefillArguments& a, Out* out, dim3 grid, cudaStream_t stream) {
  constexpr int kBytes = Shared<kDim>::kBytes;
  auto* kernel = prefill_attend_hopper_kernel<kDim, Out>;
  if (cudaError_t e =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
      e != cudaSuccess) {
    return e;
  }
  TensorMaps maps;
  if (cudaError_t e = make_tensor_maps(a, kDim, maps); e != cudaSuccess) return e;
  kernel<<<grid, kThreads, kBytes, stream>>>(a, maps, out);
  return cudaGetLastError();
}

// Whether the code that runs on this device has wgmma: it was compiled for sm_90a.
__global__ void probe_kernel(int* has_wgmma) { *has_wgmma = KIVI_WGMMA; }

}  // namespace

bool has_prefill_hopper(int head_dim) {
  static const bool has = [] {
    cudaFuncAttributes attributes{};
    return cudaFuncGetAttributes(&attributes, probe_kernel) == cudaSuccess &&
           attributes.binaryVersion == 90 && attributes.ptxVersion == 90;
  }();
  return has && (head_dim == 64 || head_dim == 128);
}

cudaError_t prefill_attend_hopper(const PrefillArguments& a, void* out, DType out_type,
                                  int head_dim, int multiprocessors, cudaStream_t stream) {
  const int heads = a.store.layout.shape.heads, group = a.heads_q / heads;
  int64_t jobs = 0;
  for (int i = 0; i < a.work_count; ++i)
    jobs += int64_t(a.work[i].rows * group + kRows - 1) / kRows * heads;
  const dim3 grid(unsigned(std::min<int64_t>(jobs, multiprocessors)));
  const auto with_type = [&]<int kDim>() {
    return out_type == DType::bf16 ? launch<kDim>(a, static_cast<__nv_bfloat16*>(out), grid, stream)
                                   : launch<kDim>(a, static_cast<__half*>(out), grid, stream);
  };
  if (head_dim == 64) return with_type.template operator()<64>();
  if (head_dim == 128) return with_type.template operator()<128>();
  return cudaErrorInvalidValue;
}

}  // namespace kivi::cuda
