// SPDX-License-Identifier: Apache-2.0
// Codes of 4 to 8 bits as operands A of products of a warpgroup: in registers, as numbers of the
// type of x. A lane's scales of two rows become one of several kinds of line, and make_weights reads
// a block of codes by it. For matmul_tiles_hopper.cuh.
#pragma once

#include "kernels/cuda/matmul_tiles.cuh"

namespace kivi::cuda {

// A lane's words of a block: the low nibbles of the codes of its two rows, for quads t / 2 + 2 half
// and 4 more; and the bits above, moved down by t / 2 quads. Codes of 8 bits have a part for quads
// 0 to 3, and one for the others.
template <int Bits>
struct LaneWords {
  uint32_t row[kCodeParts<Bits>][2][2];  // [part][half][row]
  UpperBits<Bits> upper[2];

  // Four codes, a byte each: of quad t / 2 + 2 half + 4 h.
  __device__ __forceinline__ uint32_t codes(int half, int which_row, int h) const {
    if constexpr (Bits == 8)
      return row[h][half][which_row];
    else
      return (row[0][half][which_row] >> (4 * h) & kNibbles) | upper[which_row].of(h, 2 * half);
  }
};

// `at`, `upper_at`: addresses in shared memory. The words are read where this stands among other
// statements of this kind.
template <int Bits>
[[maybe_unused]] __device__ __forceinline__ LaneWords<Bits> read_words(uint32_t at,
                                                                       uint32_t upper_at) {
  LaneWords<Bits> w = {};
#pragma unroll
  for (int part = 0; part < kCodeParts<Bits>; ++part)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                   : "=r"(w.row[part][half][0]), "=r"(w.row[part][half][1])
                   : "r"(at + part * kNibbleBytes + half * (kNibbleBytes / 2)));
#pragma unroll
  for (int i = 0; i < kUpperWords<Bits>; ++i)
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                 : "=r"(w.upper[0].words[i]), "=r"(w.upper[1].words[i])
                 : "r"(upper_at + i * 64));
  if constexpr (kUpperWords<Bits> > 0) {
    const uint32_t shift = threadIdx.x % 4 / 2 * (Bits - 4);
#pragma unroll
    for (int row = 0; row < 2; ++row)
#pragma unroll
      for (int i = 0; i < kUpperWords<Bits>; ++i) w.upper[row].words[i] >>= shift;
  }
  return w;
}

// The same value, which the compiler must keep: it cannot see how to compute it again. All lanes of
// a warp call it.
[[maybe_unused]] __device__ __forceinline__ uint32_t kept(uint32_t value) {
  return __shfl_sync(0xffffffffu, value, threadIdx.x % 32);
}

// Scales and zero points of int4 of a lane's two rows.
struct LaneScales {
  float scale[2];
  uint32_t zeros;  // in the two lower bytes
};

// `scales`, `zeros`: addresses in shared memory.
[[maybe_unused]] __device__ __forceinline__ LaneScales read_lane_scales(uint32_t scales,
                                                                        uint32_t zeros) {
  LaneScales s;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
               : "=f"(s.scale[0]), "=f"(s.scale[1])
               : "r"(scales));
  asm volatile("ld.shared.u16 %0, [%1];" : "=r"(s.zeros) : "r"(zeros));
  s.zeros &= 0x7F7Fu;
  return s;
}

// The code 0 as two numbers of T: 1024 in f16, 128 in bf16.
template <class T>
constexpr uint32_t kCodeZero = std::is_same_v<T, __half> ? 0x64006400u : 0x43004300u;

// A row's zero point as two numbers of T, above that of the code 0.
template <class T>
[[maybe_unused]] __device__ __forceinline__ uint32_t zeros_of(const LaneScales& s, int row) {
  return __byte_perm(s.zeros, kCodeZero<T>, row == 0 ? 0x7070 : 0x7171);
}

