// SPDX-License-Identifier: Apache-2.0
#include "server/openai/json_scanner.h"

#include <cstdint>

#include "base/hex.h"

namespace kivi {

bool unquote_json(std::string_view json, std::string& out) {
  if (json.size() < 2 || json.front() != '"' || json.back() != '"') return false;
  const auto hex = [&](size_t at) {
    int value = 0;
    for (size_t i = at; i < at + 4; ++i) {
      const int digit = i < json.size() ? hex_digit(json[i]) : -1;
      if (digit < 0) return -1;
      value = value * 16 + digit;
    }
    return value;
  };
  const auto put = [&](uint32_t c) {
    const auto byte = [&](uint32_t bits) { out += char(uint8_t(bits)); };
    if (c < 0x80) {
      byte(c);
    } else if (c < 0x800) {
      byte(0xC0 | c >> 6), byte(0x80 | (c & 63));
    } else if (c < 0x10000) {
      byte(0xE0 | c >> 12), byte(0x80 | (c >> 6 & 63)), byte(0x80 | (c & 63));
    } else {
      byte(0xF0 | c >> 18), byte(0x80 | (c >> 12 & 63)), byte(0x80 | (c >> 6 & 63));
      byte(0x80 | (c & 63));
    }
  };
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
      int unit = hex(i + 1);
      if (unit < 0) return false;
      i += 4;
      uint32_t code = uint32_t(unit);
      if (code >= 0xD800 && code < 0xDC00 && json.substr(i + 1, 2) == "\\u") {
        const int low = hex(i + 3);
        if (low >= 0xDC00 && low < 0xE000) {
          code = 0x10000 + ((code - 0xD800) << 10) + uint32_t(low - 0xDC00);
          i += 6;
        }
      }
      put(code >= 0xD800 && code < 0xE000 ? 0xFFFD : code);
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
