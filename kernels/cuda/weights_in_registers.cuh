// SPDX-License-Identifier: Apache-2.0
// 4-bit codes as operands A of products of a warpgroup: in registers, as numbers of the type of x.
// A lane's scales of two rows become one of four kinds of line, and make_weights reads a block of
// codes by it. For matmul_tiles_hopper.cu.
#pragma once

#include "kernels/cuda/matmul_tiles.cuh"

namespace kivi::cuda {

// A lane's words of a block: the low nibbles of the codes of its two rows, for quads t / 2 + 2 half
// and 4 more; and the bits above, moved down by t / 2 quads.
template <int Bits>
struct LaneWords {
  uint32_t row[2][2];  // [half][row]
  UpperBits<Bits> upper[2];

  // Four codes, a byte each: of quad t / 2 + 2 half + 4 h.
  __device__ __forceinline__ uint32_t codes(int half, int which_row, int h) const {
    return (row[half][which_row] >> (4 * h) & kNibbles) | upper[which_row].of(h, 2 * half);
  }
};

// `at`, `upper_at`: addresses in shared memory. The words are read where this stands among other
// statements of this kind.
template <int Bits>
[[maybe_unused]] __device__ __forceinline__ LaneWords<Bits> read_words(uint32_t at,
                                                                       uint32_t upper_at) {
  LaneWords<Bits> w = {};
#pragma unroll
  for (int half = 0; half < 2; ++half)
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                 : "=r"(w.row[half][0]), "=r"(w.row[half][1])
                 : "r"(at + half * (kNibbleBytes / 2)));
#pragma unroll
  for (int i = 0; i < Bits - 4; ++i)
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                 : "=r"(w.upper[0].words[i]), "=r"(w.upper[1].words[i])
                 : "r"(upper_at + i * 64));
  if constexpr (Bits > 4) {
    const uint32_t shift = threadIdx.x % 4 / 2 * (Bits - 4);
#pragma unroll
    for (int row = 0; row < 2; ++row)
#pragma unroll
      for (int i = 0; i < Bits - 4; ++i) w.upper[row].words[i] >>= shift;
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

[[maybe_unused]] __device__ __forceinline__ WeightLine line_of(const TwoScales& s) {
  WeightLine line;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    line.scale[row] = s.scale[row];
    line.minimum[row] = fmaf(-s.scale[row], float(s.zero[row]) + 128.0f, s.minimum[row]);
  }
  return line;
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

// Bytes (selectors of __byte_perm) of four codes as two numbers of W.
template <class T>
__device__ __forceinline__ uint32_t two_weights(uint32_t codes, const uint32_t (&bytes)[2],
                                                const auto& weight_of) {
  float w[2];
#pragma unroll
  for (int i = 0; i < 2; ++i)
    w[i] = weight_of(__uint_as_float(__byte_perm(codes, 0x43000000u, bytes[i])));
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
// for the lane. weight_of(row, h, 128 + code): a number of W, which product h multiplies.
template <class T, int Bits>
__device__ __forceinline__ void make_weights_of(const LaneWords<Bits>& words, uint32_t selector,
                                                uint32_t (&a)[2][4], const auto& weight_of) {
  const uint32_t bytes[2] = {selector, selector + 0x0100u};
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int row = 0; row < 2; ++row)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        a[h][2 * half + row] = two_weights<T>(words.codes(half, row, h), bytes,
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
      const uint32_t two = __byte_perm(words.row[half][row], 0, selector);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const __nv_bfloat162 code =
            __hsub2(as_bf16s(masked_or(two >> (4 * h), kLow, kOf128)), as_bf16s(line.zero[row]));
        a[h][2 * half + row] = bits_of(
            __hfma2(code, as_bf16s(line.high[row]), __hmul2(code, as_bf16s(line.low[row]))));
      }
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
      const uint32_t two = __byte_perm(words.row[half][row], 0, selector);
#pragma unroll
      for (int h = 0; h < 2; ++h)
        a[h][2 * half + row] =
            subtract<T>(masked_or(two >> (4 * h), kLow, kCodeZero<T>), line.zero[row]);
    }
}

}  // namespace kivi::cuda
