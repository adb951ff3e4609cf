// SPDX-License-Identifier: Apache-2.0
// What the kernels of products by wgmma share beside their tiles (hopper_tile_parts.cuh): how work
// is cut, the warps that do not multiply, and copies into stages.
//
// A kernel describes its stages as a type S:
//   kRows, kColumns   rows of x of a tile, and columns of a stage
//   kStages, kBytes   stages in shared memory, and the size of one
#pragma once

#include "kernels/cuda/hopper_tile_parts.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace kivi::cuda {

constexpr int kAlignment = 1024;  // of swizzled rows
constexpr int kProducers = 128;   // of which one copies, and one warp tells of early parts
constexpr int kSharedMax = 227 << 10;

template <int Rows>
constexpr int kThreadsOfBlock = kConsumers<Rows> + kProducers;

// Registers of a thread. A kernel starts with as many for each thread as all of them together may
// have later.
template <int Rows>
constexpr int kConsumerRegisters = kConsumers<Rows> == 512   ? 112
                                   : kConsumers<Rows> == 384 ? 160
                                                             : 240;
template <int Rows>
constexpr int kProducerRegisters = kConsumers<Rows> == 256 ? 24 : 32;

// A box of a tensor into shared memory.
[[maybe_unused]] __device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap& map,
                                                          int column, int row, uint32_t barrier,
                                                          uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier), "l"(policy)
      : "memory");
}
[[maybe_unused]] __device__ __forceinline__ void expect_bytes(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// How long W and x stay in the level-2 cache.
struct CachePolicies {
  uint64_t of_w, of_x;
  __device__ __forceinline__ explicit CachePolicies(const HopperProduct& a) {
    // W passes through once: first to leave the level-2 cache.
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(of_w));
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(of_x));
    if (a.chunks > 1) of_w = kKeepNormal;
  }
};

// A block: which units it has, where its stages and their barriers are, and who of it this thread
// is.
template <class S>
struct HopperBlock {
  static constexpr int kRows = S::kRows, kConsumerWarps = kConsumers<kRows> / 32;
  unsigned char* memory;  // of the first stage
  uint32_t full, empty;   // barriers of the first stage
  int first, last;        // units
  int lane, warp;

  // All threads call it. unaligned: the block's dynamic shared memory.
  __device__ __forceinline__ HopperBlock(const TileProduct& p, unsigned char* unaligned) {
    __shared__ uint64_t barriers[2 * S::kStages];  // full, then empty
    memory = unaligned + (kAlignment - shared_address(unaligned) % kAlignment) % kAlignment;
    first = first_unit(int(blockIdx.x), p.units);
    last = first_unit(int(blockIdx.x) + 1, p.units);
    lane = threadIdx.x % 32;
    warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be the warp's
    full = shared_address(barriers);
    empty = full + 8 * S::kStages;
    let_next_start();
    if (threadIdx.x == 0) {
      for (int i = 0; i < S::kStages; ++i) {
        barrier_init(full + 8 * i, 1);
        barrier_init(empty + 8 * i, kConsumerWarps);
      }
      fence_before_async_copy();
    }
    __syncthreads();
  }
  __device__ __forceinline__ bool multiplies() const { return warp < kConsumerWarps; }

  // What warps that do not multiply do. fill(): one thread fills the stages.
  __device__ __forceinline__ void run_producers(const TileProduct& p, const auto& fill) const {
    registers_down<kProducerRegisters<kRows>>();
    const int first_tile = first / p.stages_of_tile, next = (first_tile + 1) * p.stages_of_tile;
    if (warp == kConsumerWarps) {
      if (lane == 0) fill();
    } else if (warp == kConsumerWarps + 1 && first % p.stages_of_tile != 0 && next < last) {
      wait_for_early_part<kRows>();
      if (lane == 0) tell(p.counters + first_tile);
    }
  }
};

// Fills stages with a block's units. copy_w(place, slot) starts the copies of W, and expects all
// bytes of the stage; copy_x starts those of x. One thread calls it.
template <class S>
__device__ __forceinline__ void fill_stages(const TileProduct& p, const HopperBlock<S>& block,
                                            const auto& copy_w, const auto& copy_x) {
  const int ahead = min(S::kStages, block.last - block.first);
  TilePlace at{block.first / p.stages_of_tile, block.first % p.stages_of_tile};
  // Codes need not wait for the kernel before. But the first x comes late if more of them are asked
  // for before it: with the codes of all stages, 16 rows took 7 % longer.
  if (ahead > 0) copy_w(at, 0);
  wait_for_previous();
  for (int slot = 0; slot < ahead; ++slot) {
    if (slot > 0) copy_w(at, slot);
    copy_x(at, slot);
    at.move_on(p.stages_of_tile);
  }
  int slot = 0;
  uint32_t parity = 0;
  for (int unit = block.first + S::kStages; unit < block.last; ++unit) {
    barrier_wait(block.empty + 8 * slot, parity);
    copy_w(at, slot);
    copy_x(at, slot);
    at.move_on(p.stages_of_tile);
    if (++slot == S::kStages) slot = 0, parity ^= 1;
  }
}

// Cuts a product into units, and returns how many blocks compute it. 0: the workspace is too small.
template <class S>
int cut_work(HopperProduct& a, const TileProductWorkspace& workspace, int multiprocessors) {
  constexpr int kRows = S::kRows;
  constexpr size_t kPartials = 2 * kPart<kRows> * sizeof(float4);  // of a block
  TileProduct& p = a.p;
  a.chunks = (p.t + kRows - 1) / kRows;
  p.stages_of_tile = (p.k + S::kColumns - 1) / S::kColumns;
  const int64_t tiles = int64_t((p.n + kHeight<kRows> - 1) / kHeight<kRows>) * a.chunks;
  const int64_t units = tiles * p.stages_of_tile;
  p.units = int(units);
  int64_t blocks =
      std::min({units, int64_t(multiprocessors), int64_t(workspace.partials_bytes / kPartials),
                (int64_t(1) << 31) / units - 1});
  // Where no block does more then, each tile is cut into equal pieces, and a block has one of them.
  if (const int64_t pieces = blocks / tiles;
      pieces > 0 && (p.stages_of_tile + pieces - 1) / pieces <= (units + blocks - 1) / blocks)
    blocks = tiles * pieces;
  return blocks < 1 || tiles > workspace.counters_count ? 0 : int(blocks);
}

// Calls with<Rows>() for a tile that holds t rows of x, or more(t) where t is above 96.
auto with_tile_rows(int t, const auto& with, const auto& more) {
  if (t <= 16) return with.template operator()<16>();
  if (t <= 32) return with.template operator()<32>();
  if (t <= 48) return with.template operator()<48>();
  if (t <= 64) return with.template operator()<64>();
  if (t <= 96) return with.template operator()<96>();
  return more(t);
}

// Starts a kernel of this kind.
template <class S>
cudaError_t launch_hopper_kernel(void (*kernel)(HopperProduct), const HopperProduct& a, int blocks,
                                 cudaStream_t stream) {
  constexpr size_t kShared = size_t(S::kStages) * S::kBytes + kAlignment;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kShared));
  if (error != cudaSuccess) return error;
  return launch_overlapped(kernel, dim3(unsigned(blocks)), dim3(kThreadsOfBlock<S::kRows>), kShared,
                           stream, a);
}

}  // namespace kivi::cuda
