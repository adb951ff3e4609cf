// KIVI_CUDA_VERIFY: a CUDA call that must succeed. After a failed call the context is lost, so the
// process stops with file, line, the call and CUDA's words; a supervisor starts it again.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>

namespace kivi {

[[noreturn]] inline void cuda_failed(const char* file, int line, const char* call,
                                     cudaError_t error) {
  std::fprintf(stderr, "%s:%d: CUDA call failed: %s: %s (%s)\n", file, line, call,
               cudaGetErrorString(error), cudaGetErrorName(error));
  std::fflush(stderr);
  std::abort();
}

}  // namespace kivi

#define KIVI_CUDA_VERIFY(call)                                                                 \
  do {                                                                                         \
    const cudaError_t cuda_error = (call);                                                     \
    if (cuda_error != cudaSuccess) ::kivi::cuda_failed(__FILE__, __LINE__, #call, cuda_error); \
  } while (0)
