// SPDX-License-Identifier: Apache-2.0
// Prompts and lengths from a JSON file in ShareGPT's format: a list of conversations, each with
// "conversations": [{"from": "human"|..., "value": TEXT}, ...].
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"

namespace kivi::load {

// The first two turns of a conversation.
struct Conversation {
  std::string prompt;
  std::vector<int32_t> prompt_ids;  // where a tokenizer is at hand
  int prompt_tokens = 0;
  int output_tokens = 0;  // of the answer
};

// Returns the ids of a text. Without a tokenizer the function is empty: then there are no ids, and
// a text counts as one token for each four bytes.
using Encode = std::function<std::vector<int32_t>(const std::string&)>;

// Returns all conversations with two turns whose lengths are in [4, prompt_max] and [4,
// output_max], as the benchmark of vLLM does. Error: the text of the file `file` is no such JSON,
// or no conversation is left.
Result<std::vector<Conversation>> parse_sharegpt(const std::string& json, const std::string& file,
                                                 int prompt_max, int output_max,
                                                 const Encode& encode);

}  // namespace kivi::load
