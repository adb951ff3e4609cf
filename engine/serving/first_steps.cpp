// SPDX-License-Identifier: Apache-2.0
#include "engine/serving/first_steps.h"

#include <algorithm>

#include "engine/sequence.h"

namespace kivi {
namespace {

constexpr int kPromptTokens = 32;  // with the token after it, less than a page

Status run_step(StepRunner& runner, Sequence& sequence, int past, int count) {
  BatchPlan plan;
  plan.rows = count;
  plan.sequences.push_back({.sequence = &sequence,
                            .past = past,
                            .count = count,
                            .mode = KvMode::append,
                            .completes = true,
                            .samples = true});
  runner.launch(plan);
  runner.sample(plan);
  const auto results = runner.collect();
  return results.ok() ? ok_status() : Status(results.error());
}

}  // namespace

Status run_first_steps(StepRunner& runner, int rows_max) {
  const int prompt = std::clamp(rows_max - 1, 1, kPromptTokens);
  Sequence sequence;
  sequence.prompt_tokens = sequence.prefill_tokens = prompt;
  sequence.tokens.assign(size_t(prompt) + 1, 0);
  sequence.kv.pages = {0};
  sequence.kv.slot = 0;
  KIVI_RETURN_IF_ERROR(run_step(runner, sequence, 0, prompt));
  // A device may run a shape as it is when it comes first, and record it when it comes again.
  for (int i = 0; i < 2; ++i) KIVI_RETURN_IF_ERROR(run_step(runner, sequence, prompt, 1));
  return ok_status();
}

}  // namespace kivi
