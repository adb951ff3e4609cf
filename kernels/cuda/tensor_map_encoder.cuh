// SPDX-License-Identifier: Apache-2.0
// The driver's function that describes a tensor to copies.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

namespace kivi::cuda {

// Null where the driver has none. Asked for by name, so that the program links without libcuda.
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  static const auto encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &result);
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess
               ? reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function)
               : nullptr;
  }();
  return encoder;
}

}  // namespace kivi::cuda
