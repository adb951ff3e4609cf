// SPDX-License-Identifier: Apache-2.0
// How the units of decode attention reach shared memory: the copies of one piece, in order.
#pragma once

#include "kernels/cuda/decode_work.cuh"
#include "kernels/cuda/ptx.cuh"

namespace kivi::cuda {

// The copies of a warp's units, in the order in which it will use them.
// SAME_WARP: the warp that starts the copies also reads what they bring. What only the copies of a
// tile need of the sequence's extent is read again for each tile: it would take registers from the
// pages.
template <int D, int KB, int VB, int NT, bool X, bool SAME_WARP = true, bool G32 = false>
struct DecodeProducer {
  static constexpr int kKeyTileBytes = 16 * D * KB / 8 < 512 ? 512 : 16 * D * KB / 8;

  static constexpr uint32_t kAll = 0xffffffffu;

  const DecodeLaunch& a;
  const int lane;
  Cursor cursor, end;
  int units, behind;        // of the cursor's segment: all, and those up to the piece's end
  int pages_end;            // units before this one are pages that one copy brings
  int page_first;           // of the cursor's segment
  const std::byte* blocks;  // of the cursor's KV head, in the order of pages
  // Ids of pages of sequence `ids_of`: this lane has that of entry ids_base + lane of the page
  // table, if it is one of the first ids_count lanes. A piece names one id, which all lanes have.
  int ids = 0, ids_base, ids_count, ids_of = -1;

  // `piece` is not empty.
  __device__ __forceinline__ DecodeProducer(const DecodeLaunch& launch, int lane_index,
                                            const Piece& piece)
      : a(launch), lane(lane_index), cursor(piece.begin), end(piece.end) {
    ids = piece.page, ids_base = piece.entry, ids_count = 1, ids_of = cursor.sequence;
    enter_segment(piece.extent);
  }

  __device__ __forceinline__ bool done() const { return cursor.unit == behind; }
  // The cursor's unit has the step's own token, which the kernel before writes.
  __device__ __forceinline__ bool at_own_token() const { return cursor.unit == units - 1; }

  __device__ __forceinline__ void enter_segment(const Extent& e) {
    units = e.units();
    behind = cursor.sequence == end.sequence && cursor.segment == end.segment ? end.unit : units;
    pages_end = KB < 16 && a.page_shift == 6 ? min(behind, e.pages) : 0;
    page_first = e.page_first;
    blocks = a.pages + int64_t(head()) * a.block_bytes;
  }
  __device__ __forceinline__ void next() {
    cursor = next_segment(a, cursor);
    behind = pages_end = cursor.unit;
    if (cursor == end) return;
    const Extent e = read_extent(a, cursor.sequence);
    enter_segment(e);
    if (ids_of == cursor.sequence) return;
    ids_of = cursor.sequence;
    read_ids(e, e.entry(cursor.unit, a.page_shift));
  }
  // Starts to read the entries of the page table from `index` on, as far as pages are in use.
  __device__ __forceinline__ void read_ids(const Extent& e, int index) {
    ids_base = index, ids_count = 32;
    // No branch: the compiler has to see that the warp never parts, to keep what is uniform in
    // uniform registers.
    asm volatile(
        "{\n.reg .pred used;\n"
        "setp.lt.s32 used, %2, %3;\n"
        "@used ld.global.nc.s32 %0, [%1];\n}"
        : "+r"(ids)
        : "l"(a.page_table + e.table + index + lane), "r"(index + lane),
          "r"(e.entries(a.page_shift)));
  }
  // Starts to read more ids than the one that the piece names. Call this behind the first copy.
  // `e` is of the piece's first sequence.
  __device__ __forceinline__ void read_more_ids(const Extent& e) {
    if (ids_count == 1) read_ids(e, ids_base);
  }
  // Where the cursor's block lies in the page that entry `index` names.
  __device__ __forceinline__ const std::byte* block_at(int index) {
    if (uint32_t(index - ids_base) >= uint32_t(ids_count))
      read_ids(read_extent(a, cursor.sequence), index);
    const uint32_t page = __shfl_sync(kAll, uint32_t(ids), index - ids_base);
    return blocks + uint64_t(page) * uint32_t(a.page_stride);
  }

