// SPDX-License-Identifier: Apache-2.0
// Uploader: host to device copies through pinned memory. Small ones cost one memcpy on the caller's
// thread; large ones (weights) are read by several threads at once, each with two staging buffers,
// so that reading a mapped file, copying into pinned memory and the transfer overlap.
//
// Reason: one thread reads a mapped file at 3 to 4 GB/s (page faults and memcpy), the bus carries
// 25 (PCIe 4) to 50 GB/s (PCIe 5).
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <vector>

#include "kernels/cuda/cuda_handles.h"

namespace kivi::cuda {

// One thread at a time.
class Uploader {
 public:
  explicit Uploader(int device) : device_(device) {}

  // Has read `source` when it returns; the copies are done in the stream's order.
  void upload(void* device, const void* source, size_t bytes, cudaStream_t stream);

  static constexpr size_t kChunkBytes = 4 << 20;  // of one staging buffer
  static constexpr size_t kParallelBytes = 3 * kChunkBytes;
  static constexpr int kThreadsMax = 8;

 private:
  struct Chunk {
    PinnedMemory memory;  // [kChunkBytes]
    Event copied;         // the transfer out of it is done
  };

  void reserve(size_t chunks);
  // Waits until `chunk` is free, fills it and enqueues its transfer.
  static void copy_chunk(Chunk& chunk, std::byte* to, const std::byte* from, size_t bytes,
                         cudaStream_t stream);
  void upload_parallel(std::byte* to, const std::byte* from, size_t bytes, cudaStream_t stream);

  int device_;
  std::vector<Chunk> chunks_;
  size_t next_ = 0;  // of small uploads: they take turns
};

}  // namespace kivi::cuda
