// SPDX-License-Identifier: Apache-2.0
// PreTokenizer: the part of a tokenizer.json that cuts a text into the pieces inside which BPE
// merges, and writes spaces as visible characters: for byte-level BPE all bytes (GPT-2's alphabet,
// where "Ġ" is the space), for SentencePiece's kind the spaces alone ("▁", Metaspace).
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/regex.h"
#include "base/result.h"

namespace kivi {

// The characters that stand for bytes: U+0021-007E, 00A1-00AC, 00AE-00FF for themselves, U+0100 and
// on for the others in order.
class ByteAlphabet {
 public:
  static constexpr int kCharacters = 256 + 68;  // code points below it; not all are in use
  ByteAlphabet();

  // One character or two bytes of UTF-8.
  std::string_view character(unsigned char byte) const { return characters_[byte]; }
  // -1: no character of the alphabet.
  int byte(uint32_t code_point) const { return code_point < kCharacters ? bytes_[code_point] : -1; }
  // The bytes that `text` writes; none if a character of it is not in the alphabet.
  std::optional<std::string> decode(std::string_view text) const;

 private:
  std::array<std::string, 256> characters_;
  std::array<int16_t, kCharacters> bytes_;
};

// What becomes of the matches of a pattern (tokenizers' SplitDelimiterBehavior).
enum class SplitBehavior { removed, isolated, contiguous, merged_with_previous, merged_with_next };

// In what the pieces are written: as they are in the (normalized) text, or in the byte alphabet.
enum class Pieces { text, byte_alphabet };

class TokenizerPart;

// Immutable after load.
class PreTokenizer {
 public:
  // From tokenizer.json's "pre_tokenizer": ByteLevel, Metaspace, Split, Digits, Punctuation, and
  // Sequences of them, with one ByteLevel where the pieces are in the byte alphabet, else with
  // none; null leaves the text in one piece. Everything else is an error (unsupported) that names
  // it.
  static Result<PreTokenizer> load(const nlohmann::json& description, Pieces pieces);

  // Returns true if a step drops what its pattern finds.
  bool removes_text() const;

  // `text` is valid UTF-8 below 1 GiB. `mapped` gets it rewritten (byte alphabet, visible spaces),
  // `pieces` its pieces. at_text_start: nothing, not even a special token, stands before `text`.
  void split(std::string_view text, bool at_text_start, RegexScratch& scratch, std::string& mapped,
             std::vector<Span>& pieces) const;

 private:
  enum class Prefix { always, at_text_start };
  struct Step {
    enum class Kind { split, prefix, replace_spaces, byte_level };
    Kind kind = Kind::split;
    std::optional<Regex> regex;  // split
    SplitBehavior behavior = SplitBehavior::isolated;
    bool invert = false;  // what does not match is what matches
    std::string text;     // prefix, replace_spaces
    Prefix prefix = Prefix::always;
  };
  static Step prefix_step(std::string text, Prefix prefix);
  Status add(const nlohmann::json& description);
  Status add_metaspace(const TokenizerPart& part);
  Status add_split(const TokenizerPart& part);
  Status add_pattern(const std::string& pattern, SplitBehavior behavior, bool invert);

  ByteAlphabet alphabet_;
  std::vector<Step> steps_;
};

}  // namespace kivi
