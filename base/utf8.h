// UTF-8 as RFC 3629 defines it (no surrogates, no overlong forms, at most U+10FFFF): checking,
// counting, and turning a stream of bytes into whole characters.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace kivi {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

bool is_valid_utf8(std::string_view text);

// `text` where it is valid; else `replaced`, which gets it with U+FFFD as Utf8Stream puts them.
std::string_view as_valid_utf8(std::string_view text, std::string& replaced);

// Characters (code points) of valid UTF-8.
int64_t utf8_length(std::string_view text);

// Bytes in, whole characters out, whatever the split: the start of a character is held back until
// its last byte is in. Bytes that can never become part of a character give U+FFFD, one for each
// maximal beginning of a character (Unicode 15, section 3.9; Python's errors="replace" does the
// same). One owner at a time; copyable.
class Utf8Stream {
 public:
  // Appends to `out` every character that `bytes` completes.
  void append(std::string_view bytes, std::string& out);

  // The end: what is held back gives U+FFFD.
  void flush(std::string& out);

  bool holding() const { return held_ > 0; }

 private:
  // Takes one byte that is not plain ASCII at a character's start.
  void take(unsigned char byte, std::string& out);

  char pending_[4] = {};  // the beginning of a character
  uint8_t held_ = 0;      // bytes in pending_
  uint8_t missing_ = 0;   // continuation bytes to come
  uint8_t low_ = 0x80;    // range of the next one
  uint8_t high_ = 0xBF;
};

}  // namespace kivi
