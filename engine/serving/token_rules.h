// SPDX-License-Identifier: Apache-2.0
// TokenRules is what a request demands of its tokens one by one, beside a format of its text:
// allowed_token_ids, bad_words, and min_tokens where a constraint decides on the end.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/text/tokenizer.h"
#include "engine/token_constraint.h"

namespace kivi {

// Immutable; the choices of a request share it. Any thread.
struct TokenRules {
  int vocab_size = 0;                        // of the logits
  std::vector<uint32_t> allowed;             // bit mask of what is sampled; empty = all tokens
  std::vector<std::vector<int32_t>> banned;  // these do not come one after another
  int min_tokens = 0;                        // `ends` do not come before this many tokens
  std::vector<int32_t> ends;
};

// Returns the mask of `ids`, each of which is in 0..vocab_size-1; empty if there are none.
std::vector<uint32_t> mask_of_tokens(const std::vector<int32_t>& ids, int vocab_size);

// Returns the token sequences that spell `words`: at the beginning of a text, inside one and behind
// a space. Error invalid, of bad_words, if a word has no token.
Result<std::vector<std::vector<int32_t>>> tokens_of_words(const std::vector<std::string>& words,
                                                          const Tokenizer& tokenizer);

// Makes the constraint of one choice. `format` is its constraint by a format, or null. A rule does
// not hold where it would leave no token at all. The format comes first, then `allowed`, then
// min_tokens, then `banned`.
std::shared_ptr<TokenConstraint> constrain(std::shared_ptr<const TokenRules> rules,
                                           std::shared_ptr<TokenConstraint> format);

}  // namespace kivi
