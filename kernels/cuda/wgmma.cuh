// SPDX-License-Identifier: Apache-2.0
// Hopper's matrix products of a warpgroup (wgmma, sm_90a): four warps multiply a tile of 64 rows.
//
// Operands in shared memory are described by 64 bits. Ours are swizzled in 128 bytes: rows of 64
// halves, 128 bytes apart, whose 16-byte chunks are permuted by XOR with row % 8, as those of f16
// pages are (kv_page.h). Matrices wider than 64 have further such columns of rows.
//
// C's registers: warp w, lane 4 g + t holds rows 16 w + g (4 j, 4 j + 1) and 16 w + g + 8 (4 j + 2,
// 4 j + 3) of columns 8 j + 2 t and 8 j + 2 t + 1. A in registers: as in `mma` (ptx.cuh).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

// Only code for sm_90a has the instructions; other code of these kernels is never launched.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define KIVI_WGMMA 1
#else
#define KIVI_WGMMA 0
#endif

namespace kivi::cuda {

// An operand in shared memory. `leading`, `stride`: bytes. k contiguous: `stride` from 8 rows to
// the next 8. n contiguous: `leading` from 64 columns to the next 64, `stride` from 8 values of k
// to the next 8.
class SharedOperand {
 public:
  __device__ SharedOperand(uint32_t address, int leading, int stride)
      : low_(address >> 4 | uint32_t(leading >> 4) << 16),
        high_(uint32_t(stride >> 4) | 1u << 30) {}
  // `bytes`: a multiple of 16 further in shared memory.
  __device__ SharedOperand moved(uint32_t bytes) const {
    SharedOperand there = *this;
    there.low_ += bytes >> 4;
    return there;
  }
  __device__ uint64_t at(uint32_t bytes) const {
    return uint64_t(high_) << 32 | (low_ + (bytes >> 4));
  }

