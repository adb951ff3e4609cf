// SPDX-License-Identifier: Apache-2.0
// All that crosses between the front ends' threads and the engine's: Request in, TokenEvent out.
// Plain data.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/token_constraint.h"
#include "kernels/sampling.h"

namespace kivi {

using Clock = std::chrono::steady_clock;

struct SamplingParams {
  float temperature = 1;
  float top_p = 1;
  int top_k = 0;  // 0 or -1: off
  float min_p = 0;
  std::optional<uint64_t> seed;
  int max_tokens = 16;  // >= 0; 0 only scores the prompt
  int min_tokens = 0;   // EOS and stop ids are forbidden before (not with a constraint)
  bool ignore_eos = false;
  std::vector<int32_t> stop_token_ids;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  float repetition_penalty = 1;
  std::vector<LogitBias> logit_bias;
  int logprobs = -1;         // -1: none; n: the token's own and the n largest
  int prompt_logprobs = -1;  // the same for prompt tokens (the first has none)
};

// Errors name the field, its value and what was expected. `vocab_size`, `max_logprobs` bound ids.
Status validate(const SamplingParams& p, int vocab_size, int max_logprobs);

// What is made of a prompt's final hidden states (after the last norm) instead of tokens.
enum class Pooling : uint8_t {
  none,  // nothing: the request samples tokens
  last,  // the hidden state of the last token
  mean,  // the mean of all tokens' hidden states
};

struct Request {
  std::string id;
  std::vector<int32_t> prompt;  // at least one token
  SamplingParams sampling;
  Pooling pooling = Pooling::none;              // else max_tokens is 0
  std::shared_ptr<TokenConstraint> constraint;  // this request's own; null = none
  int priority = 0;                             // lower goes first (policy `priority`)
  std::string tenant;      // whom the tokens are counted for (policy `fair`); "" is a tenant too
  bool cache = true;       // false: reuse no earlier tokens, and keep none of these
  std::string cache_salt;  // only requests of the same salt share tokens
  Clock::time_point arrival = Clock::now();
  std::optional<Clock::time_point> deadline;
};

enum class FinishReason { stop, length, abort, error };
const char* name_of(FinishReason r);

// When things happened to a request; for metrics. Zero time_points: not reached.
struct RequestTimes {
  Clock::time_point arrival, first_scheduled, first_token, finished;
};

// One event of a request: where asked for, prompt logprobs once (an event of their own, id -1),
// then a token at a time, the last event with `finish` set. An event may carry `finish` without a
// token (id -1): abort, error, max_tokens 0.
struct TokenEvent {
  int32_t id = -1;
  float logprob = 0;
  std::vector<TokenLogprob> top;
  std::vector<SampledToken> prompt_logprobs;  // [prompt - 1]: of prompt tokens 1, 2, ...
  std::vector<float> hidden;                  // [n], on the last event of a request that pools
  std::optional<FinishReason> finish;
  bool stopped_by_token = false;  // finish stop: `id` is EOS or one of stop_token_ids
  std::optional<Error> error;     // finish error (or abort by deadline)
  int cached_tokens = 0;          // prompt tokens reused; filled on the last event
  RequestTimes times;             // filled on the last event
};

}  // namespace kivi
