// Sequence: the engine's record of a running request. Plain data; engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/request.h"
#include "engine/token_stream.h"

namespace kivi {

// What a sequence holds of the KvCache. Written by KvCache alone.
struct SequenceKv {
  std::vector<int32_t> pages;          // page i holds tokens [i P, (i + 1) P)
  std::vector<int32_t> staging_pages;  // while its prompt is in flight in mode exact, chunked
  int32_t slot = -1;                   // residual slot; -1: none held
  int tokens = 0;                      // cached
};

struct Tenant;  // fair_queue.h

enum class SequenceState { waiting, running, finished };

struct Sequence {
  Request request;  // its prompt has moved to `tokens`
  std::shared_ptr<TokenStream> stream;
  uint64_t order = 0;        // admission order; the smallest is the oldest
  uint64_t seed = 0;         // resolved
  Tenant* tenant = nullptr;  // of the scheduler's queue, while the sequence waits or runs
  int charged_tokens = 0;    // the first so many tokens have been counted for the tenant
  SequenceState state = SequenceState::waiting;

  std::vector<int32_t> tokens;  // prompt, then output; -1 where a step under way samples it
  int prompt_tokens = 0;
  // Tokens that are computed as prompt chunks. prompt_tokens at first; after a preemption all
  // tokens there were, so that they are computed again.
  int prefill_tokens = 0;
  int preemptions = 0;
  SequenceKv kv;
  // Where the newest step that samples for this sequence puts the id on the device: what stands in
  // for a token that is not known yet (-1 in `tokens`). Written by the runner.
  int sampled_row = 0;

  std::vector<int32_t> stop_ids;        // EOS (unless ignored) and stop_token_ids, sorted
  std::vector<LogitBias> bias;          // logit_bias (and forbidden ids while min_tokens is unmet)
  std::vector<PenaltyToken> penalties;  // unique tokens, by id; kept only where a penalty is on
  std::vector<SampledToken> prompt_logprobs;
  RequestTimes times;

  int output_tokens() const { return int(tokens.size()) - prompt_tokens; }
  bool prefilling() const { return kv.tokens < prefill_tokens; }
  // All its tokens are there or under way: nothing is left to be planned.
  bool complete() const { return !prefilling() && output_tokens() >= request.sampling.max_tokens; }
  bool penalized() const {
    const SamplingParams& p = request.sampling;
    return p.presence_penalty != 0 || p.frequency_penalty != 0 || p.repetition_penalty != 1;
  }
};

// The sequence of a validated request. `seed` is used where the request has none. `order` is given
// by the inbox. Any thread.
std::unique_ptr<Sequence> make_sequence(Request request, std::shared_ptr<TokenStream> stream,
                                        uint64_t seed, std::span<const int32_t> eos_token_ids);

// Makes place for the token that the step just launched samples: -1 in `tokens`, and the bias of
// the token after it. Engine thread, both.
void push_placeholder(Sequence& sequence);
// The token under way at `position` is `id`; the penalties of the tokens after it follow. Returns
// why the sequence ends with it; nothing where it goes on.
std::optional<FinishReason> set_sampled(Sequence& sequence, int position, int32_t id);

}  // namespace kivi
