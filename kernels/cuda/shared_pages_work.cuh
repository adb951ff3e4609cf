// SPDX-License-Identifier: Apache-2.0
// What the warpgroups of attend_shared have in common (kv_attend_shared.cu): the parts of the work
// that a block computes, tiles in shared memory, and the barriers between those that fill tiles and
// those that multiply them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/kv_attend_shared.h"

namespace kivi::cuda::shared_pages {

inline constexpr int kGroupThreads = 128;
inline constexpr int kSideThreads = 128;  // that unpack keys, and as many values
inline constexpr int kTile = 64;          // tokens
inline constexpr int kRowBytes = 128;     // of 64 halves in shared memory
inline constexpr int kPart = kTile * kRowBytes;

enum TileBarrier { kKeysFull, kValuesFull, kKeysEmpty, kValuesEmpty };
enum RawBarrier { kRawFull, kRawEmpty };

// A place in a ring of stages.
struct Ring {
  int stages;
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ explicit Ring(int count) : stages(count) {}
  __device__ __forceinline__ void advance() {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

struct Barriers {
  uint32_t base;
  int stages, raw_stages;
  __device__ __forceinline__ uint32_t tile(TileBarrier which, int stage) const {
    return base + uint32_t((int(which) * stages + stage) * 8);
  }
  __device__ __forceinline__ uint32_t raw(int side, RawBarrier which, int stage) const {
    return base + uint32_t((4 * stages + (side * 2 + int(which)) * raw_stages + stage) * 8);
  }
};

__device__ __forceinline__ void consumers_meet() {
  asm volatile("bar.sync 1, %0;" ::"n"(kGroupThreads) : "memory");
}

// A part of an item that one block computes: pages [begin, end).
struct Part {
  int group, head, tile;
  int begin, end;
  int slot;
};
// Where this block's piece lies on the line.
struct PieceRange {
  int begin, end;
};
__device__ __forceinline__ PieceRange range_of(const SharedPlan& plan) {
  const int4 p = *reinterpret_cast<const int4*>(&plan);
  const int i = int(blockIdx.x), each = p.z, rest = p.w;
  if (i >= p.y) return {0, 0};
  const int begin = i * each + min(i, rest);
  return {begin, begin + each + (i < rest ? 1 : 0)};
}

// The parts of this block, in order. `groups`: the plan's, in shared memory.
struct Parts {
  const GroupWork* groups;
  int group_count, x, x_end, group = 0;

  __device__ Parts(const SharedLaunch& a, const GroupWork* in_shared, const PieceRange& range)
      : groups(in_shared), group_count(a.group_capacity), x(range.begin), x_end(range.end) {}
  __device__ __forceinline__ bool next(Part& part) {
    if (x >= x_end) return false;
    while (group + 1 < group_count && groups[group + 1].work_base <= x) ++group;
    const GroupWork& g = groups[group];
    const int item = (x - g.work_base) / g.pages;
    part.group = group;
    part.head = item / g.tiles, part.tile = item % g.tiles;
    part.begin = x - g.work_base - item * g.pages;
    part.end = min(g.pages, part.begin + x_end - x);
    part.slot = g.item_base + item + int(blockIdx.x);
    x += part.end - part.begin;
    return true;
  }
};

}  // namespace kivi::cuda::shared_pages
