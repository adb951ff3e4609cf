// SPDX-License-Identifier: Apache-2.0
// Lines of formats whose scales hold for fewer columns than a stage has: each block of 32 columns
// of two rows has its own. Of the four lanes of these rows, lane t reads the scales of the stage's
// block t (read_block_line), and the others read its line by shuffles (line_of_lane). Then
// make_weights makes weights of codes. For matmul_tiles_hopper.cuh.
#pragma once

#include "kernels/cuda/weights_in_registers.cuh"

namespace kivi::cuda {

// A number of each of a lane's two rows.
template <class T>
struct TwoRows {
  uint32_t bits;

  __device__ __forceinline__ void set(float first, float second) {
    bits = two_of<T>(first, second);
  }
  __device__ __forceinline__ float first() const { return __low2float(as_two<T>(bits)); }
  __device__ __forceinline__ float second() const { return __high2float(as_two<T>(bits)); }
  // Two equal numbers.
  __device__ __forceinline__ Two<T> of(int row) const {
    if constexpr (std::is_same_v<T, __half>)
      return row == 0 ? __low2half2(as_two<T>(bits)) : __high2half2(as_two<T>(bits));
    else
      return row == 0 ? __low2bfloat162(as_two<T>(bits)) : __high2bfloat162(as_two<T>(bits));
  }
  __device__ __forceinline__ TwoRows of_lane(int from) const {
    return {__shfl_sync(0xffffffffu, bits, from, 4)};
  }
};

// Scales as sums of two numbers of T.
template <class T>
struct TwoScaleParts {
  TwoRows<T> high, low;

  __device__ __forceinline__ void set(const float (&scale)[2]) {
    high.set(scale[0], scale[1]);
    low.set(scale[0] - high.first(), scale[1] - high.second());
  }
  __device__ __forceinline__ TwoScaleParts of_lane(int from) const {
    return {high.of_lane(from), low.of_lane(from)};
  }
};

// W = (high + low) * (code - zero) + rest. Where a format has a minimum, `zero` stands near to
// where W is 0. Then `rest` is at most half a scale, unless all weights of the block are far from
// 0.
template <class T>
struct RestLine {
  TwoScaleParts<T> scale;
  TwoRows<T> zero, rest;  // zero: above that of the code 0
  static __device__ __forceinline__ uint32_t selector() { return lane_selector(); }
};

// scales_of(half): TwoScales of the lane's block. Its halves differ if codes have 6 bits.
template <class T>
__device__ __forceinline__ void read_block_line(const auto& scales_of, RestLine<T>& line) {
  const TwoScales s = scales_of(0);
  const float code_zero = __low2float(as_two<T>(kCodeZero<T>));
  float zero[2];
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    // If the scale is 0, this is infinite or no number, and becomes one of the limits.
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(s.scale[row]));
    const float of_minimum = fminf(fmaxf(-s.minimum[row] * inverse, -64.0f), 64.0f);
    zero[row] = code_zero + float(s.zero[row]) + of_minimum;
  }
  line.scale.set(s.scale);
  // This rounds to a multiple of 1/2, or of 1, so that a code less that is exact.
  line.zero.set(zero[0], zero[1]);
  line.rest.set(
      fmaf(s.scale[0], line.zero.first() - (code_zero + float(s.zero[0])), s.minimum[0]),
      fmaf(s.scale[1], line.zero.second() - (code_zero + float(s.zero[1])), s.minimum[1]));
}

// All lanes of a warp call it.
template <class T>
__device__ __forceinline__ RestLine<T> line_of_lane(const RestLine<T>& line, int from) {
  return {line.scale.of_lane(from), line.zero.of_lane(from), line.rest.of_lane(from)};
}