// W = scale * (128 + code) + minimum, for a lane's two rows.
struct WeightLine {
  float scale[2], minimum[2];
  static __device__ __forceinline__ uint32_t selector() {
    return 0x7044u + threadIdx.x % 2 * 0x0200u;
  }
};

// scales_of(half): TwoScales of a block; its halves differ if codes have 6 bits.
__device__ __forceinline__ void read_block_line(const auto& scales_of, WeightLine& line,
                                                int half = 0) {
  const TwoScales s = scales_of(half);
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    line.scale[row] = s.scale[row];
    line.minimum[row] = fmaf(-s.scale[row], float(s.zero[row]) + 128.0f, s.minimum[row]);
  }
}

// What lane `from` of the four with the same two rows holds. All lanes of a warp call it.
[[maybe_unused]] __device__ __forceinline__ WeightLine line_of_lane(const WeightLine& line,
                                                                    int from) {
  WeightLine of;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    of.scale[row] = __shfl_sync(0xffffffffu, line.scale[row], from, 4);
    of.minimum[row] = __shfl_sync(0xffffffffu, line.minimum[row], from, 4);
  }
  return of;
}

// Bytes (selectors of __byte_perm) of four codes as two numbers of W. base: the code 0 as a float.
template <class T>
__device__ __forceinline__ uint32_t two_weights(uint32_t codes, uint32_t base,
                                                const uint32_t (&bytes)[2],
                                                const auto& weight_of) {
  float w[2];
#pragma unroll
  for (int i = 0; i < 2; ++i)
    w[i] = weight_of(__uint_as_float(__byte_perm(codes, base, bytes[i])));
  if constexpr (std::is_same_v<T, __half>) {
    return as_u32(__floats2half2_rn(w[0], w[1]));
  } else {
    const __nv_bfloat162 two = __floats2bfloat162_rn(w[0], w[1]);
    return *reinterpret_cast<const uint32_t*>(&two);
  }
}

// W = scale * (code - zero) for a lane's two rows, for f16. zero: 128 more than the zero point. One
// product in fp32 rounds as the CPU's does. In the form of WeightLine, a weight half-way between
// two numbers of f16 could become the other one, and with one scale for a row, all its weights of
// one code did.
struct ZeroLine {
  float scale[2], zero[2];
  static __device__ __forceinline__ uint32_t selector() { return WeightLine::selector(); }
};

template <class T>
__device__ __forceinline__ void read_line(const LaneScales& s, ZeroLine& line) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    line.scale[row] = s.scale[row];
    line.zero[row] = float(s.zeros >> (8 * row) & 127) + 128.0f;
  }
}

// Codes of a block, rows 2 g and 2 g + 1, as operands A of two products. selector: of the line,
// for the lane. weight_of(row, h, code): a number of W, which product h multiplies. It is given 128
// more than the code, or 2^23 more than a code of 8 bits.
template <class T, int Bits>
__device__ __forceinline__ void make_weights_of(const LaneWords<Bits>& words, uint32_t selector,
                                                uint32_t (&a)[2][4], const auto& weight_of) {
  constexpr uint32_t kBase = Bits == 8 ? 0x4B000000u : 0x43000000u;
  const uint32_t bytes[2] = {selector, selector + (Bits == 8 ? 0x0001u : 0x0100u)};
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int row = 0; row < 2; ++row)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        a[h][2 * half + row] = two_weights<T>(words.codes(half, row, h), kBase, bytes,
                                              [&](float code) { return weight_of(row, h, code); });
}

template <class T, int Bits>
__device__ __forceinline__ void make_weights(const LaneWords<Bits>& words, uint32_t selector,
                                             const WeightLine& line, uint32_t (&a)[2][4]) {
  make_weights_of<T>(words, selector, a, [&](int row, int /*h*/, float code) {
    return fmaf(line.scale[row], code, line.minimum[row]);
  });
}

