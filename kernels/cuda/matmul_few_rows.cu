// SPDX-License-Identifier: Apache-2.0
// out = x W^T (+ bias) for 1 to 8 rows of x.
//
// Bytes: W once, 2 n k; everything else is small. So all that matters is that memory is never idle:
// 64 KB of W are under way for each block, two blocks a multiprocessor, and the first of them start
// before the kernel that makes x has ended (overlap.cuh).
//
// Mapping. A tile is 16 rows of W; its 8 warps share k in runs of 128. W is operand A of
// mma.m16n8k16 and up to 8 rows of x are its n = 8 columns, so 1 and 8 rows cost the same: a lane
// reads 8 consecutive k of rows g and g + 8 (16 bytes each), and the same k of row g of x. Which k
// a fragment register stands for does not matter, as long as A and B agree. The grid is fixed; a
// block goes from tile to tile, the loads of the next one under way while it adds up its warps'
// sums, in the order of the warps. Reference: CpuBackend::do_matmul. Test: tests/cuda/ops_test.cpp.
#include <algorithm>

#include "kernels/cuda/matmul_few_rows.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/vector.cuh"

namespace kivi::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kTileRows = 16;
constexpr int kSteps = 4;              // of 32 k, in one batch of loads
constexpr int kBatch = kSteps * 32;    // k of one warp and batch
constexpr int kRun = kWarps * kBatch;  // k of a block and batch
constexpr int kBatches = 2;            // under way
constexpr int kBlocksPerMultiprocessor = 2;

// W passes through once: not kept in L1, first to leave L2.
__device__ __forceinline__ uint64_t policy_of_weights() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ uint4 load_once(const void* p, uint64_t policy) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0,%1,%2,%3}, [%4], %5;"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p), "l"(policy));
  return v;
}

template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                             uint32_t a3, uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <class T>
struct FewRows {
  const T* x;
  const T* w;
  const T* bias;  // or null
  void* out;
  int64_t x_stride, w_stride, out_stride;  // elements
  int t, n, k;
  bool out_f32;
};

// One batch of a lane: rows g and g + 8 of W at kSteps runs of 8 k.
struct Weights {
  uint4 top[kSteps], bottom[kSteps];
};

// Where a block is: tile, then batch of k.
struct Place {
  int tile, batch;
};

template <class T>
__device__ __forceinline__ void load_weights(const FewRows<T>& a, Place at, int g, int first,
                                             uint64_t policy, Weights& to) {
  const int row = at.tile * kTileRows + g;
  const T* top = a.w + int64_t(min(row, a.n - 1)) * a.w_stride;
  const T* bottom = a.w + int64_t(min(row + 8, a.n - 1)) * a.w_stride;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int k = at.batch * kRun + first + s * 32;
    to.top[s] = to.bottom[s] = make_uint4(0, 0, 0, 0);
    if (k >= a.k) continue;
    to.top[s] = load_once(top + k, policy);
    to.bottom[s] = load_once(bottom + k, policy);
  }
}

