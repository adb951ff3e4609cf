// SPDX-License-Identifier: Apache-2.0
// The PTX instructions that CUDA C++ has no name for: matrix products of a warp, the loads that
// feed them, barriers in shared memory and asynchronous copies.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace kivi::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// c += A B: A 16 x 16 f16 (row), B 16 x 8 f16 (column), C 16 x 8 f32. Lane 4 g + t holds of A rows
// g, g + 8 (registers 0, 2 | 1, 3) and k-positions 2t, 2t + 1 (0, 1) | 2t + 8, 2t + 9 (2, 3); of B
// column g at the same k-positions; of C rows g (0, 1), g + 8 (2, 3), columns 2t, 2t + 1.
__device__ __forceinline__ void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                    uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same for 8 k-positions: A registers 0 and 1, B register 0 of the above.
__device__ __forceinline__ void mma_k8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(b0));
}

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Four 8 x 8 matrices of 16-bit elements, two a lane, to shared memory: lane 8 i + j has the
// address of row j of matrix i. Hopper and newer.
__device__ __forceinline__ void store_matrices(uint32_t address, const uint32_t (&r)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#endif
}
// Four 8 x 8 matrices of 16-bit elements, two a lane, to shared memory, transposed: lane 8 i + j
// has the address of column j of matrix i. Hopper and newer.
__device__ __forceinline__ void store_matrices_transposed(uint32_t address,
                                                          const uint32_t (&r)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#endif
}
// The first two of them; lanes 0 to 15 have addresses.
__device__ __forceinline__ void store_two_matrices_transposed(uint32_t address,
                                                              const uint32_t (&r)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1,%2};" ::"r"(address),
               "r"(r[0]), "r"(r[1])
               : "memory");
#endif
}

// An 8 x 8 matrix of 16-bit elements, two a lane, transposed across the warp.
__device__ __forceinline__ uint32_t transpose(uint32_t x) {
  uint32_t y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// x where `first`, else y: for a choice that may differ between lanes, and must not become a
// branch.
__device__ __forceinline__ float select(bool first, float x, float y) {
  float z;
  asm("{\n.reg .pred first;\n"
      "setp.ne.s32 first, %3, 0;\n"
      "selp.f32 %0, %1, %2, first;\n}"
      : "=f"(z)
      : "f"(x), "f"(y), "r"(int(first)));
  return z;
}

__device__ __forceinline__ uint32_t as_u32(__half2 x) { return *reinterpret_cast<uint32_t*>(&x); }
__device__ __forceinline__ __half2 as_half2(uint32_t x) { return *reinterpret_cast<__half2*>(&x); }
__device__ __forceinline__ uint32_t multiply(uint32_t a, uint32_t b) {
  return as_u32(__hmul2(as_half2(a), as_half2(b)));
}
// a * b - c, rounded once.
__device__ __forceinline__ uint32_t multiply_subtract(uint32_t a, uint32_t b, uint32_t c) {
  return as_u32(__hfma2(as_half2(a), as_half2(b), __hneg2(as_half2(c))));
}

// (x & mask) | bits, in one instruction.
__device__ __forceinline__ uint32_t masked_or(uint32_t x, uint32_t mask, uint32_t bits) {
  uint32_t y;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(y) : "r"(x), "r"(mask), "r"(bits));
  return y;
}

// --- barriers -----------------------------------------------------------------------------------

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Counts one arrival. What the thread has written before can be seen behind a barrier_wait().
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// One arrival a warp, when all its lanes are here.
__device__ __forceinline__ void warp_arrive(uint32_t barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
}

__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
#else
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "nanosleep.u32 20;\n"
      "bra again;\n"
      "finished:\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
#endif
}

// --- asynchronous copies into shared memory -----------------------------------------------------

// Starts to copy 16 bytes.
__device__ __forceinline__ void copy_chunk(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
// The same for 8 bytes.
__device__ __forceinline__ void copy_8(uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(from) : "memory");
}
// Waits for this thread's chunks.
__device__ __forceinline__ void wait_for_chunks() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// What the level-2 cache does with lines that a bulk copy reads, as createpolicy encodes
// evict_normal and evict_first.
inline constexpr uint64_t kKeepNormal = 0x1000000000000000, kKeepShortly = 0x12f0000000000000;

