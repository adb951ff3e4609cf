// SPDX-License-Identifier: Apache-2.0
// The options of `kivi bench throughput`. Plain data.
#pragma once

#include <string>
#include <vector>

namespace kivi {

// A fixed length (min == max), or uniformly distributed in [min, max]. Tokens.
struct LengthRange {
  int min = 0;
  int max = 0;
  friend bool operator==(const LengthRange&, const LengthRange&) = default;
};

// `kivi bench throughput`.
struct ThroughputOptions {
  int num_prompts = 64;  // conversations
  int turns = 1;         // requests of a conversation, each with all that came before it
  int prefix_len = 0;    // tokens with which all first prompts begin, besides prompt_len
  LengthRange prompt_len{128, 128};
  LengthRange output_len{128, 128};
  std::vector<int> concurrency;  // requests in flight, one run each; empty: one run, all at once
  bool structured = false;       // every output is lines of JSON, so that every row has a mask
  std::string trace;             // file for the steps, a line each; "": none
};

}  // namespace kivi
