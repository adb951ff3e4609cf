// SPDX-License-Identifier: Apache-2.0
// Row-wise ops around the matrix products. Each reads its inputs and writes its outputs once; all
// are bound by memory (or, at decode's row counts, by launch latency). 16-byte accesses where the
// row allows them. Every kernel overlaps with its neighbors (overlap.cuh): at one row a launch is
// as long as its work. Reference: kernels/cpu. Test: tests/cuda/ops_test.cpp.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/quantize_row.cuh"
#include "kernels/cuda/vector.cuh"

namespace kivi::cuda {
namespace {

constexpr int kThreads = 256;

// For kernels with nothing to do before their inputs are there.
__device__ __forceinline__ void overlap() {
  let_next_start();
  wait_for_previous();
}

__device__ __forceinline__ float apply(Activation activation, float x) {
  switch (activation) {
    case Activation::silu:
      return __fdividef(x, 1.f + __expf(-x));
    case Activation::gelu:
      return 0.5f * x * (1.f + erff(x * 0.70710678118654752f));
    case Activation::gelu_tanh: {
      const float u = 0.79788456080286536f * (x + 0.044715f * x * x * x);
      return 0.5f * x * (1.f + tanhf(u));
    }
  }
  return x;
}

// out[i] = source[index[i]]; 2 n bytes read and 2 n written a row. Grid: row, then column block.
// An index outside the table leaves zeros (the host has checked ids; -1 marks a padded row).
template <class T>
__global__ void gather_kernel(const T* source, int64_t source_stride, int64_t source_rows,
                              const int32_t* index, T* __restrict__ out, int64_t out_stride,
                              int n) {
  overlap();
  const int c = (blockIdx.y * kThreads + threadIdx.x) * 8;
  if (c >= n) return;
  const int64_t from = index[blockIdx.x];
  T* target = out + blockIdx.x * out_stride + c;
  const bool inside = from >= 0 && from < source_rows;
  if (n % 8 == 0 && source_stride % 8 == 0 && out_stride % 8 == 0) {
    const auto v = inside ? Vector8<T>::load(source + from * source_stride + c) : Vector8<T>{};
    v.store(target);
  } else {
    for (int i = 0; i < 8 && c + i < n; ++i)
      target[i] = inside ? source[from * source_stride + c + i] : from_float<T>(0);
  }
}

__global__ void resolve_ids_kernel(int32_t* ids, int n, const int32_t* sampled) {
  overlap();
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i < n && ids[i] < 0) ids[i] = sampled[-1 - ids[i]];
}

template <class T>
__global__ void add_kernel(T* x, int64_t x_stride, const T* delta, int64_t delta_stride, int n) {
  overlap();
  T* row = x + blockIdx.x * x_stride;
  const T* d = delta + blockIdx.x * delta_stride;
  for (int c = blockIdx.y * kThreads + threadIdx.x; c < n; c += kThreads * gridDim.y)
    row[c] = from_float<T>(as_float(row[c]) + as_float(d[c]));
}

// sums[c] += the rows of x, one after the other: the CPU's sums, bit for bit. A thread has a
// column, so the time is that of a few trips to memory for every eight rows. 2 n bytes read a row.
constexpr int kSumThreads = 64;
template <class T>
__global__ void add_rows_kernel(const T* x, int64_t stride, int rows, float* sums, int n) {
  overlap();
  const int c = blockIdx.x * kSumThreads + threadIdx.x;
  if (c >= n) return;
  float sum = sums[c];
#pragma unroll 8
  for (int i = 0; i < rows; ++i) sum += as_float(x[i * stride + c]);
  sums[c] = sum;
}

// x += delta (if any), out = norm(x) * weight + bias. One block a row; the row stays in registers,
// kVectors of 8 elements a thread. As many threads as give one vector each, up to 1024: at decode's
// few rows the time is that of one trip to memory and one reduction.
// Bytes: 2 n each of x read, delta read, x written, out written (n where it is quantized).
// Three blocks of 512 threads a multiprocessor hide each other's reductions.
template <class T, int kVectors, bool kQuantizes, int kThreadsMost>
__global__ void __launch_bounds__(kThreadsMost, kThreadsMost <= 512 ? 3 : 1)
    add_norm_kernel(T* x, int64_t x_stride, const T* delta, int64_t delta_stride,
                    const T* __restrict__ weight, const T* __restrict__ bias, NormKind kind,
                    float eps, T* __restrict__ out, int64_t out_stride, Codes codes, int n) {
  __shared__ float scratch[32], maxima[32];
  let_next_start();
  T* row = x + blockIdx.x * x_stride;
  Vector8<T> in[kVectors], w[kVectors];
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const int c = (j * blockDim.x + threadIdx.x) * 8;
    if (c < n) w[j] = Vector8<T>::load(weight + c);
  }
  wait_for_previous();
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {  // all loads first
    const int c = (j * blockDim.x + threadIdx.x) * 8;
    if (c < n) in[j] = Vector8<T>::load(row + c);
  }
  float v[kVectors][8];
  float sum = 0, squares = 0;
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const int c = (j * blockDim.x + threadIdx.x) * 8;
    if (c >= n) continue;
    if (delta != nullptr) {
      const auto d = Vector8<T>::load(delta + blockIdx.x * delta_stride + c);
#pragma unroll
      for (int i = 0; i < 8; ++i)
        in[j].x[i] = from_float<T>(as_float(in[j].x[i]) + as_float(d.x[i]));
      in[j].store(row + c);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      v[j][i] = as_float(in[j].x[i]);
      sum += v[j][i];
      squares += v[j][i] * v[j][i];
    }
  }
  float mean = 0, variance;
  if (kind == NormKind::layer) {
    mean = block_sum(sum, scratch) / n;
    float deviations = 0;  // a second pass over registers: no cancellation
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      if ((j * blockDim.x + threadIdx.x) * 8 >= n) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) deviations += (v[j][i] - mean) * (v[j][i] - mean);
    }
    variance = block_sum(deviations, scratch) / n;
  } else {
    variance = block_sum(squares, scratch) / n;
  }
  const float inverse = rsqrtf(variance + eps);
  float most = 0;
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const int c = (j * blockDim.x + threadIdx.x) * 8;
    if (c >= n) continue;
    const auto b = bias != nullptr ? Vector8<T>::load(bias + c) : Vector8<T>{};
    Vector8<T>& y = in[j];
