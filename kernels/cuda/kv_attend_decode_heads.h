// SPDX-License-Identifier: Apache-2.0
// Launcher of decode attention for many query heads on one KV head (kv_attend_decode_heads.cu).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/decode_work.cuh"
#include "kernels/kv_page.h"

namespace kivi::cuda {

inline constexpr int kHeadsDim = 64;
inline constexpr int kHeadsRatio = 48;  // for more query heads a KV head than this
// Sequences times KV heads of a step from which on the kernel pays. Below that, the states of one
// segment come from so many blocks that merging 72 heads takes longer than reading pages again.
inline constexpr int kHeadsSegmentsMin = 32;
// From this number on, all query heads at once are faster than half of them.
inline constexpr int kHeadsSegmentsMany = 256;
inline constexpr int kHeadsStagesMax = 6;  // of a warpgroup's ring
inline constexpr int kHeadsStagesMin = 4;  // four tiles are taken at once

// Blocks of 8 query heads that a warpgroup takes at once: all of Falcon-7B's, or half of them. Half
// takes fewer registers, so that one more warpgroup computes.
inline constexpr int kHeadsTilesAll = 9, kHeadsTilesHalf = 5;

// Warpgroups of a block that compute; registers a thread of these, of the warpgroup that copies,
// and at the launch, which together are those of the launch.
template <int NT>
struct HeadsBlock {
  static constexpr int kGroups = NT == kHeadsTilesAll ? 3 : 4;
  static constexpr int kLaunchRegisters = NT == kHeadsTilesAll ? 128 : 96;
  static constexpr int kComputeRegisters = NT == kHeadsTilesAll ? 152 : 104;
  static constexpr int kCopyRegisters =
      (kGroups + 1) * kLaunchRegisters - kGroups * kComputeRegisters;
};

// Offsets in a block's shared memory: the warpgroups' parts, then what they share. A warpgroup has
// q (with X, then its squares for the key bias), two buffers of P, its ring, running maxima, room
// to exchange numbers, and a partial state of a segment that began earlier. The state of a segment
// that goes on lies at its beginning.
template <int NT, bool X>
struct HeadsShared {
  static constexpr int kGroups = HeadsBlock<NT>::kGroups;
  static constexpr int kOperandBytes = 8 * NT * kHeadsDim * 2;  // a multiple of 1024
  static constexpr int kPartialBytes = NT * (kHeadsDim * 8 * 4 + 64);
  static constexpr int kProbabilities = (X ? 2 : 1) * kOperandBytes;
  static constexpr int kMaxima = kProbabilities + 2 * kOperandBytes;
  static constexpr int kRowBytes = 8 * NT * 4;  // one number a head
  static constexpr int kExchange = kMaxima + 4 * kRowBytes;
  static constexpr int kRing = kExchange + 4 * kRowBytes;
  static_assert(kOperandBytes % 1024 == 0 && kRing % 128 == 0 && kPartialBytes <= kMaxima);

  int partial, group_bytes;                   // of a warpgroup's part
  int barriers, line, slots, arrived, bytes;  // of the block

  KIVI_HOST_DEVICE HeadsShared(int stages, int stage_bytes)
      : partial(kRing + stages * stage_bytes),
        group_bytes((partial + kPartialBytes + 1023) / 1024 * 1024),
        barriers(kGroups * group_bytes),
        line(barriers + kGroups * stages * 16),
        slots(line + 64),
        arrived(slots + 2 * kGroups * 32),
        bytes(arrived + 32) {}
};

// `tiles`: kHeadsTilesAll or kHeadsTilesHalf.
int heads_groups(int tiles);
// Of a block. `extended`: with parameters of 8 bits or a key bias.
int heads_shared_bytes(const DecodeLaunch& a, int tiles, bool extended);

// `a`: described for blocks of 8 `tiles` query heads. Codes of 2 or 4 bits.
cudaError_t launch_decode_heads(const DecodeLaunch& a, int tiles, const KvFormat& format,
                                int blocks, bool overlaps, cudaStream_t stream);

}  // namespace kivi::cuda
