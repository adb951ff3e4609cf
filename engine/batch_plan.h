// SPDX-License-Identifier: Apache-2.0
// BatchPlan says what the next step computes. The Scheduler makes it, a StepRunner computes it, and
// the engine reads it again to commit and emit. It is valid for one step.
#pragma once

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

struct BatchPlan {
  std::vector<PlannedSequence> sequences;  // decodes first, then prompt chunks
  int rows = 0;                            // sum of counts
  bool empty() const { return sequences.empty(); }
};

}  // namespace kivi
