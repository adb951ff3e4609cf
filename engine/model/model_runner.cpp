// SPDX-License-Identifier: Apache-2.0
#include "engine/model/model_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
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
  // Made while the device runs the layers. A token that is there already is not chosen again.
  const bool open =
      sequence.state != SequenceState::finished && int(sequence.tokens.size()) == position + 1;
  if (open && sequence.request.constraint != nullptr)
    row.mask = sequence.request.constraint->mask();
  return row;
}

// Sizes of recorded decode steps: powers of two to 8, multiples of 8 to 256, then of 32. A step is
// padded to the next one.
int recorded_rows(int rows) {
  if (rows <= 8) return int(std::bit_ceil(unsigned(rows)));
  const int stride = rows <= 256 ? 8 : 32;
  return (rows + stride - 1) / stride * stride;
}

bool every_row_decodes(const BatchPlan& plan) {
  return std::ranges::all_of(plan.sequences, [](const PlannedSequence& p) {
    return p.count == 1 && p.samples && p.mode == KvMode::append && !p.scores_prompt;
  });
}

}  // namespace

ModelRunner::ModelRunner(Backend& backend, std::unique_ptr<DecoderModel> model, StepInput input,
                         Buffer store_memory, const KvView& store, const LayerwiseArea& layerwise,
                         Buffer sampled_ids, int logits_rows, bool graphs)
    : backend_(backend),
      model_(std::move(model)),
      input_(std::move(input)),
      store_memory_(std::move(store_memory)),
      store_(store),
      layerwise_(layerwise),
      sampled_ids_(std::move(sampled_ids)),
      logits_rows_(logits_rows),
      graphs_(graphs) {}

void ModelRunner::launch(const BatchPlan& plan) {
  StepInFlight& step = in_flight_.emplace_back();
  step.results.resize(plan.sequences.size());
  if (timed_) step.number = steps_timed_++;
  step.follows = timed_ && last_timed_;
  last_timed_ = timed_;
  try {
    if (plan.after_transfers > 0) backend_.wait_beside(plan.after_transfers);
    copy(plan.copies_before);
    run(plan, step);
    copy(plan.copies_after);
  } catch (const std::exception& e) {
    fail(plan, step, e);
    mark_begin(step);
  }
}

void ModelRunner::sample(const BatchPlan& plan) {
  StepInFlight& step = in_flight_.back();
  try {
    if (step.error) {
      // Nothing has been computed.
    } else if (step.recorded) {
      sample_block(plan, step, 0, model_->logits_of(plan.rows));
    } else {
      sample_wanted(plan, step);
    }
  } catch (const std::exception& e) {
    fail(plan, step, e);
  }
  if (step.number >= 0) backend_.mark(end_mark(step.number));
}

void ModelRunner::fail(const BatchPlan& plan, StepInFlight& step, const std::exception& e) {
  step.error =
      Error{ErrorCode::internal, fmt::format("a step of {} rows failed: {}", plan.rows, e.what())};
}

Result<std::vector<StepResult>> ModelRunner::collect() {
  KIVI_VERIFY(!in_flight_.empty());
  StepInFlight step = std::move(in_flight_.front());
  in_flight_.pop_front();
  if (!step.error) {
    try {
      collect_block(step);
      collect_hidden(step);
    } catch (const std::exception& e) {
      step.error = Error{ErrorCode::internal, fmt::format("a step failed: {}", e.what())};
    }
  }
  times_.reset();
  if (step.error) return *step.error;
  if (step.follows)
    times_ = {.idle = backend_.seconds_between(end_mark(step.number - 1), begin_mark(step.number)),
              .busy = backend_.seconds_between(begin_mark(step.number), end_mark(step.number))};
  return std::move(step.results);
}

void ModelRunner::run(const BatchPlan& plan, StepInFlight& step) {
  if (!plan.layerwise.empty()) return run_layerwise(plan, step);
  if (graphs_ && backend_.asynchronous() && every_row_decodes(plan)) {
    decode(plan, step);
    step.wanted.assign(input_.wanted().begin(), input_.wanted().end());
    step.recorded = true;
    return;
  }
  input_.fill(plan, store_.layout);
  mark_begin(step);
  const Tensor sampled = make_tensor(sampled_ids_.data(), DType::i32, logits_rows_);
  backend_.resolve_ids(input_.view().token_ids, sampled);
  model_->forward(input_.view(), store_);
  add_hidden(plan, step);
}

