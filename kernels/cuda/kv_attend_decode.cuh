// SPDX-License-Identifier: Apache-2.0
// Decode attention over the paged KIVI store, on tensor cores
// (docs/design/decode-attention.md).
//
//   out[h] = softmax(q[h] . [K', K_residual, k_own] * scale) [V', V_residual, v_own]
//
// Mapping. Each warp works alone: it owns a piece of the line of work (decode_work.cuh) and a ring
// of stages in shared memory that asynchronous copies fill, so there is no block-wide barrier until
// states are merged. The first of them start while the kernel before still runs (overlap.cuh):
// nothing of a step writes a layer's store before that layer's attention. What all lanes have in
// common is uniform for the compiler, too: no branch parts a warp.
//
// Operands are swapped: S^T = K q^T and O^T = V^T P^T, so that keys and values are operand A of
// mma.m16n8k16, straight from the order in which pages store them, and up to 8 query heads of a KV
// head are its n = 8 columns (16 or 24 with NT = 2 or 3). P^T becomes operand B by movmatrix.
//
// Codes are used as they lie: a word AND a mask is a pair of fp16 subnormals c * 4^p * 2^-24
// (tensor cores take subnormals at full rate), one instruction for two codes. Where it pays
// (kSums), the last pair of a word is a sum of pairs, which needs no mask. Everything else is
// folded into operand B: q' = q * scale * 4^-p for each key group and P' = P * scale * 4^-p for
// each value group. q . min is one product more with q as operand A and the minima of both token
// groups as columns of B; it is added to the logits. sum(P * min) and sum(P) are one more whose A
// rows are the minima of the channel groups and a row of ones.
//
// Where parameters have 8 bits or keys a bias (X), the warp first puts the parameters of a unit
// into planes of f16 that suit what follows (decode_planes.cuh): scales times 4^-p, minima, and
// squares of scales, two more columns of the product with the minima. The rows that meet them are
// -q^2 scale / 24: this is the bias.
//
// Products into one accumulator wait for each other, so two tiles always take turns.
//
// Cost of one 64-token unit at 2 bits, d = 128, G = 32: 6144 bytes, 585 instructions a warp in
// page_unit (76 mma) and about 55 for the copy; with 8-bit parameters and a bias 5120 bytes and 636
// instructions. With at most four query heads on a KV head (FOUR), 550 and 597.
// docs/design/decode-attention.md has the count and the times. Reference: CpuBackend::do_kv_attend.
// Test: tests/cuda/kv_attend_test.cpp.
#pragma once

#include "kernels/cuda/decode_merge.cuh"
#include "kernels/cuda/decode_producer.cuh"
#include "kernels/cuda/decode_warp.cuh"
#include "kernels/cuda/decode_work.cuh"
#include "kernels/cuda/overlap.cuh"

namespace kivi::cuda {

// Where a warp's time goes. Without TIMED, nothing of it is compiled.
template <bool TIMED>
struct DecodeClock {
  uint64_t* fields;
  uint32_t noted = 0, last = 0, counts[kDecodeCounts] = {};

  __device__ __forceinline__ DecodeClock(const DecodeLaunch& a, int warps, int warp)
      : fields(TIMED ? a.timeline + (blockIdx.x * warps + warp) * kDecodeFields : nullptr) {}
  // The first time that a warp comes to `place`.
  __device__ __forceinline__ void stamp(DecodePlace place) {
    if constexpr (TIMED) {
      if (noted >> int(place) & 1) return;
      noted |= 1u << int(place);
      uint64_t now;
      asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)::"memory");
      if (threadIdx.x % 32 == 0) fields[int(place)] = now;
    }
  }
  __device__ __forceinline__ void begin() {
    if constexpr (TIMED) last = now();
  }
  // Adds the cycles since begin() to `cycles`, and 1 to the count behind it.
  __device__ __forceinline__ void end(DecodeCount cycles) {
    if constexpr (TIMED) {
      counts[int(cycles)] += now() - last;
      ++counts[int(cycles) + 1];
    }
  }
  // Products may move over the reading of a clock, so units are only counted.
  __device__ __forceinline__ void count(DecodeCount units) {
    if constexpr (TIMED) ++counts[int(units) + 1];
  }
  __device__ __forceinline__ void finish() const {
    if constexpr (TIMED) {
      if (threadIdx.x % 32 != 0) return;
#pragma unroll
      for (int i = 0; i < kDecodeCounts; ++i) fields[kDecodePlaces + i] = counts[i];
    }
  }

 private:
  static __device__ __forceinline__ uint32_t now() {
    uint32_t cycles;
    asm volatile("mov.u32 %0, %%clock;" : "=r"(cycles)::"memory");
    return cycles;
  }
};

