// SPDX-License-Identifier: Apache-2.0
// out = x W^T (+ bias) for up to 8 rows of x: bound by reading W once.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/tensor.h"
#include "kernels/weight.h"

namespace kivi::cuda {

inline constexpr int kFewRows = 8;

// Whether the product has the shape for it: 1 to 8 rows, f16 or bf16, rows of 16-byte vectors.
bool has_few_rows(const Tensor& x, const Tensor& w, const Tensor& out);

// x [t, k], W [n, k], bias [n] or empty: f16 or bf16, all of one type; out [t, n] the same or f32.
// f32 accumulation. A row of `out` depends on its row of x alone, bit for bit: not on the other
// rows, nor on how many there are. `multiprocessors`: of the device.
cudaError_t matmul_few_rows(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out,
                            int multiprocessors, cudaStream_t stream);

// The same with W in e4m3: rows of 16-byte vectors of W as well. x is f16 or bf16 and stays as it
// is; W's `hadamard` and `order` are not looked at.
bool has_few_rows(const Tensor& x, const Weight& w, const Tensor& out);
cudaError_t matmul_few_rows(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out,
                            int multiprocessors, cudaStream_t stream);

}  // namespace kivi::cuda
