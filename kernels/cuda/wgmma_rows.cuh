// SPDX-License-Identifier: Apache-2.0
// c [64, n] f32 = (or, where `adds`, +=) A B: A [64, 16] of T in registers, B [16, n] of T in
// shared memory with k contiguous (wgmma.cuh), for the widths n of matmul_tiles_hopper.cu. c is in
// fours: the sums of columns 8 j + 2 t and 8 j + 2 t + 1 of a lane's two rows.
#pragma once

#include "kernels/cuda/wgmma.cuh"

namespace kivi::cuda {

// clang-format off

#define KIVI_WGMMA_ROWS_32(type) \
  asm volatile( \
      "{\n.reg .pred adds;\n" \
      "setp.ne.b32 adds, %21, 0;\n" \
      "wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type " {" \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
      "}, {%16, %17, %18, %19}, %20, adds, 1, 1, 0;\n}" \
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]), "+f"(c[1][3]), \
        "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3]) \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(adds)))

template <class T>
__device__ __forceinline__ void wgmma_rows(float (&c)[4][4], const uint32_t (&a)[4], uint64_t b, bool adds) {
#if KIVI_WGMMA
  if constexpr (std::is_same_v<T, __half>)
    KIVI_WGMMA_ROWS_32("f16");
  else
    KIVI_WGMMA_ROWS_32("bf16");
#endif
}
#undef KIVI_WGMMA_ROWS_32

#define KIVI_WGMMA_ROWS_64(type) \
  asm volatile( \
      "{\n.reg .pred adds;\n" \
      "setp.ne.b32 adds, %37, 0;\n" \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" \
      "}, {%32, %33, %34, %35}, %36, adds, 1, 1, 0;\n}" \
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]), "+f"(c[1][3]), \
        "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3]), \
        "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]), "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), \
        "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]), "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3]) \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(adds)))

template <class T>
__device__ __forceinline__ void wgmma_rows(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b, bool adds) {
#if KIVI_WGMMA
  if constexpr (std::is_same_v<T, __half>)
    KIVI_WGMMA_ROWS_64("f16");
  else
    KIVI_WGMMA_ROWS_64("bf16");
#endif
}
#undef KIVI_WGMMA_ROWS_64

#define KIVI_WGMMA_ROWS_128(type) \
  asm volatile( \
      "{\n.reg .pred adds;\n" \
      "setp.ne.b32 adds, %69, 0;\n" \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63" \
      "}, {%64, %65, %66, %67}, %68, adds, 1, 1, 0;\n}" \
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]), "+f"(c[1][3]), \
        "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3]), \
        "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]), "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), \
        "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]), "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3]), \
        "+f"(c[8][0]), "+f"(c[8][1]), "+f"(c[8][2]), "+f"(c[8][3]), "+f"(c[9][0]), "+f"(c[9][1]), "+f"(c[9][2]), "+f"(c[9][3]), \
        "+f"(c[10][0]), "+f"(c[10][1]), "+f"(c[10][2]), "+f"(c[10][3]), "+f"(c[11][0]), "+f"(c[11][1]), "+f"(c[11][2]), "+f"(c[11][3]), \
        "+f"(c[12][0]), "+f"(c[12][1]), "+f"(c[12][2]), "+f"(c[12][3]), "+f"(c[13][0]), "+f"(c[13][1]), "+f"(c[13][2]), "+f"(c[13][3]), \
        "+f"(c[14][0]), "+f"(c[14][1]), "+f"(c[14][2]), "+f"(c[14][3]), "+f"(c[15][0]), "+f"(c[15][1]), "+f"(c[15][2]), "+f"(c[15][3]) \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(adds)))

template <class T>
__device__ __forceinline__ void wgmma_rows(float (&c)[16][4], const uint32_t (&a)[4], uint64_t b, bool adds) {
#if KIVI_WGMMA
  if constexpr (std::is_same_v<T, __half>)
    KIVI_WGMMA_ROWS_128("f16");
  else
    KIVI_WGMMA_ROWS_128("bf16");
#endif
}
#undef KIVI_WGMMA_ROWS_128

// clang-format on

}  // namespace kivi::cuda
