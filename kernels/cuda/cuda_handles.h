// SPDX-License-Identifier: Apache-2.0
// Owners of CUDA's handles: each is made in its constructor and released in its destructor.
// Move only. The device that was current at construction must be current at destruction.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>

#include "kernels/cuda/cuda_check.h"

namespace kivi {

struct StreamDeleter {
  void operator()(cudaStream_t stream) const { KIVI_CUDA_VERIFY(cudaStreamDestroy(stream)); }
};
struct EventDeleter {
  void operator()(cudaEvent_t event) const { KIVI_CUDA_VERIFY(cudaEventDestroy(event)); }
};
struct DeviceMemoryDeleter {
  void operator()(std::byte* data) const { KIVI_CUDA_VERIFY(cudaFree(data)); }
};
struct PinnedMemoryDeleter {
  void operator()(std::byte* data) const { KIVI_CUDA_VERIFY(cudaFreeHost(data)); }
};

struct GraphDeleter {
  void operator()(cudaGraphExec_t graph) const { KIVI_CUDA_VERIFY(cudaGraphExecDestroy(graph)); }
};

using Stream = std::unique_ptr<CUstream_st, StreamDeleter>;
using Event = std::unique_ptr<CUevent_st, EventDeleter>;
using Graph = std::unique_ptr<CUgraphExec_st, GraphDeleter>;
using DeviceMemory = std::unique_ptr<std::byte, DeviceMemoryDeleter>;
using PinnedMemory = std::unique_ptr<std::byte, PinnedMemoryDeleter>;

inline Stream make_stream() {
  cudaStream_t stream = nullptr;
  KIVI_CUDA_VERIFY(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return Stream(stream);
}

// Without timing: for order only.
inline Event make_event() {
  cudaEvent_t event = nullptr;
  KIVI_CUDA_VERIFY(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return Event(event);
}

inline Event make_timing_event() {
  cudaEvent_t event = nullptr;
  KIVI_CUDA_VERIFY(cudaEventCreate(&event));
  return Event(event);
}

inline DeviceMemory make_device_memory(size_t bytes) {
  void* data = nullptr;
  KIVI_CUDA_VERIFY(cudaMalloc(&data, bytes));
  return DeviceMemory(static_cast<std::byte*>(data));
}

inline PinnedMemory make_pinned_memory(size_t bytes) {
  void* data = nullptr;
  KIVI_CUDA_VERIFY(cudaMallocHost(&data, bytes));
  return PinnedMemory(static_cast<std::byte*>(data));
}

}  // namespace kivi
