// SPDX-License-Identifier: Apache-2.0
// Matrix products through cuBLASLt, with algorithms chosen once a shape and a planned workspace.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <map>
#include <memory>
#include <tuple>

#include "kernels/cuda/cuda_handles.h"
#include "kernels/tensor.h"

namespace kivi::cuda {

// Device memory for split-K and the like; cuBLASLt's recommendation for Hopper.
inline constexpr size_t kMatmulWorkspaceBytes = 32 << 20;

struct HandleDeleter {
  void operator()(cublasLtHandle_t handle) const;
};

class Matmul {
 public:
  Matmul();
  ~Matmul();
  Matmul(const Matmul&) = delete;
  Matmul& operator=(const Matmul&) = delete;

  // out = x W^T (+ bias). x [t, k], W [n, k], bias [n] or empty: f16 or bf16; out [t, n]: the same
  // or f32. f32 accumulation. The first call of a shape asks cuBLASLt's heuristic (tens of
  // microseconds).
  void run(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out,
           cudaStream_t stream);

 private:
  struct Plan;
  const Plan& plan_of(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out);

  // t, n, k, row strides of x, w and out, input type, output type, has bias.
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int, int, bool>;
  std::unique_ptr<cublasLtContext, HandleDeleter> handle_;
  DeviceMemory workspace_;
  std::map<Key, Plan> plans_;
};

}  // namespace kivi::cuda