#pragma unroll
    for (int i = 0; i < 8; ++i)
      y.x[i] = from_float<T>((v[j][i] - mean) * inverse * as_float(w[j].x[i]) + as_float(b.x[i]));
    if constexpr (kQuantizes)
      most = max_of(y, most);
    else
      y.store(out + blockIdx.x * out_stride + c);
  }
  if constexpr (kQuantizes) {
    const float factor = row_factor(most, codes.scales, maxima);
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      const int c = (j * blockDim.x + threadIdx.x) * 8;
      if (c < n) store_codes(in[j], factor, codes.codes + int64_t(blockIdx.x) * n + c);
    }
  }
}

template <class T>
__device__ __forceinline__ Vector8<T> activated(Activation activation, const Vector8<T>& gate,
                                                const Vector8<T>& up) {
  Vector8<T> y;
#pragma unroll
  for (int i = 0; i < 8; ++i)
    y.x[i] = from_float<T>(apply(activation, as_float(gate.x[i])) * as_float(up.x[i]));
  return y;
}

// gate_up [t, 2 f] -> out [t, f]: 6 f bytes a row.
template <class T>
__global__ void gated_activation_kernel(const T* gate_up, int64_t stride, Activation activation,
                                        T* __restrict__ out, int64_t out_stride, int f) {
  overlap();
  const int c = (blockIdx.y * kThreads + threadIdx.x) * 8;
  if (c >= f) return;
  const T* gate = gate_up + blockIdx.x * stride + c;
  T* target = out + blockIdx.x * out_stride + c;
  if (f % 8 == 0 && stride % 8 == 0) {
    activated(activation, Vector8<T>::load(gate), Vector8<T>::load(gate + f)).store(target);
  } else {
    for (int i = 0; i < 8 && c + i < f; ++i)
      target[i] = from_float<T>(apply(activation, as_float(gate[i])) * as_float(gate[f + i]));
  }
}