// W = scale * (128 + code - 160): a line for each product of a block, as 6 bits have scales for 16
// columns.
struct HalfLines {
  WeightLine of[2];
  static __device__ __forceinline__ uint32_t selector() { return WeightLine::selector(); }
};

__device__ __forceinline__ void read_block_line(const auto& scales_of, HalfLines& lines) {
  read_block_line(scales_of, lines.of[0], 0);
  read_block_line(scales_of, lines.of[1], 1);
}

// Their minima follow from their scales.
[[maybe_unused]] __device__ __forceinline__ HalfLines line_of_lane(const HalfLines& lines,
                                                                   int from) {
  HalfLines of;
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      of.of[h].scale[row] = __shfl_sync(0xffffffffu, lines.of[h].scale[row], from, 4);
      of.of[h].minimum[row] = -160.0f * of.of[h].scale[row];
    }
  return of;
}

template <class T, int Bits>
__device__ __forceinline__ void make_weights(const LaneWords<Bits>& words, uint32_t selector,
                                             const HalfLines& lines, uint32_t (&a)[2][4]) {
  make_weights_of<T>(words, selector, a, [&](int row, int h, float code) {
    return fmaf(lines.of[h].scale[row], code, lines.of[h].minimum[row]);
  });
}

// W = scale * (code - 128) for a lane's two rows, of codes of 8 bits. A product in fp32 is exact.
struct ByteLine {
  float scale[2];
  static __device__ __forceinline__ uint32_t selector() { return 0x7440u + threadIdx.x % 2 * 2; }
};

__device__ __forceinline__ void read_block_line(const auto& scales_of, ByteLine& line) {
  const TwoScales s = scales_of(0);
  line.scale[0] = s.scale[0];
  line.scale[1] = s.scale[1];
}

[[maybe_unused]] __device__ __forceinline__ ByteLine line_of_lane(const ByteLine& line, int from) {
  ByteLine of;
#pragma unroll
  for (int row = 0; row < 2; ++row)
    of.scale[row] = __shfl_sync(0xffffffffu, line.scale[row], from, 4);
  return of;
}

template <class T>
__device__ __forceinline__ void make_weights(const LaneWords<8>& words, uint32_t selector,
                                             const ByteLine& line, uint32_t (&a)[2][4]) {
  make_weights_of<T>(words, selector, a, [&](int row, int /*h*/, float code) {
    return line.scale[row] * (code - (8388608.0f + 128.0f));
  });
}

template <class T>
__device__ __forceinline__ void make_weights(const LaneWords<4>& words, uint32_t selector,
                                             const ZeroLine& line, uint32_t (&a)[2][4]) {
  make_weights_of<T>(words, selector, a, [&](int row, int /*h*/, float code) {
    return line.scale[row] * (code - line.zero[row]);
  });
}

// W = (high + low) * (code - zero) for a lane's two rows. All are two equal numbers of bf16. `high`
// and `low` have 16 bits of the scale together. zero: 128 more than the zero point.
struct PairLine {
  uint32_t high[2], low[2], zero[2];
  static __device__ __forceinline__ uint32_t selector() {
    return threadIdx.x % 2 == 0 ? kFirstTwo : kLastTwo;
  }
};

[[maybe_unused]] __device__ __forceinline__ __nv_bfloat162 as_bf16s(uint32_t v) {
  return *reinterpret_cast<const __nv_bfloat162*>(&v);
}
[[maybe_unused]] __device__ __forceinline__ uint32_t bits_of(__nv_bfloat162 v) {
  return *reinterpret_cast<const uint32_t*>(&v);
}

template <class T>
__device__ __forceinline__ void read_line(const LaneScales& s, PairLine& line) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const __nv_bfloat162 high = __float2bfloat162_rn(s.scale[row]);
    line.high[row] = bits_of(high);
    line.low[row] = bits_of(__float2bfloat162_rn(s.scale[row] - __low2float(high)));
    line.zero[row] = zeros_of<T>(s, row);
  }
}

