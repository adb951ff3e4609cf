// SPDX-License-Identifier: Apache-2.0
// c [64, n] f32 = (or, where `adds`, +=) A B: A [64, 16] of T in registers, B [16, n] of T in
// shared memory with k contiguous (wgmma.cuh), for the widths n of matmul_tiles_hopper.cuh and
// matmul_e4m3_hopper.cu. c is in fours: the sums of columns 8 j + 2 t and 8 j + 2 t + 1 of a lane's
// two rows.
#pragma once

#include "kernels/cuda/wgmma.cuh"

namespace kivi::cuda {

// clang-format off

#define KIVI_WGMMA_NAMES_24 KIVI_WGMMA_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define KIVI_WGMMA_NAMES_80 \
  KIVI_WGMMA_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define KIVI_WGMMA_NAMES_96 \
  KIVI_WGMMA_NAMES_80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"

// So many fours of c, from four i on.
#define KIVI_WGMMA_FOURS_2(i) KIVI_WGMMA_SUMS_4(c[i], 0), KIVI_WGMMA_SUMS_4(c[i + 1], 0)
#define KIVI_WGMMA_FOURS_4(i) KIVI_WGMMA_FOURS_2(i), KIVI_WGMMA_FOURS_2(i + 2)
#define KIVI_WGMMA_FOURS_8(i) KIVI_WGMMA_FOURS_4(i), KIVI_WGMMA_FOURS_4(i + 4)
#define KIVI_WGMMA_FOURS_16(i) KIVI_WGMMA_FOURS_8(i), KIVI_WGMMA_FOURS_8(i + 8)

// A thread has n / 2 sums, n the columns of B. Their names are `sums`. `operands` and `adds_name` are the
// names of what follows them: `inputs`, in parentheses, and `adds`. The sums themselves, as fours of c,
// come last.
#define KIVI_WGMMA_INPUTS(...) __VA_ARGS__
#if KIVI_WGMMA
#define KIVI_WGMMA_ASM(shape, sums, operands, adds_name, flags, inputs, ...) \
  asm volatile( \
      "{\n.reg .pred adds;\n" \
      "setp.ne.b32 adds, " adds_name ", 0;\n" \
      "wgmma.mma_async.sync.aligned." shape " {" sums "}, " operands ", adds, " flags ";\n}" \
      : __VA_ARGS__ \
      : KIVI_WGMMA_INPUTS inputs, "r"(int(adds)))
#else
#define KIVI_WGMMA_ASM(...)
#endif
#define KIVI_WGMMA_ROWS_ASM(n, type, sums, of_a, of_b, adds_name, ...) \
  KIVI_WGMMA_ASM("m64n" #n "k16.f32." type "." type, sums, "{" of_a "}, " of_b, adds_name, "1, 1, 0", \
                 ("r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)), __VA_ARGS__)
#define KIVI_WGMMA_ROWS(n, ...) \
  template <class T> \
  __device__ __forceinline__ void wgmma_rows(float (&c)[n / 8][4], const uint32_t (&a)[4], uint64_t b, bool adds) { \
    if constexpr (std::is_same_v<T, __half>) { \
      KIVI_WGMMA_ROWS_ASM(n, "f16", __VA_ARGS__); \
    } else { \
      KIVI_WGMMA_ROWS_ASM(n, "bf16", __VA_ARGS__); \
    } \
  }

KIVI_WGMMA_ROWS(16, KIVI_WGMMA_NAMES_8, "%8, %9, %10, %11", "%12", "%13", KIVI_WGMMA_FOURS_2(0))
KIVI_WGMMA_ROWS(32, KIVI_WGMMA_NAMES_16, "%16, %17, %18, %19", "%20", "%21", KIVI_WGMMA_FOURS_4(0))
KIVI_WGMMA_ROWS(48, KIVI_WGMMA_NAMES_24, "%24, %25, %26, %27", "%28", "%29", KIVI_WGMMA_FOURS_4(0), KIVI_WGMMA_FOURS_2(4))
KIVI_WGMMA_ROWS(64, KIVI_WGMMA_NAMES_32, "%32, %33, %34, %35", "%36", "%37", KIVI_WGMMA_FOURS_8(0))
KIVI_WGMMA_ROWS(96, KIVI_WGMMA_NAMES_48, "%48, %49, %50, %51", "%52", "%53", KIVI_WGMMA_FOURS_8(0), KIVI_WGMMA_FOURS_4(8))
KIVI_WGMMA_ROWS(128, KIVI_WGMMA_NAMES_64, "%64, %65, %66, %67", "%68", "%69", KIVI_WGMMA_FOURS_16(0))
KIVI_WGMMA_ROWS(160, KIVI_WGMMA_NAMES_80, "%80, %81, %82, %83", "%84", "%85", KIVI_WGMMA_FOURS_16(0), KIVI_WGMMA_FOURS_4(16))
KIVI_WGMMA_ROWS(192, KIVI_WGMMA_NAMES_96, "%96, %97, %98, %99", "%100", "%101", KIVI_WGMMA_FOURS_16(0), KIVI_WGMMA_FOURS_8(16))

// The same of bytes of e4m3: A [64, 32] and B [32, n] in shared memory, both with k contiguous.
#define KIVI_WGMMA_E4M3(n, sums, operands, adds_name, ...) \
  [[maybe_unused]] __device__ __forceinline__ void wgmma_e4m3(float (&c)[n / 8][4], uint64_t a, uint64_t b, bool adds) { \
    KIVI_WGMMA_ASM("m64n" #n "k32.f32.e4m3.e4m3", sums, operands, adds_name, "1, 1", ("l"(a), "l"(b)), __VA_ARGS__); \
  }

KIVI_WGMMA_E4M3(16, KIVI_WGMMA_NAMES_8, "%8, %9", "%10", KIVI_WGMMA_FOURS_2(0))
KIVI_WGMMA_E4M3(32, KIVI_WGMMA_NAMES_16, "%16, %17", "%18", KIVI_WGMMA_FOURS_4(0))
KIVI_WGMMA_E4M3(48, KIVI_WGMMA_NAMES_24, "%24, %25", "%26", KIVI_WGMMA_FOURS_4(0), KIVI_WGMMA_FOURS_2(4))
KIVI_WGMMA_E4M3(64, KIVI_WGMMA_NAMES_32, "%32, %33", "%34", KIVI_WGMMA_FOURS_8(0))
KIVI_WGMMA_E4M3(96, KIVI_WGMMA_NAMES_48, "%48, %49", "%50", KIVI_WGMMA_FOURS_8(0), KIVI_WGMMA_FOURS_4(8))
KIVI_WGMMA_E4M3(128, KIVI_WGMMA_NAMES_64, "%64, %65", "%66", KIVI_WGMMA_FOURS_16(0))

#undef KIVI_WGMMA_E4M3
#undef KIVI_WGMMA_ROWS
#undef KIVI_WGMMA_ROWS_ASM
#undef KIVI_WGMMA_ASM
#undef KIVI_WGMMA_INPUTS
#undef KIVI_WGMMA_FOURS_16
#undef KIVI_WGMMA_FOURS_8
#undef KIVI_WGMMA_FOURS_4
#undef KIVI_WGMMA_FOURS_2

// clang-format on

// Keeps the compiler from moving accesses to sums over this place.
template <int N>
__device__ __forceinline__ void pin_all(float (&sums)[N][4]) {
#pragma unroll
  for (int i = 0; i < N; ++i) pin(sums[i]);
}

}  // namespace kivi::cuda