// The same into quantized rows: 5 f bytes a row. A block a row, so that three blocks of a
// multiprocessor are in different parts of their rows. What does not fit in its registers is
// computed twice. f is a multiple of 8.
constexpr int kRowThreads = 384;
template <class T, Activation kActivation>
__global__ void __launch_bounds__(kRowThreads, 3)
    gated_activation_codes_kernel(const T* gate_up, int64_t stride, Codes out, int f) {
  constexpr int kKept = 5;  // vectors of 8 that a thread keeps in registers: 15,360 numbers a row
  __shared__ float scratch[32];
  overlap();
  const T* gate = gate_up + blockIdx.x * stride;
  const auto row_at = [&](int c) {
    return activated(kActivation, Vector8<T>::load(gate + c), Vector8<T>::load(gate + f + c));
  };
  Vector8<T> kept[kKept];
  float most = 0;
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int c = (j * kRowThreads + threadIdx.x) * 8;
    if (c >= f) continue;
    kept[j] = row_at(c);
    most = max_of(kept[j], most);
  }
  const int rest = (kKept * kRowThreads + threadIdx.x) * 8;
#pragma unroll 1
  for (int c = rest; c < f; c += kRowThreads * 8) most = max_of(row_at(c), most);
  const float factor = row_factor(most, out.scales, scratch);
  uint8_t* const to = out.codes + int64_t(blockIdx.x) * f;
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int c = (j * kRowThreads + threadIdx.x) * 8;
    if (c < f) store_codes(kept[j], factor, to + c);
  }
#pragma unroll 1
  for (int c = rest; c < f; c += kRowThreads * 8) store_codes(row_at(c), factor, to + c);
}

template <class T>
__global__ void activate_kernel(T* x, int64_t stride, Activation activation, int n) {
  overlap();
  T* row = x + blockIdx.x * stride;
  for (int c = blockIdx.y * kThreads + threadIdx.x; c < n; c += kThreads * gridDim.y)
    row[c] = from_float<T>(apply(activation, as_float(row[c])));
}

// Dynamic scaling of rope (backend.h, Rope): r of a row; 1 where it is not scaled.
struct DynamicRope {
  const int32_t* lengths = nullptr;  // [t]; null: no such scaling
  float factor = 0;
  int trained = 0;

  __device__ float ratio(int64_t row) const {
    if (lengths == nullptr || lengths[row] <= trained) return 1;
    return factor * float(lengths[row]) / float(trained) - (factor - 1);
  }
};

// Cosines and sines of a row's position, times `factor`, into shared memory: cos [rotary / 2], sin
// [rotary / 2]. Needs the step's positions alone, so it comes before wait_for_previous().
__device__ __forceinline__ void write_angles(float* angles, float position, float ratio,
                                             const float* inverse_frequencies, int rotary,
                                             float factor) {
  const int half = rotary / 2;
  for (int i = threadIdx.x; i < half; i += kThreads) {
    float s, c;
    float angle = position * inverse_frequencies[i];
    if (ratio != 1) angle *= powf(ratio, float(-2 * i) / float(rotary - 2));
    sincosf(angle, &s, &c);
    angles[i] = c * factor;
    angles[half + i] = s * factor;
  }
}