// The same weights, two at a time. Before they are rounded to bf16, they are wrong by 2^-17 of them
// at most.
template <class T>
__device__ __forceinline__ void make_weights(const LaneWords<4>& words, uint32_t selector,
                                             const PairLine& line, uint32_t (&a)[2][4]) {
  constexpr uint32_t kLow = 0x000F000Fu, kOf128 = 0x43004300u;  // 128 + code
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const uint32_t two = __byte_perm(words.row[0][half][row], 0, selector);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const __nv_bfloat162 code =
            __hsub2(as_bf16s(masked_or(two >> (4 * h), kLow, kOf128)), as_bf16s(line.zero[row]));
        a[h][2 * half + row] = bits_of(
            __hfma2(code, as_bf16s(line.high[row]), __hmul2(code, as_bf16s(line.low[row]))));
      }
    }
}

[[maybe_unused]] __device__ __forceinline__ uint32_t two_bf16s(float first, float second) {
  return bits_of(__floats2bfloat162_rn(first, second));
}
// One of two numbers of bf16 as a float.
[[maybe_unused]] __device__ __forceinline__ float first_of(uint32_t two) {
  return __uint_as_float(two << 16);
}
[[maybe_unused]] __device__ __forceinline__ float second_of(uint32_t two) {
  return __uint_as_float(two & 0xFFFF0000u);
}

// Scales of a lane's two rows as sums of two numbers of bf16.
struct TwoParts {
  uint32_t high, low;  // of both rows

  __device__ __forceinline__ void read(const float (&scale)[2]) {
    high = two_bf16s(scale[0], scale[1]);
    low = two_bf16s(scale[0] - first_of(high), scale[1] - second_of(high));
  }
  __device__ __forceinline__ TwoParts of_lane(int from) const {
    return {__shfl_sync(0xffffffffu, high, from, 4), __shfl_sync(0xffffffffu, low, from, 4)};
  }
};

// Row 0 or 1 of both rows, as two equal numbers.
[[maybe_unused]] __device__ __forceinline__ __nv_bfloat162 twice(uint32_t rows, int row) {
  return row == 0 ? __low2bfloat162(as_bf16s(rows)) : __high2bfloat162(as_bf16s(rows));
}

// W = (high + low) * (code - zero) + rest, for a lane's two rows whose scales hold for fewer columns
// than a stage has. Where a format has a minimum, `zero` is what stands nearest to it, so that
// `rest` is at most half a scale, unless all weights of the block are far from 0.
struct BlockLine {
  TwoParts scale;
  uint32_t zero, rest;  // bf16, of both rows. zero: 128 more than the zero point
  static __device__ __forceinline__ uint32_t selector() { return PairLine::selector(); }
};

__device__ __forceinline__ void read_block_line(const auto& scales_of, BlockLine& line) {
  const TwoScales s = scales_of(0);
  float zero[2];
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    // If the scale is 0, this is infinite or no number, and one of the limits.
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(s.scale[row]));
    const float of_minimum = fminf(fmaxf(-s.minimum[row] * inverse, -64.0f), 64.0f);
    zero[row] = 128.0f + float(s.zero[row]) + of_minimum;
  }
  line.scale.read(s.scale);
  // A number of bf16 from 64 to 256 is a multiple of 1/2, and so is a code less that. It is exact.
  line.zero = two_bf16s(zero[0], zero[1]);
  line.rest = two_bf16s(
      fmaf(s.scale[0], first_of(line.zero) - (128.0f + float(s.zero[0])), s.minimum[0]),
      fmaf(s.scale[1], second_of(line.zero) - (128.0f + float(s.zero[1])), s.minimum[1]));
}

[[maybe_unused]] __device__ __forceinline__ BlockLine line_of_lane(const BlockLine& line,
                                                                   int from) {
  return {line.scale.of_lane(from), __shfl_sync(0xffffffffu, line.zero, from, 4),
          __shfl_sync(0xffffffffu, line.rest, from, 4)};
}

