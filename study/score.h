// SPDX-License-Identifier: Apache-2.0
// Log probabilities of given tokens, through the engine: what perplexity, choices and pass keys are
// made of.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "engine/text/tokenizer.h"

namespace kivi {

// Gets the rows of all steps so far.
using ScoreProgress = std::function<void(int64_t rows_done)>;

// result[i][j] = log p(prompts[i][j + 1] | prompts[i][0 .. j]), nats: one fewer than the prompt has
// tokens. Every prompt is a request of its own whose id is its index, as logits observers see it.
// Which numbers attention reads is the engine's configuration: prefill mode stream with chunks of
// one token reads the history from the store, as decoding does; larger chunks read their own tokens
// in 16 bits. Runs the engine's steps on the caller's thread. Errors are the engine's.
Result<std::vector<std::vector<float>>> score_prompts(
    Engine& engine, const std::vector<std::vector<int32_t>>& prompts,
    const ScoreProgress& progress = {});

// A text after another one, as one prompt. The ids are those of both texts together; as many as the
// first has alone are the context (lm-evaluation-harness counts the same way). White space at the
// end of `context` is taken to the continuation, since tokenizers put it at the front of words.
struct Continuation {
  std::vector<int32_t> prompt;  // BOS (where the tokenizer has one), both texts
  int context_tokens = 0;       // at least 1; the rest is the continuation, at least 1
};
// Error invalid where either text has no tokens.
Result<Continuation> continuation_of(const Tokenizer& tokenizer, std::string context,
                                     std::string_view continuation);

// Sum of the log probabilities of each continuation.
Result<std::vector<double>> score_continuations(Engine& engine,
                                                const std::vector<Continuation>& continuations,
                                                const ScoreProgress& progress = {});

}  // namespace kivi