// One head of 32 kSlices channels times the Hadamard matrix, divided by the root of their number. A
// warp has it; x[i] is channel lane + 32 i. The sums are the CPU's.
template <int kSlices>
__device__ __forceinline__ void transform_head(float (&x)[kSlices], float factor) {
#pragma unroll
  for (int h = kSlices / 2; h >= 1; h /= 2)
#pragma unroll
    for (int i = 0; i < kSlices; ++i) {
      if ((i & h) != 0) continue;
      const float first = x[i], second = x[i + h];
      x[i] = first + second, x[i + h] = first - second;
    }
#pragma unroll
  for (int h = 16; h >= 1; h /= 2) {
    const bool is_second = (threadIdx.x & unsigned(h)) != 0;
#pragma unroll
    for (int i = 0; i < kSlices; ++i) {
      const float other = __shfl_xor_sync(0xffffffffu, x[i], h);
      x[i] = is_second ? other - x[i] : x[i] + other;
    }
  }
#pragma unroll
  for (int i = 0; i < kSlices; ++i) x[i] *= factor;
}

// The RMS norms of q and k before they turn (backend.h, Rope). Null weights [d]: none.
template <class T>
struct HeadNorms {
  const T* q = nullptr;
  const T* k = nullptr;
  float eps = 0;
};

// One head [d] as rope reads it, normed if `weight` is not null. A warp has it.
template <class T>
struct HeadReader {
  const T* head;
  const T* weight;
  float factor;  // 1 / sqrt(mean(x^2) + eps)

  __device__ HeadReader(const T* head, const T* weight, int d, float eps)
      : head(head), weight(weight), factor(1) {
    if (weight == nullptr) return;
    float squares = 0;
    for (int c = threadIdx.x % 32; c < d; c += 32) {
      const float x = as_float(head[c]);
      squares += x * x;
    }
#pragma unroll
    for (int h = 16; h >= 1; h /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, h);
    factor = rsqrtf(squares / float(d) + eps);
  }
  __device__ float at(int c) const {
    const float x = as_float(head[c]);
    return weight == nullptr ? x : x * factor * as_float(weight[c]);
  }
  // Channels c and c + 1; c is even.
  __device__ float2 pair_at(int c) const {
    const float2 x = load_pair(head + c);
    if (weight == nullptr) return x;
    const float2 w = load_pair(weight + c);
    return {x.x * factor * w.x, x.y * factor * w.y};
  }
};