// Codes of quad t / 2 + 2 half + 4 h, the lane's two of them, as numbers of bf16: 128 more.
template <int Bits>
__device__ __forceinline__ __nv_bfloat162 two_codes(const LaneWords<Bits>& words,
                                                    uint32_t selector, int half, int row, int h) {
  return as_bf16s(__byte_perm(words.codes(half, row, h), kUpperBytes<__nv_bfloat16>, selector));
}
template <>
__device__ __forceinline__ __nv_bfloat162 two_codes(const LaneWords<4>& words, uint32_t selector,
                                                    int half, int row, int h) {
  const uint32_t two = __byte_perm(words.row[0][half][row], 0, selector);
  return as_bf16s(masked_or(two >> (4 * h), 0x000F000Fu, kCodeZero<__nv_bfloat16>));
}

// Before they are rounded to bf16, weights are wrong by 2^-17 of them and 2^-9 of a scale at most.
template <class T, int Bits>
__device__ __forceinline__ void make_weights(const LaneWords<Bits>& words, uint32_t selector,
                                             const BlockLine& line, uint32_t (&a)[2][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int row = 0; row < 2; ++row)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const __nv_bfloat162 code =
            __hsub2(two_codes<Bits>(words, selector, half, row, h), twice(line.zero, row));
        const __nv_bfloat162 small =
            __hfma2(code, twice(line.scale.low, row), twice(line.rest, row));
        a[h][2 * half + row] = bits_of(__hfma2(code, twice(line.scale.high, row), small));
      }
}

// W = (high + low) * (code - 32): scales of the two halves of a block of 6 bits.
struct HalfBlockLines {
  TwoParts of[2];
  static __device__ __forceinline__ uint32_t selector() { return PairLine::selector(); }
};

__device__ __forceinline__ void read_block_line(const auto& scales_of, HalfBlockLines& lines) {
  lines.of[0].read(scales_of(0).scale);
  lines.of[1].read(scales_of(1).scale);
}

[[maybe_unused]] __device__ __forceinline__ HalfBlockLines line_of_lane(const HalfBlockLines& lines,
                                                                        int from) {
  return {{lines.of[0].of_lane(from), lines.of[1].of_lane(from)}};
}

template <class T>
__device__ __forceinline__ void make_weights(const LaneWords<6>& words, uint32_t selector,
                                             const HalfBlockLines& lines, uint32_t (&a)[2][4]) {
  const __nv_bfloat162 zero = as_bf16s(0x43204320u);  // 128 + 32
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int row = 0; row < 2; ++row)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const TwoParts& scale = lines.of[h];
        const __nv_bfloat162 code = __hsub2(two_codes<6>(words, selector, half, row, h), zero);
        a[h][2 * half + row] = bits_of(
            __hfma2(code, twice(scale.high, row), __hmul2(code, twice(scale.low, row))));
      }
}

// The same codes less their zero points, which are exact. What they are multiplied by comes later.
struct CodeLine {
  float scale[2];
  uint32_t zero[2];  // two equal numbers of T
  static __device__ __forceinline__ uint32_t selector() { return PairLine::selector(); }
};

template <class T>
__device__ __forceinline__ void read_line(const LaneScales& s, CodeLine& line) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    line.scale[row] = s.scale[row];
    line.zero[row] = zeros_of<T>(s, row);
  }
}

template <class T>
__device__ __forceinline__ void make_weights(const LaneWords<4>& words, uint32_t selector,
                                             const CodeLine& line, uint32_t (&a)[2][4]) {
  constexpr uint32_t kLow = 0x000F000Fu;
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const uint32_t two = __byte_perm(words.row[0][half][row], 0, selector);
#pragma unroll
      for (int h = 0; h < 2; ++h)
        a[h][2 * half + row] =
            subtract<T>(masked_or(two >> (4 * h), kLow, kCodeZero<T>), line.zero[row]);
    }
}

}  // namespace kivi::cuda
