// SPDX-License-Identifier: Apache-2.0
// Launcher of decode attention for many query heads on one KV head (kv_attend_decode_heads.cu).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/decode_work.cuh"
#include "kernels/kv_page.h"

namespace kivi::cuda {

inline constexpr int kHeadsDim = 64;
inline constexpr int kHeadsTiles = 9;   // blocks of 8 query heads that a warpgroup takes at once
inline constexpr int kHeadsRatio = 48;  // for more query heads a KV head than this
// Sequences times KV heads of a step from which on the kernel pays. Below that, the states of one
// segment come from so many blocks that merging 72 heads takes longer than reading pages again.
inline constexpr int kHeadsSegmentsMin = 32;
inline constexpr int kHeadsGroups = 3;     // warpgroups of a block that compute
inline constexpr int kHeadsStagesMax = 6;  // of a warpgroup's ring
inline constexpr int kHeadsStagesMin = 4;  // four tiles are taken at once

inline constexpr int kHeadsPartialBytes = kHeadsTiles * (kHeadsDim * 8 * 4 + 64);

// Offsets in a block's shared memory: the warpgroups' parts, then what they share. A warpgroup has
// q (with X, then its squares for the key bias), two buffers of P, its ring, running maxima, room
// to exchange numbers, and a partial state of a segment that began earlier. The state of a segment
// that goes on lies at its beginning.
template <bool X>
struct HeadsShared {
  static constexpr int kOperandBytes = 8 * kHeadsTiles * kHeadsDim * 2;  // a multiple of 1024
  static constexpr int kPartialBytes = kHeadsPartialBytes;
  static constexpr int kProbabilities = (X ? 2 : 1) * kOperandBytes;
  static constexpr int kMaxima = kProbabilities + 2 * kOperandBytes;
  static constexpr int kRowBytes = 8 * kHeadsTiles * 4;  // one number a head
  static constexpr int kExchange = kMaxima + 4 * kRowBytes;
  static constexpr int kRing = kExchange + 4 * kRowBytes;
  static_assert(kOperandBytes % 1024 == 0 && kRing % 128 == 0 && kPartialBytes <= kMaxima);

  int partial, group_bytes;                   // of a warpgroup's part
  int barriers, line, slots, arrived, bytes;  // of the block

  KIVI_HOST_DEVICE HeadsShared(int stages, int stage_bytes)
      : partial(kRing + stages * stage_bytes),
        group_bytes((partial + kPartialBytes + 1023) / 1024 * 1024),
        barriers(kHeadsGroups * group_bytes),
        line(barriers + kHeadsGroups * stages * 16),
        slots(line + 64),
        arrived(slots + 2 * kHeadsGroups * 32),
        bytes(arrived + 32) {}
};

// Of a block. `extended`: with parameters of 8 bits or a key bias.
int heads_shared_bytes(const DecodeLaunch& a, bool extended);

// `a`: described for blocks of 8 kHeadsTiles query heads. Codes of 2 or 4 bits.
cudaError_t launch_decode_heads(const DecodeLaunch& a, const KvFormat& format, int blocks,
                                bool overlaps, cudaStream_t stream);

}  // namespace kivi::cuda
