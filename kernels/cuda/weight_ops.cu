// SPDX-License-Identifier: Apache-2.0
// Kernels around products by quantized matrices; weight_ops.h says what each computes. All are
// bound by memory: each reads its input once or twice (the second time from a cache) and writes its
// output once. Test: tests/cuda/quantized_test.cpp.
#include <cuda_fp8.h>

#include <algorithm>

#include "kernels/cuda/matmul_tiles.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/quantize_row.cuh"
#include "kernels/cuda/vector.cuh"
#include "kernels/cuda/weight_ops.h"
#include "kernels/cuda/weight_tiles.cuh"
#include "kernels/weight_codec.h"

namespace kivi::cuda {
namespace {

constexpr int kThreads = 256;

// A block a row. Bytes: 2 k read, k written.
template <class T>
__global__ void __launch_bounds__(kThreads)
    quantize_rows_kernel(const T* x, int64_t x_stride, Codes out, int k) {
  constexpr int kKept = 8;  // vectors of 8 that a thread keeps in registers
  __shared__ float scratch[32];
  let_next_start();
  wait_for_previous();
  const T* row = x + blockIdx.x * x_stride;
  Vector8<T> kept[kKept];
  float most = 0;
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int c = (j * kThreads + threadIdx.x) * 8;
    if (c < k) kept[j] = Vector8<T>::load(row + c);
  }
#pragma unroll
  for (int j = 0; j < kKept; ++j)
    if ((j * kThreads + threadIdx.x) * 8 < k) most = max_of(kept[j], most);
  for (int c = (kKept * kThreads + threadIdx.x) * 8; c < k; c += kThreads * 8)
    most = max_of(Vector8<T>::load(row + c), most);
  const float factor = row_factor(most, out.scales, scratch);
  uint8_t* const to = out.codes + int64_t(blockIdx.x) * k;
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    const int c = (j * kThreads + threadIdx.x) * 8;
    if (c < k) store_codes(kept[j], factor, to + c);
  }
  for (int c = (kKept * kThreads + threadIdx.x) * 8; c < k; c += kThreads * 8)
    store_codes(Vector8<T>::load(row + c), factor, to + c);
}

// A matrix in tiles, on the device.
struct TilesView {
  const std::byte *codes, *scales;
  WeightKind kind;  // scales_like
  int blocks;       // of a row
  int k;
  int unit_blocks;  // that share a record
  int record_bytes, tile_scales;
};

TilesView view_of(const Weight& w) {
  const int record = layout_of(w.format.kind).record_bytes * kWeightTileRows;
  const int64_t unit = unit_columns(w.format, w.columns);
  return {w.codes,
          w.scales,
          scales_like(w.format.kind),
          int(block_count(w.columns)),
          int(w.columns),
          int(block_count(unit)),
          record,
          int(record_count(w.format, w.columns)) * record};
}

template <class T>
__device__ __forceinline__ uint2 in_16_bits(const float (&v)[4]) {
  alignas(8) T four[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) four[i] = from_float<T>(v[i]);
  return *reinterpret_cast<const uint2*>(four);
}

// Stores columns c to c + 3 of a row, as far as it has them.
template <class T>
__device__ __forceinline__ void store_columns(T* row, int c, int k, uint2 four) {
  if (k % 4 == 0) {
    if (c < k) *reinterpret_cast<uint2*>(row + c) = four;
    return;
  }
  const T* const v = reinterpret_cast<const T*>(&four);
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (c + i < k) row[c + i] = v[i];
}

// A row's scale, zero point and minimum.
struct RowScales {
  float scale, zero, minimum;  // zero: 2^23 more than the zero point
};

// Four codes, a byte each, as weights in 16 bits. 2^23 + code is exact, and so is that less the
// zero point.
template <class T>
__device__ __forceinline__ uint2 four_weights(uint32_t codes, const RowScales& s) {
  float v[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float code = __uint_as_float(__byte_perm(codes, 0x4B000000u, 0x7440 + i));
    v[i] = fmaf(s.scale, code - s.zero, s.minimum);
  }
  return in_16_bits<T>(v);
}

