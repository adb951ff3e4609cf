// SPDX-License-Identifier: Apache-2.0
// AddedTokens: finds the tokens that a tokenizer.json adds to its model (special or not) in a text,
// before the model sees what lies between them. The rules are those of tokenizers' AddedVocabulary:
// the leftmost, then the longest; a token that is not `normalized` is looked for in the text as it
// came, the others in the normalized text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/regex.h"
#include "base/result.h"

namespace kivi {

struct AddedTokenRule {
  int32_t id = 0;
  std::string content;  // not empty
  bool special = false, normalized = false;
  bool single_word = false;             // not beside a letter, a digit or _
  bool lstrip = false, rstrip = false;  // takes the spaces before (after) it along
};

// What a text that spells a special token means.
enum class SpecialText { stays_text, is_token };

// Immutable after load.
class AddedTokens {
 public:
  // Of two rules with one content the last counts.
  static Result<AddedTokens> load(const std::vector<AddedTokenRule>& rules);

  // A part of a text: a token, or what is left between tokens.
  struct Part {
    std::optional<int32_t> id;
    Span span;
  };
  // Appends the parts of `text` (valid UTF-8), none of them empty.
  void split(std::string_view text, SpecialText special, RegexScratch& scratch,
             std::vector<Part>& parts) const;

  bool empty() const { return !pattern_; }

 private:
  std::optional<Regex> pattern_, word_, space_;  // the latter of one character
  std::unordered_map<std::string, AddedTokenRule> rules_;
};

}  // namespace kivi
