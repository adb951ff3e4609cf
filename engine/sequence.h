// SPDX-License-Identifier: Apache-2.0
// Sequence is the engine's record of a request. Plain data. Engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/block_name.h"
#include "engine/request.h"
#include "engine/token_stream.h"

namespace kivi {

// A slab (residual and sinks) as it was after `tokens` tokens, in pages: a checkpoint that is not
// remembered yet, because its tokens are not all known on the host.
struct CapturedSlab {
  int tokens = 0;
  bool branch = false;   // sequences part here
  bool rolling = false;  // replaces the sequence's last such checkpoint
  bool settled = false;  // its step has been collected
  std::vector<int32_t> pages;
  bool complete = false;  // the values of all tokens before it are in pages too
};

// A slab that is captured while a prompt is computed layer by layer. It is complete after the last
// layer.
struct HeldCapture {
  int tokens = 0;
  bool branch = false;
  int32_t slot = -1;
};

// A boundary at which a checkpoint is wanted.
struct WantedCheckpoint {
  int tokens = 0;
  bool branch = false;
};

// What a sequence holds of the KvCache. Only KvCache writes it.
struct SequenceKv {
  std::vector<int32_t> pages;          // page i holds tokens [i P, (i + 1) P), P = page_tokens
  std::vector<int32_t> staging_pages;  // while its prompt is in flight in mode exact, chunked
  int32_t slot = -1;                   // residual slot; -1: none held
  int tokens = 0;                      // cached
  bool layerwise = false;              // holds the area of prompts that are computed layer by layer
  int layerwise_units = 0;             // of such a prompt, computed so far
  std::vector<HeldCapture> held;       // of such a prompt

  // What follows is the prefix cache's (prefix_cache.h).
  int reused = 0;   // of `tokens`, taken from the cache
  int settled = 0;  // of `tokens`, in pages and slot, by steps that were collected
  // Paged positions whose values are in pages although the residual may have some of them. Other
  // sequences may hold these pages, so the values are not written again.
  int values_stored = 0;
  std::vector<uint64_t> chains;          // hash of all tokens up to the end of block k
  int remembered = 0;                    // blocks
  uint64_t path = 0;                     // node of the last of them; 0: none
  uint64_t rolling = 0;                  // node of the last rolling checkpoint; 0: none
  std::vector<int32_t> pinned;           // pages that this step's copies read
  std::vector<WantedCheckpoint> wanted;  // checkpoints to capture, ascending
  std::vector<CapturedSlab> captured;    // checkpoints that are not remembered yet

  // And this is the host tier's (kv_tier.h).
  std::vector<BlockName> names;  // of the whole blocks of its tokens
  int offered = 0;               // blocks that have been offered to it
  int rolling_block = -1;        // whose checkpoint the next rolling one replaces; -1: none
};

struct Tenant;  // fair_queue.h

enum class SequenceState { waiting, running, finished };

struct Sequence {
  Request request;  // its prompt has moved to `tokens`
  std::shared_ptr<TokenStream> stream;
  uint64_t order = 0;        // admission order; the smallest is the oldest
  uint64_t seed = 0;         // resolved
  Tenant* tenant = nullptr;  // of the scheduler's queue, while the sequence waits or runs
  int charged_tokens = 0;    // of its first tokens, counted for the tenant
  bool deferred = false;     // not admitted in this plan: a running sequence computes its prefix
  int cached_tokens = -1;    // prompt tokens that were reused at the first admission; -1: none yet
  SequenceState state = SequenceState::waiting;

  std::vector<int32_t> tokens;  // prompt, then output; -1 = a step that is running samples it
  int prompt_tokens = 0;
  // The number of tokens that are computed as prompt chunks. At first these are the prompt's
  // tokens. After a preemption they are all tokens so far, because they are computed again.
  int prefill_tokens = 0;
  int preemptions = 0;
  int fetches = 0;  // times that its first tokens were asked back from the host tier
  SequenceKv kv;
  // The row in which the newest step puts this sequence's sampled id on the device. It stands for a
  // token that is not known yet (-1 in `tokens`). The runner writes it.
  int sampled_row = 0;

  std::vector<int32_t> stop_ids;        // EOS (unless ignored) and stop_token_ids, sorted
  std::vector<LogitBias> bias;          // logit_bias (and forbidden ids while min_tokens is unmet)
  std::vector<PenaltyToken> penalties;  // unique tokens, by id; empty if no penalty is on
  std::vector<SampledToken> prompt_logprobs;
  std::vector<double>
      hidden;  // sum of the hidden states that have been collected; empty = none yet
  RequestTimes times;

  // Returns true if every token of the prompt must be computed for it, and not taken from a cache.
  bool needs_whole_prompt() const {
    return (request.sampling.prompt_logprobs >= 0 || request.pooling == Pooling::mean) &&
           output_tokens() == 0;
  }
  int output_tokens() const { return int(tokens.size()) - prompt_tokens; }
  bool prefilling() const { return kv.tokens < prefill_tokens; }
  // Returns true if nothing is left to plan: all tokens are known or being computed.
  bool complete() const { return !prefilling() && output_tokens() >= request.sampling.max_tokens; }
  // Returns true if what may come next, or its logits, depends on the last token's id.
  bool needs_last_token() const { return request.constraint != nullptr || penalized(); }
  bool penalized() const {
    const SamplingParams& p = request.sampling;
    return p.presence_penalty != 0 || p.frequency_penalty != 0 || p.repetition_penalty != 1;
  }
};

// Makes the sequence for a validated request. `seed` is used if the request has none. The inbox
// sets `order`. Any thread.
std::unique_ptr<Sequence> make_sequence(Request request, std::shared_ptr<TokenStream> stream,
                                        uint64_t seed, std::span<const int32_t> eos_token_ids);

// Appends a placeholder (-1) for the token that a step samples, and sets the bias of the token
// after it. Engine thread.
void push_placeholder(Sequence& sequence);
// Replaces the placeholder at `position` by `id`, and updates the penalties of the tokens after it.
// Returns the reason if the sequence ends with this token: `error` if its constraint does not take
// the token. Engine thread.
std::optional<FinishReason> set_sampled(Sequence& sequence, int position, int32_t id);

}  // namespace kivi
