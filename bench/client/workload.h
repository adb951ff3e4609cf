// SPDX-License-Identifier: Apache-2.0
// The work of a run: what is asked, how long, what is cut short. A pure function of its options, so
// that the same seed asks the same of every server, at every rate and concurrency.
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
  int prefix_count = 1;     // so many different beginnings
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

// The requests of run `run` of a sweep: the same lengths in every run, but other tokens, so that
// what a server keeps of one run's prompts helps none of the next one's; shared prefixes stay.
std::vector<LoadRequest> make_workload(const WorkloadOptions& options, int run);

// options.count requests with prompts and lengths of `conversations` (not empty), in an order of
// the seed's that is the same in every run; none is asked twice before all were asked. The warm-up
// takes them from the order's end. Ids where the conversations have them, else texts.
std::vector<LoadRequest> make_workload(const WorkloadOptions& options,
                                       const std::vector<Conversation>& conversations, int run);

// Number of the run that warms up.
inline constexpr int kWarmUpRun = 1 << 20;

// `count` words that are one token each in the usual vocabularies, each after a space but the
// first.
std::string words_of(uint64_t seed, uint64_t stream, int count);

}  // namespace kivi::load