void ModelRunner::add_hidden(const BatchPlan& plan, StepInFlight& step) {
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    const PlannedSequence& part = plan.sequences[i];
    if (part.hidden == HiddenRows::none) continue;
    // A prompt that is computed layer by layer comes here once for each of its chunks.
    if (step.hidden.empty() || step.hidden.back() != int(i)) {
      step.hidden.push_back(int(i));
      model_->clear_hidden(int64_t(step.hidden.size()) - 1);
    }
    const int64_t begin = input_.view().sequences[i].row_begin;
    const int64_t skipped = part.hidden == HiddenRows::last ? part.count - 1 : 0;
    model_->add_hidden(begin + skipped, part.count - skipped, int64_t(step.hidden.size()) - 1);
  }
}

void ModelRunner::collect_hidden(StepInFlight& step) {
  for (size_t i = 0; i < step.hidden.size(); ++i) {
    const Tensor sums = model_->hidden_sums(int64_t(i));
    std::vector<float>& hidden = step.results[size_t(step.hidden[i])].hidden;
    hidden.resize(size_t(sums.size()));
    backend_.download(hidden.data(), sums.data, size_t(sums.bytes()));
  }
}

void ModelRunner::sample_wanted(const BatchPlan& plan, StepInFlight& step) {
  const int64_t before = int64_t(step.wanted.size()), wanted = int64_t(input_.wanted().size());
  step.wanted.insert(step.wanted.end(), input_.wanted().begin(), input_.wanted().end());
  for (int64_t begin = 0; begin < wanted; begin += logits_rows_) {
    if (before + begin > 0)  // the sampler holds the blocks of two steps, and no more
      for (StepInFlight& s : in_flight_) collect_block(s);
    const int64_t count = std::min<int64_t>(logits_rows_, wanted - begin);
    const Tensor logits = model_->logits(input_.gather(begin, count));  // [m, vocab]
    sample_block(plan, step, before + begin, logits);
  }
}

void ModelRunner::run_layerwise(const BatchPlan& plan, StepInFlight& step) {
  const PlannedSequence& prompt = plan.sequences[0];
  const LayerwiseUnits& units = plan.layerwise;
  const int layers = store_.layout.shape.layers;
  const int chunks = (prompt.count + units.chunk_tokens - 1) / units.chunk_tokens;
  KIVI_VERIFY(plan.sequences.size() == 1 && prompt.past == 0 && units.end <= layers * chunks);
  KIVI_VERIFY(prompt.count <= layerwise_.hidden.rows());
  KvView view = store_;
  view.staging = layerwise_.staging;
  view.staging_page_count = layerwise_.staging_pages;
  const Tensor sampled = make_tensor(sampled_ids_.data(), DType::i32, logits_rows_);
  for (int unit = units.begin; unit < units.end; ++unit) {
    const int layer = unit / chunks, chunk = unit % chunks;
    BatchPlan chunk_plan;
    PlannedSequence part = prompt;
    part.past = chunk * units.chunk_tokens;
    part.count = std::min(units.chunk_tokens, prompt.count - part.past);
    part.mode = chunk + 1 == chunks ? KvMode::seal : KvMode::stage;
    part.samples = prompt.samples && unit + 1 == layers * chunks;
    part.scores_prompt = prompt.scores_prompt && layer + 1 == layers;
    const bool wanted =
        prompt.hidden == HiddenRows::all ? layer + 1 == layers : unit + 1 == layers * chunks;
    part.hidden = wanted ? prompt.hidden : HiddenRows::none;
    chunk_plan.sequences.push_back(part);
    chunk_plan.rows = part.count;
    for (const PlannedCapture& capture : plan.captures)
      if (part.past < capture.tokens && capture.tokens <= part.past + part.count)
        chunk_plan.captures.push_back(capture);
    input_.fill(chunk_plan, store_.layout);
    if (unit == units.begin) mark_begin(step);
    if (layer == 0) backend_.resolve_ids(input_.view().token_ids, sampled);
    view.staging_layer = layer;
    model_->forward_layers(input_.view(), view, layer, layer + 1,
                           layerwise_.hidden.slice_rows(part.past, part.count));
    add_hidden(chunk_plan, step);
    if (unit + 1 < units.end) sample_wanted(plan, step);  // the last ones wait for sample()
  }
}

void ModelRunner::transfer(std::span<const KvTransfer> transfers) {
  const int64_t bytes = store_.layout.page_bytes();
  std::vector<HostCopy> copies;
  copies.reserve(transfers.size());
  for (const KvTransfer& t : transfers) {
    std::byte* const device = store_.pages + t.page * bytes;
    std::byte* const host = host_pages_ + t.host_page * bytes;
    if (t.to == KvTransfer::To::host)
      copies.push_back({host, device, size_t(bytes)});
    else
      copies.push_back({device, host, size_t(bytes)});
  }
  backend_.copy_beside(copies);
}

