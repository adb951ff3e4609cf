// SPDX-License-Identifier: Apache-2.0
// Launchers of decode attention to pages that several sequences share (kv_attend_shared.cu).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/decode_work.cuh"
#include "kernels/kv_page.h"
#include "kernels/step_view.h"

namespace kivi::cuda {

inline constexpr int kSharedGroupsMax = 128;
inline constexpr int kSharedThreads = 384;

// A group of the step. A *unit* is one segment's query heads of one member, and a tile is as many
// units as have 64 rows at most. Items are its tiles times KV heads, and each has `pages`: those of
// sinks (SharedLaunch::sink_pages), then the shared ones.
struct GroupWork {
  int32_t item_base, work_base;  // items, and pages of items, of the groups before it
  int32_t tiles, pages;
  int32_t pages_begin, members_begin, units;
  int32_t slot;  // of a member, whose sinks are read for all
};
// The work of a step: all pages of all items form a line, which is cut into pieces, one a block.
// The first `rest` of them have a page more than the others, which have `each`. A part of an item
// in a piece leaves its state in slot item + piece.
struct alignas(16) SharedPlan {
  int32_t total, pieces, each, rest;
  GroupWork group[kSharedGroupsMax];
  int32_t row[1];  // of the step, of each member; as many as there are
};

// Offsets in a block's shared memory.
struct SharedOffsets {
  int queries, squared, rows, plan, squares, tiles, raw_keys, raw_values, barriers, bytes;
  int stages, raw_stages;  // of tiles in 16 bits; of pages as they are stored
};

// `decode`: the launch of kv_attend_decode that attends to the rest and merges.
struct SharedLaunch {
  DecodeLaunch decode;
  int key_bits, value_bits;
  const StepGroup* groups;  // device, some of them padding
  const int32_t* members;   // device
  int group_capacity;
  SharedPlan* plan;
  int2* where;                // DecodeLaunch::shared_where
  float* slots;               // DecodeLaunch::shared_slots
  int heads_block;            // query heads of a segment of `decode`, at most
  int unit_rows, units_tile;  // rows of a unit, units of a tile
  int sink_pages;             // room that sinks take on the line, in pages
  int head_dim;
  SharedOffsets at;
};

size_t shared_plan_bytes(int sequences);

// Of a block's shared memory, at least.
int shared_bytes_min(const DecodeLaunch& d, int head_dim);
// Lays out shared memory. False: it is too small for the format.
bool lay_out_shared(SharedLaunch& a, int shared_bytes_max);

// Once a step, before the layers.
cudaError_t plan_shared(const SharedLaunch& a, int blocks, cudaStream_t stream);
// Before kv_attend_decode of the same layer, which overlaps it.
cudaError_t attend_shared(const SharedLaunch& a, int blocks, bool overlaps, cudaStream_t stream);

}  // namespace kivi::cuda
