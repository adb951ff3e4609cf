// BatchPlan: what the next step computes. Made by Scheduler, run by a StepRunner, read again by
// commit and emit. Valid for one step.
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
  bool completes = false;  // its last row is the newest token there is
  bool samples = false;    // the last row's logits give the next token
  bool scores_prompt =
      false;  // every row whose successor is a prompt token is scored (prompt_logprobs)
};

struct BatchPlan {
  std::vector<PlannedSequence> sequences;  // decodes first, then prompt chunks
  int rows = 0;                            // sum of counts
  bool empty() const { return sequences.empty(); }
};

}  // namespace kivi