template <class T>
__global__ void __launch_bounds__(kWarps * 32, kBlocksPerMultiprocessor)
    matmul_few_rows_kernel(const __grid_constant__ FewRows<T> a) {
  __shared__ float4 sums[2][kWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4;
  const int first = warp * kBatch + lane % 4 * 8;  // k of this lane in a run
  const int tiles = (a.n + kTileRows - 1) / kTileRows, batches = (a.k + kRun - 1) / kRun;
  const auto next = [&](Place p) {
    return p.batch + 1 < batches ? Place{p.tile, p.batch + 1} : Place{p.tile + int(gridDim.x), 0};
  };
  const uint64_t policy = policy_of_weights();
  let_next_start();
  Weights buffer[kBatches];
  Place ahead{int(blockIdx.x), 0}, at = ahead;
#pragma unroll
  for (int i = 0; i < kBatches; ++i) {
    if (ahead.tile < tiles) load_weights(a, ahead, g, first, policy, buffer[i]);
    ahead = next(ahead);
  }
  wait_for_previous();

  const T* x = a.x + g * a.x_stride;
  const bool has_row = g < a.t;
  float c[4] = {0, 0, 0, 0};
  int parity = 0;
  while (true) {
#pragma unroll
    for (int i = 0; i < kBatches; ++i) {
      if (at.tile >= tiles) return;
      uint4 y[kSteps];
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const int k = at.batch * kRun + first + s * 32;
        y[s] = make_uint4(0, 0, 0, 0);
        if (has_row && k < a.k) y[s] = *reinterpret_cast<const uint4*>(x + k);
      }
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const uint4 u = buffer[i].top[s], v = buffer[i].bottom[s];
        multiply_add<T>(c, u.x, v.x, u.y, v.y, y[s].x, y[s].y);
        multiply_add<T>(c, u.z, v.z, u.w, v.w, y[s].z, y[s].w);
      }
      if (ahead.tile < tiles) load_weights(a, ahead, g, first, policy, buffer[i]);
      ahead = next(ahead);
      const int tile = at.tile;
      at = next(at);
      if (at.tile == tile) continue;

      // The tile is complete. The other half of `sums` may still be read: one barrier a tile.
      sums[parity][warp][lane] = make_float4(c[0], c[1], c[2], c[3]);
      __syncthreads();
      if (threadIdx.x < kTileRows * kFewRows) {
        const int row = threadIdx.x % kTileRows, column = threadIdx.x / kTileRows;
        // C: lane 4 g + t has rows g (.x, .y) and g + 8 (.z, .w), columns 2t and 2t + 1.
        const int index = (row % 8 * 4 + column / 2) * 4 + row / 8 * 2 + column % 2;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w)
          sum += reinterpret_cast<const float*>(sums[parity][w])[index];
        const int n = tile * kTileRows + row;
        if (n < a.n && column < a.t) {
          if (a.bias != nullptr) sum += as_float(a.bias[n]);
          const int64_t to = column * a.out_stride + n;
          if (a.out_f32)
            static_cast<float*>(a.out)[to] = sum;
          else
            static_cast<T*>(a.out)[to] = from_float<T>(sum);
        }
      }
      parity ^= 1;
      c[0] = c[1] = c[2] = c[3] = 0;
    }
  }
}

bool is_aligned(const Tensor& m) {
  return m.row_stride % 8 == 0 && reinterpret_cast<uintptr_t>(m.data) % 16 == 0;
}

}  // namespace

bool has_few_rows(const Tensor& x, const Tensor& w, const Tensor& out) {
  const bool type = w.dtype == DType::f16 || w.dtype == DType::bf16;
  return type && x.dtype == w.dtype && (out.dtype == w.dtype || out.dtype == DType::f32) &&
         x.rows() >= 1 && x.rows() <= kFewRows && x.shape[1] % 8 == 0 && is_aligned(x) &&
         is_aligned(w);
}

cudaError_t matmul_few_rows(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out,
                            int multiprocessors, cudaStream_t stream) {
  return with_half_type(w.dtype, [&]<class T>() {
    const FewRows<T> a{x.as<T>(),
                       w.as<T>(),
                       bias.empty() ? nullptr : bias.as<T>(),
                       out.data,
                       x.row_stride,
                       w.row_stride,
                       out.row_stride,
                       int(x.rows()),
                       int(w.rows()),
                       int(x.shape[1]),
                       out.dtype == DType::f32};
    const int tiles = (a.n + kTileRows - 1) / kTileRows;
    const int blocks = std::min(tiles, kBlocksPerMultiprocessor * multiprocessors);
    // Loads in flight take room in L1. Left to itself, the split of a multiprocessor's memory is
    // that of the kernels it overlaps with, and all of it as shared memory costs a step of one
    // row 1.4 ms.
    constexpr int kSharedPercent = 50;
    const cudaError_t error = cudaFuncSetAttribute(
        matmul_few_rows_kernel<T>, cudaFuncAttributePreferredSharedMemoryCarveout, kSharedPercent);
    if (error != cudaSuccess) return error;
    return launch_overlapped(matmul_few_rows_kernel<T>, dim3(unsigned(blocks)), dim3(kWarps * 32),
                             0, stream, a);
  });
}

}  // namespace kivi::cuda
