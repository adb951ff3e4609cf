// SPDX-License-Identifier: Apache-2.0
// The scheduler's part for prompts that are computed layer by layer
// (docs/design/decisions/032-layer-by-layer.md).
#include <algorithm>

#include "base/verify.h"
#include "engine/scheduler.h"

namespace kivi {
namespace {

// A history of this many tokens costs a row about as much as the products of its layer do. It
// depends on the model (27,000 tokens for Llama-3-8B); a small number makes steps shorter.
constexpr int64_t kHistoryTokens = 16384;

}  // namespace

bool Scheduler::layerwise(const Sequence& s) const {
  return exact_ && s.prefill_tokens > chunk_tokens_ && !staged(s) &&
         s.prefill_tokens <= cache_.capacity().layerwise_tokens;
}

Sequence* Scheduler::layerwise_prompt() const {
  if (cache_.layerwise_free()) return nullptr;
  for (const auto& [unused, s] : running_)
    if (s->kv.layerwise) return s.get();
  return nullptr;
}

// A slab is captured by every layer in turn, so it needs a slot until the last one. kSlotsLeft
// slots stay free for sequences that can still be admitted. Where prompts part comes first: from
// there on other prompts are continued for certain.
void Scheduler::hold_captures(Sequence& s) {
  constexpr int kSlotsLeft = 2;
  // The sequence itself does not count as running yet.
  const int left = std::min(kSlotsLeft, seqs_max_ - running() - 1);
  std::vector<WantedCheckpoint> held;
  for (const WantedCheckpoint& wanted : s.kv.wanted) {
    const int32_t slot = cache_.slots_free() > left ? cache_.take_slot() : -1;
    if (slot < 0) break;
    held.push_back(wanted);
    s.kv.held.push_back({wanted.tokens, wanted.branch, slot});
  }
  s.kv.wanted = std::move(held);
}

// A step takes as many units as a full step of rows without a history costs, and at least one.
void Scheduler::plan_layerwise(BatchPlan& plan, Sequence& s) {
  const int chunk = rows_max_, layers = cache_.layout().shape.layers;
  const int chunks = (s.prefill_tokens + chunk - 1) / chunk, units = layers * chunks;
  const auto rows_of = [&](int unit) {
    return std::min(chunk, s.prefill_tokens - unit % chunks * chunk);
  };
  const auto cost = [&](int unit) {
    return int64_t(rows_of(unit)) * (kHistoryTokens + int64_t(unit % chunks) * chunk);
  };
  // All rows that are scored or pooled are those of one step: of the last one, which takes the
  // whole last layer.
  const bool whole = s.needs_whole_prompt();
  const int end = whole && s.kv.layerwise_units < units - chunks ? units - chunks : units;
  plan.layerwise = {s.kv.layerwise_units, s.kv.layerwise_units, chunk};
  int64_t left = int64_t(rows_max_) * layers * kHistoryTokens;
  do {
    left -= cost(plan.layerwise.end++);
  } while (plan.layerwise.end < end &&
           (cost(plan.layerwise.end) <= left || (whole && end == units)));

  PlannedSequence part = part_from(s, 0, false);
  part.completes = plan.layerwise.end == units;
  part.samples = part.completes && s.request.sampling.max_tokens > 0;
  part.scores_prompt = part.completes && s.request.sampling.prompt_logprobs >= 0 &&
                       s.output_tokens() == 0 && s.prompt_tokens > 1;
  if (part.completes && s.request.pooling != Pooling::none)
    part.hidden = s.request.pooling == Pooling::mean ? HiddenRows::all : HiddenRows::last;
  // The step's share of the prompt: rows of all units before, averaged over the layers.
  const auto rows_until = [&](int unit) {
    return (int64_t(unit / chunks) * s.prefill_tokens + int64_t(unit % chunks) * chunk) / layers;
  };
  plan.rows = int(rows_until(plan.layerwise.end) - rows_until(plan.layerwise.begin));
  plan.sequences.push_back(part);
  queue_.charge(s, 0, s.prefill_tokens);
  for (const HeldCapture& held : s.kv.held)
    plan.captures.push_back(
        {0, held.tokens, held.slot, keys_paged(cache_.layout().format, held.tokens)});
  if (!part.completes) return;

  for (const HeldCapture& held : s.kv.held) {
    if (has_checkpoint_room())
      copy_slab(plan, s.kv, held.slot,
                {.tokens = held.tokens, .branch = held.branch, .complete = true});
    cache_.give_back_slot(held.slot);
  }
  s.kv.held.clear();
  s.kv.wanted.clear();
}

}  // namespace kivi
