// SPDX-License-Identifier: Apache-2.0
// What the warpgroups of prefill_attend_hopper.cu share: the layout of shared memory, its barriers,
// and the jobs, which each warpgroup finds by itself.
#pragma once

#include "kernels/cuda/prefill_attend.h"
#include "kernels/cuda/ptx.cuh"

namespace kivi::cuda::prefill_hopper {

constexpr int kGroups = 2;  // warpgroups that multiply
constexpr int kGroupThreads = 128;
constexpr int kThreads = (kGroups + 1) * kGroupThreads;
constexpr int kGroupRows = 64;  // packed query rows of a warpgroup
constexpr int kRows = kGroups * kGroupRows;
constexpr int kStages = 2;
constexpr int kRowBytes = 128;  // of a row of 64 halves in shared memory

// Registers of a thread that multiplies, and of one that loads: 504 of three together, since the
// launch gives each 168.
template <int kDim>
inline constexpr int kProductRegisters = kDim < 128    ? 208
                                         : kDim == 128 ? 232
                                                       : 224;
template <int kDim>
inline constexpr int kLoaderRegisters = 3 * 168 - 2 * kProductRegisters<kDim>;

// Head size 256 leaves registers and shared memory for half of the keys and for one stage of
// queries.
template <int kDim>
inline constexpr int kTileOf = kDim > 128 ? 64 : 128;  // keys a tile
template <int kDim>
inline constexpr int kQueryStages = kDim > 128 ? 1 : 2;

// Rows are cut into parts of 64 channels. The last part of 80 or 96 channels takes as much room as
// the others, but no more of it is filled or read than there are channels.
template <int kDim>
struct Shared {
  static constexpr int kTile = kTileOf<kDim>;
  static constexpr int kParts = (kDim + 63) / 64;
  static constexpr int kPart = kTile * kRowBytes;                 // of keys or values
  static constexpr int kQuery = kParts * kGroupRows * kRowBytes;  // of a warpgroup
  static constexpr int kSide = kParts * kPart;                    // keys or values of a stage
  static constexpr int kKeys = kQueryStages<kDim> * kGroups * kQuery;
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
// Waits for fill number `n` of a ring of stages to have arrived, or for room for it.
template <int kRing = kStages>
__device__ __forceinline__ void wait_full(uint32_t barriers, Barrier full, uint32_t n) {
  barrier_wait(barrier_at(barriers, full, int(n % kRing)), (n / kRing) & 1);
}
template <int kRing = kStages>
__device__ __forceinline__ void wait_empty(uint32_t barriers, Barrier empty, uint32_t n) {
  if (n >= kRing) barrier_wait(barrier_at(barriers, empty, int(n % kRing)), (n / kRing - 1) & 1);
}
// Named barriers of the block: 1 and 2 give a warpgroup its turn.
__device__ __forceinline__ void turn_wait(int group) {
  asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(kGroups * kGroupThreads) : "memory");
}
__device__ __forceinline__ void turn_give(int group) {
  asm volatile("bar.arrive %0, %1;" ::"r"(1 + group), "n"(kGroups * kGroupThreads) : "memory");
}
// A tile of query rows of one KV head, and the tiles of kTile keys that it goes through.
template <int kTile>
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
template <int kTile>
__device__ __forceinline__ bool find_job(const PrefillArguments& a, int round, Job<kTile>& job) {
  const int blocks = int(gridDim.x), block = int(blockIdx.x);
  int index = round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
  const int heads = a.cache.store.layout.shape.heads;
  job.group = a.heads_q / heads;
  int w = 0, tiles = 0;
  for (;; ++w) {
    if (w == a.work_count) return false;
    tiles = (a.work[w].rows * job.group + kRows - 1) / kRows;
    if (index < tiles * heads) break;
    index -= tiles * heads;
  }
  job.work = a.work[w];
  job.s = a.cache.sequences[job.work.sequence];
  const StepSequence& s = job.s;
  job.packed = s.row_count * job.group;
  job.head = index % heads;
  const int tile = tiles - 1 - index / heads;  // the last rows see the most keys
  job.row_first = tile * kRows;
  job.shift = place_shift(a.cache.store.layout.format, s.mode);
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

}  // namespace kivi::cuda::prefill_hopper
