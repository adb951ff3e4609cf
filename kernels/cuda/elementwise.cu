// Row-wise ops around the matrix products. Each reads its inputs and writes its outputs once; all
// are bound by memory (or, at decode's row counts, by launch latency). 16-byte accesses where the
// row allows them. Reference: kernels/cpu. Test: tests/cuda/elementwise_test.cpp.
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/vector.cuh"

namespace kivi::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float apply(Activation activation, float x) {
  switch (activation) {
    case Activation::silu:
      return x / (1.f + __expf(-x));
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
__global__ void gather_kernel(const T* __restrict__ source, int64_t source_stride,
                              int64_t source_rows, const int32_t* __restrict__ index,
                              T* __restrict__ out, int64_t out_stride, int n) {
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

__global__ void resolve_ids_kernel(int32_t* __restrict__ ids, int n,
                                   const int32_t* __restrict__ sampled) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i < n && ids[i] < 0) ids[i] = sampled[-1 - ids[i]];
}

template <class T>
__global__ void add_kernel(T* __restrict__ x, int64_t x_stride, const T* __restrict__ delta,
                           int64_t delta_stride, int n) {
  T* row = x + blockIdx.x * x_stride;
  const T* d = delta + blockIdx.x * delta_stride;
  for (int c = blockIdx.y * kThreads + threadIdx.x; c < n; c += kThreads * gridDim.y)
    row[c] = from_float<T>(as_float(row[c]) + as_float(d[c]));
}

// x += delta (if any), out = norm(x) * weight + bias. One block a row; the row stays in registers
// for n <= 8 * 8 * kThreads, as it does for every known model (n <= 16384). Bytes: 2 n each of x
// read, delta read, x written, out written.
constexpr int kNormVectors = 8;

template <class T>
__global__ void __launch_bounds__(kThreads)
    add_norm_kernel(T* __restrict__ x, int64_t x_stride, const T* __restrict__ delta,
                    int64_t delta_stride, const T* __restrict__ weight, const T* __restrict__ bias,
                    NormKind kind, float eps, T* __restrict__ out, int64_t out_stride, int n) {
  __shared__ float scratch[32];
  T* row = x + blockIdx.x * x_stride;
  float v[kNormVectors][8];
  float sum = 0, squares = 0;
#pragma unroll
  for (int j = 0; j < kNormVectors; ++j) {
    const int c = (j * kThreads + threadIdx.x) * 8;
    if (c >= n) break;
    auto a = Vector8<T>::load(row + c);
    if (delta != nullptr) {
      const auto d = Vector8<T>::load(delta + blockIdx.x * delta_stride + c);
#pragma unroll
      for (int i = 0; i < 8; ++i) a.x[i] = from_float<T>(as_float(a.x[i]) + as_float(d.x[i]));
      a.store(row + c);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      v[j][i] = as_float(a.x[i]);
      sum += v[j][i];
      squares += v[j][i] * v[j][i];
    }
  }
  float mean = 0, variance;
  if (kind == NormKind::layer) {
    mean = block_sum(sum, scratch) / n;
    float deviations = 0;  // a second pass over registers: no cancellation
#pragma unroll
    for (int j = 0; j < kNormVectors; ++j) {
      if ((j * kThreads + threadIdx.x) * 8 >= n) break;
#pragma unroll
      for (int i = 0; i < 8; ++i) deviations += (v[j][i] - mean) * (v[j][i] - mean);
    }
    variance = block_sum(deviations, scratch) / n;
  } else {
    variance = block_sum(squares, scratch) / n;
  }
  const float inverse = rsqrtf(variance + eps);
#pragma unroll
  for (int j = 0; j < kNormVectors; ++j) {
    const int c = (j * kThreads + threadIdx.x) * 8;
    if (c >= n) break;
    const auto w = Vector8<T>::load(weight + c);
    Vector8<T> y;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      y.x[i] = from_float<T>((v[j][i] - mean) * inverse * as_float(w.x[i]));
    if (bias != nullptr) {
      const auto b = Vector8<T>::load(bias + c);
#pragma unroll
      for (int i = 0; i < 8; ++i)
        y.x[i] = from_float<T>((v[j][i] - mean) * inverse * as_float(w.x[i]) + as_float(b.x[i]));
    }
    y.store(out + blockIdx.x * out_stride + c);
  }
}

// gate_up [t, 2 f] -> out [t, f]: 6 f bytes a row.
template <class T>
__global__ void gated_activation_kernel(const T* __restrict__ gate_up, int64_t stride,
                                        Activation activation, T* __restrict__ out,
                                        int64_t out_stride, int f) {
  const int c = (blockIdx.y * kThreads + threadIdx.x) * 8;
  if (c >= f) return;
  const T* gate = gate_up + blockIdx.x * stride + c;
  T* target = out + blockIdx.x * out_stride + c;
  if (f % 8 == 0 && stride % 8 == 0) {
    const auto a = Vector8<T>::load(gate), b = Vector8<T>::load(gate + f);
    Vector8<T> y;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      y.x[i] = from_float<T>(apply(activation, as_float(a.x[i])) * as_float(b.x[i]));
    y.store(target);
  } else {
    for (int i = 0; i < 8 && c + i < f; ++i)
      target[i] = from_float<T>(apply(activation, as_float(gate[i])) * as_float(gate[f + i]));
  }
}

template <class T>
__global__ void activate_kernel(T* __restrict__ x, int64_t stride, Activation activation, int n) {
  T* row = x + blockIdx.x * stride;
  for (int c = blockIdx.y * kThreads + threadIdx.x; c < n; c += kThreads * gridDim.y)
    row[c] = from_float<T>(apply(activation, as_float(row[c])));
}

// Splits qkv, turns q and k, writes q f16 and kv f16 (saturated). One block a row; the angles of a
// row are computed once into shared memory. Bytes: 4 (hq + 2 hk) d a row.
template <class T>
__global__ void rope_kernel(const T* __restrict__ qkv, int64_t stride,
                            const int32_t* __restrict__ positions,
                            const float* __restrict__ inverse_frequencies, int rotary, float factor,
                            int heads_q, int heads_kv, int d, __half* __restrict__ q,
                            __half* __restrict__ kv) {
  extern __shared__ float angles[];  // cos [rotary / 2], sin [rotary / 2]
  const int half = rotary / 2;
  const float position = float(positions[blockIdx.x]);
  for (int i = threadIdx.x; i < half; i += blockDim.x) {
    float s, c;
    sincosf(position * inverse_frequencies[i], &s, &c);
    angles[i] = c * factor;
    angles[half + i] = s * factor;
  }
  __syncthreads();
  const T* row = qkv + blockIdx.x * stride;
  const int turning = heads_q + heads_kv;
  const int total = (turning + heads_kv) * d;
  // Pairs of channels: each thread takes channel c of the first half of a head (or any channel that
  // does not turn) and writes one or two results.
  for (int i = threadIdx.x; i < total; i += blockDim.x) {
    const int head = i / d, c = i % d;
    __half* target = head < heads_q
                         ? q + (int64_t(blockIdx.x) * heads_q + head) * d
                         : kv + (int64_t(blockIdx.x) * 2 * heads_kv + head - heads_q) * d;
    float y = as_float(row[i]);
    if (head < turning && c < rotary) {
      const bool first = c < half;
      const float other = as_float(row[first ? i + half : i - half]);
      const float cosine = angles[first ? c : c - half],
                  sine = angles[half + (first ? c : c - half)];
      y = first ? y * cosine - other * sine : y * cosine + other * sine;
    }
    target[c] = saturated_half(y);
  }
}

dim3 grid_of(int64_t rows, int64_t n, int per_thread) {
  return dim3(unsigned(rows), unsigned((n + kThreads * per_thread - 1) / (kThreads * per_thread)));
}

cudaError_t gather(const Tensor& source, const Tensor& index, const Tensor& out,
                   cudaStream_t stream) {
  if (out.rows() == 0) return cudaSuccess;
  return with_half_type(out.dtype, [&]<class T>() {
    gather_kernel<<<grid_of(out.rows(), out.shape[1], 8), kThreads, 0, stream>>>(
        source.as<T>(), source.row_stride, source.rows(), index.as<int32_t>(), out.as<T>(),
        out.row_stride, int(out.shape[1]));
    return cudaGetLastError();
  });
}

}  // namespace

