// SPDX-License-Identifier: Apache-2.0
// ModelRunner: the StepRunner of the product. A step is: fill the input, run the layers, then,
// block by block of gathered rows, logits and sampler. Owns the model and the store's memory.
// Engine thread only.
#pragma once

#include <deque>
#include <exception>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "engine/model/decoder_model.h"
#include "engine/model/step_input.h"
#include "engine/step_runner.h"
#include "kernels/backend.h"

namespace kivi {

// Memory for one prompt that is computed layer by layer; part of the store's.
struct LayerwiseArea {
  Tensor hidden;                 // [tokens, n] activations: the residual stream of all tokens
  std::byte* staging = nullptr;  // keys and values of one layer in 16 bits
  int64_t staging_pages = 0;
};

class ModelRunner : public StepRunner {
 public:
  // `store_memory` holds what `store` points at. Logits are computed for at most `logits_rows` rows
  // at a time, so that scoring a long prompt takes no more memory than sampling a full batch. The
  // backend must outlive the runner. `graphs`: decode steps are padded to one of a few sizes,
  // recorded and replayed, where the backend can.
  ModelRunner(Backend& backend, std::unique_ptr<DecoderModel> model, StepInput input,
              Buffer store_memory, const KvView& store, const LayerwiseArea& layerwise,
              Buffer sampled_ids, int logits_rows, bool graphs);

  ~ModelRunner() override { backend_.synchronize(); }

  // `pages` are the host's pages, one after the other. They must outlive the runner.
  void set_host_pages(std::byte* pages) { host_pages_ = pages; }

  void launch(const BatchPlan& plan) override;
  void sample(const BatchPlan& plan) override;
  void transfer(std::span<const KvTransfer> transfers) override;
  uint64_t transfers_done() override { return backend_.copied_beside(); }
  double transfer_seconds() const override { return backend_.seconds_beside(); }
  bool asynchronous() const override { return backend_.asynchronous(); }
  Result<std::vector<StepResult>> collect() override;
  void time_steps(bool on) override { timed_ = on; }
  std::optional<StepTimes> step_times() const override { return times_; }
  void observe_logits(LogitsObserver observer) override { logits_observer_ = std::move(observer); }

  // Device bytes of `sampled_ids`.
  static int64_t sampled_ids_bytes(int logits_rows) { return int64_t(logits_rows) * 4; }

 private:
  // A step between launch and collect.
  struct StepInFlight {
    std::vector<StepResult> results;
    std::vector<StepInput::WantedRow> wanted;
    std::vector<int> hidden;  // planned sequences, in the order of the model's sums
    int64_t block_begin = 0;
    int64_t block_count = 0;  // wanted rows being sampled; 0: none
    bool recorded = false;    // the logits of all rows are there
    std::optional<Error> error;
    int64_t number = -1;   // of a timed step, from 0; -1: not timed
    bool follows = false;  // the step before it was timed too
  };

  void run(const BatchPlan& plan, StepInFlight& step);
  static void fail(const BatchPlan& plan, StepInFlight& step, const std::exception& e);
  // The step's units of a prompt that is computed layer by layer.
  void run_layerwise(const BatchPlan& plan, StepInFlight& step);
  // The logits of all rows that input_ wants, and their tokens.
  void sample_wanted(const BatchPlan& plan, StepInFlight& step);
  // Adds the hidden states that the plan wants to the model's sums, one for each of its sequences.
  void add_hidden(const BatchPlan& plan, StepInFlight& step);
  void copy(const std::vector<KvCopy>& copies);
  // Layers and logits of a step in which every row decodes: padded, recorded, replayed.
  void decode(const BatchPlan& plan, const StepInFlight& step);
  // Enqueues the sampling of step.wanted[begin, begin + m). logits [m, vocab] f32.
  void sample_block(const BatchPlan& plan, StepInFlight& step, int64_t begin, const Tensor& logits);
  // Waits for the device and shows the wanted rows [begin, begin + m) to the observer. logits [m,
  // vocab] f32.
  void show_logits(const BatchPlan& plan, const StepInFlight& step, int64_t begin,
                   const Tensor& logits);
  // The first of the two marks (Backend::mark) of step `number`. Steps use the marks in turn.
  static int begin_mark(int64_t number) { return int(number * 2 % Backend::kMarks); }
  static int end_mark(int64_t number) { return begin_mark(number) + 1; }
  void mark_begin(const StepInFlight& step);
  // Waits for the block that is under way and puts its results where they belong.
  void collect_block(StepInFlight& step);
  void collect_hidden(StepInFlight& step);

  Backend& backend_;
  std::unique_ptr<DecoderModel> model_;
  StepInput input_;
  Buffer store_memory_;
  KvView store_;
  LayerwiseArea layerwise_;
  std::byte* host_pages_ = nullptr;
  Buffer sampled_ids_;  // [logits_rows] i32
  int logits_rows_;
  bool graphs_;

  bool timed_ = false;
  bool last_timed_ = false;
  int64_t steps_timed_ = 0;
  std::optional<StepTimes> times_;

  LogitsObserver logits_observer_;
  std::vector<float> logits_;  // [m, vocab], host; scratch

  std::deque<StepInFlight> in_flight_;  // at most two
  std::vector<SampleRow> rows_;         // scratch
  std::vector<SampledToken> samples_;   // scratch
};

}  // namespace kivi
