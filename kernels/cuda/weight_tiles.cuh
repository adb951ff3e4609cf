// SPDX-License-Identifier: Apache-2.0
// Reads the scales of 4-bit weights as kernels/weight_codec.h lays them out. A lane of a warp holds
// two neighboring rows, 2 g and 2 g + 1, of a tile of 16: a block's codes of these rows and of the
// columns 4 t to 4 t + 3 and 16 + 4 t to 16 + 4 t + 3 are 8 bytes that lie side by side, and the
// warp reads all 256 bytes of the block.
#pragma once

#include <cuda_fp16.h>

#include "kernels/weight.h"

namespace kivi::cuda {

constexpr uint32_t kNibbles = 0x0F0F0F0Fu;  // of four codes, a byte each

// W = scale * (code - zero) + minimum, for the lane's two rows. `zero` is 0 where there is a
// minimum.
struct TwoScales {
  float scale[2];
  float minimum[2];
  uint32_t zero[2];
};

__device__ __forceinline__ float2 two_halves(const std::byte* at) {
  return __half22float2(*reinterpret_cast<const __half2*>(at));
}
__device__ __forceinline__ uint32_t two_bytes(const std::byte* at) {
  return *reinterpret_cast<const uint16_t*>(at);
}

// True if the formulas of this kind have a minimum in place of a zero point.
__host__ __device__ constexpr bool has_minimum(WeightKind kind) {
  return kind == WeightKind::q4_1 || kind == WeightKind::q4_k;
}

// `record`: the tile's record (16 rows) of the block. `block`: of the row; q4_k has one record for
// 8 blocks. g: lane / 4.
__device__ __forceinline__ TwoScales read_scales(WeightKind kind, const std::byte* record,
                                                 int block, int g) {
  TwoScales s;
  s.minimum[0] = s.minimum[1] = 0;
  s.zero[0] = s.zero[1] = 0;
  if (kind == WeightKind::int4) {
    const float2 scale = *reinterpret_cast<const float2*>(record + 8 * g);
    const uint32_t zero = two_bytes(record + 64 + 2 * g);
    s.scale[0] = scale.x;
    s.scale[1] = scale.y;
    s.zero[0] = zero & 127;
    s.zero[1] = zero >> 8 & 127;
    return s;
  }
  const float2 scale = two_halves(record + 4 * g);
  s.scale[0] = scale.x;
  s.scale[1] = scale.y;
  if (kind == WeightKind::q4_0) {
    s.zero[0] = s.zero[1] = 8;
    return s;
  }
  const float2 minimum = two_halves(record + 32 + 4 * g);
  if (kind == WeightKind::q4_1) {
    s.minimum[0] = minimum.x;
    s.minimum[1] = minimum.y;
    return s;
  }
  const uint32_t scales = two_bytes(record + (4 + block % 8) * 16 + 2 * g);
  const uint32_t minima = two_bytes(record + (12 + block % 8) * 16 + 2 * g);
  s.scale[0] *= float(scales & 255);
  s.scale[1] *= float(scales >> 8);
  s.minimum[0] = -minimum.x * float(minima & 255);
  s.minimum[1] = -minimum.y * float(minima >> 8);
  return s;
}

}  // namespace kivi::cuda
