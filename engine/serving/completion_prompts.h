// SPDX-License-Identifier: Apache-2.0
// Checks the parameters of a completion and turns its prompts into ids.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/result.h"
#include "engine/serving/completion.h"
#include "engine/serving/token_rules.h"

namespace kivi {

// Checks ranges and combinations of everything but the prompts' contents. Errors name the field of
// the API.
Status validate(const CompletionRequest& request, const ServedModel& model);

using PromptIds = std::shared_ptr<const std::vector<int32_t>>;

// Returns the ids of each prompt: at least one, all in the model's vocabulary, cut to
// truncate_prompt_tokens at the side that the request names. Errors name `prompt`.
Result<std::vector<PromptIds>> encode_prompts(const CompletionRequest& request,
                                              const ServedModel& model);

// Returns what the request demands of single tokens, or null if it demands nothing. Error invalid,
// of bad_words.
Result<std::shared_ptr<const TokenRules>> rules_of(const CompletionRequest& request,
                                                   const ServedModel& model);

// The number of engine requests: prompts x best_of. Error invalid (n, best_of or prompt) where so
// many fit neither into the queue nor into the running batch.
Result<int> count_choices(const CompletionRequest& request, const ServedModel& model);

// Error invalid where the reply may become larger than max_reply_bytes. The error names the field
// that makes it large. `prompts`: as encoded.
Status check_reply_bytes(const CompletionRequest& request, const std::vector<PromptIds>& prompts,
                         const ServedModel& model);

// The engine's seed of choice k of a request that has one: choice 0 uses the seed itself, so that
// n = 1 and n = 2 agree on it.
uint64_t seed_of_choice(uint64_t seed, int k);

}  // namespace kivi
