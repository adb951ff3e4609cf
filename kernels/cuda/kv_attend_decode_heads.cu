// SPDX-License-Identifier: Apache-2.0
// Decode attention for many query heads on one KV head, on wgmma (sm_90a)
// (docs/design/decode-attention.md, section 8).
//
// A warpgroup computes what a warp computes in kv_attend_decode.cuh: it owns a piece of the line of
// work. It unpacks the codes of 64 tokens once, into f16 numbers in registers, and multiplies up to
// 72 query heads with them (40 if a step has few sequences: HeadsBlock):
//
//   S^T [64 tokens, 72 heads] = K q^T          A: keys in registers; warp w has 16 tokens from 16 w
//   O^T [64 channels, 72 heads] += V^T P^T     A: values in registers; warp w has 16 channels
//
// Operands B lie in shared memory with k contiguous: q, and P, which the warps write through
// stmatrix. The one barrier of a unit makes P visible. It also tells whether any P came out too
// large for the running maximum; then the unit is computed again with a new maximum.
//
// Warps of one more warpgroup start the copies, one for each warpgroup that computes.
//
// Cost of a 64-token unit of 72 heads at 2 bits, a warp of four: 8 wgmma, 36 exp2, about 330
// instructions in all. Reference: CpuBackend::do_kv_attend. Test: tests/cuda/kv_attend_test.cpp.
#include "kernels/cuda/decode_heads_group.cuh"
#include "kernels/cuda/decode_merge.cuh"
#include "kernels/cuda/decode_producer.cuh"
#include "kernels/cuda/decode_work.cuh"
#include "kernels/cuda/kv_attend_decode_heads.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace kivi::cuda {
namespace {

using namespace decode_heads;

template <int NT, int KB, int VB, bool X>
__global__ void __launch_bounds__(kThreads*(HeadsBlock<NT>::kGroups + 1), 1)
    kv_attend_decode_heads(const __grid_constant__ DecodeLaunch a) {
#if KIVI_WGMMA
  extern __shared__ __align__(1024) std::byte shared[];
  using Shared = HeadsShared<NT, X>;
  using Block = HeadsBlock<NT>;
  constexpr int kGroups = Block::kGroups;
  const Shared at(a.stages, a.stage_bytes);
  const int lane = threadIdx.x % 32;
  const int group = __shfl_sync(0xffffffffu, int(threadIdx.x) / kThreads, 0);
  const int warp = __shfl_sync(0xffffffffu, int(threadIdx.x) / 32 % 4, 0);
  auto* slots = reinterpret_cast<PartialSlot*>(shared + at.slots);
  const auto memory = [&](int worker) { return shared + worker * at.group_bytes; };
  const auto full = [&](int worker) {
    return shared_address(shared + at.barriers) + uint32_t(worker * a.stages * 16);
  };

  let_next_start();
  if (threadIdx.x < kGroups * 2 * a.stages)
    barrier_init(shared_address(shared + at.barriers) + threadIdx.x * 8, 1);
  if (threadIdx.x < 2 * kGroups) slots[threadIdx.x].id = -1;
  if (threadIdx.x < sizeof(BlockLine) / 4)
    reinterpret_cast<uint32_t*>(shared + at.line)[threadIdx.x] =
        *reinterpret_cast<const uint32_t*>(block_line(a, threadIdx.x * 4));
  fence_before_async_copy();
  __syncthreads();

  if (group == kGroups) {
    registers_down<Block::kCopyRegisters>();
    if (warp < kGroups) {
      const Piece piece = read_piece(a.pieces + blockIdx.x * kGroups + warp);
      if (!(piece.begin == piece.end)) {
        DecodeProducer<kD, KB, VB, NT, false, false> producer(a, lane, piece);
        const uint32_t ring = shared_address(memory(warp) + Shared::kRing);
        int stage = 0;
        uint32_t parity = 1;
        bool waited = false;
        while (!producer.done()) {
          if (!waited && (stage > 0 || producer.at_own_token())) {
            waited = true;
            producer.read_more_ids(piece.extent);
            wait_for_previous();
          }
          const uint32_t barrier = full(warp) + uint32_t(stage * 16);
          barrier_wait(barrier + 8, parity);
          producer.issue({barrier, lane}, ring + uint32_t(stage * a.stage_bytes));
          if (++stage == a.stages) stage = 0, parity ^= 1;
        }
      }
    }
  } else {
    registers_up<Block::kComputeRegisters>();
    const Piece& piece = a.pieces[blockIdx.x * kGroups + group];
    Cursor cursor = piece.begin;
    const Cursor end = piece.end;
    HeadsGroup<NT, KB, VB, X> state(a, group, warp, lane, memory(group));
    const std::byte* ring = memory(group) + Shared::kRing;
    int stage = 0;
    uint32_t parity = 0;
    bool goes_on = !(cursor == end);
    if (goes_on) wait_for_previous();
    while (goes_on) {
      const Extent extent = read_extent(a, cursor.sequence);
      const int units = extent.units(), row = extent.row;
      const bool stops = cursor.sequence == end.sequence && cursor.segment == end.segment;
      const int behind = stops ? end.unit : units;
      const auto [heads, channel] = heads_of<kD, NT>(a, cursor.segment);
      state.begin(a.q + row * a.q_stride + channel, heads);
      for (int unit = cursor.unit; unit < behind;) {
        const int count = unit < extent.pages ? 1 : min(kTilesAtOnce, behind - unit);
        const int first_stage = stage;
        for (int i = 0; i < count; ++i) {
          barrier_wait(full(group) + uint32_t(stage * 16), parity);
          if (++stage == a.stages) stage = 0, parity ^= 1;
        }
        const auto stage_of = [&](int i) {
          const int index = first_stage + i;
          return index < a.stages ? index : index - a.stages;
        };
        const auto release = [&] {
          if (int(threadIdx.x) % kThreads < count)
            barrier_arrive(full(group) + uint32_t(stage_of(int(threadIdx.x) % kThreads) * 16 + 8));
        };
        if (unit < extent.pages) {
          const int first = (extent.page_first + unit) * kUnitTokens;
          state.read_page(ring + first_stage * a.stage_bytes, max(0, extent.low - first),
                          min(kUnitTokens, extent.values_end - first));
        } else {
          state.read_tiles(extent, unit, count,
                           [&](int i) { return ring + stage_of(i) * a.stage_bytes; });
        }
        state.attend(release);
        unit += count;
      }
      state.finish();
      if (cursor.unit == 0 && behind == units) {
        state.store_output(static_cast<uint16_t*>(a.out) + row * a.out_stride + channel, heads);
      } else {
        // What goes on in a later piece is the last thing this warpgroup does: its memory is free.
        const int slot = cursor.unit == 0 ? 1 : 0;
        std::byte* to = memory(group) + (slot == 1 ? 0 : at.partial);
        state.store_partial(reinterpret_cast<float4*>(to), heads);
        if (threadIdx.x % kThreads == 0) {
          const int start = slot == 0 ? piece.begin_start : piece.end_start;
          slots[2 * group + slot] = {
              cursor.sequence * (a.kv_heads * a.head_blocks) + cursor.segment,
              start,
              start + extent.weight(a) - a.tile_weight,
              row,
              heads,
              channel,
              make_int2(0, 0)};
        }
      }
      goes_on = behind == units;
      if (goes_on) {
        cursor = next_segment(a, cursor);
        goes_on = !(cursor == end);
      }
    }
  }
  // All warps merge, with the registers that the launch gave them. To ask for more is to spin until
  // there are any. Where a block has few pages, those that copy ask behind the barrier.
  if (group != kGroups) registers_down<Block::kLaunchRegisters>();
  if (group == kGroups && NT == kHeadsTilesAll) registers_up<Block::kLaunchRegisters>();
  wait_for_previous();
  __syncthreads();
  if (group == kGroups && NT != kHeadsTilesAll) registers_up<Block::kLaunchRegisters>();
  DecodeMerge<kD, NT, false>{a, *reinterpret_cast<const BlockLine*>(shared + at.line)}.run(
      slots, kGroups, [&](int slot) { return memory(slot / 2) + (slot % 2 == 1 ? 0 : at.partial); },
      reinterpret_cast<int*>(shared + at.arrived), [](DecodePlace) {});
#endif
}

template <int NT, bool X>
auto* kernel_of(const KvFormat& f) {
  if (f.key_bits == 2)
    return f.value_bits == 2 ? kv_attend_decode_heads<NT, 2, 2, X>
                             : kv_attend_decode_heads<NT, 2, 4, X>;
  return f.value_bits == 2 ? kv_attend_decode_heads<NT, 4, 2, X>
                           : kv_attend_decode_heads<NT, 4, 4, X>;
}

template <int NT>
int shared_bytes(const DecodeLaunch& a, bool extended) {
  return extended ? HeadsShared<NT, true>(a.stages, a.stage_bytes).bytes
                  : HeadsShared<NT, false>(a.stages, a.stage_bytes).bytes;
}

}  // namespace

