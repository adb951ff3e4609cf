// SPDX-License-Identifier: Apache-2.0
// The warpgroup of prefill_attend_hopper.cu that brings queries, keys and values to shared memory.
#pragma once

#include <cuda.h>
#include <cuda_fp16.h>

#include "kernels/cuda/prefill_hopper_job.cuh"
#include "kernels/cuda/prefill_state.cuh"
#include "kernels/cuda/ptx.cuh"

namespace kivi::cuda::prefill_hopper {

// Rows of d halves that tensor copies bring to shared memory, 64 columns at a time. Columns beyond
// d are not read, and become zeros.
struct TensorMaps {
  CUtensorMap own;  // [t, 2 hk, d], permuted as they come
  // f16 pages from the layer's first on, or scratch: rows of blocks [blocks 2 64, d], permuted
  // already
  CUtensorMap history;
  CUtensorMap staging;  // the same of staging pages
};

// Where the blocks of 64 tokens of a tile of history lie, in rows of their tensor; found before
// there is room for the tile.
template <int kTile>
struct TileBlocks {
  int row[kTile / kHistoryTile];
};

template <int kTile>
__device__ __forceinline__ TileBlocks<kTile> find_blocks(const PrefillArguments& a,
                                                         const Job<kTile>& job, int i) {
  TileBlocks<kTile> blocks;
  const int heads = a.cache.store.layout.shape.heads;
  const bool paged = job.work.block < 0 && !job.is_staged();
  const int stride = paged ? heads * a.cache.store.layout.shape.layers : heads;  // blocks
#pragma unroll
  for (int h = 0; h < kTile / kHistoryTile; ++h) {
    const int tile = job.first(i) / kHistoryTile + h;
    int block = 0;
    if (!job.is_own(i) && tile * kHistoryTile < job.history_end) {
      if (job.work.block >= 0)
        block = job.work.block + tile - job.work.tile_begin;
      else
        block =
            a.cache.page_table[(job.is_staged() ? job.s.staging_begin : job.s.pages_begin) + tile];
    }
    blocks.row[h] = (block * stride + job.head) * 2 * kHistoryTile;
  }
  return blocks;
}

// Copies rows from row `row` on, 64 columns from `column` on, of a tensor or of one of its heads.
__device__ __forceinline__ void copy_tensor(uint32_t to, const CUtensorMap& map, int column,
                                            int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void copy_tensor(uint32_t to, const CUtensorMap& map, int column,
                                            int head, int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3, %4}], [%5];" ::"r"(to),
      "l"(&map), "r"(column), "r"(head), "r"(row), "r"(barrier)
      : "memory");
}

// The first block of the region that holds a job's history.
template <int kTile>
__device__ __forceinline__ const std::byte* first_block(const PrefillArguments& a,
                                                        const Job<kTile>& job) {
  if (job.work.block >= 0) return a.cache.store.scratch;
  return job.is_staged() ? a.cache.store.staging_block(a.layer, 0, 0)
                         : a.cache.store.page_block(a.layer, 0, 0);
}

// Of whole tiles, tensor copies bring these parts; load_part brings the others. The last part of a
// history of 80 or 96 channels is permuted within its 16 or 32 channels, and not as wgmma wants it.
template <int kDim>
__device__ __forceinline__ int copied_parts(bool own) {
  return own ? Shared<kDim>::kParts : kDim / 64;
}

// Those parts of a whole tile, by one thread, which does not arrive at the barrier.
template <int kDim, bool kKeys>
__device__ __forceinline__ void copy_tile(const PrefillArguments& a, const TensorMaps& maps,
                                          const Job<kTileOf<kDim>>& job, int i,
                                          const TileBlocks<kTileOf<kDim>>& blocks, uint32_t to,
                                          uint32_t full) {
  constexpr int kTile = kTileOf<kDim>, kPart = Shared<kDim>::kPart;
  const bool own = job.is_own(i);
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(full),
               "r"(copied_parts<kDim>(own) * kPart)
               : "memory");
  if (own) {
    const int head = (kKeys ? 0 : a.cache.store.layout.shape.heads) + job.head;
#pragma unroll
    for (int part = 0; part < Shared<kDim>::kParts; ++part)
      copy_tensor(to + part * kPart, maps.own, part * 64, head,
                  job.s.row_begin + job.first(i) - job.past, full);
    return;
  }
  const CUtensorMap& map = job.is_staged() ? maps.staging : maps.history;
#pragma unroll
  for (int part = 0; part < kDim / 64; ++part)
#pragma unroll
    for (int h = 0; h < kTile / kHistoryTile; ++h)
      copy_tensor(to + part * kPart + h * kHistoryTile * kRowBytes, map, part * 64,
                  blocks.row[h] + (kKeys ? 0 : kHistoryTile), full);
}

// How the threads of the warpgroup share the 16-byte chunks of rows of a part.
template <int kDim, int kPartIndex>
struct PartChunks {
  static constexpr int kChunks = kDim - kPartIndex * 64 >= 64 ? 8 : kDim % 64 / 8;
  static constexpr int kRowsAtOnce = kGroupThreads / kChunks;
  static_assert(kChunks > 0 && kRowsAtOnce % 8 == 0);  // so row % 8 is a thread's own
  const int chunk = int(threadIdx.x) % kChunks;
  const int row0 = int(threadIdx.x) % kGroupThreads / kChunks;

  // Bytes from the part's begin in shared memory to this thread's first row and chunk.
  __device__ __forceinline__ uint32_t place() const {
    return uint32_t(row0 * kRowBytes + (chunk ^ row0 % 8) * 16);
  }
};