// Stores the weights of a lane's word of a block: columns 4 t to 4 t + 3 (low) and 16 up (high). If
// rows are whole vectors, two lanes exchange halves, so that each stores eight neighbors. All lanes
// of a warp call it.
template <class T>
__device__ __forceinline__ void store_block(T* row, bool inside, int block, int k, uint2 low,
                                            uint2 high) {
  const int t = threadIdx.x % 4;
  const bool odd = t % 2 == 1;
  if (k % 8 != 0) {
    if (inside) {
      store_columns(row, block * 32 + 4 * t, k, low);
      store_columns(row, block * 32 + 16 + 4 * t, k, high);
    }
    return;
  }
  const uint2 given = odd ? low : high;
  const uint2 taken = make_uint2(__shfl_xor_sync(0xffffffffu, given.x, 1),
                                 __shfl_xor_sync(0xffffffffu, given.y, 1));
  const uint4 eight = odd ? make_uint4(taken.x, taken.y, high.x, high.y)
                          : make_uint4(low.x, low.y, taken.x, taken.y);
  const int column = block * 32 + (odd ? 16 : 0) + t / 2 * 8;
  if (inside && column < k) *reinterpret_cast<uint4*>(row + column) = eight;
}

// A warp has kWarpBlocks blocks of 16 rows by 32 columns, side by side. Their codes are on their
// way at once. Grid: columns, then tiles. Bytes of a block: 256 to 512 and its scales read, 1024
// written.
constexpr int kWarpBlocks = 4;
template <class T, int Bits>
__global__ void __launch_bounds__(kThreads)
    dequantize_tiles_kernel(TilesView w, int64_t first_tile, int64_t rows, T* out) {
  let_next_start();
  wait_for_previous();
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int first = (blockIdx.x * (kThreads / 32) + threadIdx.x / 32) * kWarpBlocks;
  const int64_t tile = first_tile + blockIdx.y;
  const std::byte* const codes_at = w.codes + (tile * w.blocks + first) * block_bytes(Bits);
  uint2 codes[kWarpBlocks][kCodeParts<Bits>];
  UpperBits<Bits> upper[kWarpBlocks][2];
#pragma unroll
  for (int b = 0; b < kWarpBlocks; ++b) {
    if (first + b >= w.blocks) break;
    const std::byte* const block = codes_at + b * block_bytes(Bits);
#pragma unroll
    for (int i = 0; i < kCodeParts<Bits>; ++i)
      codes[b][i] =
          __ldcs(reinterpret_cast<const uint2*>(block + i * kNibbleBytes + t * 64 + g * 8));
#pragma unroll
    for (int r = 0; r < 2; ++r) upper[b][r] = read_upper_bits<Bits>(block, 2 * g + r);
  }
  const int64_t row = int64_t(blockIdx.y) * kWeightTileRows + 2 * g;
  TwoScales s;
#pragma unroll
  for (int b = 0; b < kWarpBlocks; ++b) {
    const int block = first + b;
    if (block >= w.blocks) return;
    const std::byte* const record =
        w.scales + tile * w.tile_scales + block / w.unit_blocks * w.record_bytes;
    if (b == 0 || w.unit_blocks % kWarpBlocks != 0 || w.kind == WeightKind::q4_k || Bits == 6)
      s = read_scales<Bits>(w.kind, record, block, g);
    const TwoScales other = Bits == 6 ? read_scales<Bits>(w.kind, record, block, g, 1) : s;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const auto four_codes = [&](int half) {
        const uint2& part = codes[b][kCodeParts<Bits> == 1 ? 0 : half];
        const uint32_t word = r == 0 ? part.x : part.y;
        if constexpr (Bits == 8) return word;
        return join_codes(word, upper[b][r], half, t);
      };
      const RowScales low{s.scale[r], float(s.zero[r]) + 8388608.0f, s.minimum[r]};
      const RowScales high{other.scale[r], low.zero, low.minimum};
      store_block(out + (row + r) * w.k, row + r < rows, block, w.k,
                  four_weights<T>(four_codes(0), low), four_weights<T>(four_codes(1), high));
    }
  }
}

