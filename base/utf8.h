// SPDX-License-Identifier: Apache-2.0
// Checks and counts UTF-8, and turns a stream of bytes into whole characters. UTF-8 is that of
// RFC 3629: no surrogates, no overlong forms, at most U+10FFFF.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace kivi {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

bool is_valid_utf8(std::string_view text);

// Appends a character (code point).
void append_utf8(std::string& out, char32_t c);

// Returns `text` if it is valid. Otherwise writes it to `replaced`, with U+FFFD where Utf8Stream
// puts it, and returns that.
std::string_view as_valid_utf8(std::string_view text, std::string& replaced);

// Returns the number of characters (code points) of valid UTF-8.
int64_t utf8_length(std::string_view text);

// Takes bytes and yields whole characters, however the bytes are split. The start of a character is
// held back until its last byte is there. Bytes that can never become part of a character yield
// U+FFFD, one for each maximal beginning of a character (Unicode 15, section 3.9; Python's
// errors="replace" does the same). One owner at a time. Copyable.
class Utf8Stream {
 public:
  // Appends to `out` every character that `bytes` completes.
  void append(std::string_view bytes, std::string& out);

  // Ends the stream. Bytes that are held back yield U+FFFD.
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
