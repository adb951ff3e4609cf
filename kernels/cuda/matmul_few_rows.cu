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
//
// W may also be 8-bit floats (e4m3) with a scale a row, n k bytes. A lane then reads 16 consecutive
// k at a time and widens them to the type of x, which is exact: sign, exponent and mantissa move to
// their places in 16 bits, and a power of two makes up for the other bias. Test:
// tests/cuda/quantized_test.cpp.
#include <algorithm>

#include "kernels/cuda/matmul_few_rows.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/vector.cuh"

namespace kivi::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kTileRows = 16;
constexpr int kSteps = 4;    // in one batch of loads
constexpr int kBatches = 2;  // under way
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

// What a lane reads of W at a time, and k by warp and block. W: T, or uint8_t for e4m3.
template <class W>
struct Reach {
  static constexpr int kLane = 16 / int(sizeof(W));
  static constexpr int kStep = 4 * kLane;
  static constexpr int kBatch = kSteps * kStep;  // of one warp and batch
  static constexpr int kRun = kWarps * kBatch;   // of a block and batch
};

// Two bytes of e4m3, chosen from `word` by __byte_perm into the upper halves, as T: times 2^-8 in
// f16.
template <class T>
__device__ __forceinline__ uint32_t widen(uint32_t word, uint32_t chosen) {
  const uint32_t high = __byte_perm(word, 0, chosen);
  if constexpr (std::is_same_v<T, __half>)
    return (high & 0x80008000u) | ((high >> 1) & 0x3F803F80u);
  uint32_t small = (high & 0x80008000u) | ((high >> 4) & 0x07F007F0u);  // times 2^-120
  uint32_t factor = 0x7B807B80u;                                        // 2^120
  const auto product = __hmul2(*reinterpret_cast<__nv_bfloat162*>(&small),
                               *reinterpret_cast<__nv_bfloat162*>(&factor));
  return *reinterpret_cast<const uint32_t*>(&product);
}
template <class T>
constexpr float kWidened = std::is_same_v<T, __half> ? 256.0f : 1.0f;

template <class T, class W>
struct FewRows {
  const T* x;
  const W* w;
  const float* scales;  // of e4m3, [n]; else null
  const T* bias;        // or null
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

template <class T, class W>
__device__ __forceinline__ void load_weights(const FewRows<T, W>& a, Place at, int g, int first,
                                             uint64_t policy, Weights& to) {
  const int row = at.tile * kTileRows + g;
  const W* top = a.w + int64_t(min(row, a.n - 1)) * a.w_stride;
  const W* bottom = a.w + int64_t(min(row + 8, a.n - 1)) * a.w_stride;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int k = at.batch * Reach<W>::kRun + first + s * Reach<W>::kStep;
    to.top[s] = to.bottom[s] = make_uint4(0, 0, 0, 0);
    if (k >= a.k) continue;
    to.top[s] = load_once(top + k, policy);
    to.bottom[s] = load_once(bottom + k, policy);
  }
}

// As many k of a row of x as a lane reads of W at a time: Vectors times 8.
template <int Vectors>
struct Inputs {
  uint4 v[Vectors];
  template <class T>
  __device__ __forceinline__ void load(const T* row, int k, int end) {
#pragma unroll
    for (int i = 0; i < Vectors; ++i) {
      v[i] = make_uint4(0, 0, 0, 0);
      if (k < end) v[i] = *reinterpret_cast<const uint4*>(row + k + 8 * i);
    }
  }
};

// The lane's k of one step: rows g and g + 8 of W, row g of x.
template <class T>
__device__ __forceinline__ void multiply_step(float (&c)[4], uint4 u, uint4 v, const Inputs<1>& y) {
  multiply_add<T>(c, u.x, v.x, u.y, v.y, y.v[0].x, y.v[0].y);
  multiply_add<T>(c, u.z, v.z, u.w, v.w, y.v[0].z, y.v[0].w);
}
template <class T>
__device__ __forceinline__ void multiply_step(float (&c)[4], uint4 u, uint4 v, const Inputs<2>& y) {
  const uint32_t top[4] = {u.x, u.y, u.z, u.w}, bottom[4] = {v.x, v.y, v.z, v.w};
  const uint32_t x[8] = {y.v[0].x, y.v[0].y, y.v[0].z, y.v[0].w,
                         y.v[1].x, y.v[1].y, y.v[1].z, y.v[1].w};
#pragma unroll
  for (int j = 0; j < 4; ++j)
    multiply_add<T>(c, widen<T>(top[j], 0x1404), widen<T>(bottom[j], 0x1404),
                    widen<T>(top[j], 0x3424), widen<T>(bottom[j], 0x3424), x[2 * j], x[2 * j + 1]);
}

