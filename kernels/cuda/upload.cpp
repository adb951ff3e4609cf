// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/upload.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

namespace kivi::cuda {
namespace {

constexpr size_t kSmallChunks = 4;  // steps' inputs need no more

// Half of the cores: the others may be reading the file ahead, or serving.
int upload_threads() {
  return std::clamp(int(std::thread::hardware_concurrency()) / 2, 1, Uploader::kThreadsMax);
}

}  // namespace

void Uploader::upload(void* device, const void* source, size_t bytes, cudaStream_t stream) {
  const auto* from = static_cast<const std::byte*>(source);
  auto* to = static_cast<std::byte*>(device);
  if (bytes >= kParallelBytes && upload_threads() > 1)
    return upload_parallel(to, from, bytes, stream);
  reserve(kSmallChunks);
  for (size_t begin = 0; begin < bytes; begin += kChunkBytes) {
    next_ = (next_ + 1) % chunks_.size();
    copy_chunk(chunks_[next_], to + begin, from + begin, std::min(bytes - begin, kChunkBytes),
               stream);
  }
}

void Uploader::reserve(size_t chunks) {
  while (chunks_.size() < chunks)
    chunks_.push_back({make_pinned_memory(kChunkBytes), make_event()});
}

void Uploader::copy_chunk(Chunk& chunk, std::byte* to, const std::byte* from, size_t bytes,
                          cudaStream_t stream) {
  KIVI_CUDA_VERIFY(cudaEventSynchronize(chunk.copied.get()));
  std::memcpy(chunk.memory.get(), from, bytes);
  KIVI_CUDA_VERIFY(cudaMemcpyAsync(to, chunk.memory.get(), bytes, cudaMemcpyHostToDevice, stream));
  KIVI_CUDA_VERIFY(cudaEventRecord(chunk.copied.get(), stream));
}

// Threads take pieces in order; thread i stages in buffers 2 i and 2 i + 1 by turns. The pieces are
// disjoint, so their order in the stream does not matter.
void Uploader::upload_parallel(std::byte* to, const std::byte* from, size_t bytes,
                               cudaStream_t stream) {
  const size_t pieces = (bytes + kChunkBytes - 1) / kChunkBytes;
  const size_t threads = std::min(pieces, size_t(upload_threads()));
  reserve(2 * threads);
  std::atomic<size_t> taken = 0;
  const auto work = [&](size_t thread) {
    KIVI_CUDA_VERIFY(cudaSetDevice(device_));
    size_t turn = 0;
    for (size_t piece; (piece = taken.fetch_add(1)) < pieces; turn ^= 1) {
      const size_t begin = piece * kChunkBytes;
      copy_chunk(chunks_[2 * thread + turn], to + begin, from + begin,
                 std::min(bytes - begin, kChunkBytes), stream);
    }
  };
  std::vector<std::jthread> others;
  for (size_t i = 1; i < threads; ++i) others.emplace_back(work, i);
  work(0);
}

}  // namespace kivi::cuda
