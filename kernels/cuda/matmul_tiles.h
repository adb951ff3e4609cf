// SPDX-License-Identifier: Apache-2.0
// out = x W^T (+ bias) for 1 to 640 rows of x and a W of codes of 4, 5, 6 or 8 bits in
// tiles (weight_codec.h).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/tensor.h"
#include "kernels/weight.h"

namespace kivi::cuda {

// Rows of x at a time: by mma.sync on any GPU, and by wgmma where the code for it runs. On such
// GPUs, matmul_tiles_pairs has products of up to kTileProductRowsExact rows, and products of more
// round W to x's type. If a scale of int4 holds for 128 columns or more, those of more than
// kTileProductRowsExactGroups do.
inline constexpr int kTileProductRows = 64;
inline constexpr int kTileProductRowsHopper = 640;
inline constexpr int kTileProductRowsExact = 8;
inline constexpr int kTileProductRowsExactGroups = 64;
// Rows of W and of x that have a counter of TileProductWorkspace::counters.
inline constexpr int kTileProductHeight = 64;
inline constexpr int kTileProductWidth = 128;

// Blocks of 32 columns of a row that matmul_tiles_pairs takes at least.
inline constexpr int kPairBlocksMin = 8;

// Formats that the kernels of this file and of weight_ops.h read: q4_0, q4_1, q4_k, and int4 whose
// group is 32, 64, 128, 256, a multiple of 512, or the whole row; on Hopper q5_0, q5_1, q5_k, q6_k
// and q8_0 as well.
bool has_tile_format(const WeightFormat& format);

// Calls f<Bits>() with the bits of a code: 4, 5, 6 or 8.
template <class F>
auto with_bits(int bits, const F& f) {
  switch (bits) {
    case 5:
      return f.template operator()<5>();
    case 6:
      return f.template operator()<6>();
    case 8:
      return f.template operator()<8>();
    default:
      return f.template operator()<4>();
  }
}

// The most rows of x that a product takes at a time on this device.
int tile_product_rows();
// Whether a product of so many rows rounds W to x's type. Others round nothing but the result.
bool rounds_weights(int64_t rows, const Weight& w);

// Rows of x up to which such products, one after the other, take less time than making W 16-bit and
// multiplying by that. Measured on an H200 (docs/benchmarks/weights.md).
int64_t tile_rows_max(const WeightFormat& format);

// Memory for sums that several blocks share, and a counter for each kTileProductHeight rows of W by
// kTileProductWidth rows of x. Counters are zero before the first call, and again after each.
struct TileProductWorkspace {
  void* partials = nullptr;
  size_t partials_bytes = 0;
  int* counters = nullptr;
  int64_t counters_count = 0;
};

// Whether the product has the shape for the kernel: up to tile_product_rows() rows of f16 or bf16,
// in 16-byte vectors.
bool has_tile_product(const Tensor& x, const Weight& w, const Tensor& out,
                      const TileProductWorkspace& workspace);

// x [t, k] f16 or bf16, W without `hadamard` and `order`, bias [n] of x's type or empty, out [t, n]
// of x's type or f32. Products that do not round W (rounds_weights) multiply codes as they are and
// scales in fp32: nothing but the result is rounded to 16 bits, except that on Hopper a bf16 number
// below 2^-31 of the largest of its 256 neighbors loses what is below 2^-39 of that. Up to 8 rows,
// a row of `out` depends on its row of x alone, bit for bit.
cudaError_t matmul_tiles(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out,
                         const TileProductWorkspace& workspace, int multiprocessors,
                         cudaStream_t stream);

}  // namespace kivi::cuda
