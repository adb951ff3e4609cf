// Perplexity of a model on a text, through the engine: what `kivi eval` prints. The protocol is
// that of the usual Transformers evaluation loop (and of models/train.py), so that figures compare.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/tokenizer.h"

namespace kivi {

// The stories of a text: parts between "<|story|>" marks, stripped of white space, those of more
// than 200 characters.
std::vector<std::string> stories_of(const std::string& text);

// Each story opened by BOS (where the tokenizer has one) and closed by EOS, all concatenated, cut
// into consecutive windows of `window` ids; a rest at the end is left out. At most `windows_max`
// (0: all).
std::vector<std::vector<int32_t>> windows_of(const std::vector<std::string>& stories,
                                             const Tokenizer& tokenizer, int window,
                                             int windows_max);

struct Perplexity {
  int64_t tokens = 0;  // predicted: window - 1 of each window
  double nll = 0;      // mean negative log likelihood of a predicted token, nats
  double perplexity = 0;
  std::vector<float> token_nll;  // of every predicted token, window after window
};

// Mean |nll - nll'| over the tokens of the same windows: how far two formats are apart. Differences
// of the means can cancel out; these cannot.
double mean_change(const Perplexity& a, const Perplexity& b);

// Scores every window as a prompt of its own. Which numbers attention reads is the engine's
// configuration: prefill mode stream with chunks of one token reads the history from the store, as
// decoding does; larger chunks read their own tokens in 16 bits. Runs the engine's steps on the
// caller's thread. `progress` gets the steps' rows.
Result<Perplexity> measure_perplexity(Engine& engine,
                                      const std::vector<std::vector<int32_t>>& windows,
                                      const std::function<void(int64_t rows_done)>& progress);

}  // namespace kivi