// Splits qkv, norms and turns q and k, writes q f16 and kv f16 (saturated). A block has 8 warps: 8
// heads of one row. A norm reads its head once more, from the level-1 cache. The angles of a row
// are computed by each of its blocks, into shared memory. Grid (rows, heads / 8). Bytes: 4 (hq + 2
// hk) d a row. kSlices: 0, or head_dim / 32 where heads are multiplied by the Hadamard matrix, in
// registers and by shuffles.
template <class T, int kSlices>
__global__ void rope_kernel(const T* qkv, int64_t stride, const int32_t* __restrict__ positions,
                            const float* __restrict__ inverse_frequencies, int rotary, float factor,
                            DynamicRope dynamic, HeadNorms<T> norms, int heads_q, int heads_kv,
                            int d, __half* __restrict__ q, __half* __restrict__ kv) {
  extern __shared__ float angles[];  // cos [rotary / 2], sin [rotary / 2]
  let_next_start();
  const int head = blockIdx.y * (kThreads / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  const int turning = heads_q + heads_kv, half = rotary / 2;
  const bool inside = head < turning + heads_kv;
  __half* to = head < heads_q ? q + (int64_t(blockIdx.x) * heads_q + head) * d
                              : kv + (int64_t(blockIdx.x) * 2 * heads_kv + head - heads_q) * d;
  write_angles(angles, float(positions[blockIdx.x]), dynamic.ratio(blockIdx.x), inverse_frequencies,
               rotary, factor);
  wait_for_previous();
  __syncthreads();
  if (!inside) return;
  const int turned = head < turning ? rotary : 0;
  const T* const weight = head < heads_q ? norms.q : head < turning ? norms.k : nullptr;
  const HeadReader<T> from(qkv + blockIdx.x * stride + int64_t(head) * d, weight, d, norms.eps);
  if constexpr (kSlices > 0) {
    float x[kSlices];
#pragma unroll
    for (int i = 0; i < kSlices; ++i) {
      const int c = lane + 32 * i;
      x[i] = from.at(c);
      if (c >= turned) continue;
      const bool is_first = c < half;
      const int angle = is_first ? c : c - half;
      const float other = from.at(is_first ? c + half : c - half);
      const float sine = angles[half + angle];
      x[i] = x[i] * angles[angle] + other * (is_first ? -sine : sine);
    }
    transform_head(x, rsqrtf(float(32 * kSlices)));
#pragma unroll
    for (int i = 0; i < kSlices; ++i) to[lane + 32 * i] = saturated_half(x[i]);
    return;
  }
  const auto turn = [&](int c, float first, float second) {
    const float cosine = angles[c], sine = angles[half + c];
    return float2{first * cosine - second * sine, second * cosine + first * sine};
  };
  if (half % 2 == 0 && d % 2 == 0 && stride % 2 == 0) {  // two channels an access
    for (int c = 2 * lane; c < turned / 2; c += 64) {
      const float2 first = from.pair_at(c), second = from.pair_at(c + half);
      const float2 x = turn(c, first.x, second.x), y = turn(c + 1, first.y, second.y);
      store_saturated_pair(to + c, x.x, y.x);
      store_saturated_pair(to + c + half, x.y, y.y);
    }
    for (int c = turned + 2 * lane; c < d; c += 64) {
      const float2 x = from.pair_at(c);
      store_saturated_pair(to + c, x.x, x.y);
    }
    return;
  }
  for (int c = lane; c < turned / 2; c += 32) {
    const float2 x = turn(c, from.at(c), from.at(c + half));
    to[c] = saturated_half(x.x);
    to[c + half] = saturated_half(x.y);
  }
  for (int c = turned + lane; c < d; c += 32) to[c] = saturated_half(from.at(c));
}

// The same where all D channels of a head turn, and no head is normed or multiplied by the Hadamard
// matrix. A thread has 8 channels of the first half and the same 8 of the second, 16 bytes each,
// and keeps their angles for all heads that it turns. Grid (rows, parts of the heads): one part
// where there are rows enough, so that angles are computed once a row.
template <class T, int D>
__global__ void __launch_bounds__(kThreads)
    rope_whole_heads_kernel(const T* __restrict__ qkv, int64_t stride,
                            const int32_t* __restrict__ positions,
                            const float* __restrict__ inverse_frequencies, float factor,
                            DynamicRope dynamic, int heads_q, int heads_kv, __half* __restrict__ q,
                            __half* __restrict__ kv) {
  constexpr int kHalf = D / 2, kLanes = kHalf / 8, kHeads = kThreads / kLanes;
  __shared__ __align__(16) float angles[D];
  let_next_start();
  write_angles(angles, float(positions[blockIdx.x]), dynamic.ratio(blockIdx.x), inverse_frequencies,
               D, factor);
  wait_for_previous();
  __syncthreads();
  const int c = threadIdx.x % kLanes * 8;
  float cosines[8], sines[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) cosines[i] = angles[c + i], sines[i] = angles[kHalf + c + i];
  const int turning = heads_q + heads_kv, heads = turning + heads_kv;
  const T* const row = qkv + blockIdx.x * stride + c;
  for (int head = blockIdx.y * kHeads + threadIdx.x / kLanes; head < heads;
       head += kHeads * gridDim.y) {
    const auto first = Vector8<T>::load(row + head * D);
    const auto second = Vector8<T>::load(row + head * D + kHalf);
    Vector8<__half> x, y;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float u = as_float(first.x[i]), v = as_float(second.x[i]);
      const bool turns = head < turning;
      x.x[i] = saturated_half(turns ? u * cosines[i] - v * sines[i] : u);
      y.x[i] = saturated_half(turns ? v * cosines[i] + u * sines[i] : v);
    }
    __half* const to = head < heads_q
                           ? q + (int64_t(blockIdx.x) * heads_q + head) * D
                           : kv + (int64_t(blockIdx.x) * 2 * heads_kv + head - heads_q) * D;
    x.store(to + c);
    y.store(to + kHalf + c);
  }
}

