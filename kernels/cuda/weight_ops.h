// SPDX-License-Identifier: Apache-2.0
// What products by quantized matrices need besides the products: activations in 8 bits, W in 16
// bits, and activations in the order of W's columns.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/tensor.h"
#include "kernels/weight.h"

namespace kivi::cuda {

// ProductInput::e4m3_rows: codes [t, k] and scales [t]. x [t, k] f16 or bf16, k a multiple of 8. A
// row with an element that is not finite becomes NaN.
cudaError_t quantize_rows(const Tensor& x, uint8_t* codes, float* scales, cudaStream_t stream);

// out = rows [begin, begin + out.rows()) of W, rounded to out's type (f16 or bf16). W is e4m3 or
// has a tile format (matmul_tiles.h); `begin` is a multiple of 16. out [rows, k], contiguous.
cudaError_t dequantize_weight(const Weight& w, int64_t begin, const Tensor& out,
                              cudaStream_t stream);

// out[i] = row ids[i] of W; zeros where there is no such row. Formats as above. ids [t] i32, out
// [t, k] f16 or bf16.
cudaError_t embed_weight(const Weight& w, const Tensor& ids, const Tensor& out,
                         cudaStream_t stream);

// out[i] = x[i] times the Hadamard matrix of W, then in W's order of columns. x, out [t, k] f16 or
// bf16.
cudaError_t move_columns(const Tensor& x, const Weight& w, const Tensor& out, cudaStream_t stream);

}  // namespace kivi::cuda