cudaError_t embed(const Tensor& table, const Tensor& ids, const Tensor& out, cudaStream_t stream) {
  return gather(table, ids, out, stream);
}

cudaError_t resolve_ids(const Tensor& ids, const Tensor& sampled, cudaStream_t stream) {
  const int n = int(ids.rows());
  resolve_ids_kernel<<<unsigned((n + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      ids.as<int32_t>(), n, sampled.as<int32_t>());
  return cudaGetLastError();
}

cudaError_t gather_rows(const Tensor& x, const Tensor& rows, const Tensor& out,
                        cudaStream_t stream) {
  return gather(x, rows, out, stream);
}

cudaError_t add(const Tensor& x, const Tensor& delta, cudaStream_t stream) {
  return with_half_type(x.dtype, [&]<class T>() {
    add_kernel<<<grid_of(x.rows(), x.shape[1], 4), kThreads, 0, stream>>>(
        x.as<T>(), x.row_stride, delta.as<T>(), delta.row_stride, int(x.shape[1]));
    return cudaGetLastError();
  });
}

cudaError_t add_norm(const Tensor& x, const Tensor& delta, const Tensor& weight, const Tensor& bias,
                     NormKind kind, float eps, const Tensor& out, cudaStream_t stream) {
  const int n = int(x.shape[1]);
  if (n % 8 != 0 || n > kNormVectors * kThreads * 8) return cudaErrorInvalidValue;
  return with_half_type(x.dtype, [&]<class T>() {
    add_norm_kernel<<<unsigned(x.rows()), kThreads, 0, stream>>>(
        x.as<T>(), x.row_stride, delta.empty() ? nullptr : delta.as<T>(), delta.row_stride,
        weight.as<T>(), bias.empty() ? nullptr : bias.as<T>(), kind, eps, out.as<T>(),
        out.row_stride, n);
    return cudaGetLastError();
  });
}

cudaError_t gated_activation(const Tensor& gate_up, Activation activation, const Tensor& out,
                             cudaStream_t stream) {
  return with_half_type(out.dtype, [&]<class T>() {
    gated_activation_kernel<<<grid_of(out.rows(), out.shape[1], 8), kThreads, 0, stream>>>(
        gate_up.as<T>(), gate_up.row_stride, activation, out.as<T>(), out.row_stride,
        int(out.shape[1]));
    return cudaGetLastError();
  });
}

cudaError_t activate(const Tensor& x, Activation activation, cudaStream_t stream) {
  return with_half_type(x.dtype, [&]<class T>() {
    activate_kernel<<<grid_of(x.rows(), x.shape[1], 4), kThreads, 0, stream>>>(
        x.as<T>(), x.row_stride, activation, int(x.shape[1]));
    return cudaGetLastError();
  });
}

cudaError_t rope(const Tensor& qkv, const Tensor& positions, const Rope& rope, const KvShape& shape,
                 const Tensor& q, const Tensor& kv, cudaStream_t stream) {
  const int d = shape.head_dim;
  const int heads_q = int(q.shape[1]) / d;
  return with_half_type(qkv.dtype, [&]<class T>() {
    rope_kernel<<<unsigned(qkv.rows()), kThreads, size_t(rope.rotary_dim) * 4, stream>>>(
        qkv.as<T>(), qkv.row_stride, positions.as<int32_t>(), rope.inverse_frequencies.as<float>(),
        rope.rotary_dim, rope.attention_factor, heads_q, shape.heads, d, q.as<__half>(),
        kv.as<__half>());
    return cudaGetLastError();
  });
}

}  // namespace kivi::cuda
