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
#include "kernels/weight.h"

namespace kivi::cuda {

// Device memory for split-K and the like; cuBLASLt's recommendation for Hopper.
inline constexpr size_t kMatmulWorkspaceBytes = 36 << 20;

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

  // Rows of x in ProductInput::e4m3_rows: codes [t, k], contiguous, and scales [t].
  struct Rows8 {
    const uint8_t* codes;
    const float* scales;
    int64_t rows;
  };
  // Returns true if cuBLASLt offers a product of `rows` rows in e4m3, with a scale for each row, by
  // W in e4m3. bias and out are those of run().
  bool has_e4m3(int64_t rows, const Weight& w, const Tensor& bias, const Tensor& out);
  // out = x W^T (+ bias), where has_e4m3() is true. Sums are taken as cuBLASLt's fast accumulation
  // takes them, with fewer bits than fp32.
  void run_e4m3(const Rows8& x, const Weight& w, const Tensor& bias, const Tensor& out,
                cudaStream_t stream);

  // What cuBLASLt's algorithms work in. Other products may use it between calls.
  std::byte* workspace() const { return workspace_.get(); }

 private:
  struct Plan;
  const Plan& plan_of(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& out);
  // Null where cuBLASLt offers none.
  const Plan* plan_of_e4m3(int64_t rows, const Weight& w, const Tensor& bias, const Tensor& out);
  bool choose(Plan& plan, size_t workspace_bytes) const;

  // t, n, k, row strides of x, w and out, input type, output type, has bias.
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int, int, bool>;
  std::unique_ptr<cublasLtContext, HandleDeleter> handle_;
  DeviceMemory workspace_;
  std::map<Key, Plan> plans_;
  // t, n, k, row stride of out, type of out, type of the bias or -1.
  using Key8 = std::tuple<int64_t, int64_t, int64_t, int64_t, int, int>;
  std::map<Key8, std::unique_ptr<Plan>> plans_e4m3_;
};

}  // namespace kivi::cuda