void ModelRunner::copy(const std::vector<KvCopy>& copies) {
  const int64_t page = store_.layout.page_bytes(), slot = store_.layout.slot_bytes();
  const auto page_at = [&](int32_t id) { return store_.pages + id * page; };
  const auto slot_at = [&](int32_t id, int32_t piece) {
    return store_.slots + id * slot + piece * page;
  };
  for (const KvCopy& c : copies) {
    const size_t piece = size_t(std::min(page, slot - c.piece * page));
    switch (c.kind) {
      case KvCopy::Kind::page_to_page:
        backend_.copy(page_at(c.to), page_at(c.from), size_t(page));
        break;
      case KvCopy::Kind::page_to_slot:
        backend_.copy(slot_at(c.to, c.piece), page_at(c.from), piece);
        break;
      case KvCopy::Kind::slot_to_page:
        backend_.copy(page_at(c.to), slot_at(c.from, c.piece), piece);
        break;
      case KvCopy::Kind::slot_to_slot:
        backend_.copy(slot_at(c.to, 0), slot_at(c.from, 0), size_t(slot));
        break;
    }
  }
}

void ModelRunner::mark_begin(const StepInFlight& step) {
  if (step.number >= 0) backend_.mark(begin_mark(step.number));
}

void ModelRunner::decode(const BatchPlan& plan, const StepInFlight& step) {
  const int rows = std::min(recorded_rows(plan.rows), input_.limits().sequences);
  input_.fill(plan, store_.layout, rows);
  mark_begin(step);
  const Tensor sampled = make_tensor(sampled_ids_.data(), DType::i32, logits_rows_);
  // A step with groups has other kernels, and one with whole rests other grids.
  const uint64_t kernels = input_.view().groups.empty() ? 0 : input_.view().whole_rests ? 2 : 1;
  backend_.run_recorded(uint64_t(rows) * 3 + kernels, [&] {
    backend_.resolve_ids(input_.view().token_ids, sampled);
    model_->forward(input_.view(), store_);
    model_->logits(input_.gather(0, rows));
  });
}

void ModelRunner::sample_block(const BatchPlan& plan, StepInFlight& step, int64_t begin,
                               const Tensor& logits) {
  const int64_t count = logits.rows();
  rows_.clear();
  for (int64_t i = 0; i < count; ++i) {
    const StepInput::WantedRow& wanted = step.wanted[size_t(begin + i)];
    Sequence& sequence = *plan.sequences[size_t(wanted.planned)].sequence;
    rows_.push_back(sample_row(sequence, wanted.position, wanted.scored));
    if (!wanted.scored) sequence.sampled_row = int(i);
  }
  step.block_begin = begin;
  step.block_count = count;
  if (logits_observer_) show_logits(plan, step, begin, logits);
  backend_.sample(logits, rows_, make_tensor(sampled_ids_.data(), DType::i32, count));
}

void ModelRunner::show_logits(const BatchPlan& plan, const StepInFlight& step, int64_t begin,
                              const Tensor& logits) {
  KIVI_VERIFY(logits.contiguous());
  const size_t vocab = size_t(logits.row_size());
  logits_.resize(size_t(logits.rows()) * vocab);
  backend_.download(logits_.data(), logits.data, logits_.size() * sizeof(float));
  for (int64_t i = 0; i < logits.rows(); ++i) {
    const StepInput::WantedRow& wanted = step.wanted[size_t(begin + i)];
    const Sequence& sequence = *plan.sequences[size_t(wanted.planned)].sequence;
    logits_observer_(sequence.request.id, wanted.position,
                     std::span(logits_).subspan(size_t(i) * vocab, vocab));
  }
}

void ModelRunner::collect_block(StepInFlight& step) {
  if (step.block_count == 0) return;
  samples_.clear();
  backend_.collect_samples(samples_);
  KIVI_VERIFY(int64_t(samples_.size()) == step.block_count);
  for (int64_t i = 0; i < step.block_count; ++i) {
    const StepInput::WantedRow& wanted = step.wanted[size_t(step.block_begin + i)];
    StepResult& result = step.results[size_t(wanted.planned)];
    if (wanted.scored)
      result.scored.push_back(std::move(samples_[size_t(i)]));
    else
      result.token = std::move(samples_[size_t(i)]);
  }
  step.block_count = 0;
}

}  // namespace kivi
