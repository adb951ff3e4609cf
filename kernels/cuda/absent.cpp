// SPDX-License-Identifier: Apache-2.0
// Stands in for the CUDA backend where CMake found no CUDA toolkit.
#include "kernels/backend.h"

namespace kivi {

Result<std::unique_ptr<Backend>> make_cuda_backend(int) {
  return Error{ErrorCode::unsupported,
               "device cuda: this program was built without CUDA (KIVI_CUDA=ON builds it)",
               "device"};
}

}  // namespace kivi
