// SPDX-License-Identifier: Apache-2.0
// TextNormalizer: the part of a tokenizer.json that rewrites a text before it is cut
// ("normalizer"): Prepend, Replace of a string, NFC, and Sequences of them.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace kivi {

// Immutable after load.
class TextNormalizer {
 public:
  // null: nothing is rewritten. Everything that is not listed above is an error (unsupported) that
  // names it.
  static Result<TextNormalizer> load(const nlohmann::json& description);

  bool empty() const { return steps_.empty(); }
  // Returns true if the text may get shorter.
  bool shortens() const;
  // `text` is valid UTF-8, and so is the result.
  std::string apply(std::string_view text) const;

 private:
  enum class Kind { prepend, replace, nfc };
  struct Step {
    Kind kind;
    std::string from, to;
  };
  Status add(const nlohmann::json& description);
  std::vector<Step> steps_;
};

// `text` with every `from` (not empty) replaced by `to`, left to right.
std::string replace_all(std::string_view text, std::string_view from, std::string_view to);

// Unicode's normalization form C of valid UTF-8.
std::string to_nfc(std::string_view text);

}  // namespace kivi