  __device__ __forceinline__ int head() const {
    return NT == 1 ? cursor.segment : cursor.segment / a.head_blocks;
  }
  // The cursor's unit is a page of 64 tokens.
  __device__ __forceinline__ bool at_page() const { return cursor.unit < pages_end; }
  // Starts the copy of that page and moves on. Segments do not end with a page.
  __device__ __forceinline__ void issue_page(const WarpCopy& copy, uint32_t stage) {
    copy.start_one(stage, block_at(page_first + cursor.unit),
                   DecodeStage<D, KB, VB, X, G32>::unit_bytes(a), a.policy);
    ++cursor.unit;
  }

  // Starts the copies of the cursor's unit and moves on.
  __device__ __forceinline__ void issue(const WarpCopy& copy, uint32_t stage) {
    if (at_page()) return issue_page(copy, stage);
    const Extent e = read_extent(a, cursor.sequence);
    if (KB < 16 && cursor.unit < e.pages)
      issue_half_page(copy, stage, e.page_first + cursor.unit);
    else
      issue_tile(copy, stage, e);
    if (++cursor.unit == units) next();
  }

  // Half of a 128-token page: its codes and value parameters, and the key parameters of both.
  __device__ __forceinline__ void issue_half_page(const WarpCopy& copy, uint32_t stage, int unit) {
    const std::byte* from = block_at(unit / 2);
    const int half = unit % 2;
    const int vc = a.stage_vp - a.stage_vc, vp = a.unit_bytes - a.stage_vp;
    const std::byte* values = from + a.block_vc + half * vc;
    copy.start_parts<SAME_WARP>(a.unit_bytes,
                                {{stage, from + half * a.stage_kp, a.stage_kp},
                                 {stage + a.stage_vc, values, vc},
                                 {stage + a.stage_kp, from + a.block_kp, a.key_group_bytes},
                                 {stage + a.stage_vp, from + a.block_vp + half * vp, vp}});
  }

  // 16 tokens: rows of values; rows of keys, or their codes and then one group of parameters. The
  // step's own token comes chunk by chunk, since rows are swizzled.
  __device__ __forceinline__ void issue_tile(const WarpCopy& copy, uint32_t stage,
                                             const Extent& e) {
    // Expanded parameters are written where this copy may go.
    if constexpr (X) fence_before_async_copy();
    const int position = e.tile_position(cursor.unit);
    const int low = e.tile_low(position);
    const int row_bytes = (min(position + 16, e.past) - low) * (2 * D);
    const uint32_t rows = stage + (low - position) * (2 * D);
    const bool coded = KB < 8 && e.is_coded(position);
    const std::byte* keys;
    int values = a.block_vc;  // from the keys on
    if constexpr (KB == 16) {
      keys = block_at(position >> a.page_shift) + low % kUnitTokens * (2 * D);
    } else {
      const bool sink = position < 0;
      const int first =
          sink ? a.sink_rows + (low + a.sinks) * (2 * D) : a.residual_row(low) * (2 * D);
      keys = a.residual + e.slot * a.slot_stride + (int64_t(head()) * a.slab_bytes + first);
      values = (sink ? a.sinks : a.residual_rows) * (2 * D);
    }
    WarpCopy::Part parts[] = {{rows, keys, row_bytes},
                              {rows + 32 * D, keys + values, row_bytes},
                              {stage + 16 * D, nullptr, 0}};
    int all = 2 * row_bytes;
    if (coded) {
      const int in_page = position & ((1 << a.page_shift) - 1);
      const std::byte* from = block_at(position >> a.page_shift);
      parts[0] = {stage, from + in_page * (D * KB / 8) / kKeyTileBytes * kKeyTileBytes,
                  kKeyTileBytes};
      parts[2].from = from + a.block_kp + (in_page >> a.group_shift) * a.key_group_bytes;
      parts[2].bytes = a.key_group_bytes;
      all = row_bytes + kKeyTileBytes + a.key_group_bytes;
    }
    uint32_t own_to = 0;
    const void* own = nullptr;
    if (at_own_token()) {
      if (!SAME_WARP) all += 4 * D;
      const int which = lane / (D / 8), chunk = lane % (D / 8);
      const int row = e.past - position;
      if (which < 2)
        own = a.kv + e.row * a.kv_stride + (head() + which * a.kv_heads) * D + chunk * 8;
      own_to = stage + which * 32 * D + row * 2 * D + (chunk ^ row % 8) * 16;
    }
    copy.start_parts<SAME_WARP>(all, parts, own_to, own);
  }
};

}  // namespace kivi::cuda
