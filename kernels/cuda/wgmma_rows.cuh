// SPDX-License-Identifier: Apache-2.0
// c [64, n] f32 = (or, where `adds`, +=) A B: A [64, 16] of T in registers, B [16, n] of T in
// shared memory with k contiguous (wgmma.cuh), for the widths n of matmul_tiles_hopper.cu. c is in
// fours: the sums of columns 8 j + 2 t and 8 j + 2 t + 1 of a lane's two rows.
#pragma once

#include "kernels/cuda/wgmma.cuh"

namespace kivi::cuda {

// clang-format off

#define KIVI_WGMMA_ROWS_16(type) \
  asm volatile( \
      "{\n.reg .pred adds;\n" \
      "setp.ne.b32 adds, %13, 0;\n" \
      "wgmma.mma_async.sync.aligned.m64n16k16.f32." type "." type " {" KIVI_WGMMA_NAMES_8 "}, {%8, %9, %10, %11}, %12, adds, 1, 1, 0;\n}" \
      : KIVI_WGMMA_SUMS_4(c[0], 0), KIVI_WGMMA_SUMS_4(c[1], 0) \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(adds)))

template <class T>
__device__ __forceinline__ void wgmma_rows(float (&c)[2][4], const uint32_t (&a)[4], uint64_t b, bool adds) {
#if KIVI_WGMMA
  if constexpr (std::is_same_v<T, __half>)
    KIVI_WGMMA_ROWS_16("f16");
  else
    KIVI_WGMMA_ROWS_16("bf16");
#endif
}
#undef KIVI_WGMMA_ROWS_16

#define KIVI_WGMMA_ROWS_32(type) \
  asm volatile( \
      "{\n.reg .pred adds;\n" \
      "setp.ne.b32 adds, %21, 0;\n" \
      "wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type " {" KIVI_WGMMA_NAMES_16 "}, {%16, %17, %18, %19}, %20, adds, 1, 1, 0;\n}" \
      : KIVI_WGMMA_SUMS_4(c[0], 0), KIVI_WGMMA_SUMS_4(c[1], 0), KIVI_WGMMA_SUMS_4(c[2], 0), KIVI_WGMMA_SUMS_4(c[3], 0) \
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

#define KIVI_WGMMA_NAMES_24 KIVI_WGMMA_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23"

#define KIVI_WGMMA_ROWS_48(type) \
  asm volatile( \
      "{\n.reg .pred adds;\n" \
      "setp.ne.b32 adds, %29, 0;\n" \
      "wgmma.mma_async.sync.aligned.m64n48k16.f32." type "." type " {" KIVI_WGMMA_NAMES_24 "}, {%24, %25, %26, %27}, %28, adds, 1, 1, 0;\n}" \
      : KIVI_WGMMA_SUMS_4(c[0], 0), KIVI_WGMMA_SUMS_4(c[1], 0), KIVI_WGMMA_SUMS_4(c[2], 0), KIVI_WGMMA_SUMS_4(c[3], 0), \
        KIVI_WGMMA_SUMS_4(c[4], 0), KIVI_WGMMA_SUMS_4(c[5], 0) \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(adds)))

template <class T>
__device__ __forceinline__ void wgmma_rows(float (&c)[6][4], const uint32_t (&a)[4], uint64_t b, bool adds) {
#if KIVI_WGMMA
  if constexpr (std::is_same_v<T, __half>)
    KIVI_WGMMA_ROWS_48("f16");
  else
    KIVI_WGMMA_ROWS_48("bf16");
#endif
}
#undef KIVI_WGMMA_ROWS_48

#define KIVI_WGMMA_ROWS_64(type) \
  asm volatile( \
      "{\n.reg .pred adds;\n" \
      "setp.ne.b32 adds, %37, 0;\n" \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" KIVI_WGMMA_NAMES_32 "}, {%32, %33, %34, %35}, %36, adds, 1, 1, 0;\n}" \
      : KIVI_WGMMA_SUMS_4(c[0], 0), KIVI_WGMMA_SUMS_4(c[1], 0), KIVI_WGMMA_SUMS_4(c[2], 0), KIVI_WGMMA_SUMS_4(c[3], 0), \
        KIVI_WGMMA_SUMS_4(c[4], 0), KIVI_WGMMA_SUMS_4(c[5], 0), KIVI_WGMMA_SUMS_4(c[6], 0), KIVI_WGMMA_SUMS_4(c[7], 0) \
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