// A warp's copies. All lanes call these with the same arguments. The barrier's phase completes when
// the bytes are there. On Hopper one lane issues bulk copies (the barrier expects 1 arrival);
// before, the lanes share each copy in 16-byte chunks (32 arrivals). Addresses and sizes are
// multiples of 16.
//
// Where a lane has a `chunk`, 16 bytes from there go to `chunk_to` as well. On Hopper, lanes issue
// bulk copies one after the other, which is slow for 32 chunks. With CHUNKS_APART the barrier does
// not know of chunks, and `all` not either: they are ordinary asynchronous copies, for which the
// warp that started them waits with wait_for_chunks().
struct WarpCopy {
  uint32_t barrier;
  int lane;

  struct Part {
    uint32_t to;
    const void* from;
    int bytes;  // 0: none
  };

#if __CUDA_ARCH__ >= 900
  static constexpr int kArrivals = 1;
  static constexpr bool kChunksApart = true;

  // Several parts, of `all` bytes together.
  template <bool CHUNKS_APART, int N>
  __device__ __forceinline__ void start_parts(int all, const Part (&parts)[N],
                                              uint32_t chunk_to = 0,
                                              const void* chunk = nullptr) const {
    asm volatile(
        "{\n.reg .pred chosen;\n"
        "elect.sync _|chosen, 0xffffffff;\n"
        "@chosen mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n}" ::"r"(barrier),
        "r"(all)
        : "memory");
#pragma unroll
    for (int i = 0; i < N; ++i)
      asm volatile(
          "{\n.reg .pred chosen;\n"
          "elect.sync _|chosen, 0xffffffff;\n"
          "setp.ne.and.s32 chosen, %1, 0, chosen;\n"
          "@chosen cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%2], [%3], "
          "%1, [%0];\n}" ::"r"(barrier),
          "r"(parts[i].bytes), "r"(parts[i].to), "l"(parts[i].from)
          : "memory");
    if constexpr (!CHUNKS_APART) __syncwarp();
    if (chunk != nullptr) {
      if constexpr (CHUNKS_APART)
        copy_chunk(chunk_to, chunk);
      else
        asm volatile(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 16, "
            "[%2];" ::"r"(chunk_to),
            "l"(chunk), "r"(barrier)
            : "memory");
    }
    __syncwarp();
  }
  // One part. elect.sync tells the compiler that one lane is left: it need not expect addresses
  // that differ between lanes.
  __device__ __forceinline__ void start_one(uint32_t to, const void* from, int bytes,
                                            uint64_t policy = kKeepNormal) const {
    asm volatile(
        "{\n.reg .pred chosen;\n"
        "elect.sync _|chosen, 0xffffffff;\n"
        "@chosen mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n"
        "@chosen cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%2], [%3], %1, [%0], %4;\n}" ::"r"(barrier),
        "r"(bytes), "r"(to), "l"(from), "l"(policy)
        : "memory");
  }
#else
  static constexpr int kArrivals = 32;
  static constexpr bool kChunksApart = false;

  template <bool CHUNKS_APART, int N>
  __device__ __forceinline__ void start_parts(int, const Part (&parts)[N], uint32_t chunk_to = 0,
                                              const void* chunk = nullptr) const {
#pragma unroll
    for (int n = 0; n < N; ++n)
      for (int i = lane * 16; i < parts[n].bytes; i += 32 * 16)
        copy_chunk(parts[n].to + i, static_cast<const std::byte*>(parts[n].from) + i);
    if (chunk != nullptr) copy_chunk(chunk_to, chunk);
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
  }
  __device__ __forceinline__ void start_one(uint32_t to, const void* from, int bytes,
                                            uint64_t = kKeepNormal) const {
    start_parts<true>(bytes, {{to, from, bytes}});
  }
#endif
};

// Makes ordinary writes to shared memory visible to later asynchronous copies.
__device__ __forceinline__ void fence_before_async_copy() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

}  // namespace kivi::cuda
