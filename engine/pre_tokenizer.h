// PreTokenizer: the part of a tokenizer.json that cuts a text into the pieces inside which
// byte-level BPE merges, and writes their bytes as characters (GPT-2's alphabet: every byte is a
// visible character, "Ġ" is the space).
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/regex.h"
#include "kernels/result.h"

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

// Immutable after load.
class PreTokenizer {
 public:
  // From tokenizer.json's "pre_tokenizer": ByteLevel, Split, Digits, Punctuation, and Sequences of
  // them with exactly one ByteLevel. Everything else is an error (unsupported) that names it.
  static Result<PreTokenizer> load(const nlohmann::json& description);

  // `text` is valid UTF-8 below 2 GiB. `mapped` gets it in the byte alphabet, `pieces` its pieces.
  void split(std::string_view text, RegexScratch& scratch, std::string& mapped,
             std::vector<Span>& pieces) const;

 private:
  struct Step {
    std::optional<Regex> regex;  // none: from here on the text is in the byte alphabet
    SplitBehavior behavior = SplitBehavior::isolated;
    bool invert = false;  // what does not match is what matches
  };
  Status add(const nlohmann::json& description);
  Status add_split(const nlohmann::json& description);
  Status add_pattern(const std::string& pattern, SplitBehavior behavior, bool invert);
  void map_to_alphabet(std::string& text, std::vector<Span>& pieces) const;

  ByteAlphabet alphabet_;
  std::vector<Step> steps_;
};

}  // namespace kivi