#define KIVI_WGMMA_ROWS_96(type) \
  asm volatile( \
      "{\n.reg .pred adds;\n" \
      "setp.ne.b32 adds, %53, 0;\n" \
      "wgmma.mma_async.sync.aligned.m64n96k16.f32." type "." type " {" KIVI_WGMMA_NAMES_48 "}, {%48, %49, %50, %51}, %52, adds, 1, 1, 0;\n}" \
      : KIVI_WGMMA_SUMS_4(c[0], 0), KIVI_WGMMA_SUMS_4(c[1], 0), KIVI_WGMMA_SUMS_4(c[2], 0), KIVI_WGMMA_SUMS_4(c[3], 0), \
        KIVI_WGMMA_SUMS_4(c[4], 0), KIVI_WGMMA_SUMS_4(c[5], 0), KIVI_WGMMA_SUMS_4(c[6], 0), KIVI_WGMMA_SUMS_4(c[7], 0), \
        KIVI_WGMMA_SUMS_4(c[8], 0), KIVI_WGMMA_SUMS_4(c[9], 0), KIVI_WGMMA_SUMS_4(c[10], 0), KIVI_WGMMA_SUMS_4(c[11], 0) \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(adds)))

template <class T>
__device__ __forceinline__ void wgmma_rows(float (&c)[12][4], const uint32_t (&a)[4], uint64_t b, bool adds) {
#if KIVI_WGMMA
  if constexpr (std::is_same_v<T, __half>)
    KIVI_WGMMA_ROWS_96("f16");
  else
    KIVI_WGMMA_ROWS_96("bf16");
#endif
}
#undef KIVI_WGMMA_ROWS_96

#define KIVI_WGMMA_ROWS_128(type) \
  asm volatile( \
      "{\n.reg .pred adds;\n" \
      "setp.ne.b32 adds, %69, 0;\n" \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" KIVI_WGMMA_NAMES_64 "}, {%64, %65, %66, %67}, %68, adds, 1, 1, 0;\n}" \
      : KIVI_WGMMA_SUMS_4(c[0], 0), KIVI_WGMMA_SUMS_4(c[1], 0), KIVI_WGMMA_SUMS_4(c[2], 0), KIVI_WGMMA_SUMS_4(c[3], 0), \
        KIVI_WGMMA_SUMS_4(c[4], 0), KIVI_WGMMA_SUMS_4(c[5], 0), KIVI_WGMMA_SUMS_4(c[6], 0), KIVI_WGMMA_SUMS_4(c[7], 0), \
        KIVI_WGMMA_SUMS_4(c[8], 0), KIVI_WGMMA_SUMS_4(c[9], 0), KIVI_WGMMA_SUMS_4(c[10], 0), KIVI_WGMMA_SUMS_4(c[11], 0), \
        KIVI_WGMMA_SUMS_4(c[12], 0), KIVI_WGMMA_SUMS_4(c[13], 0), KIVI_WGMMA_SUMS_4(c[14], 0), KIVI_WGMMA_SUMS_4(c[15], 0) \
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

#define KIVI_WGMMA_NAMES_80 \
  KIVI_WGMMA_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"

