// SPDX-License-Identifier: Apache-2.0
// Perplexity of a model on a text, through the engine: what `kivi eval` prints. Two protocols:
// windowed, the usual Transformers evaluation loop (and that of models/train.py), and strided, that
// of Transformers' page "Perplexity of fixed-length models".
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/text/tokenizer.h"
#include "study/score.h"

namespace kivi {

// The stories of a text: parts between "<|story|>" marks, stripped of white space, those of more
// than 200 characters.
std::vector<std::string> stories_of(const std::string& text);

// Each story opened by BOS (where the tokenizer has one) and closed by EOS, all concatenated.
std::vector<int32_t> ids_of(const std::vector<std::string>& stories, const Tokenizer& tokenizer);

// ids_of cut into consecutive windows of `window` ids; a rest at the end is left out. At most
// `windows_max` (0: all).
std::vector<std::vector<int32_t>> windows_of(const std::vector<std::string>& stories,
                                             const Tokenizer& tokenizer, int window,
                                             int windows_max);

struct Perplexity {
  int64_t tokens = 0;  // predicted
  double nll = 0;      // mean negative log likelihood of a predicted token, nats
  double perplexity = 0;
  std::vector<float> token_nll;  // of every predicted token, window after window
};

// Mean |nll - nll'| over the tokens of the same windows: how far two formats are apart. Differences
// of the means can cancel out; these cannot.
double mean_change(const Perplexity& a, const Perplexity& b);

// Scores every window as a prompt of its own; all its tokens but the first are predicted.
Result<Perplexity> measure_perplexity(Engine& engine,
                                      const std::vector<std::vector<int32_t>>& windows,
                                      const ScoreProgress& progress);

// --- strided ------------------------------------------------------------------------------------

// A window of ids [begin, end), of which the last `targets` are predicted with all before them as
// context. The first window's first token has no context and is a target only in name.
struct StridedWindow {
  int64_t begin = 0, end = 0;
  int64_t targets = 0;

  friend bool operator==(const StridedWindow&, const StridedWindow&) = default;
};

// Sliding windows of `window` ids, each `stride` <= window ids after the one before, until one
// reaches the end; at most `windows_max` (0: all).
std::vector<StridedWindow> strided_windows(int64_t ids, int window, int stride, int windows_max);

// From the windows' log probabilities as score_prompts gives them. Transformers weighs a window's
// mean loss by targets - 1, so that a window whose every target is predicted counts one token less
// than it has; so does this.
Perplexity strided_perplexity(const std::vector<StridedWindow>& windows,
                              const std::vector<std::vector<float>>& logprobs);

}  // namespace kivi