// Before they are rounded to bf16, weights are wrong by 2^-15 of them at most, and by 2^-7 of a
// scale where the block has a minimum. In f16 it is less, but parts of a scale are multiples of
// 2^-24: a scale of int4 may be wrong by 2^-25. Other formats' scales are such multiples.
template <class T, int Bits>
__device__ __forceinline__ void make_weights(const LaneWords<Bits>& words, uint32_t selector,
                                             const RestLine<T>& line, uint32_t (&a)[2][4]) {
  make_two_by_two<T>(words, selector, a, [&](int row, int /*h*/, Two<T> codes) {
    const Two<T> code = __hsub2(codes, line.zero.of(row));
    return __hfma2(code, line.scale.high.of(row),
                   __hfma2(code, line.scale.low.of(row), line.rest.of(row)));
  });
}

// W = (high + low) * (code - 32): scales of the two halves of a block of 6 bits.
template <class T>
struct HalfLines {
  TwoScaleParts<T> of[2];
  static __device__ __forceinline__ uint32_t selector() { return lane_selector(); }
};

template <class T>
__device__ __forceinline__ void read_block_line(const auto& scales_of, HalfLines<T>& lines) {
  lines.of[0].set(scales_of(0).scale);
  lines.of[1].set(scales_of(1).scale);
}

template <class T>
__device__ __forceinline__ HalfLines<T> line_of_lane(const HalfLines<T>& lines, int from) {
  return {{lines.of[0].of_lane(from), lines.of[1].of_lane(from)}};
}

template <class T>
__device__ __forceinline__ void make_weights(const LaneWords<6>& words, uint32_t selector,
                                             const HalfLines<T>& lines, uint32_t (&a)[2][4]) {
  constexpr uint32_t kZero = kCodeZero<T> + 0x00200020u;
  make_two_by_two<T>(words, selector, a, [&](int row, int h, Two<T> codes) {
    const TwoScaleParts<T>& scale = lines.of[h];
    const Two<T> code = __hsub2(codes, as_two<T>(kZero));
    return __hfma2(code, scale.high.of(row), __hmul2(code, scale.low.of(row)));
  });
}

// W = scale * (code - 128), of codes of 8 bits. Scales have 11 bits, so f16 holds them, and rounds
// their products once, as fp32 does for bf16.
template <class T>
struct ByteLine;
template <>
struct ByteLine<__half> {
  TwoRows<__half> scale;
  static __device__ __forceinline__ uint32_t selector() { return lane_selector(); }
};
template <>
struct ByteLine<__nv_bfloat16> {
  float scale[2];
  static __device__ __forceinline__ uint32_t selector() { return lane_byte(); }
};

template <class T>
__device__ __forceinline__ void read_block_line(const auto& scales_of, ByteLine<T>& line) {
  const TwoScales s = scales_of(0);
  if constexpr (std::is_same_v<T, __half>)
    line.scale.set(s.scale[0], s.scale[1]);
  else
    line = {{s.scale[0], s.scale[1]}};
}

template <class T>
__device__ __forceinline__ ByteLine<T> line_of_lane(const ByteLine<T>& line, int from) {
  if constexpr (std::is_same_v<T, __half>)
    return {line.scale.of_lane(from)};
  else
    return {{__shfl_sync(0xffffffffu, line.scale[0], from, 4),
             __shfl_sync(0xffffffffu, line.scale[1], from, 4)}};
}

template <class T>
__device__ __forceinline__ void make_weights(const LaneWords<8>& words, uint32_t selector,
                                             const ByteLine<T>& line, uint32_t (&a)[2][4]) {
  if constexpr (std::is_same_v<T, __half>) {
    constexpr uint32_t kZero = kCodeZero<T> + 0x00800080u;
    make_two_by_two<T>(words, selector, a, [&](int row, int /*h*/, Two<T> codes) {
      return __hmul2(__hsub2(codes, as_two<T>(kZero)), line.scale.of(row));
    });
  } else {
    make_one_by_one<T>(words, selector, a, [&](int row, float code) {
      return line.scale[row] * (code - (kFloatZero + 128.0f));
    });
  }
}

}  // namespace kivi::cuda
