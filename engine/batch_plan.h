// SPDX-License-Identifier: Apache-2.0
// BatchPlan says what the next step computes. The Scheduler makes it, a StepRunner computes it, and
// the engine reads it again to commit and emit. It is valid for one step.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/step_view.h"

namespace kivi {

struct Sequence;

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
};

struct BatchPlan {
  std::vector<PlannedSequence> sequences;  // decodes first, then prompt chunks
  int rows = 0;                            // sum of counts
  std::vector<KvCopy> copies_before;       // in order, before the step
  std::vector<PlannedCapture> captures;
  std::vector<KvCopy> copies_after;  // in order, after the step
  bool empty() const { return sequences.empty(); }
};

}  // namespace kivi
