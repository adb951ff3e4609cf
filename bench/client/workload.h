// SPDX-License-Identifier: Apache-2.0
// The work of a run: prompts, lengths, and which requests are cancelled. It is a pure function of
// its options, so the same seed sends the same requests to every server, at every rate and
// concurrency.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/client/lengths.h"
#include "bench/client/sharegpt.h"

namespace kivi::load {

enum class PromptFormat { ids, text };

struct WorkloadOptions {
  int count = 100;
  uint64_t seed = 0;
  Lengths prompt;  // of a whole prompt, a shared prefix included
  Lengths output;
  PromptFormat format = PromptFormat::ids;
  int vocab_size = 0;       // ids: prompts are drawn from its middle half, away from special tokens
  int prefix_tokens = 0;    // beginning that prompts share; longer than a prompt: cut to it
  int prefix_count = 1;     // different common beginnings
  double cancel_share = 0;  // of the requests, in [0, 1]
  int cancel_after = 1;     // tokens, after which these are cut
};

struct LoadRequest {
  std::vector<int32_t> ids;  // format ids
  std::string text;          // format text
  int prompt_tokens = 0;     // as asked for; of a text: words, which the server may count otherwise
  int max_tokens = 0;
  int cancel_after = 0;  // tokens; 0: runs to its end
};

// Makes the requests of run `run` of a sweep. Every run has the same lengths and other tokens, so a
// server's cache of one run's prompts does not help the next run. Shared prefixes stay the same.
std::vector<LoadRequest> make_workload(const WorkloadOptions& options, int run);

// Makes options.count requests with the prompts and lengths of `conversations` (not empty). The
// seed decides their order, which is the same in every run. No conversation comes twice before all
// came once. The warm-up takes them from the end of the order. Prompts are ids if the conversations
// have ids.
std::vector<LoadRequest> make_workload(const WorkloadOptions& options,
                                       const std::vector<Conversation>& conversations, int run);

// The run number of the warm-up.
inline constexpr int kWarmUpRun = 1 << 20;

// Returns `count` words, separated by spaces, that are one token each in the usual vocabularies.
std::string words_of(uint64_t seed, uint64_t stream, int count);

}  // namespace kivi::load
