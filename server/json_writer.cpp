// SPDX-License-Identifier: Apache-2.0
#include "server/json_writer.h"

#include <array>
#include <charconv>
#include <cmath>

namespace kivi {
namespace {

// What a byte needs inside a JSON string: 0 nothing, 'u' \u00XX, 'x' a look at the whole UTF-8
// character, else the letter after the backslash.
constexpr std::array<char, 256> make_escapes() {
  std::array<char, 256> table{};
  for (int i = 0; i < 0x20; ++i) table[size_t(i)] = 'u';
  for (int i = 0x80; i < 0x100; ++i) table[size_t(i)] = 'x';
  table['"'] = '"';
  table['\\'] = '\\';
  table['\b'] = 'b';
  table['\f'] = 'f';
  table['\n'] = 'n';
  table['\r'] = 'r';
  table['\t'] = 't';
  table[0x7f] = 'u';
  return table;
}
constexpr std::array<char, 256> kEscapes = make_escapes();

uint8_t byte_at(std::string_view text, size_t i) { return static_cast<uint8_t>(text[i]); }

// The length in bytes of the UTF-8 character at the start of `text`, 0 where there is none (RFC
// 3629: no overlong forms, no surrogates, nothing beyond U+10FFFF).
int character_bytes(std::string_view text) {
  if (text.empty()) return 0;
  const uint8_t first = byte_at(text, 0);
  if (first < 0x80) return 1;
  // The second byte's range excludes overlong forms (E0, F0), surrogates (ED) and > 10FFFF (F4).
  int length = 0;
  uint8_t low = 0x80, high = 0xBF;
  if (first >= 0xC2 && first <= 0xDF) {
    length = 2;
  } else if (first >= 0xE0 && first <= 0xEF) {
    length = 3;
    if (first == 0xE0) low = 0xA0;
    if (first == 0xED) high = 0x9F;
  } else if (first >= 0xF0 && first <= 0xF4) {
    length = 4;
    if (first == 0xF0) low = 0x90;
    if (first == 0xF4) high = 0x8F;
  } else {
    return 0;
  }
  if (text.size() < size_t(length)) return 0;
  if (byte_at(text, 1) < low || byte_at(text, 1) > high) return 0;
  for (int i = 2; i < length; ++i)
    if ((byte_at(text, size_t(i)) & 0xC0) != 0x80) return 0;
  return length;
}

// The escape of a character that is legal inside a JSON string, but at which some clients' line
// readers split (Python's str.splitlines); null for every other.
const char* line_separator(std::string_view character) {
  if (character == "\xC2\x85") return "\\u0085";
  if (character == "\xE2\x80\xA8") return "\\u2028";
  if (character == "\xE2\x80\xA9") return "\\u2029";
  return nullptr;
}

}  // namespace

void append_json_string(std::string& out, std::string_view text) {
  constexpr char kHex[] = "0123456789abcdef";
  out.push_back('"');
  size_t clean = 0;  // [clean, i) needs no change
  for (size_t i = 0; i < text.size();) {
    const uint8_t byte = byte_at(text, i);
    const char escape = kEscapes[byte];
    if (escape == 0) {
      ++i;
      continue;
    }
    if (escape == 'x') {
      const int length = character_bytes(text.substr(i));
      if (const char* escaped = line_separator(text.substr(i, size_t(length)))) {
        out.append(text.substr(clean, i - clean)).append(escaped);
        clean = i += size_t(length);
        continue;
      }
      if (length > 0) {
        i += size_t(length);
        continue;
      }
    }
    out.append(text.substr(clean, i - clean));
    if (escape == 'x') {
      out.append("\xEF\xBF\xBD");
    } else if (escape == 'u') {
      out.append("\\u00");
      out.push_back(kHex[byte >> 4]);
      out.push_back(kHex[byte & 15]);
    } else {
      out.push_back('\\');
      out.push_back(escape);
    }
    clean = ++i;
  }
  out.append(text.substr(clean));
  out.push_back('"');
}

void append_json_int(std::string& out, int64_t value) {
  char digits[24];
  const auto [end, error] = std::to_chars(digits, digits + sizeof digits, value);
  out.append(digits, end);
}

void append_json_float(std::string& out, float value) {
  if (std::isnan(value)) {
    out.append("null");
    return;
  }
  if (std::isinf(value)) {
    out.append(value < 0 ? "-9999.0" : "9999.0");
    return;
  }
  char digits[64];
  const auto [end, error] = std::to_chars(digits, digits + sizeof digits, value);
  out.append(digits, end);
}

}  // namespace kivi
