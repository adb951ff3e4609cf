// SPDX-License-Identifier: Apache-2.0
// Tokenizer: text <-> token ids. Implementations are immutable after load and may be used from any
// thread at once.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace kivi {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Ids of `text`; with BOS first (and EOS last) where add_special_tokens and the model adds one.
  // Any bytes are taken: what is not UTF-8 is read as U+FFFD. Text that spells a special token
  // ("</s>") stays text, so that a prompt cannot forge one; Hugging Face parses it instead.
  virtual std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const = 0;

  // The same, but text that spells a special token is that token: for text that we have put
  // together, such as a rendered chat template. Hugging Face's default.
  virtual std::vector<int32_t> encode_with_special(std::string_view text,
                                                   bool add_special_tokens) const {
    return encode(text, add_special_tokens);
  }

  // Ids of a part of a text that follows a special token (a chat's prompt): as encode without
  // special tokens, but where a space is put before the beginning of a text only.
  virtual std::vector<int32_t> encode_after_special(std::string_view text) const {
    return encode(text, false);
  }

  // The bytes that `id` stands for inside a text: "▁king" -> " king", "<0x0A>" -> "\n". Special
  // tokens give their spelling where !skip_special, else nothing. Ids outside the vocabulary give
  // nothing. The string lives as long as the tokenizer.
  virtual const std::string& token_bytes(int32_t id, bool skip_special) const = 0;

  // The vocabulary's own spelling ("▁king", "<0x0A>", "</s>").
  virtual std::string token_name(int32_t id) const = 0;
  virtual std::optional<int32_t> token_id(std::string_view name) const = 0;

  // Returns true if the tokenizer puts a space before a text that decode must remove again.
  // (SentencePiece models with a dummy prefix: the first token's leading space is not part of the
  // text.)
  virtual bool strips_leading_space() const = 0;

  virtual int vocab_size() const = 0;

  // A text of n bytes has at least n / this many tokens. 0: nothing can be said (a tokenizer that
  // shortens texts first).
  virtual int longest_token_bytes() const { return 0; }
  virtual std::optional<int32_t> bos_id() const = 0;
  virtual std::optional<int32_t> eos_id() const = 0;
  virtual std::string kind() const = 0;  // "sentencepiece bpe", ...

  // The whole text of `ids`: what a Detokenizer gives when it is fed all of them and flushed.
  std::string decode(std::span<const int32_t> ids, bool skip_special) const;
};

// Loads the tokenizer of a model folder: tokenizer.model (SentencePiece), else tokenizer.json
// (byte-level BPE), with the JSON files beside it; or the one in a GGUF file. Errors name the file.
Result<std::unique_ptr<Tokenizer>> load_tokenizer(const std::string& path);

}  // namespace kivi