dim3 grid_of(int64_t rows, int64_t n, int per_thread) {
  return dim3(unsigned(rows), unsigned((n + kThreads * per_thread - 1) / (kThreads * per_thread)));
}

bool is_vector_aligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data) % 16 == 0; }

cudaError_t gather(const Tensor& source, const Tensor& index, const Tensor& out,
                   cudaStream_t stream) {
  if (out.rows() == 0) return cudaSuccess;
  return with_half_type(out.dtype, [&]<class T>() {
    return launch_overlapped(gather_kernel<T>, grid_of(out.rows(), out.shape[1], 8), dim3(kThreads),
                             0, stream, source.as<T>(), source.row_stride, source.rows(),
                             index.as<int32_t>(), out.as<T>(), out.row_stride, int(out.shape[1]));
  });
}

cudaError_t embed(const Tensor& table, const Tensor& ids, const Tensor& out, cudaStream_t stream) {
  return gather(table, ids, out, stream);
}

cudaError_t resolve_ids(const Tensor& ids, const Tensor& sampled, cudaStream_t stream) {
  const int n = int(ids.rows());
  return launch_overlapped(resolve_ids_kernel, dim3(unsigned((n + kThreads - 1) / kThreads)),
                           dim3(kThreads), 0, stream, ids.as<int32_t>(), n, sampled.as<int32_t>());
}

cudaError_t gather_rows(const Tensor& x, const Tensor& rows, const Tensor& out,
                        cudaStream_t stream) {
  return gather(x, rows, out, stream);
}

cudaError_t add(const Tensor& x, const Tensor& delta, cudaStream_t stream) {
  return with_half_type(x.dtype, [&]<class T>() {
    return launch_overlapped(add_kernel<T>, grid_of(x.rows(), x.shape[1], 4), dim3(kThreads), 0,
                             stream, x.as<T>(), x.row_stride, delta.as<T>(), delta.row_stride,
                             int(x.shape[1]));
  });
}

cudaError_t add_rows(const Tensor& x, const Tensor& sums, cudaStream_t stream) {
  const int n = int(x.shape[1]);
  return with_half_type(x.dtype, [&]<class T>() {
    return launch_overlapped(
        add_rows_kernel<T>, dim3(unsigned((n + kSumThreads - 1) / kSumThreads)), dim3(kSumThreads),
        0, stream, x.as<T>(), x.row_stride, int(x.rows()), sums.as<float>(), n);
  });
}

// `delta` may be empty (a plain norm; x is then only read). Where `out` is quantized, its rows are
// rounded to the type of x first: codes and scales are those that quantize_rows() makes of them. x
// [t, n]: n is a multiple of 8 and at most kNormWidthMax, else cudaErrorInvalidValue.
cudaError_t add_norm(const Tensor& x, const Tensor& delta, const Tensor& weight, const Tensor& bias,
                     NormKind kind, float eps, const Operand& out, cudaStream_t stream) {
  const int n = int(x.shape[1]), vectors = n / 8;
  constexpr int kMost = kNormWidthMax / 8 / 1024;  // vectors a thread
  if (n % 8 != 0 || n > kNormWidthMax) return cudaErrorInvalidValue;
  const int each = (vectors + 1023) / 1024;
  const unsigned threads = unsigned((vectors + each - 1) / each + 31) / 32 * 32;
  const auto launch = [&]<class T, int kVectors, bool kQuantizes, int kThreadsMost>() {
    return launch_overlapped(
        add_norm_kernel<T, kVectors, kQuantizes, kThreadsMost>, dim3(unsigned(x.rows())),
        dim3(threads), 0, stream, x.as<T>(), x.row_stride, delta.empty() ? nullptr : delta.as<T>(),
        delta.row_stride, weight.as<T>(), bias.empty() ? nullptr : bias.as<T>(), kind, eps,
        out.rows.as<T>(), out.rows.row_stride, Codes{out.codes, out.scales}, n);
  };
  const auto launch_of_threads = [&]<class T, bool kQuantizes>() {
    return threads <= 512 ? launch.template operator()<T, 1, kQuantizes, 512>()
           : each == 1    ? launch.template operator()<T, 1, kQuantizes, 1024>()
                          : launch.template operator()<T, kMost, kQuantizes, 1024>();
  };
  return with_half_type(x.dtype, [&]<class T>() {
    return out.quantized() ? launch_of_threads.template operator()<T, true>()
                           : launch_of_threads.template operator()<T, false>();
  });
}

