// SPDX-License-Identifier: Apache-2.0
// The device sampler: masks, penalties, bias, temperature, top-k, top-p, min-p, Gumbel-max choice,
// log probabilities. Results come back in one copy.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <span>
#include <vector>

#include "kernels/cuda/cuda_handles.h"
#include "kernels/sampling.h"
#include "kernels/tensor.h"

namespace kivi::cuda {

// Largest SampleRow::logprobs the device returns.
inline constexpr int kMaxTopLogprobs = 64;

class Sampler {
 public:
  // `rows_max`: the most rows of one call.
  explicit Sampler(int rows_max);
  ~Sampler();
  Sampler(const Sampler&) = delete;
  Sampler& operator=(const Sampler&) = delete;

  // logits [m, vocab] f32 (changed in place by masks, penalties and bias), ids [m] i32. Enqueues.
  void launch(const Tensor& logits, std::span<const SampleRow> rows, const Tensor& ids,
              cudaStream_t stream);
  // Waits for the oldest launch that has not been collected; at most two may be under way.
  void collect(std::vector<SampledToken>& out);

 private:
  // What one launch needs until it is collected. Two take turns, so that a step can be enqueued
  // before the last one's ids have been read.
  struct Slot {
    PinnedMemory host_rows, host_adjustments, host_masks, host_results;
    DeviceMemory device_rows, device_adjustments, device_masks, device_results;
    size_t adjustments_capacity = 0;
    size_t mask_words_capacity = 0;
    int results_stride = 1;  // entries a row: the choice, then the top ones
    std::vector<int> tops;   // logprobs asked for, a row
    Event copied, done;
  };
  struct Counts {
    int penalties = 0;
    int biases = 0;
  };
  static void reserve_adjustments(Slot& slot, size_t count);
  // Copies the masks of the rows that have one to the device. Returns their number.
  size_t copy_masks(Slot& slot, int vocab, std::span<const SampleRow> rows);
  static Counts fill(Slot& slot, std::span<const SampleRow> rows);

  int rows_max_;
  // What a launch reads is copied on a stream of its own, while the layers before it still run.
  // Behind the layers of a long step, the copy took 0.3 ms.
  Stream copies_;
  DeviceMemory parts_, arrived_;  // what the blocks of a row tell each other
  std::array<Slot, 2> slots_;
  size_t launched_ = 0, collected_ = 0;
};

}  // namespace kivi::cuda
