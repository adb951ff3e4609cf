// SPDX-License-Identifier: Apache-2.0
// Codes of 4 to 8 bits as operands A of products of a warpgroup: in registers, as numbers of T, the
// type of x. A lane's scales of two rows become one of several kinds of line, and make_weights
// reads a block of codes by it. Here are the lines of int4 with one scale for all columns of a
// stage; weights_of_blocks.cuh has those of other formats. For matmul_tiles_hopper.cuh.
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
      return join_codes(row[0][half][which_row], upper[which_row], h, 2 * half);
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
  if constexpr (kUpperWords<Bits> != 0) {
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

// Two numbers of T in a word, the first one in its lower half.
template <class T>
using Two = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;

template <class T>
__device__ __forceinline__ Two<T> as_two(uint32_t bits) {
  return *reinterpret_cast<const Two<T>*>(&bits);
}
__device__ __forceinline__ uint32_t bits_of(auto two) {
  static_assert(sizeof(two) == sizeof(uint32_t));
  return *reinterpret_cast<const uint32_t*>(&two);
}
template <class T>
__device__ __forceinline__ uint32_t two_of(float first, float second) {
  if constexpr (std::is_same_v<T, __half>)
    return bits_of(__floats2half2_rn(first, second));
  else
    return bits_of(__floats2bfloat162_rn(first, second));
}

// The code 0 as two numbers of T: 1024 in f16, 128 in bf16.
template <class T>
constexpr uint32_t kCodeZero = std::is_same_v<T, __half> ? 0x64006400u : 0x43004300u;

// Which two of four codes a lane needs: a selector of __byte_perm that puts them into the lower
// bytes of two halves.
[[maybe_unused]] __device__ __forceinline__ uint32_t lane_selector() {
  return threadIdx.x % 2 == 0 ? kFirstTwo : kLastTwo;
}

// The lane's two codes of quad t / 2 + 2 half + 4 h, as numbers that much above the code 0. Codes
// of 8 bits reach 255, and bf16 would not hold 128 more.
template <class T, int Bits>
__device__ __forceinline__ Two<T> two_codes(const LaneWords<Bits>& words, uint32_t selector,
                                            int half, int row, int h) {
  static_assert(Bits < 8 || std::is_same_v<T, __half>);
  if constexpr (Bits == 4) {
    const uint32_t two = __byte_perm(words.row[0][half][row], 0, selector);
    return as_two<T>(masked_or(two >> (4 * h), 0x000F000Fu, kCodeZero<T>));
  } else {
    constexpr uint32_t kZero = kCodeZero<T>, kUpper = kZero | kZero >> 8;
    return as_two<T>(__byte_perm(words.codes(half, row, h), kUpper, selector));
  }
}

// Operands A of two products h, of rows 2 g and 2 g + 1. two_weights(half, row, h): two numbers of
// W.
__device__ __forceinline__ void set_operands(uint32_t (&a)[2][4], const auto& two_weights) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int row = 0; row < 2; ++row)
#pragma unroll
      for (int h = 0; h < 2; ++h) a[h][2 * half + row] = two_weights(half, row, h);
}

// Codes of a block as such operands. weight_of(row, h, codes): two numbers of W.
template <class T, int Bits>
__device__ __forceinline__ void make_two_by_two(const LaneWords<Bits>& words, uint32_t selector,
                                                uint32_t (&a)[2][4], const auto& weight_of) {
  set_operands(a, [&](int half, int row, int h) {
    return bits_of(weight_of(row, h, two_codes<T>(words, selector, half, row, h)));
  });
}

// A code as a float: 2^23 more. The first code that a lane needs, as a selector of __byte_perm.
constexpr float kFloatZero = 8388608.0f;
[[maybe_unused]] __device__ __forceinline__ uint32_t lane_byte() {
  return 0x7440u + threadIdx.x % 2 * 2;
}

// The same in fp32, rounded once, as the CPU does. weight_of(row, code): a number of W.
template <class T, int Bits>
__device__ __forceinline__ void make_one_by_one(const LaneWords<Bits>& words, uint32_t selector,
                                                uint32_t (&a)[2][4], const auto& weight_of) {
  set_operands(a, [&](int half, int row, int h) {
    const uint32_t codes = words.codes(half, row, h);
    const auto weight = [&](uint32_t byte) {
      return weight_of(row, __uint_as_float(__byte_perm(codes, 0x4B000000u, byte)));
    };
    return two_of<T>(weight(selector), weight(selector + 1));
  });
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

// A row's zero point as two numbers of T, above that of the code 0.
template <class T>
__device__ __forceinline__ uint32_t zeros_of(const LaneScales& s, int row) {
  return __byte_perm(s.zeros, kCodeZero<T>, row == 0 ? 0x7070 : 0x7171);
}

// W = scale * (code - zero) for a lane's two rows, for f16. zero: 2^23 more than the zero point.
// One product in fp32 rounds as the CPU's does. With scale * code + minimum, a weight half-way
// between two numbers of f16 could become the other one, and with one scale for a row, all its
// weights of one code did.
struct ZeroLine {
  float scale[2], zero[2];
  static __device__ __forceinline__ uint32_t selector() { return lane_byte(); }
};

template <class T>
__device__ __forceinline__ void read_line(const LaneScales& s, ZeroLine& line) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    line.scale[row] = s.scale[row];
    line.zero[row] = float(s.zeros >> (8 * row) & 127) + kFloatZero;
  }
}

template <class T>
__device__ __forceinline__ void make_weights(const LaneWords<4>& words, uint32_t selector,
                                             const ZeroLine& line, uint32_t (&a)[2][4]) {
  make_one_by_one<T>(words, selector, a, [&](int row, float code) {
    return line.scale[row] * (code - line.zero[row]);
  });
}

// W = (high + low) * (code - zero) for a lane's two rows, for bf16. All are two equal numbers.
// `high` and `low` have 16 bits of the scale together. zero: above that of the code 0.
struct PairLine {
  uint32_t high[2], low[2], zero[2];
  static __device__ __forceinline__ uint32_t selector() { return lane_selector(); }
};

template <class T>
__device__ __forceinline__ void read_line(const LaneScales& s, PairLine& line) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    line.high[row] = two_of<T>(s.scale[row], s.scale[row]);
    const float rest = s.scale[row] - __low2float(as_two<T>(line.high[row]));
    line.low[row] = two_of<T>(rest, rest);
    line.zero[row] = zeros_of<T>(s, row);
  }
}

// Before they are rounded to bf16, weights are wrong by 2^-15 of them at most.
template <class T>
__device__ __forceinline__ void make_weights(const LaneWords<4>& words, uint32_t selector,
                                             const PairLine& line, uint32_t (&a)[2][4]) {
  make_two_by_two<T>(words, selector, a, [&](int row, int /*h*/, Two<T> codes) {
    const Two<T> code = __hsub2(codes, as_two<T>(line.zero[row]));
    return __hfma2(code, as_two<T>(line.high[row]), __hmul2(code, as_two<T>(line.low[row])));
  });
}

// Codes less their zero points, which are exact. What they are multiplied by comes later.
struct CodeLine {
  float scale[2];
  uint32_t zero[2];  // two equal numbers of T, above that of the code 0
  static __device__ __forceinline__ uint32_t selector() { return lane_selector(); }
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
  make_two_by_two<T>(words, selector, a, [&](int row, int /*h*/, Two<T> codes) {
    return __hsub2(codes, as_two<T>(line.zero[row]));
  });
}

}  // namespace kivi::cuda
