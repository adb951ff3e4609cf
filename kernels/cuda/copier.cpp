// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/copier.h"

#include <utility>

#include "base/verify.h"

namespace kivi::cuda {

Copier::~Copier() { synchronize(); }

Event Copier::take_event() {
  if (spare_.empty()) return make_timing_event();
  Event event = std::move(spare_.back());
  spare_.pop_back();
  return event;
}

uint64_t Copier::enqueue(std::span<const HostCopy> copies, cudaStream_t ops) {
  if (stream_ == nullptr) {
    stream_ = make_stream();
    ops_ = make_event();
  }
  // A later record of `ops_` does not change what the stream waits for here.
  KIVI_CUDA_VERIFY(cudaEventRecord(ops_.get(), ops));
  KIVI_CUDA_VERIFY(cudaStreamWaitEvent(stream_.get(), ops_.get(), 0));
  Event begin = take_event();
  KIVI_CUDA_VERIFY(cudaEventRecord(begin.get(), stream_.get()));
  for (const HostCopy& copy : copies)
    KIVI_CUDA_VERIFY(
        cudaMemcpyAsync(copy.to, copy.from, copy.bytes, cudaMemcpyDefault, stream_.get()));
  Event end = take_event();
  KIVI_CUDA_VERIFY(cudaEventRecord(end.get(), stream_.get()));
  in_flight_.push_back({++enqueued_, std::move(begin), std::move(end)});
  return enqueued_;
}

uint64_t Copier::done() {
  while (!in_flight_.empty()) {
    Batch& batch = in_flight_.front();
    const cudaError_t state = cudaEventQuery(batch.end.get());
    if (state == cudaErrorNotReady) break;
    KIVI_CUDA_VERIFY(state);
    float milliseconds = 0;
    KIVI_CUDA_VERIFY(cudaEventElapsedTime(&milliseconds, batch.begin.get(), batch.end.get()));
    seconds_ += double(milliseconds) * 1e-3;
    done_ = batch.number;
    spare_.push_back(std::move(batch.begin));
    spare_.push_back(std::move(batch.end));
    in_flight_.pop_front();
  }
  return done_;
}

void Copier::wait(uint64_t batches, cudaStream_t ops) {
  KIVI_VERIFY(batches <= enqueued_);
  if (batches <= done()) return;
  // Batches are in order, without gaps.
  const Batch& last = in_flight_[size_t(batches - in_flight_.front().number)];
  KIVI_CUDA_VERIFY(cudaStreamWaitEvent(ops, last.end.get(), 0));
}

void Copier::synchronize() {
  if (stream_ != nullptr) KIVI_CUDA_VERIFY(cudaStreamSynchronize(stream_.get()));
}

}  // namespace kivi::cuda