int heads_groups(int tiles) {
  return tiles == kHeadsTilesAll ? HeadsBlock<kHeadsTilesAll>::kGroups
                                 : HeadsBlock<kHeadsTilesHalf>::kGroups;
}

int heads_shared_bytes(const DecodeLaunch& a, int tiles, bool extended) {
  return tiles == kHeadsTilesAll ? shared_bytes<kHeadsTilesAll>(a, extended)
                                 : shared_bytes<kHeadsTilesHalf>(a, extended);
}

cudaError_t launch_decode_heads(const DecodeLaunch& a, int tiles, const KvFormat& format,
                                int blocks, bool overlaps, cudaStream_t stream) {
  const bool extended = a.byte_parameters || format.key_bias;
  const bool all = tiles == kHeadsTilesAll;
  auto* kernel = extended ? (all ? kernel_of<kHeadsTilesAll, true>(format)
                                 : kernel_of<kHeadsTilesHalf, true>(format))
                          : (all ? kernel_of<kHeadsTilesAll, false>(format)
                                 : kernel_of<kHeadsTilesHalf, false>(format));
  const size_t bytes = size_t(heads_shared_bytes(a, tiles, extended));
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (error != cudaSuccess) return error;
  const dim3 grid{unsigned(blocks)}, block(unsigned(kThreads * (heads_groups(tiles) + 1)));
  if (overlaps) return launch_overlapped(kernel, grid, block, bytes, stream, a);
  kernel<<<grid, block, bytes, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace kivi::cuda
