// SPDX-License-Identifier: Apache-2.0
// 4-bit codes as operands A of products of a warpgroup: in registers, as numbers of the type of x.
// A lane's scales of two rows become one of four kinds of line, and make_weights reads a block of
// codes by it. For matmul_tiles_hopper.cu.
#pragma once

#include "kernels/cuda/matmul_tiles.cuh"

namespace kivi::cuda {

// W = scale * (128 + code) + minimum, for a lane's two rows.
struct WeightLine {
  float scale[2], minimum[2];
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
};

[[maybe_unused]] __device__ __forceinline__ ZeroLine zero_line_of(const TwoScales& s) {
  ZeroLine line;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    line.scale[row] = s.scale[row];
    line.zero[row] = float(s.zero[row]) + 128.0f;
  }
  return line;
}

// Codes of a block, rows 2 g and 2 g + 1, as operands A of two products. `at`: the lane's word of
// positions 2t and 2t + 1 of k. weight_of(row, 128 + code): a number of W.
template <class T>
__device__ __forceinline__ void make_weights_of(const unsigned char* at, uint32_t (&a)[2][4],
                                                const auto& weight_of) {
  const uint32_t select = 0x7044u + threadIdx.x % 2 * 0x0200u,
                 bytes[2] = {select, select + 0x0100u};
  const uint2 words[2] = {*reinterpret_cast<const uint2*>(at),
                          *reinterpret_cast<const uint2*>(at + 128)};
#pragma unroll
  for (int part = 0; part < 2; ++part)
#pragma unroll
    for (int row = 0; row < 2; ++row)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t word = row == 0 ? words[part].x : words[part].y;
        a[h][2 * part + row] = two_weights<T>(word >> (4 * h) & kNibbles, bytes,
                                              [&](float code) { return weight_of(row, code); });
      }
}

template <class T>
__device__ __forceinline__ void make_weights(const unsigned char* at, const WeightLine& line,
                                             uint32_t (&a)[2][4]) {
  make_weights_of<T>(
      at, a, [&](int row, float code) { return fmaf(line.scale[row], code, line.minimum[row]); });
}

template <class T>
__device__ __forceinline__ void make_weights(const unsigned char* at, const ZeroLine& line,
                                             uint32_t (&a)[2][4]) {
  make_weights_of<T>(
      at, a, [&](int row, float code) { return line.scale[row] * (code - line.zero[row]); });
}

// W = (high + low) * (code - zero) for a lane's two rows. All are two equal numbers of bf16. `high`
// and `low` have 16 bits of the scale together. zero: 128 more than the zero point.
struct PairLine {
  uint32_t high[2], low[2], zero[2];
};

[[maybe_unused]] __device__ __forceinline__ __nv_bfloat162 as_bf16s(uint32_t v) {
  return *reinterpret_cast<const __nv_bfloat162*>(&v);
}
[[maybe_unused]] __device__ __forceinline__ uint32_t bits_of(__nv_bfloat162 v) {
  return *reinterpret_cast<const uint32_t*>(&v);
}

[[maybe_unused]] __device__ __forceinline__ PairLine pair_line_of(const TwoScales& s) {
  PairLine line;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const __nv_bfloat162 high = __float2bfloat162_rn(s.scale[row]);
    line.high[row] = bits_of(high);
    line.low[row] = bits_of(__float2bfloat162_rn(s.scale[row] - __low2float(high)));
    line.zero[row] = two_zeros<__nv_bfloat16>(s.zero[row]);
  }
  return line;
}

// The same weights, two at a time. Before they are rounded to bf16, they are wrong by 2^-17 of them
// at most.
template <class T>
__device__ __forceinline__ void make_weights(const unsigned char* at, const PairLine& line,
                                             uint32_t (&a)[2][4]) {
  constexpr uint32_t kLow = 0x000F000Fu, kOf128 = 0x43004300u;  // 128 + code
  const uint32_t bytes = threadIdx.x % 2 == 0 ? kFirstTwo : kLastTwo;
  const uint2 words[2] = {*reinterpret_cast<const uint2*>(at),
                          *reinterpret_cast<const uint2*>(at + 128)};
#pragma unroll
  for (int part = 0; part < 2; ++part)
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const uint32_t two = __byte_perm(row == 0 ? words[part].x : words[part].y, 0, bytes);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const __nv_bfloat162 code =
            __hsub2(as_bf16s(masked_or(two >> (4 * h), kLow, kOf128)), as_bf16s(line.zero[row]));
        a[h][2 * part + row] = bits_of(
            __hfma2(code, as_bf16s(line.high[row]), __hmul2(code, as_bf16s(line.low[row]))));
      }
    }
}

// The same codes less their zero points, which are exact. What they are multiplied by comes later.
struct CodeLine {
  float scale[2];
  uint32_t zero[2];  // two equal numbers of T
};

// The code 0 as two numbers of T: 1024 in f16, 128 in bf16.
template <class T>
constexpr uint32_t kCodeZero = std::is_same_v<T, __half> ? 0x64006400u : 0x43004300u;

template <class T>
[[maybe_unused]] __device__ __forceinline__ CodeLine code_line_of(const TwoScales& s) {
  CodeLine line;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    line.scale[row] = s.scale[row];
    line.zero[row] = (s.zero[row] | s.zero[row] << 16) | kCodeZero<T>;
  }
  return line;
}

template <class T>
__device__ __forceinline__ void make_weights(const unsigned char* at, const CodeLine& line,
                                             uint32_t (&a)[2][4]) {
  constexpr uint32_t kLow = 0x000F000Fu;
  const uint32_t bytes = threadIdx.x % 2 == 0 ? kFirstTwo : kLastTwo;
  const uint2 words[2] = {*reinterpret_cast<const uint2*>(at),
                          *reinterpret_cast<const uint2*>(at + 128)};
#pragma unroll
  for (int part = 0; part < 2; ++part)
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const uint32_t two = __byte_perm(row == 0 ? words[part].x : words[part].y, 0, bytes);
#pragma unroll
      for (int h = 0; h < 2; ++h)
        a[h][2 * part + row] =
            subtract<T>(masked_or(two >> (4 * h), kLow, kCodeZero<T>), line.zero[row]);
    }
}

}  // namespace kivi::cuda
