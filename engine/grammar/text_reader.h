// SPDX-License-Identifier: Apache-2.0
// A place in a text, as the readers of grammars and of regular expressions have it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace kivi::grammar {

class TextReader {
 protected:
  explicit TextReader(std::string_view text) : text_(text) {}

  bool ends() const { return at_ >= text_.size(); }
  char peek(size_t ahead = 0) const {
    return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0';
  }
  bool take(std::string_view what) {
    if (text_.substr(at_, what.size()) != what) return false;
    at_ += what.size();
    return true;
  }
  // Takes a whole character. The text must not have ended. Returns nothing if one of the
  // character's bytes is missing; other faults of UTF-8 are not looked for.
  std::optional<uint32_t> take_character() {
    const auto head = uint8_t(text_[at_++]);
    if (head < 0x80) return head;
    const int more = head >= 0xF0 ? 3 : head >= 0xE0 ? 2 : 1;
    uint32_t c = head & (0x3Fu >> more);
    for (int i = 0; i < more; ++i) {
      if ((uint8_t(peek()) & 0xC0) != 0x80) return std::nullopt;
      c = c << 6 | (uint8_t(text_[at_++]) & 0x3Fu);
    }
    return c;
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace kivi::grammar
