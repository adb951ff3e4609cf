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

// Ids of a text; where there is no tokenizer (an empty function), a text counts as a token for each
// four bytes, and there are no ids.
using Encode = std::function<std::vector<int32_t>(const std::string&)>;

// All conversations with two turns whose lengths are in [4, prompt_max] and [4, output_max], as
// vLLM's benchmark keeps them. Error: the file (its name is `file`) is no such JSON, or nothing is
// left of it.
Result<std::vector<Conversation>> parse_sharegpt(const std::string& json, const std::string& file,
                                                 int prompt_max, int output_max,
                                                 const Encode& encode);

}  // namespace kivi::load