#define KIVI_WGMMA_ROWS_160(type) \
  asm volatile( \
      "{\n.reg .pred adds;\n" \
      "setp.ne.b32 adds, %85, 0;\n" \
      "wgmma.mma_async.sync.aligned.m64n160k16.f32." type "." type " {" KIVI_WGMMA_NAMES_80 "}, {%80, %81, %82, %83}, %84, adds, 1, 1, 0;\n}" \
      : KIVI_WGMMA_SUMS_4(c[0], 0), KIVI_WGMMA_SUMS_4(c[1], 0), KIVI_WGMMA_SUMS_4(c[2], 0), KIVI_WGMMA_SUMS_4(c[3], 0), \
        KIVI_WGMMA_SUMS_4(c[4], 0), KIVI_WGMMA_SUMS_4(c[5], 0), KIVI_WGMMA_SUMS_4(c[6], 0), KIVI_WGMMA_SUMS_4(c[7], 0), \
        KIVI_WGMMA_SUMS_4(c[8], 0), KIVI_WGMMA_SUMS_4(c[9], 0), KIVI_WGMMA_SUMS_4(c[10], 0), KIVI_WGMMA_SUMS_4(c[11], 0), \
        KIVI_WGMMA_SUMS_4(c[12], 0), KIVI_WGMMA_SUMS_4(c[13], 0), KIVI_WGMMA_SUMS_4(c[14], 0), KIVI_WGMMA_SUMS_4(c[15], 0), \
        KIVI_WGMMA_SUMS_4(c[16], 0), KIVI_WGMMA_SUMS_4(c[17], 0), KIVI_WGMMA_SUMS_4(c[18], 0), KIVI_WGMMA_SUMS_4(c[19], 0) \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(adds)))

template <class T>
__device__ __forceinline__ void wgmma_rows(float (&c)[20][4], const uint32_t (&a)[4], uint64_t b, bool adds) {
#if KIVI_WGMMA
  if constexpr (std::is_same_v<T, __half>)
    KIVI_WGMMA_ROWS_160("f16");
  else
    KIVI_WGMMA_ROWS_160("bf16");
#endif
}
#undef KIVI_WGMMA_ROWS_160

#define KIVI_WGMMA_NAMES_96 \
  KIVI_WGMMA_NAMES_80 \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"

#define KIVI_WGMMA_ROWS_192(type) \
  asm volatile( \
      "{\n.reg .pred adds;\n" \
      "setp.ne.b32 adds, %101, 0;\n" \
      "wgmma.mma_async.sync.aligned.m64n192k16.f32." type "." type " {" KIVI_WGMMA_NAMES_96 "}, {%96, %97, %98, %99}, %100, adds, 1, 1, 0;\n}" \
      : KIVI_WGMMA_SUMS_4(c[0], 0), KIVI_WGMMA_SUMS_4(c[1], 0), KIVI_WGMMA_SUMS_4(c[2], 0), KIVI_WGMMA_SUMS_4(c[3], 0), \
        KIVI_WGMMA_SUMS_4(c[4], 0), KIVI_WGMMA_SUMS_4(c[5], 0), KIVI_WGMMA_SUMS_4(c[6], 0), KIVI_WGMMA_SUMS_4(c[7], 0), \
        KIVI_WGMMA_SUMS_4(c[8], 0), KIVI_WGMMA_SUMS_4(c[9], 0), KIVI_WGMMA_SUMS_4(c[10], 0), KIVI_WGMMA_SUMS_4(c[11], 0), \
        KIVI_WGMMA_SUMS_4(c[12], 0), KIVI_WGMMA_SUMS_4(c[13], 0), KIVI_WGMMA_SUMS_4(c[14], 0), KIVI_WGMMA_SUMS_4(c[15], 0), \
        KIVI_WGMMA_SUMS_4(c[16], 0), KIVI_WGMMA_SUMS_4(c[17], 0), KIVI_WGMMA_SUMS_4(c[18], 0), KIVI_WGMMA_SUMS_4(c[19], 0), \
        KIVI_WGMMA_SUMS_4(c[20], 0), KIVI_WGMMA_SUMS_4(c[21], 0), KIVI_WGMMA_SUMS_4(c[22], 0), KIVI_WGMMA_SUMS_4(c[23], 0) \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(adds)))

template <class T>
__device__ __forceinline__ void wgmma_rows(float (&c)[24][4], const uint32_t (&a)[4], uint64_t b, bool adds) {
#if KIVI_WGMMA
  if constexpr (std::is_same_v<T, __half>)
    KIVI_WGMMA_ROWS_192("f16");
  else
    KIVI_WGMMA_ROWS_192("bf16");
#endif
}
#undef KIVI_WGMMA_ROWS_192

// clang-format on

}  // namespace kivi::cuda
