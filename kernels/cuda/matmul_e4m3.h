// SPDX-License-Identifier: Apache-2.0
// out = x W^T (+ bias) for rows of x and a W in e4m3, on Hopper.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/matmul.h"
#include "kernels/cuda/matmul_tiles.h"

namespace kivi::cuda {

// Rows of x up to which this takes less time than cuBLASLt: by any W, and by one whose rows are
// longer than its columns. Measured on an H200 (docs/benchmarks/weights.md).
inline constexpr int kE4m3RowsAny = 64;
inline constexpr int kE4m3RowsMax = 128;

// Returns true if matmul_e4m3 has the product, and takes less time for it than cuBLASLt. Rows of W
// and x must be whole vectors of 16 bytes. bias, out: those of Matmul::run.
bool has_matmul_e4m3(int64_t rows, const Weight& w, const Tensor& bias, const Tensor& out,
                     const TileProductWorkspace& workspace);

// x [t, k] with a scale for each row; W likewise. Sums are taken as tensor cores take those of
// e4m3, with fewer bits than fp32, and scaled in fp32.
cudaError_t matmul_e4m3(const Matmul::Rows8& x, const Weight& w, const Tensor& bias,
                        const Tensor& out, const TileProductWorkspace& workspace,
                        int multiprocessors, cudaStream_t stream);

}  // namespace kivi::cuda
