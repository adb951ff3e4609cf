// SPDX-License-Identifier: Apache-2.0
// Products by quantized matrices: which kernel computes which.
//
// clang-format off
//   e4m3         up to 8 rows         matmul_few_rows, x in 16 bits
//   e4m3         more, Hopper         x to e4m3, a scale a row (or it comes so); matmul_e4m3 up to
//                                     64 or 128 rows, then cuBLASLt
//   tiles        up to tile_rows_max  matmul_tiles, 64 or 640 rows at a time
//   all          others               W to 16 bits, a slab of rows at a time; cuBLASLt
// clang-format on
//
// Scratch (product_scratch_bytes), in this order: x in the order of W's columns, where that
// differs; then either x in e4m3 with its scales, or a slab of W.
#include <algorithm>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/matmul_e4m3.h"
#include "kernels/cuda/matmul_few_rows.h"
#include "kernels/cuda/matmul_tiles.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/weight_ops.h"
#include "kernels/weight_codec.h"

namespace kivi {
namespace {

constexpr int64_t kAlignment = 256;
// Smaller slabs of 16-bit numbers take longer (docs/benchmarks/weights.md).
constexpr int64_t kSlabBytes = int64_t(64) << 20;

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

bool moves_columns(const Weight& w) {
  return w.hadamard != 0 || !w.order.empty() || w.format.reordered;
}

}  // namespace

bool CudaBackend::multiplies(const WeightFormat& format) const {
  return format.kind == WeightKind::plain || format.kind == WeightKind::e4m3 ||
         cuda::has_tile_format(format);
}

int64_t CudaBackend::product_scratch_bytes(const Weight& w, int64_t rows) const {
  if (w.is_plain()) return 0;
  const int64_t n = w.rows, k = w.columns;
  const int64_t moved = moves_columns(w) ? aligned(rows * k * 2) : 0;
  const int64_t slab = aligned(std::min((n + 15) / 16 * 16 * k * 2, kSlabBytes));
  const int64_t rows8 =
      w.format.kind == WeightKind::e4m3 ? aligned(rows * k) + aligned(rows * 4) : 0;
  return moved + std::max(slab, rows8);
}

void CudaBackend::use_product_scratch(std::byte* memory, int64_t bytes) {
  product_scratch_ = memory;
  product_scratch_bytes_ = bytes;
}

ProductInput CudaBackend::product_input(const Tensor& x, const Weight& w, const Tensor& bias,
                                        const Tensor& out) {
  const bool rounds = w.format.kind == WeightKind::e4m3 && x.rows() > cuda::kFewRows &&
                      properties_.major == 9 && cuda::runs_hopper_code() && w.columns % 16 == 0 &&
                      w.rows % 16 == 0 && x.row_stride % 8 == 0 &&
                      matmul_.has_e4m3(x.rows(), w, bias, out);
  return rounds ? ProductInput::e4m3_rows : ProductInput::plain;
}

void CudaBackend::do_embed_quantized(const Weight& table, const Tensor& ids, const Tensor& out) {
  KIVI_CUDA_VERIFY(cuda::embed_weight(table, ids, out, stream_.get()));
}

void CudaBackend::do_matmul_quantized(const Operand& x, const Weight& w, const Tensor& bias,
                                      const Tensor& out) {
  KIVI_VERIFY(bias.empty() || bias.dtype == x.rows.dtype);
  if (x.quantized()) {
    multiply_codes({x.codes, x.scales, x.count()}, w, bias, out);
    return;
  }
  KIVI_VERIFY(product_scratch_bytes(w, x.count()) <= product_scratch_bytes_);
  std::byte* scratch = product_scratch_;
  Tensor input = x.rows;
  if (moves_columns(w)) {
    input = make_tensor(scratch, input.dtype, input.rows(), w.columns);
    KIVI_CUDA_VERIFY(cuda::move_columns(x.rows, w, input, stream_.get()));
    scratch += aligned(int64_t(input.bytes()));
  }
  if (cuda::has_few_rows(input, w, out)) {
    KIVI_CUDA_VERIFY(
        cuda::matmul_few_rows(input, w, bias, out, properties_.multiprocessors, stream_.get()));
  } else if (product_input(input, w, bias, out) == ProductInput::e4m3_rows) {
    multiply_e4m3(input, w, bias, out, scratch);
  } else if (input.rows() <= cuda::tile_rows_max(w.format) && multiply_tiles(input, w, bias, out)) {
    return;
  } else {
    multiply_slabs(input, w, bias, out, scratch);
  }
}

void CudaBackend::multiply_e4m3(const Tensor& x, const Weight& w, const Tensor& bias,
                                const Tensor& out, std::byte* scratch) {
  auto* codes = reinterpret_cast<uint8_t*>(scratch);
  auto* scales = reinterpret_cast<float*>(scratch + aligned(x.rows() * w.columns));
  KIVI_CUDA_VERIFY(cuda::quantize_rows(x, codes, scales, stream_.get()));
  multiply_codes({codes, scales, x.rows()}, w, bias, out);
}

void CudaBackend::multiply_codes(const cuda::Matmul::Rows8& x, const Weight& w, const Tensor& bias,
                                 const Tensor& out) {
  const cuda::TileProductWorkspace workspace = tile_workspace();
  if (!cuda::has_matmul_e4m3(x.rows, w, bias, out, workspace)) {
    matmul_.run_e4m3(x, w, bias, out, stream_.get());
    return;
  }
  KIVI_CUDA_VERIFY(
      cuda::matmul_e4m3(x, w, bias, out, workspace, properties_.multiprocessors, stream_.get()));
}

cuda::TileProductWorkspace CudaBackend::tile_workspace() const {
  return {matmul_.workspace(), cuda::kMatmulWorkspaceBytes,
          reinterpret_cast<int*>(tile_counters_.get()), kTileCounters};
}

bool CudaBackend::multiply_tiles(const Tensor& x, const Weight& w, const Tensor& bias,
                                 const Tensor& out) {
  const cuda::TileProductWorkspace workspace = tile_workspace();
  const int64_t rows_each = cuda::tile_product_rows();
  for (int64_t begin = 0; begin < x.rows(); begin += rows_each) {
    const int64_t rows = std::min(rows_each, x.rows() - begin);
    const Tensor part = x.slice_rows(begin, rows), to = out.slice_rows(begin, rows);
    if (!cuda::has_tile_product(part, w, to, workspace)) return false;
    KIVI_CUDA_VERIFY(cuda::matmul_tiles(part, w, bias, to, workspace, properties_.multiprocessors,
                                        stream_.get()));
  }
  return true;
}

void CudaBackend::multiply_slabs(const Tensor& x, const Weight& w, const Tensor& bias,
                                 const Tensor& out, std::byte* scratch) {
  const int64_t bytes = product_scratch_bytes_ - (scratch - product_scratch_);
  const int64_t slab_bytes = std::min(bytes, kSlabBytes);
  const int64_t slab_rows = std::max<int64_t>(slab_bytes / (w.columns * 2) / 16 * 16, 16);
  for (int64_t begin = 0; begin < w.rows; begin += slab_rows) {
    const int64_t rows = std::min(slab_rows, w.rows - begin);
    const Tensor slab = make_tensor(scratch, x.dtype, rows, w.columns);
    KIVI_CUDA_VERIFY(cuda::dequantize_weight(w, begin, slab, stream_.get()));
    do_matmul(x, slab, bias.empty() ? bias : bias.slice_rows(begin, rows),
              out.slice_columns(begin, rows));
  }
}

}  // namespace kivi
