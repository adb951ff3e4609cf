// ModelRunner: the StepRunner of the product. A step is: fill the input, run the layers, then,
// block by block of gathered rows, logits and sampler. Owns the model and the store's memory.
// Engine thread only.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "engine/decoder_model.h"
#include "engine/step_input.h"
#include "engine/step_runner.h"
#include "kernels/backend.h"

namespace kivi {

class ModelRunner : public StepRunner {
 public:
  // `store_memory` holds what `store` points at. Logits are computed for at most `logits_rows` rows
  // at a time, so that scoring a long prompt takes no more memory than sampling a full batch. The
  // backend must outlive the runner.
  ModelRunner(Backend& backend, std::unique_ptr<DecoderModel> model, StepInput input,
              Buffer store_memory, const KvView& store, Buffer sampled_ids, int logits_rows);

  void launch(const BatchPlan& plan) override;
  Result<std::vector<StepResult>> collect() override;

  // Device bytes of `sampled_ids`.
  static int64_t sampled_ids_bytes(int logits_rows) { return int64_t(logits_rows) * 4; }

 private:
  void run(const BatchPlan& plan);
  // Samples wanted rows [begin, begin + count) of the input.
  void sample_block(const BatchPlan& plan, int64_t begin, int64_t count);
  // Waits for the block that is under way and puts its results where they belong.
  void collect_block();

  Backend& backend_;
  std::unique_ptr<DecoderModel> model_;
  StepInput input_;
  Buffer store_memory_;
  KvView store_;
  Buffer sampled_ids_;  // [logits_rows] i32
  int logits_rows_;

  // The step under way.
  std::vector<StepResult> results_;
  std::vector<SampleRow> rows_;  // of the block under way
  std::vector<SampledToken> samples_;
  int64_t block_begin_ = 0;
  int64_t block_count_ = 0;  // 0: none under way
  std::optional<Error> error_;
};

}  // namespace kivi