template <class T, class W>
__global__ void __launch_bounds__(kWarps * 32, kBlocksPerMultiprocessor)
    matmul_few_rows_kernel(const __grid_constant__ FewRows<T, W> a) {
  using R = Reach<W>;
  using Input = Inputs<R::kLane / 8>;
  __shared__ float4 sums[2][kWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4;
  const int first = warp * R::kBatch + lane % 4 * R::kLane;  // k of this lane in a run
  const int tiles = (a.n + kTileRows - 1) / kTileRows, batches = (a.k + R::kRun - 1) / R::kRun;
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
  // Takes one batch of W and refills its place. Returns false after the last one.
  const auto take = [&](Weights& batch) {
    if (at.tile >= tiles) return false;
    Input y[kSteps];
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      y[s].load(x, at.batch * R::kRun + first + s * R::kStep, has_row ? a.k : 0);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) multiply_step<T>(c, batch.top[s], batch.bottom[s], y[s]);
    if (ahead.tile < tiles) load_weights(a, ahead, g, first, policy, batch);
    ahead = next(ahead);
    const int tile = at.tile;
    at = next(at);
    if (at.tile == tile) return true;

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
        if constexpr (sizeof(W) == 1) sum *= a.scales[n] * kWidened<T>;
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
    return true;
  };
  static_assert(kBatches == 2);
  while (take(buffer[0]) && take(buffer[1])) {
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

bool has_few_rows(const Tensor& x, const Weight& w, const Tensor& out) {
  return w.format.kind == WeightKind::e4m3 && (out.dtype == x.dtype || out.dtype == DType::f32) &&
         x.rows() >= 1 && x.rows() <= kFewRows && w.columns % 16 == 0 && is_aligned(x) &&
         reinterpret_cast<uintptr_t>(w.codes) % 16 == 0;
}

namespace {

template <class T, class W>
cudaError_t launch(FewRows<T, W> a, const Tensor& x, const Tensor& bias, const Tensor& out,
                   int multiprocessors, cudaStream_t stream) {
  a.x = x.as<T>();
  a.bias = bias.empty() ? nullptr : bias.as<T>();
  a.out = out.data;
  a.x_stride = x.row_stride;
  a.out_stride = out.row_stride;
  a.t = int(x.rows());
  a.n = int(out.shape[1]);
  a.k = int(x.shape[1]);
  a.out_f32 = out.dtype == DType::f32;
  const int tiles = (a.n + kTileRows - 1) / kTileRows;
  const int blocks = std::min(tiles, kBlocksPerMultiprocessor * multiprocessors);
  // Loads in flight take room in L1. Left to itself, the split of a multiprocessor's memory is
  // that of the kernels it overlaps with, and all of it as shared memory costs a step of one
  // row 1.4 ms.
  constexpr int kSharedPercent = 50;
  const auto kernel = matmul_few_rows_kernel<T, W>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, kSharedPercent);
  if (error != cudaSuccess) return error;
  return launch_overlapped(kernel, dim3(unsigned(blocks)), dim3(kWarps * 32), 0, stream, a);
}

}  // namespace

cudaError_t matmul_few_rows(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out,
                            int multiprocessors, cudaStream_t stream) {
  return with_half_type(w.dtype, [&]<class T>() {
    FewRows<T, T> a{};
    a.w = w.as<T>();
    a.w_stride = w.row_stride;
    return launch(a, x, bias, out, multiprocessors, stream);
  });
}

cudaError_t matmul_few_rows(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out,
                            int multiprocessors, cudaStream_t stream) {
  return with_half_type(x.dtype, [&]<class T>() {
    FewRows<T, uint8_t> a{};
    a.w = reinterpret_cast<const uint8_t*>(w.codes);
    a.scales = reinterpret_cast<const float*>(w.scales);
    a.w_stride = w.columns;
    return launch(a, x, bias, out, multiprocessors, stream);
  });
}

}  // namespace kivi::cuda
