// SPDX-License-Identifier: Apache-2.0
#include "server/openai/json_scanner.h"

#include <cstdint>

#include "base/hex.h"
#include "base/utf8.h"

namespace kivi {

int escaped_unit(std::string_view text, size_t at) {
  if (at + 4 > text.size()) return -1;
  int value = 0;
  for (size_t i = at; i < at + 4; ++i) {
    const int digit = hex_digit(text[i]);
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

bool unquote_json(std::string_view json, std::string& out) {
  if (json.size() < 2 || json.front() != '"' || json.back() != '"') return false;
  for (size_t i = 1; i + 1 < json.size(); ++i) {
    if (json[i] != '\\') {
      out += json[i];
      continue;
    }
    const char c = json[++i];
    constexpr std::string_view kFrom = "nrtbf", kTo = "\n\r\t\b\f";
    if (const size_t at = kFrom.find(c); at != std::string_view::npos) {
      out += kTo[at];
    } else if (c == 'u') {
      int unit = escaped_unit(json, i + 1);
      if (unit < 0) return false;
      i += 4;
      uint32_t code = uint32_t(unit);
      if (code >= 0xD800 && code < 0xDC00 && json.substr(i + 1, 2) == "\\u") {
        const int low = escaped_unit(json, i + 3);
        if (low >= 0xDC00 && low < 0xE000) {
          code = 0x10000 + ((code - 0xD800) << 10) + uint32_t(low - 0xDC00);
          i += 6;
        }
      }
      append_utf8(out, code >= 0xD800 && code < 0xE000 ? 0xFFFD : code);
    } else {
      out += c;
    }
  }
  return true;
}

JsonValueScanner::State JsonValueScanner::take(char c) {
  if (string_) {
    if (escaped_)
      escaped_ = false;
    else if (c == '\\')
      escaped_ = true;
    else if (c == '"')
      string_ = false;
    return string_ || depth_ > 0 ? State::more : State::whole;
  }
  if (scalar_) {
    if (c == ',' || c == '}' || c == ']' || is_json_blank(c)) return State::whole_before;
    return State::more;
  }
  switch (c) {
    case '"':
      string_ = true;
      return State::more;
    case '{':
    case '[':
      ++depth_;
      return State::more;
    case '}':
    case ']':
      if (depth_ == 0) return State::wrong;
      return --depth_ == 0 ? State::whole : State::more;
    default:
      if (depth_ > 0 || is_json_blank(c)) return State::more;
      scalar_ = true;
      return c == ',' || c == ':' ? State::wrong : State::more;
  }
}

}  // namespace kivi
