// SPDX-License-Identifier: Apache-2.0
// Launchers of the ops that move one row at a time: embedding, residual add, norms, activations,
// rope, gather. All check nothing: Backend has. Errors are the launch's.
#pragma once

#include <cuda_runtime.h>

#include "kernels/backend.h"

namespace kivi::cuda {

cudaError_t embed(const Tensor& table, const Tensor& ids, const Tensor& out, cudaStream_t stream);
cudaError_t resolve_ids(const Tensor& ids, const Tensor& sampled, cudaStream_t stream);
cudaError_t gather_rows(const Tensor& x, const Tensor& rows, const Tensor& out,
                        cudaStream_t stream);
cudaError_t add_rows(const Tensor& x, const Tensor& sums, cudaStream_t stream);
cudaError_t add(const Tensor& x, const Tensor& delta, cudaStream_t stream);
// `delta` may be empty (a plain norm; x is then only read). Where `out` is quantized, its rows are
// rounded to the type of x first: codes and scales are those that quantize_rows() makes of them. x
// [t, n]: n is a multiple of 8 and at most kNormWidthMax, else cudaErrorInvalidValue.
inline constexpr int kNormWidthMax = 16384;
cudaError_t add_norm(const Tensor& x, const Tensor& delta, const Tensor& weight, const Tensor& bias,
                     NormKind kind, float eps, const Operand& out, cudaStream_t stream);
cudaError_t gated_activation(const Tensor& gate_up, Activation activation, const Operand& out,
                             cudaStream_t stream);
cudaError_t activate(const Tensor& x, Activation activation, cudaStream_t stream);
cudaError_t rope(const Tensor& qkv, const Tensor& positions, const Rope& rope, const KvShape& shape,
                 const Tensor& q, const Tensor& kv, cudaStream_t stream);

}  // namespace kivi::cuda
