// SPDX-License-Identifier: Apache-2.0
// Pass key retrieval (Mohtashami and Jaggi 2023): a number stands at some depth of a long text, and
// the model is asked for it at the end. Does it find what lies far back, in the quantized pages?
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/text/tokenizer.h"
#include "study/options.h"
#include "study/score.h"

namespace kivi {

struct PasskeyPrompt {
  std::string text;                      // filler, the key's sentence, filler, the question
  std::string key;                       // five digits
  std::vector<std::string> distractors;  // other numbers of five digits
  int tokens = 0;                        // of the prompt with BOS
};

// Sentences of a text: up to and with ".", "!" or "?" before white space; white space inside is one
// space.
std::vector<std::string> sentences_of(const std::string& text);

// The key's sentence stands after the first sentences that make `depth` of the filler's tokens; as
// many sentences of `filler` are taken, from the `trial`-th on and round again, as fit `length`
// tokens. The same arguments give the same prompt. Error invalid where not even the key and the
// question fit, or `filler` has no sentence.
Result<PasskeyPrompt> passkey_prompt(const std::vector<std::string>& filler,
                                     const Tokenizer& tokenizer, int length, double depth,
                                     const PasskeyOptions& options, int trial);

// The figures of one length and depth.
struct PasskeyScore {
  int length = 0;
  double depth = 0;
  int trials = 0;
  int found = 0;  // the greedy answer holds the key
  // Of trials with distractors:
  int likeliest = 0;     // the key's log probability is larger than every distractor's
  double rank_mean = 0;  // of the key among the distractors, from 1; 1 + distractors / 2 by chance
};

// All prompts of a measurement.
struct PasskeySet {
  std::vector<PasskeyScore> scores;    // a length and depth each; nothing is found yet
  std::vector<PasskeyPrompt> prompts;  // `trials` for each score
  std::vector<Continuation> keys;      // 1 + distractors for each prompt, the key first
};
// Errors are passkey_prompt's, and context_length where a prompt with its key (without
// distractors: with one token of the answer) has more than `tokens_max` tokens.
Result<PasskeySet> passkey_set(const std::vector<std::string>& filler, const Tokenizer& tokenizer,
                               const PasskeyOptions& options, int tokens_max);

// `set` is of the same tokenizer and options.
Result<std::vector<PasskeyScore>> measure_passkey(Engine& engine, const Tokenizer& tokenizer,
                                                  const PasskeySet& set,
                                                  const PasskeyOptions& options,
                                                  const ScoreProgress& progress = {});

}  // namespace kivi
