// SPDX-License-Identifier: Apache-2.0
// VocabularyTokenizer: what tokenizers over a Vocabulary and AddedTokens have in common. They
// differ in how a text becomes ids, which is `ids_of`.
#pragma once

#include "engine/text/added_tokens.h"
#include "engine/text/tokenizer.h"
#include "engine/text/vocabulary.h"

namespace kivi {

class VocabularyTokenizer : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const final {
    return ids_of(text, add_special_tokens, SpecialText::stays_text, /*at_start=*/true);
  }
  std::vector<int32_t> encode_with_special(std::string_view text,
                                           bool add_special_tokens) const final {
    return ids_of(text, add_special_tokens, SpecialText::is_token, /*at_start=*/true);
  }
  std::vector<int32_t> encode_after_special(std::string_view text) const final {
    return ids_of(text, false, SpecialText::stays_text, /*at_start=*/false);
  }
  const std::string& token_bytes(int32_t id, bool skip_special) const final {
    return vocabulary_.bytes(id, skip_special);
  }
  std::string token_name(int32_t id) const final { return vocabulary_.name(id); }
  std::optional<int32_t> token_id(std::string_view name) const final {
    return vocabulary_.find(name);
  }
  int vocab_size() const final { return vocabulary_.size(); }
  std::optional<int32_t> bos_id() const final { return bos_; }
  std::optional<int32_t> eos_id() const final { return eos_; }

 protected:
  // As Tokenizer says; `at_start`: nothing stands before `text`.
  virtual std::vector<int32_t> ids_of(std::string_view text, bool add_special_tokens,
                                      SpecialText special, bool at_start) const = 0;

  Vocabulary vocabulary_;
  std::optional<int32_t> bos_, eos_;
};

}  // namespace kivi
