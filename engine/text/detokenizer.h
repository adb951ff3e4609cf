// SPDX-License-Identifier: Apache-2.0
// Detokenizer: ids in, whole UTF-8 out, a token at a time. For every split of the ids the pieces
// join to the same text, and that text is Tokenizer::decode of all of them.
#pragma once

#include <cstdint>
#include <string>

#include "base/utf8.h"
#include "engine/text/tokenizer.h"

namespace kivi {

// Where a text begins decides about the space that some tokenizers put before it
// (Tokenizer::strips_leading_space).
enum class TextStart {
  fresh,      // nothing before it: that space is taken away
  continued,  // it goes on from a text: a leading space belongs to it
};

// One owner at a time. The tokenizer outlives it.
class Detokenizer {
 public:
  Detokenizer(const Tokenizer& tokenizer, bool skip_special, TextStart start = TextStart::fresh);

  // Appends to `out` what `id` completes: nothing, if its bytes end inside a character.
  void push(int32_t id, std::string& out);

  // The end of the text: the start of a character that never was completed gives U+FFFD. May be
  // followed by more ids, whose text then starts at a character.
  void flush(std::string& out) { utf8_.flush(out); }

  // Returns true if the start of a character is held back.
  bool holding() const { return utf8_.holding(); }

  // True until a token has given a byte of text, unless a text came before.
  bool at_start() const { return at_start_; }

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  bool at_start_;
  Utf8Stream utf8_;
};

}  // namespace kivi
