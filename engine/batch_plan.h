// SPDX-License-Identifier: Apache-2.0
// BatchPlan says what the next step computes. The Scheduler makes it, a StepRunner computes it, and
// the engine reads it again to commit and emit. It is valid for one step.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/step_view.h"

namespace kivi {

struct Sequence;

// The rows of a part whose final hidden states are summed.
enum class HiddenRows : uint8_t { none, last, all };

// The tokens [past, past + count) of one sequence.
struct PlannedSequence {
  Sequence* sequence = nullptr;
  int past = 0;
  int count = 0;
  KvMode mode = KvMode::append;
  bool completes = false;  // the last row is the sequence's newest token
  bool samples = false;    // the next token is sampled from the last row's logits
  bool scores_prompt =
      false;  // every row whose successor is a prompt token is scored (prompt_logprobs)
  HiddenRows hidden = HiddenRows::none;
  // KIVI formats: the values before this paged position are also written to pages, although the
  // residual keeps the last of them (StepSequence::values_to).
  int values_to = 0;
  // The part is a whole prompt, which is computed layer by layer: BatchPlan::layerwise says how
  // much of it in this step.
  bool layerwise = false;
};

// What a step computes of a prompt that is computed layer by layer. A unit is one chunk in one
// layer. The units are in the order of the layers, and within a layer in the order of the chunks.
struct LayerwiseUnits {
  int begin = 0;
  int end = 0;  // behind the last; begin == end: the step has no such prompt
  int chunk_tokens = 0;
  bool empty() const { return begin == end; }
};

// A copy within the store, of one page's bytes. A slot is `piece` after piece of that size; the
// last piece may be shorter.
struct KvCopy {
  enum class Kind : uint8_t { page_to_page, page_to_slot, slot_to_page, slot_to_slot };
  Kind kind;
  int32_t from;
  int32_t to;
  int32_t piece;  // of the slot; slot_to_slot copies the whole slot
};

// While a part is computed, its tokens up to `tokens` are stored a second time, with `slot` for
// their residual. So `slot` has the slab as it is after `tokens` tokens.
struct PlannedCapture {
  int planned = 0;  // index in BatchPlan::sequences
  int tokens = 0;   // past < tokens <= past + count of that part
  int32_t slot = -1;
  int values_to = 0;  // as in PlannedSequence
};

// A copy of one page between the store and the host's pages (kv_tier.h).
struct KvTransfer {
  enum class To : uint8_t { host, device };
  To to;
  int32_t page;
  int32_t host_page;
};

struct BatchPlan {
  // Enqueued before the step, as one batch that runs beside it. Empty: no batch.
  std::vector<KvTransfer> transfers;
  // The step waits until this many batches are done. All batches count that were ever enqueued, and
  // that of this plan too.
  uint64_t after_transfers = 0;

  std::vector<PlannedSequence> sequences;  // decodes first, then prompt chunks
  int rows = 0;                            // sum of counts; layerwise: its share of the prompt
  LayerwiseUnits layerwise;                // of sequences[0], which is then the only one
  std::vector<KvCopy> copies_before;       // in order, before the step
  std::vector<PlannedCapture> captures;
  std::vector<KvCopy> copies_after;  // in order, after the step
  bool empty() const { return sequences.empty(); }
};

}  // namespace kivi
