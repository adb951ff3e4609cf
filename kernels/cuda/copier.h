// SPDX-License-Identifier: Apache-2.0
// Copier makes the CUDA backend's copies beside the ops (Backend::copy_beside): a stream of its own
// that waits for the ops' stream by events, and an event for each batch under way. One stream
// serves both directions, so that a batch never overtakes another. Host thread: the backend's.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/cuda_handles.h"

namespace kivi::cuda {

class Copier {
 public:
  ~Copier();

  // `ops` is the stream of the ops. Returns the batch's number, from 1.
  uint64_t enqueue(std::span<const HostCopy> copies, cudaStream_t ops);
  uint64_t done();
  // The time of the copies that the last call of done() counted.
  double seconds() const { return seconds_; }
  // Makes `ops` wait for the first `batches` batches.
  void wait(uint64_t batches, cudaStream_t ops);
  void synchronize();

 private:
  struct Batch {
    uint64_t number;
    Event begin, end;  // around its copies
  };
  Event take_event();

  Stream stream_;  // made with the first batch
  Event ops_;      // the ops that were called before a batch
  std::deque<Batch> in_flight_;
  std::vector<Event> spare_;
  uint64_t enqueued_ = 0;
  uint64_t done_ = 0;
  double seconds_ = 0;  // of done_ batches
};

}  // namespace kivi::cuda
