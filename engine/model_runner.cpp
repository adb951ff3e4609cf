#include "engine/model_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>

#include "engine/sequence.h"

namespace kivi {

namespace {

// What the sampler needs for the token after `position`.
SampleRow sample_row(const Sequence& sequence, int position, bool scored) {
  const SamplingParams& p = sequence.request.sampling;
  SampleRow row;
  row.position = position + 1;
  row.seed = sequence.seed;
  if (scored) {
    row.forced_token = sequence.tokens[size_t(position) + 1];
    row.logprobs = p.prompt_logprobs;
    return row;
  }
  row.temperature = p.temperature;
  row.top_k = p.top_k;
  row.top_p = p.top_p;
  row.min_p = p.min_p;
  row.repetition_penalty = p.repetition_penalty;
  row.frequency_penalty = p.frequency_penalty;
  row.presence_penalty = p.presence_penalty;
  row.logprobs = p.logprobs;
  row.penalties = sequence.penalties;
  row.bias = sequence.bias;
  return row;
}

}  // namespace

ModelRunner::ModelRunner(Backend& backend, std::unique_ptr<DecoderModel> model, StepInput input,
                         Buffer store_memory, const KvView& store, Buffer sampled_ids,
                         int logits_rows)
    : backend_(backend),
      model_(std::move(model)),
      input_(std::move(input)),
      store_memory_(std::move(store_memory)),
      store_(store),
      sampled_ids_(std::move(sampled_ids)),
      logits_rows_(logits_rows) {}

void ModelRunner::launch(const BatchPlan& plan) {
  results_.assign(plan.sequences.size(), {});
  error_.reset();
  block_count_ = 0;
  try {
    run(plan);
  } catch (const std::exception& e) {
    error_ = Error{ErrorCode::internal,
                   fmt::format("a step of {} rows failed: {}", plan.rows, e.what())};
  }
}

Result<std::vector<StepResult>> ModelRunner::collect() {
  if (!error_) {
    try {
      collect_block();
    } catch (const std::exception& e) {
      error_ = Error{ErrorCode::internal, fmt::format("a step failed: {}", e.what())};
    }
  }
  if (error_) return *error_;
  return std::move(results_);
}

void ModelRunner::run(const BatchPlan& plan) {
  input_.fill(plan, store_.layout, model_->spec().sliding_window);
  model_->forward(input_.view(), store_);
  const int64_t wanted = int64_t(input_.wanted().size());
  for (int64_t begin = 0; begin < wanted; begin += logits_rows_) {
    collect_block();
    sample_block(plan, begin, std::min<int64_t>(logits_rows_, wanted - begin));
  }
}

void ModelRunner::sample_block(const BatchPlan& plan, int64_t begin, int64_t count) {
  rows_.clear();
  for (const StepInput::WantedRow& wanted : input_.wanted().subspan(size_t(begin), size_t(count)))
    rows_.push_back(sample_row(*plan.sequences[size_t(wanted.planned)].sequence, wanted.position,
                               wanted.scored));
  const Tensor logits = model_->logits(input_.gather(begin, count));       // [m, vocab]
  const Tensor ids = make_tensor(sampled_ids_.data(), DType::i32, count);  // [m]
  block_begin_ = begin;
  block_count_ = count;
  backend_.sample(logits, rows_, ids);
}

void ModelRunner::collect_block() {
  if (block_count_ == 0) return;
  samples_.clear();
  backend_.collect_samples(samples_);
  VERIFY(int64_t(samples_.size()) == block_count_);
  for (int64_t i = 0; i < block_count_; ++i) {
    const StepInput::WantedRow& wanted = input_.wanted()[size_t(block_begin_ + i)];
    StepResult& result = results_[size_t(wanted.planned)];
    if (wanted.scored)
      result.scored.push_back(std::move(samples_[size_t(i)]));
    else
      result.token = std::move(samples_[size_t(i)]);
  }
  block_count_ = 0;
}

}  // namespace kivi