 private:
  uint32_t low_, high_;
};

// Before the first product of a series: registers and shared memory are as the thread left them.
__device__ __forceinline__ void wgmma_begin() {
#if KIVI_WGMMA
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
// Ends a group of products.
__device__ __forceinline__ void wgmma_commit() {
#if KIVI_WGMMA
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Waits until at most `kPending` groups are under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
#if KIVI_WGMMA
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#endif
}
// Keeps the compiler from moving accesses to accumulators over this place.
template <int n>
__device__ __forceinline__ void pin(float (&c)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) asm volatile("" : "+f"(c[i])::"memory");
}

// Moves registers between warpgroups: all warps of one call it.
template <int kRegisters>
__device__ __forceinline__ void registers_up() {
#if KIVI_WGMMA
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
template <int kRegisters>
__device__ __forceinline__ void registers_down() {
#if KIVI_WGMMA
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

// clang-format off
// The registers of C: their names in an instruction, and c[i] and those behind it as operands of `asm`.
#define KIVI_WGMMA_NAMES_4 "%0, %1, %2, %3"
#define KIVI_WGMMA_NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define KIVI_WGMMA_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define KIVI_WGMMA_NAMES_32 \
  KIVI_WGMMA_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define KIVI_WGMMA_NAMES_36 KIVI_WGMMA_NAMES_32 ", %32, %33, %34, %35"
#define KIVI_WGMMA_NAMES_40 KIVI_WGMMA_NAMES_36 ", %36, %37, %38, %39"
#define KIVI_WGMMA_NAMES_48 \
  KIVI_WGMMA_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define KIVI_WGMMA_NAMES_64 \
  KIVI_WGMMA_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define KIVI_WGMMA_NAMES_128 \
  KIVI_WGMMA_NAMES_64 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95" \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define KIVI_WGMMA_SUMS_4(c, i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define KIVI_WGMMA_SUMS_8(c, i) KIVI_WGMMA_SUMS_4(c, i), KIVI_WGMMA_SUMS_4(c, i + 4)
#define KIVI_WGMMA_SUMS_16(c, i) KIVI_WGMMA_SUMS_8(c, i), KIVI_WGMMA_SUMS_8(c, i + 8)
#define KIVI_WGMMA_SUMS_32(c, i) KIVI_WGMMA_SUMS_16(c, i), KIVI_WGMMA_SUMS_16(c, i + 16)
#define KIVI_WGMMA_SUMS_64(c, i) KIVI_WGMMA_SUMS_32(c, i), KIVI_WGMMA_SUMS_32(c, i + 32)

// c [64, 128] f32 = (or, where `adds`, +=) A B: A [64, 16], B [16, 128] f16, both with k contiguous.
__device__ __forceinline__ void wgmma_shared(float (&c)[64], uint64_t a, uint64_t b, bool adds) {
#if KIVI_WGMMA
  asm volatile(
      "{\n.reg .pred adds;\n"
      "setp.ne.b32 adds, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" KIVI_WGMMA_NAMES_64 "}, %64, %65, adds, 1, 1, 0, 0;\n}"
      : KIVI_WGMMA_SUMS_64(c, 0)
      : "l"(a), "l"(b), "r"(int(adds)));
#endif
}

// The same for 64 columns: c [64, 64], B [16, 64].
__device__ __forceinline__ void wgmma_shared(float (&c)[32], uint64_t a, uint64_t b, bool adds) {
#if KIVI_WGMMA
  asm volatile(
      "{\n.reg .pred adds;\n"
      "setp.ne.b32 adds, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" KIVI_WGMMA_NAMES_32 "}, %32, %33, adds, 1, 1, 0, 0;\n}"
      : KIVI_WGMMA_SUMS_32(c, 0)
      : "l"(a), "l"(b), "r"(int(adds)));
#endif
}

// The same for 8 columns: c [64, 8], B [16, 8].
__device__ __forceinline__ void wgmma_shared(float (&c)[4], uint64_t a, uint64_t b, bool adds) {
#if KIVI_WGMMA
  asm volatile(
      "{\n.reg .pred adds;\n"
      "setp.ne.b32 adds, %6, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {" KIVI_WGMMA_NAMES_4 "}, %4, %5, adds, 1, 1, 0, 0;\n}"
      : KIVI_WGMMA_SUMS_4(c, 0)
      : "l"(a), "l"(b), "r"(int(adds)));
#endif
}

// c [64, 64] f32 += A B: A [64, 16] f16 in registers, B [16, 64] f16 with n contiguous.
__device__ __forceinline__ void wgmma_registers(float (&c)[32], const uint32_t* a, uint64_t b) {
#if KIVI_WGMMA
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" KIVI_WGMMA_NAMES_32 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
      : KIVI_WGMMA_SUMS_32(c, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}

// c [64, 80] f32 += A B: A [64, 16] f16 in registers, B [16, 80] f16 with n contiguous.
__device__ __forceinline__ void wgmma_registers(float (&c)[40], const uint32_t* a, uint64_t b) {
#if KIVI_WGMMA
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n80k16.f32.f16.f16 {" KIVI_WGMMA_NAMES_40 "}, {%40, %41, %42, %43}, %44, 1, 1, 1, 1;"
      : KIVI_WGMMA_SUMS_32(c, 0), KIVI_WGMMA_SUMS_8(c, 32)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}

// c [64, 96] f32 += A B: A [64, 16] f16 in registers, B [16, 96] f16 with n contiguous.
__device__ __forceinline__ void wgmma_registers(float (&c)[48], const uint32_t* a, uint64_t b) {
#if KIVI_WGMMA
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n96k16.f32.f16.f16 {" KIVI_WGMMA_NAMES_48 "}, {%48, %49, %50, %51}, %52, 1, 1, 1, 1;"
      : KIVI_WGMMA_SUMS_32(c, 0), KIVI_WGMMA_SUMS_16(c, 32)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}

// c [64, 128] f32 += A B: A [64, 16] f16 in registers, B [16, 128] f16 with n contiguous.
__device__ __forceinline__ void wgmma_registers(float (&c)[64], const uint32_t* a, uint64_t b) {
#if KIVI_WGMMA
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" KIVI_WGMMA_NAMES_64 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
      : KIVI_WGMMA_SUMS_64(c, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}

// c [64, 256] f32 += A B: A [64, 16] f16 in registers, B [16, 256] f16 with n contiguous.
__device__ __forceinline__ void wgmma_registers(float (&c)[128], const uint32_t* a, uint64_t b) {
#if KIVI_WGMMA
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {" KIVI_WGMMA_NAMES_128 "}, {%128, %129, %130, %131}, %132, 1, 1, 1, 1;"
      : KIVI_WGMMA_SUMS_64(c, 0), KIVI_WGMMA_SUMS_64(c, 64)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}

// c [64, 64] and [64, 128] f32 += A B: A [64, 16] f16 in registers, B f16 with k contiguous.
__device__ __forceinline__ void wgmma_registers_rows(float (&c)[32], const uint32_t* a, uint64_t b) {
#if KIVI_WGMMA
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" KIVI_WGMMA_NAMES_32 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
      : KIVI_WGMMA_SUMS_32(c, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}

__device__ __forceinline__ void wgmma_registers_rows(float (&c)[64], const uint32_t* a, uint64_t b) {
#if KIVI_WGMMA
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" KIVI_WGMMA_NAMES_64 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
      : KIVI_WGMMA_SUMS_64(c, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}

// c [64, 40] f32 = (or, where `adds`, +=) A B: A [64, 16] f16 in registers, B [16, 40] f16 with k
// contiguous.
__device__ __forceinline__ void wgmma_rows(float (&c)[20], const uint32_t* a, uint64_t b, bool adds) {
#if KIVI_WGMMA
  asm volatile(
      "{\n.reg .pred adds;\n"
      "setp.ne.b32 adds, %25, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n40k16.f32.f16.f16 {" KIVI_WGMMA_NAMES_16 ", %16, %17, %18, %19}, {%20, %21, %22, %23}, %24, adds, 1, 1, 0;\n}"
      : KIVI_WGMMA_SUMS_16(c, 0), KIVI_WGMMA_SUMS_4(c, 16)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(adds)));
#endif
}

// c [64, 72] f32 = (or, where `adds`, +=) A B: A [64, 16] f16 in registers, B [16, 72] f16 with k
// contiguous.
__device__ __forceinline__ void wgmma_rows(float (&c)[36], const uint32_t* a, uint64_t b, bool adds) {
#if KIVI_WGMMA
  asm volatile(
      "{\n.reg .pred adds;\n"
      "setp.ne.b32 adds, %41, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n72k16.f32.f16.f16 {" KIVI_WGMMA_NAMES_36 "}, {%36, %37, %38, %39}, %40, adds, 1, 1, 0;\n}"
      : KIVI_WGMMA_SUMS_32(c, 0), KIVI_WGMMA_SUMS_4(c, 32)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(adds)));
#endif
}

// clang-format on

}  // namespace kivi::cuda
