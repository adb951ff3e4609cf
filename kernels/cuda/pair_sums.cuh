// SPDX-License-Identifier: Apache-2.0
// Sums of x, which zero points and minima multiply, for matmul_tiles_pairs.cu: products that take
// them as operand B.
#pragma once

#include "kernels/cuda/matmul_tiles.cuh"

namespace kivi::cuda {

constexpr int kUnitColumns = 128;
constexpr int kUnitBlocks = kUnitColumns / kWeightBlock;

// A product of operands A and B that is added to `c`, and one that is not. Both stay where they are
// written.
__device__ __forceinline__ void multiply_add_here(float (&c)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply_here(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                              uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%10,%10,%10};"
      : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
}

// Sums of x that a format needs: of each 128 or 32 columns in fp32, times -2^-24; or of each 32 or
// 16 columns as operands B (RunSums).
enum class XSums { units, blocks, operand, two_operands };

// Sums of x of a run, as operands B of products. B holds a sum, times a power of two, as two
// numbers of f16: the upper 11 bits of it, and the rest.
//
// clang-format off
//   operand       of 8 blocks of 32 columns. Blocks t and 4 + t are A's columns 2t and 2t + 1, which
//                 meet upper bits, and columns 2t + 8 and 2t + 9, which meet the rest.
//   two_operands  of 16 runs of 16 columns, in their order: upper bits, then the rest
// clang-format on
template <XSums Sums>
struct RunSums {
  static constexpr int kWords = Sums == XSums::two_operands ? 4 : 2;
  uint32_t b[kWords];
  float2 factor;  // undoes the power of two, for rows 2t and 2t + 1 of x
};

// The sums of a run of codes become sums of weights. first, second: for each of the lane's rows,
// what multiplies sums of x: columns 2t and 2t + 1 of A, and columns 2t + 8 and 2t + 9. add(row,
// sum of such products, sum of codes).
template <XSums Sums, class Add>
__device__ __forceinline__ void add_run_sums(const uint32_t (&first)[4],
                                             const uint32_t (&second)[4], const RunSums<Sums>& x,
                                             float (&sums)[2][4], const Add& add) {
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    const uint32_t a[4] = {first[2 * m], first[2 * m + 1], second[2 * m], second[2 * m + 1]};
    float c[4];
    multiply_here(c, a, x.b[0], x.b[1]);
    if constexpr (Sums == XSums::two_operands) multiply_add_here(c, a, x.b[2], x.b[3]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& sum = sums[m][i];
      sum = add(2 * m + i / 2, c[i] * (i % 2 == 0 ? x.factor.x : x.factor.y), sum);
    }
  }
}

}  // namespace kivi::cuda
