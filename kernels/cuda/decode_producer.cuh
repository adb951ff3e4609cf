// SPDX-License-Identifier: Apache-2.0
// How the units of decode attention reach shared memory: the copies of one piece, in order.
#pragma once

#include "kernels/cuda/decode_work.cuh"
#include "kernels/cuda/ptx.cuh"

namespace kivi::cuda {

// The copies of a warp's units, in the order in which it will use them.
// SAME_WARP: the warp that starts the copies also reads what they bring.
template <int D, int KB, int VB, int NT, bool X, bool SAME_WARP = true>
struct DecodeProducer {
  static constexpr int kKeyTileBytes = 16 * D * KB / 8 < 512 ? 512 : 16 * D * KB / 8;

  const DecodeLaunch& a;
  Cursor cursor, end;
  Extent extent;
  int behind;  // units of the cursor's segment up to the piece's end
  const int32_t* table;
  int slot;
  int page = 0;  // id of the page of the cursor's unit; read one unit ahead of its use

  __device__ __forceinline__ DecodeProducer(const DecodeLaunch& launch, Cursor first, Cursor last)
      : a(launch), cursor(first), end(last) {
    enter_segment();
  }

  __device__ __forceinline__ bool done() const { return cursor.unit == behind; }
  // The cursor's unit has the step's own token, which the kernel before writes.
  __device__ __forceinline__ bool at_own_token() const { return cursor.unit == extent.units() - 1; }

  __device__ __forceinline__ void enter_segment() {
    behind = cursor.unit;
    if (cursor == end) return;
    const StepSequence& s = a.sequences[cursor.sequence];
    extent = extent_of(a, s);
    behind = cursor.sequence == end.sequence && cursor.segment == end.segment ? end.unit
                                                                              : extent.units();
    table = a.page_table + s.pages_begin;
    slot = s.slot;
    look_up();
  }
  __device__ __forceinline__ void look_up() {
    int position = (extent.page_first + cursor.unit) * kUnitTokens;
    if (KB == 16 || cursor.unit >= extent.pages) {
      position = extent.tile_position(cursor.unit);
      if (KB < 16 && !extent.is_coded(position)) return;  // rows of the slab need no page
    }
    page = __ldg(table + (position >> a.page_shift));
  }

  __device__ __forceinline__ int head() const {
    return NT == 1 ? cursor.segment : cursor.segment / a.head_blocks;
  }
  __device__ __forceinline__ const std::byte* block() const {
    return a.pages + page * a.page_stride + int64_t(head()) * a.block_bytes;
  }
  // The cursor's unit is a page of 64 tokens.
  __device__ __forceinline__ bool at_page() const {
    return KB < 16 && cursor.unit < min(behind, extent.pages) && a.page_shift == 6;
  }
  // Starts the copy of that page and moves on. Segments do not end with a page.
  __device__ __forceinline__ void issue_page(const WarpCopy& copy, uint32_t stage) {
    copy.start_one(stage, block(), a.unit_bytes);
    if (++cursor.unit < behind) look_up();
  }

  // Starts the copies of the cursor's unit and moves on.
  __device__ __forceinline__ void issue(const WarpCopy& copy, uint32_t stage) {
    if (at_page()) return issue_page(copy, stage);
    issue_pieces(copy, stage, block(), head());
    if (++cursor.unit < behind) {
      look_up();
    } else if (cursor.unit == extent.units()) {
      cursor = next_segment(a, cursor);
      enter_segment();
    }
  }

  // Lane i < 4 has piece i of the unit: keys, values, and, where they are apart from these, key and
  // value parameters. The step's own token comes chunk by chunk, since rows are swizzled.
  __device__ __forceinline__ void issue_pieces(const WarpCopy& copy, uint32_t stage,
                                               const std::byte* block, int head) const {
    const int piece = copy.lane;
    const std::byte* from = block;
    const void* own = nullptr;
    int to = 0, bytes = 0, all, own_to = 0;
    if (KB < 16 && cursor.unit < extent.pages) {
      // Half of a 128-token page: its codes and value parameters, and the key parameters of both.
      all = a.unit_bytes;
      if (piece < 4) {
        const int half = (extent.page_first + cursor.unit) % 2;
        const int vc = a.stage_vp - a.stage_vc, vp = all - a.stage_vp;
        to = piece == 0 ? 0 : piece == 1 ? a.stage_vc : piece == 2 ? a.stage_kp : a.stage_vp;
        bytes = piece == 0 ? a.stage_kp : piece == 1 ? vc : piece == 2 ? a.key_group_bytes : vp;
        from += piece == 0   ? half * a.stage_kp
                : piece == 1 ? a.block_vc + half * vc
                : piece == 2 ? a.block_kp
                             : a.block_vp + half * vp;
      }
    } else {
      // Expanded parameters are written where this copy may go.
      if constexpr (X) fence_before_async_copy();
      const int position = extent.tile_position(cursor.unit);
      const int low = extent.tile_low(position), rows = min(position + 16, extent.past) - low;
      const int row_bytes = rows * 2 * D;
      int64_t values;
      if constexpr (KB == 16) {
        from += low % kUnitTokens * (2 * D);
        values = a.block_vc;
      } else {
        const bool sink = position < 0;
        from = a.residual + slot * a.slot_stride + int64_t(head) * a.slab_bytes +
               (sink ? a.sink_rows + (low + a.sinks) * (2 * D) : a.residual_row(low) * (2 * D));
        values = (sink ? a.sinks : a.residual_rows) * (2 * D);
      }
      const bool coded = KB < 8 && extent.is_coded(position);
      all = coded ? row_bytes + kKeyTileBytes + a.key_group_bytes : 2 * row_bytes;
      bytes = piece < 2 ? row_bytes : 0;
      to = (low - position) * 2 * D + piece * 32 * D;
      if (piece == 1) from += values;
      if (coded && piece != 1) {
        const int in_page = position & ((1 << a.page_shift) - 1);
        to = piece == 0 ? 0 : 16 * D;
        bytes = piece == 0 ? kKeyTileBytes : piece == 2 ? a.key_group_bytes : 0;
        from = block + (piece == 0 ? in_page * (D * KB / 8) / kKeyTileBytes * kKeyTileBytes
                                   : a.block_kp + (in_page >> a.group_shift) * a.key_group_bytes);
      }
      if (at_own_token()) {
        if (!SAME_WARP) all += 4 * D;
        const int which = copy.lane / (D / 8), chunk = copy.lane % (D / 8);
        const int row = extent.past - position;
        if (which < 2)
          own = a.kv + a.sequences[cursor.sequence].row_begin * a.kv_stride +
                (head + which * a.kv_heads) * D + chunk * 8;
        own_to = which * 32 * D + row * 2 * D + (chunk ^ row % 8) * 16;
      }
    }
    copy.start<SAME_WARP>(all, stage + to, from, bytes, stage + own_to, own);
  }
};

}  // namespace kivi::cuda
