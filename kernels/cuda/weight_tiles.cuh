// SPDX-License-Identifier: Apache-2.0
// Reads codes of 4, 5, 6 and 8 bits and their scales as kernels/weight_codec.h lays them out. A
// lane of a warp holds two neighboring rows, 2 g and 2 g + 1, of a tile of 16: the low nibbles of a
// block's codes of these rows and of the columns 4 t to 4 t + 3 and 16 + 4 t to 16 + 4 t + 3 are 8
// bytes that lie side by side, and the warp reads all 256 bytes of the block. Codes of 8 bits are
// two such parts of 256 bytes: of the columns below 16, and of the others.
#pragma once

#include <cuda_fp16.h>

#include "kernels/weight.h"

namespace kivi::cuda {

constexpr uint32_t kNibbles = 0x0F0F0F0Fu;  // of four codes, a byte each
constexpr int kNibbleBytes = 256;           // low nibbles of 16 rows by 32 columns

// Parts of kNibbleBytes that the codes of a block have, and words of bits above them for each row.
template <int Bits>
constexpr int kCodeParts = Bits == 8 ? 2 : 1;
template <int Bits>
constexpr int kUpperWords = Bits == 8 ? 0 : Bits - 4;

// Bytes of the codes of 16 rows by 32 columns.
__host__ __device__ constexpr int block_bytes(int bits) { return kNibbleBytes + 64 * (bits - 4); }

// Bits 4 and up of the codes of a row and block. 5 bits have one word of a byte for four columns,
// and 6 bits have two: of columns 0 to 15, and of the others.
template <int Bits>
struct UpperBits {
  uint32_t words[kUpperWords<Bits> == 0 ? 1 : kUpperWords<Bits>];

  // Of columns 4 `quad` and up, a byte each, in bits 4 and 5. They are `half` < 2 below or from
  // column 16 on, and `in_half` = quad % 4.
  __device__ __forceinline__ uint32_t of(int half, int in_half) const {
    if constexpr (Bits == 5) return words[0] >> (4 * half + in_half) << 4 & 0x10101010u;
    if constexpr (Bits == 6) return words[half] >> (2 * in_half) << 4 & 0x30303030u;
    return 0;
  }
};

// `block`: of codes. row: of the tile.
template <int Bits>
__device__ __forceinline__ UpperBits<Bits> read_upper_bits(const std::byte* block, int row) {
  UpperBits<Bits> upper = {};
#pragma unroll
  for (int i = 0; i < kUpperWords<Bits>; ++i)
    upper.words[i] = *reinterpret_cast<const uint32_t*>(block + kNibbleBytes + 64 * i + 4 * row);
  return upper;
}

// Four codes of a row, a byte each, of codes below 8 bits. nibbles: the word that holds the low
// ones of both halves. half, in_half: UpperBits::of.
template <int Bits>
__device__ __forceinline__ uint32_t join_codes(uint32_t nibbles, const UpperBits<Bits>& upper,
                                               int half, int in_half) {
  return (nibbles >> (4 * half) & kNibbles) | upper.of(half, in_half);
}

// Four codes of a row, a byte each: of columns 16 `half` + 4 `quad` and up.
template <int Bits>
__device__ __forceinline__ uint32_t read_four_codes(const std::byte* block, int row, int half,
                                                    int quad) {
  const std::byte* const at = block + quad * 64 + row * 4;
  if constexpr (Bits == 8) return *reinterpret_cast<const uint32_t*>(at + half * kNibbleBytes);
  const uint32_t word = *reinterpret_cast<const uint32_t*>(at);
  return join_codes(word, read_upper_bits<Bits>(block, row), half, quad);
}

// The 4-bit format whose scales lie and count as those of this one, but for the zero point.
constexpr WeightKind scales_like(WeightKind kind) {
  switch (kind) {
    case WeightKind::q5_0:
    case WeightKind::q8_0:
      return WeightKind::q4_0;
    case WeightKind::q5_1:
      return WeightKind::q4_1;
    case WeightKind::q5_k:
      return WeightKind::q4_k;
    default:
      return kind;
  }
}

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

// kind: scales_like. `record`: the tile's record (16 rows) of the block. `block`: of the row; q4_k
// and q6_k have one record for 8 blocks. g: lane / 4. half: of the block's columns, which matters
// to 6 bits (q6_k) alone.
template <int Bits = 4>
__device__ __forceinline__ TwoScales read_scales(WeightKind kind, const std::byte* record,
                                                 int block, int g, int half = 0) {
  TwoScales s;
  s.minimum[0] = s.minimum[1] = 0;
  s.zero[0] = s.zero[1] = 0;
  if constexpr (Bits == 6) {
    const float2 d = two_halves(record + 4 * g);
    const uint32_t scales = two_bytes(record + (2 + block % 8 * 2 + half) * 16 + 2 * g);
    s.scale[0] = d.x * float(int8_t(scales & 255));
    s.scale[1] = d.y * float(int8_t(scales >> 8));
    s.zero[0] = s.zero[1] = 32;
    return s;
  }
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
    s.zero[0] = s.zero[1] = 1u << (Bits - 1);
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