// SHARES: attend_shared has attended to the pages that sequences share. Other launches do without
// the registers that its states take.
template <int D, int KB, int VB, int NT, bool X, bool SHARES, bool G32, bool FOUR, bool TIMED>
__global__ void __launch_bounds__(32 * decode_warps_max(D, NT, KB < 8), 1)
    kv_attend_decode(const __grid_constant__ DecodeLaunch a) {
  extern __shared__ __align__(128) std::byte shared[];
  // The shuffle lets the compiler see that the warp's number, and what follows from it, is uniform.
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int warp = __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0);
  const DecodeShared& at = a.at;
  auto* slots = reinterpret_cast<PartialSlot*>(shared + at.slots);
  std::byte* ring = shared + at.ring + warp * a.ring_bytes;
  const uint32_t barriers = shared_address(shared) + warp * a.stages * 8;

  DecodeClock<TIMED> clock(a, warps, warp);
  clock.stamp(DecodePlace::started);
  let_next_start();
  const Piece* own_piece = a.pieces + blockIdx.x * warps + warp;
  const Piece piece = read_piece(own_piece);
  // A block without pieces leaves room. One of the others waits for the kernel before.
  if (SHARES && piece.entry < 0) return;
  std::byte* ones = shared + at.ones + warp * 16;
  if (lane < a.stages) barrier_init(barriers + lane * 8, WarpCopy::kArrivals);
  if (lane < 4) reinterpret_cast<uint32_t*>(ones)[lane] = kOnes;
  if (lane < 2) slots[2 * warp + lane].id = -1;
  // Only the merging needs the line and the borders.
  if (threadIdx.x < sizeof(BlockLine) / 16)
    copy_chunk(shared_address(shared) + at.line + threadIdx.x * 16,
               block_line(a, threadIdx.x * 16));
  fence_before_async_copy();
  __syncwarp();
  clock.stamp(DecodePlace::planned);

  if (!(piece.begin == piece.end)) {
    Cursor cursor = piece.begin;
    const Cursor end = piece.end;
    DecodeProducer<D, KB, VB, NT, X, true, G32> producer(a, lane, piece);
    DecodeWarp<D, KB, VB, NT, X, G32, FOUR> state(a, lane, ones);
    // Of the cursor's segment. What only tiles and the ends of a segment need is read there again:
    // it would take registers from the pages.
    int pages, low, values_end;  // positions from its first page on
    int begin, behind;
    const auto enter = [&](const Extent& extent) {
      pages = extent.pages;
      low = extent.low - extent.page_first * kUnitTokens;
      values_end = extent.values_end - extent.page_first * kUnitTokens;
      begin = cursor.unit;
      const bool stops = cursor.sequence == end.sequence && cursor.segment == end.segment;
      behind = stops ? end.unit : extent.units();
      return a.q + extent.row * a.q_stride + heads_of<D, NT>(a, cursor.segment).channel;
    };
    const __half* first_queries = enter(piece.extent);
    bool waited = false, inside = true, fresh = true;  // in a segment; its state is not set up yet
    int in = 0, out = 0, in_flight = 0;                // stages
    uint32_t parity = 0;
    // One place each for starting copies, for a unit and for the ends of a segment: the code of the
    // kernel has to come through the instruction cache as well.
    while (true) {
      // One unit is on its way. q comes next: behind more units it would wait for them.
      if (!waited && (in_flight > 0 || producer.at_own_token())) {
        waited = true;
        producer.read_more_ids(piece.extent);
        // attend_shared has waited for what writes q before it let this kernel start.
        if constexpr (!SHARES) wait_for_previous();
        clock.stamp(DecodePlace::previous_done);
        state.template load_queries<SHARES>(first_queries,
                                            heads_of<D, NT>(a, cursor.segment).count);
      }
      if (!inside && (in_flight > 0 || !producer.done())) {
        inside = fresh = true;
        const __half* queries = enter(read_extent(a, cursor.sequence));
        state.template load_queries<SHARES>(queries, heads_of<D, NT>(a, cursor.segment).count);
      }
      if (in_flight < a.stages && !producer.done()) {
        producer.issue({barriers + in * 8, lane}, shared_address(ring + in * a.stage_bytes));
        in = in + 1 == a.stages ? 0 : in + 1;
        ++in_flight;
        clock.stamp(DecodePlace::copied);
        continue;
      }
      if (in_flight == 0) break;
      if (fresh) {
        fresh = false;
        state.begin(heads_of<D, NT>(a, cursor.segment).count);
      }
      // In the middle of a row of pages the next copy goes where the last unit was.
      bool goes_on, refilled;
      do {
        std::byte* data = ring + out * a.stage_bytes;
        const uint32_t barrier = barriers + out * 8;
        clock.begin();
        barrier_wait(barrier, parity);
        clock.stamp(DecodePlace::arrived);
        clock.end(DecodeCount::waiting);
        if (cursor.unit < pages) {
          const int first = cursor.unit * kUnitTokens;
          state.page_unit(data, DecodeStage<D, KB, VB, X, G32>::planes(a, ring, data, out),
                          max(0, low - first), min(64, values_end - first));
          clock.count(DecodeCount::pages);
        } else {
          const Extent extent = read_extent(a, cursor.sequence);
          const int first = extent.tile_position(cursor.unit);
          const bool own_token = cursor.unit == extent.units() - 1;
          if (own_token && WarpCopy::kChunksApart) {
            wait_for_chunks();
            __syncwarp();
          }
          state.tile_unit(data, extent.tile_low(first) - first, min(16, extent.past + 1 - first),
                          extent.is_coded(first), first / kTileTokens % 2);
          if (own_token) fence_before_async_copy();  // chunks are no bulk copies
          clock.count(DecodeCount::tiles);
        }
        __syncwarp();
        if (++out == a.stages) out = 0, parity ^= 1;
        refilled = in_flight == a.stages && producer.at_page();
        if (refilled) {
          producer.issue_page({barrier, lane}, shared_address(data));
          in = out;
        } else {
          --in_flight;
        }
        goes_on = ++cursor.unit < behind;
      } while (goes_on && refilled);
      if (goes_on) continue;

      clock.begin();
      inside = false;
      state.close_pages();
      const Extent extent = read_extent(a, cursor.sequence);
      const int units = extent.units(), row = extent.row;
      const auto [heads, channel] = heads_of<D, NT>(a, cursor.segment);
      const bool shares = SHARES && extent.page_first > 0;  // then there is no window
      if (begin == 0 && behind == units) {
        if (shares) {
          const int2 where = __ldg(a.shared_where + segment_id(a, cursor));
          wait_for_previous();
          state.merge_shared(where, heads);
        }
        state.store_output(static_cast<uint16_t*>(a.out) + row * a.out_stride + channel, heads);
      } else {
        // What goes on in a later piece is the last thing this warp does: the ring is free.
        const int slot = begin == 0 ? 1 : 0;
        std::byte* to = slot == 1 ? ring : shared + at.partials + warp * at.partial_bytes;
        state.store_partial(reinterpret_cast<float4*>(to), heads);
        if (lane == 0) {
          const int weight = extent.weight(a);
          // What began earlier is the segment of the piece's begin, what goes on that of its end.
          const int start = __ldg(slot == 0 ? &own_piece->begin_start : &own_piece->end_start);
          PartialSlot& left = slots[2 * warp + slot];
          left.id = segment_id(a, cursor);
          left.start = start, left.last = start + weight - a.tile_weight;
          left.row = row, left.heads = heads, left.channel = channel;
          if (shares)  // nothing waits for this read before it merges
            copy_8(shared_address(&left.where), a.shared_where + segment_id(a, cursor));
          else
            left.where = make_int2(0, 0);
        }
      }
      if (behind == units) cursor = next_segment(a, cursor);
      clock.end(DecodeCount::ends);
    }
  }
  clock.stamp(DecodePlace::computed);
  wait_for_previous();
  wait_for_chunks();
  __syncthreads();
  clock.stamp(DecodePlace::met);
  DecodeMerge<D, NT, SHARES>{a, *reinterpret_cast<const BlockLine*>(shared + at.line)}.run(
      slots, warps,
      [&](int slot) {
        return slot % 2 == 1 ? shared + at.ring + slot / 2 * a.ring_bytes
                             : shared + at.partials + slot / 2 * at.partial_bytes;
      },
      reinterpret_cast<int*>(shared + at.arrived), [&](DecodePlace place) { clock.stamp(place); });
  clock.stamp(DecodePlace::done);
  clock.finish();
}

}  // namespace kivi::cuda
