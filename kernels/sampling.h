// SPDX-License-Identifier: Apache-2.0
// What the sampler needs for one row of logits, and what it returns. Plain data.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace kivi {

// A token that penalties apply to. It occurs `output_count` times in the output.
struct PenaltyToken {
  int32_t id = 0;
  int32_t output_count = 0;
  int32_t in_prompt = 0;  // 1 if it occurs in the prompt
};

struct LogitBias {
  int32_t id = 0;
  float bias = 0;  // added to the logit; -infinity forbids the token
};

// One row to sample. The sampler applies, in this order: mask, repetition penalty, frequency and
// presence penalties, bias, temperature, top-k, top-p, min-p. It then takes argmax(logit /
// temperature + Gumbel noise) over the kept tokens. The noise of a token depends on (seed,
// position, token id) alone (kernels/philox.h), so the same seed gives the same text, whatever runs
// beside it. Log probabilities are log_softmax of the logits after penalties and bias and before
// temperature. Among equal logits at the border of top-k or top-p, the CPU keeps the lowest ids
// until the set is full, and CUDA keeps all.
struct SampleRow {
  float temperature = 1;  // 0 = greedy: the largest logit; the lowest id of equal ones
  int32_t top_k = 0;      // 0: off
  float top_p = 1;        // (0, 1]: keep the smallest set whose probability reaches it
  float min_p = 0;        // [0, 1): drop tokens below this share of the largest probability
  uint64_t seed = 0;
  int32_t position = 0;  // of the token to be sampled
  float repetition_penalty =
      1;  // > 0; divides positive and multiplies negative logits of seen tokens
  float frequency_penalty = 0;  // per occurrence in the output
  float presence_penalty = 0;   // once if in the output
  int32_t forced_token = -1;    // >= 0: this token is scored, not sampled (prompt logprobs)
  int32_t logprobs = -1;        // -1 = none; n >= 0 = the token's own and the n largest
  std::span<const PenaltyToken> penalties;  // host memory, alive until the results are collected
  std::span<const LogitBias> bias;          // the same; ids are unique
  // The tokens that may be chosen: bit id % 32 of word id / 32. [(vocab + 31) / 32] words in host
  // memory, which do not change until the results are collected. Empty = all tokens.
  std::span<const uint32_t> mask;
};

struct TokenLogprob {
  int32_t id = 0;
  float logprob = -std::numeric_limits<float>::infinity();
};

struct SampledToken {
  int32_t id = -1;
  float logprob = 0;              // of `id`; set if logprobs >= 0
  std::vector<TokenLogprob> top;  // largest first, `logprobs` entries; ties: lowest id first
  // The row's logits hold NaN or +infinity, or none that is finite: `id` means nothing.
  bool broken = false;
};

}  // namespace kivi
