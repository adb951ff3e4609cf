// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/overlap.cuh"

namespace kivi::cuda {
namespace {

// All kernels are compiled for the same architectures: this one tells which of them is used here.
__global__ void probe_kernel() {}

}  // namespace

bool runs_hopper_code() {
  static const bool runs = [] {
    cudaFuncAttributes attributes{};
    return cudaFuncGetAttributes(&attributes, probe_kernel) == cudaSuccess &&
           attributes.ptxVersion >= 90;
  }();
  return runs;
}

}  // namespace kivi::cuda