// A part of a tile; rows behind its end become zeros.
template <int kDim, bool kKeys, int kPartIndex>
__device__ __forceinline__ void load_part(const PrefillArguments& a, const Job<kTileOf<kDim>>& job,
                                          int i, const TileBlocks<kTileOf<kDim>>& blocks,
                                          uint32_t to) {
  using Chunks = PartChunks<kDim, kPartIndex>;
  constexpr int kTile = kTileOf<kDim>, kRowsAtOnce = Chunks::kRowsAtOnce;
  const Chunks own;
  const int left = job.end(i) - job.first(i) - own.row0;  // rows from row0 on that exist
  to += kPartIndex * Shared<kDim>::kPart + own.place();
  if (job.is_own(i)) {
    const int heads = a.cache.store.layout.shape.heads;
    const int64_t row = job.s.row_begin + (job.first(i) - job.past) + own.row0;
    const int64_t stride = int64_t(2) * heads * kDim;
    const __half* from = a.kv + row * stride + ((kKeys ? 0 : heads) + job.head) * kDim +
                         kPartIndex * 64 + own.chunk * 8;
#pragma unroll
    for (int j = 0; j < kTile / kRowsAtOnce; ++j) {
      const bool inside = j * kRowsAtOnce < left;
      copy_async_16(to + j * kRowsAtOnce * kRowBytes, inside ? from : a.kv, inside);
      from += kRowsAtOnce * stride;
    }
    return;
  }
  const std::byte* base = first_block(a, job);
  const int offset =
      own.row0 * kDim * 2 + kPartIndex * kRowBytes + (own.chunk ^ own.row0 % Chunks::kChunks) * 16;
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

template <int kDim, bool kKeys, int kPartIndex = 0>
__device__ __forceinline__ void load_tile(const PrefillArguments& a, const Job<kTileOf<kDim>>& job,
                                          int i, const TileBlocks<kTileOf<kDim>>& blocks,
                                          uint32_t to) {
  load_part<kDim, kKeys, kPartIndex>(a, job, i, blocks, to);
  if constexpr (kPartIndex + 1 < Shared<kDim>::kParts)
    load_tile<kDim, kKeys, kPartIndex + 1>(a, job, i, blocks, to);
}

// Packed row p is token p / group, head `head * group + p % group`.
template <int kDim, int kPartIndex = 0>
__device__ __forceinline__ void load_queries(const PrefillArguments& a,
                                             const Job<kTileOf<kDim>>& job, uint32_t to) {
  using Chunks = PartChunks<kDim, kPartIndex>;
  const Chunks own;
  const uint32_t part_to =
      to + kPartIndex * kGroupRows * kRowBytes + uint32_t((own.chunk ^ own.row0 % 8) * 16);
  for (int row = own.row0; row < kRows; row += Chunks::kRowsAtOnce) {
    const int p = min(job.row_first + row, job.packed - 1);
    copy_async_16(
        part_to + uint32_t(row / kGroupRows * Shared<kDim>::kQuery + row % kGroupRows * kRowBytes),
        a.q + state_row(a, job.s, job.head, job.group, p) * kDim + kPartIndex * 64 + own.chunk * 8,
        job.row_first + row < job.packed);
  }
  if constexpr (kPartIndex + 1 < Shared<kDim>::kParts)
    load_queries<kDim, kPartIndex + 1>(a, job, to);
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
      // Those who make room for these queries first wait for the ones before.
      if constexpr (kQueryStages<kDim> == 1) announce<0>(0);
      wait_empty<kQueryStages<kDim>>(barriers_, Barrier::queries_empty, uint32_t(round));
      const int stage = round % kQueryStages<kDim>;
      load_queries<kDim>(a_, job_, shared_ + uint32_t(stage * kGroups) * Shared<kDim>::kQuery);
      announce<1>(barrier_at(barriers_, Barrier::queries_full, stage));
      const int count = job_.count();
      TileBlocks<kTileOf<kDim>> blocks{}, blocks_before{};
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
  __device__ __forceinline__ void bring(int i, uint32_t n,
                                        const TileBlocks<kTileOf<kDim>>& blocks) {
    const int stage = int(n % kStages);
    wait_empty(barriers_, kKeys ? Barrier::keys_empty : Barrier::values_empty, n);
    const uint32_t full =
        barrier_at(barriers_, kKeys ? Barrier::keys_full : Barrier::values_full, stage);
    const uint32_t to = shared_ + uint32_t((kKeys ? Shared<kDim>::kKeys : Shared<kDim>::kValues) +
                                           stage * Shared<kDim>::kSide);
    if (job_.end(i) - job_.first(i) < kTileOf<kDim>) {
      load_tile<kDim, kKeys>(a_, job_, i, blocks, to);
      announce<1>(full);
      return;
    }
    if (threadIdx.x % kGroupThreads == 0)
      copy_tile<kDim, kKeys>(a_, maps_, job_, i, blocks, to, full);
    if constexpr (kDim % 64 != 0) {
      if (!job_.is_own(i)) {
        load_part<kDim, kKeys, kDim / 64>(a_, job_, i, blocks, to);
        announce<1>(full);
        return;
      }
    }
    warp_arrive(full);
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
      warp_arrive(issued_);
    }
    issued_ = barrier;
  }

  const PrefillArguments& a_;
  const TensorMaps& maps_;
  const uint32_t shared_, barriers_;
  Job<kTileOf<kDim>> job_;
  uint32_t issued_ = 0;
};

}  // namespace kivi::cuda::prefill_hopper