cudaError_t gated_activation_codes(const Tensor& gate_up, Activation activation, const Operand& out,
                                   cudaStream_t stream) {
  const auto launch = [&]<class T, Activation kActivation>() {
    return launch_overlapped(gated_activation_codes_kernel<T, kActivation>,
                             dim3(unsigned(out.count())), dim3(kRowThreads), 0, stream,
                             gate_up.as<T>(), gate_up.row_stride, Codes{out.codes, out.scales},
                             int(out.columns()));
  };
  return with_half_type(gate_up.dtype, [&]<class T>() {
    switch (activation) {
      case Activation::silu:
        return launch.template operator()<T, Activation::silu>();
      case Activation::gelu:
        return launch.template operator()<T, Activation::gelu>();
      case Activation::gelu_tanh:
        return launch.template operator()<T, Activation::gelu_tanh>();
    }
    return cudaErrorInvalidValue;
  });
}

cudaError_t gated_activation(const Tensor& gate_up, Activation activation, const Operand& out,
                             cudaStream_t stream) {
  if (out.quantized()) {
    if (gate_up.row_stride % 8 != 0) return cudaErrorInvalidValue;
    return gated_activation_codes(gate_up, activation, out, stream);
  }
  const Tensor& rows = out.rows;
  return with_half_type(rows.dtype, [&]<class T>() {
    return launch_overlapped(gated_activation_kernel<T>, grid_of(rows.rows(), rows.shape[1], 8),
                             dim3(kThreads), 0, stream, gate_up.as<T>(), gate_up.row_stride,
                             activation, rows.as<T>(), rows.row_stride, int(rows.shape[1]));
  });
}

cudaError_t activate(const Tensor& x, Activation activation, cudaStream_t stream) {
  return with_half_type(x.dtype, [&]<class T>() {
    return launch_overlapped(activate_kernel<T>, grid_of(x.rows(), x.shape[1], 4), dim3(kThreads),
                             0, stream, x.as<T>(), x.row_stride, activation, int(x.shape[1]));
  });
}