__device__ __forceinline__ float from_e4m3(uint8_t code) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)));
}

// A thread four columns; grid: columns, then rows.
template <class T>
__global__ void __launch_bounds__(kThreads)
    dequantize_e4m3_kernel(const uint8_t* codes, const float* scales, int64_t first_row, T* out,
                           int k) {
  let_next_start();
  wait_for_previous();
  const int64_t row = first_row + blockIdx.y;
  const int c = (blockIdx.x * kThreads + threadIdx.x) * 4;
  if (c >= k) return;
  float v[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    v[i] = c + i < k ? scales[row] * from_e4m3(codes[row * k + c + i]) : 0;
  store_columns(out + int64_t(blockIdx.y) * k, c, k, in_16_bits<T>(v));
}

// A block a row; a thread the codes of four columns.
template <class T, int Bits>
__global__ void __launch_bounds__(kThreads)
    embed_tiles_kernel(TilesView w, int64_t n, const int32_t* ids, T* out, int64_t out_stride) {
  let_next_start();
  wait_for_previous();
  const int64_t row = ids[blockIdx.x];
  const bool inside = row >= 0 && row < n;
  const int64_t tile = inside ? row / kWeightTileRows : 0;
  const int r = inside ? int(row % kWeightTileRows) : 0;
  for (int quad = threadIdx.x; quad < w.blocks * 8; quad += kThreads) {
    const int block = quad / 8, half = quad / 4 % 2, t = quad % 4, one = r % 2;
    const std::byte* const codes = w.codes + (tile * w.blocks + block) * block_bytes(Bits);
    const uint32_t four = read_four_codes<Bits>(codes, r, half, t);
    const TwoScales s = read_scales<Bits>(
        w.kind, w.scales + tile * w.tile_scales + block / w.unit_blocks * w.record_bytes, block,
        r / 2, half);
    const float scale = one ? s.scale[1] : s.scale[0], minimum = one ? s.minimum[1] : s.minimum[0];
    const auto zero = float(one ? s.zero[1] : s.zero[0]);
    for (int j = 0; j < 4; ++j) {
      const float code = float(four >> (8 * j) & 255);
      if (quad * 4 + j < w.k)
        out[blockIdx.x * out_stride + quad * 4 + j] =
            from_float<T>(inside ? fmaf(scale, code - zero, minimum) : 0.0f);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    embed_e4m3_kernel(const uint8_t* codes, const float* scales, int64_t n, int k,
                      const int32_t* ids, T* out, int64_t out_stride) {
  let_next_start();
  wait_for_previous();
  const int64_t row = ids[blockIdx.x];
  const bool inside = row >= 0 && row < n;
  for (int c = threadIdx.x; c < k; c += kThreads)
    out[blockIdx.x * out_stride + c] =
        from_float<T>(inside ? scales[row] * from_e4m3(codes[row * k + c]) : 0.0f);
}

// A block a row, which it holds in shared memory in fp32.
template <class T>
__global__ void __launch_bounds__(kThreads)
    move_columns_kernel(const T* x, int64_t x_stride, int k, int hadamard, const int32_t* order,
                        T* out) {
  extern __shared__ float row[];
  let_next_start();
  wait_for_previous();
  for (int c = threadIdx.x; c < k; c += kThreads) row[c] = as_float(x[blockIdx.x * x_stride + c]);
  __syncthreads();
  for (int step = 1; step < hadamard; step *= 2) {
    for (int i = threadIdx.x; i < k / 2; i += kThreads) {
      const int a = i / step * 2 * step + i % step;
      const float u = row[a], v = row[a + step];
      row[a] = u + v;
      row[a + step] = u - v;
    }
    __syncthreads();
  }
  const float factor = hadamard > 0 ? rsqrtf(float(hadamard)) : 1.0f;
  for (int c = threadIdx.x; c < k; c += kThreads)
    out[int64_t(blockIdx.x) * k + c] = from_float<T>(factor * row[order == nullptr ? c : order[c]]);
}

}  // namespace

cudaError_t quantize_rows(const Tensor& x, uint8_t* codes, float* scales, cudaStream_t stream) {
  return with_half_type(x.dtype, [&]<class T>() {
    return launch_overlapped(quantize_rows_kernel<T>, dim3(unsigned(x.rows())), dim3(kThreads), 0,
                             stream, x.as<T>(), x.row_stride, Codes{codes, scales},
                             int(x.shape[1]));
  });
}

cudaError_t dequantize_weight(const Weight& w, int64_t begin, const Tensor& out,
                              cudaStream_t stream) {
  return with_half_type(out.dtype, [&]<class T>() {
    if (w.format.kind == WeightKind::e4m3) {
      const dim3 grid(unsigned((w.columns + 4 * kThreads - 1) / (4 * kThreads)),
                      unsigned(out.rows()));
      return launch_overlapped(dequantize_e4m3_kernel<T>, grid, dim3(kThreads), 0, stream,
                               reinterpret_cast<const uint8_t*>(w.codes),
                               reinterpret_cast<const float*>(w.scales), begin, out.as<T>(),
                               int(w.columns));
    }
    const TilesView view = view_of(w);
    const int64_t tiles = (out.rows() + kWeightTileRows - 1) / kWeightTileRows;
    constexpr int kBlocks = kThreads / 32 * kWarpBlocks;
    const dim3 grid(unsigned((view.blocks + kBlocks - 1) / kBlocks), unsigned(tiles));
    return with_bits(layout_of(w.format.kind).bits, [&]<int Bits>() {
      return launch_overlapped(dequantize_tiles_kernel<T, Bits>, grid, dim3(kThreads), 0, stream,
                               view, begin / kWeightTileRows, out.rows(), out.as<T>());
    });
  });
}

cudaError_t embed_weight(const Weight& w, const Tensor& ids, const Tensor& out,
                         cudaStream_t stream) {
  const dim3 grid(unsigned(out.rows()));
  return with_half_type(out.dtype, [&]<class T>() {
    if (w.format.kind == WeightKind::e4m3)
      return launch_overlapped(embed_e4m3_kernel<T>, grid, dim3(kThreads), 0, stream,
                               reinterpret_cast<const uint8_t*>(w.codes),
                               reinterpret_cast<const float*>(w.scales), w.rows, int(w.columns),
                               ids.as<int32_t>(), out.as<T>(), out.row_stride);
    return with_bits(layout_of(w.format.kind).bits, [&]<int Bits>() {
      return launch_overlapped(embed_tiles_kernel<T, Bits>, grid, dim3(kThreads), 0, stream,
                               view_of(w), w.rows, ids.as<int32_t>(), out.as<T>(), out.row_stride);
    });
  });
}

cudaError_t move_columns(const Tensor& x, const Weight& w, const Tensor& out, cudaStream_t stream) {
  const size_t shared = size_t(w.columns) * sizeof(float);
  return with_half_type(x.dtype, [&]<class T>() {
    const cudaError_t error = cudaFuncSetAttribute(
        move_columns_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
    if (error != cudaSuccess) return error;
    return launch_overlapped(
        move_columns_kernel<T>, dim3(unsigned(x.rows())), dim3(kThreads), shared, stream, x.as<T>(),
        x.row_stride, int(w.columns), w.hadamard,
        w.order.empty() ? static_cast<const int32_t*>(nullptr) : w.order.as<int32_t>(),
        out.as<T>());
  });
}

}  // namespace kivi::cuda
