// SPDX-License-Identifier: Apache-2.0
// KIVI_CUDA_VERIFY and KIVI_CUBLAS_VERIFY: a call that must succeed. After a failed call the
// context is lost, so the process stops with file, line, the call and CUDA's words; a supervisor
// starts it again.
#pragma once

#include <cublasLt.h>
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

[[noreturn]] inline void cublas_failed(const char* file, int line, const char* call,
                                       cublasStatus_t status) {
  std::fprintf(stderr, "%s:%d: cuBLAS call failed: %s: %s (%s)\n", file, line, call,
               cublasLtGetStatusString(status), cublasLtGetStatusName(status));
  std::fflush(stderr);
  std::abort();
}

}  // namespace kivi

#define KIVI_CUDA_VERIFY(call)                                                                 \
  do {                                                                                         \
    const cudaError_t cuda_error = (call);                                                     \
    if (cuda_error != cudaSuccess) ::kivi::cuda_failed(__FILE__, __LINE__, #call, cuda_error); \
  } while (0)

#define KIVI_CUBLAS_VERIFY(call)                                       \
  do {                                                                 \
    const cublasStatus_t cublas_status = (call);                       \
    if (cublas_status != CUBLAS_STATUS_SUCCESS)                        \
      ::kivi::cublas_failed(__FILE__, __LINE__, #call, cublas_status); \
  } while (0)