cudaError_t rope(const Tensor& qkv, const Tensor& positions, const Rope& rope, const KvShape& shape,
                 const Tensor& q, const Tensor& kv, cudaStream_t stream) {
  const int d = shape.head_dim;
  const int heads_q = int(q.shape[1]) / d;
  DynamicRope dynamic;
  if (rope.dynamic_factor > 0)
    dynamic = {rope.lengths.as<int32_t>(), rope.dynamic_factor, rope.trained};
  const auto launch = [&]<class T, int kSlices>() {
    constexpr int kHeads = kThreads / 32;  // a block
    HeadNorms<T> norms;
    if (!rope.q_norm.empty()) norms = {rope.q_norm.as<T>(), rope.k_norm.as<T>(), rope.norm_eps};
    const dim3 grid(unsigned(qkv.rows()),
                    unsigned((heads_q + 2 * shape.heads + kHeads - 1) / kHeads));
    return launch_overlapped(rope_kernel<T, kSlices>, grid, dim3(kThreads),
                             size_t(rope.rotary_dim) * 4, stream, qkv.as<T>(), qkv.row_stride,
                             positions.as<int32_t>(), rope.inverse_frequencies.as<float>(),
                             rope.rotary_dim, rope.attention_factor, dynamic, norms, heads_q,
                             shape.heads, d, q.as<__half>(), kv.as<__half>());
  };
  const auto launch_whole_heads = [&]<class T, int D>() {
    constexpr int kHeads = kThreads / (D / 16);  // of a block at a time
    constexpr int kRowsMany = 256;               // fill the GPU with a block each
    const int parts =
        qkv.rows() >= kRowsMany ? 1 : (heads_q + 2 * shape.heads + kHeads - 1) / kHeads;
    return launch_overlapped(rope_whole_heads_kernel<T, D>,
                             dim3(unsigned(qkv.rows()), unsigned(parts)), dim3(kThreads), 0, stream,
                             qkv.as<T>(), qkv.row_stride, positions.as<int32_t>(),
                             rope.inverse_frequencies.as<float>(), rope.attention_factor, dynamic,
                             heads_q, shape.heads, q.as<__half>(), kv.as<__half>());
  };
  const bool whole_heads = !rope.hadamard && rope.q_norm.empty() && rope.rotary_dim == d &&
                           qkv.row_stride % 8 == 0 && is_vector_aligned(qkv) &&
                           is_vector_aligned(q) && is_vector_aligned(kv);
  return with_half_type(qkv.dtype, [&]<class T>() {
    if (whole_heads && d == 64) return launch_whole_heads.template operator()<T, 64>();
    if (whole_heads && d == 128) return launch_whole_heads.template operator()<T, 128>();
    if (!rope.hadamard) return launch.template operator()<T, 0>();
    if (d == 64) return launch.template operator()<T, 2>();
    if (d == 128) return launch.template operator()<T, 4>();
    if (d == 256) return launch.template operator()<T, 8>();
    return cudaErrorInvalidValue;
  });
}

}  // namespace
}  // namespace kivi::cuda

namespace kivi {

void CudaBackend::do_embed(const Tensor& table, const Tensor& ids, const Tensor& out) {
  KIVI_CUDA_VERIFY(cuda::embed(table, ids, out, stream_.get()));
}

void CudaBackend::do_resolve_ids(const Tensor& ids, const Tensor& sampled) {
  KIVI_CUDA_VERIFY(cuda::resolve_ids(ids, sampled, stream_.get()));
}

void CudaBackend::do_add_norm(const Tensor& x, const Tensor& delta, const Tensor& weight,
                              const Tensor& bias, NormKind kind, float eps, const Operand& out) {
  KIVI_CUDA_VERIFY(cuda::add_norm(x, delta, weight, bias, kind, eps, out, stream_.get()));
}

void CudaBackend::do_add(const Tensor& x, const Tensor& delta) {
  KIVI_CUDA_VERIFY(cuda::add(x, delta, stream_.get()));
}

void CudaBackend::do_rope(const Tensor& qkv, const Tensor& positions, const Rope& rope,
                          const KvShape& shape, const Tensor& q, const Tensor& kv) {
  KIVI_CUDA_VERIFY(cuda::rope(qkv, positions, rope, shape, q, kv, stream_.get()));
}

void CudaBackend::do_gated_activation(const Tensor& gate_up, Activation activation,
                                      const Operand& out) {
  KIVI_CUDA_VERIFY(cuda::gated_activation(gate_up, activation, out, stream_.get()));
}

void CudaBackend::do_activate(const Tensor& x, Activation activation) {
  KIVI_CUDA_VERIFY(cuda::activate(x, activation, stream_.get()));
}

void CudaBackend::do_gather_rows(const Tensor& x, const Tensor& rows, const Tensor& out) {
  KIVI_CUDA_VERIFY(cuda::gather_rows(x, rows, out, stream_.get()));
}

void CudaBackend::do_add_rows(const Tensor& x, const Tensor& sums) {
  KIVI_CUDA_VERIFY(cuda::add_rows(x, sums, stream_.get()));
}

}  // namespace kivi
