// SPDX-License-Identifier: Apache-2.0
#include "base/utf8.h"

#include <cstring>

namespace kivi {
namespace {

// How a character that starts with `lead` goes on: continuation bytes, and the range of the first
// of them (Unicode 15, table 3-7). 0 bytes: `lead` starts no character of several bytes.
struct Lead {
  uint8_t missing;
  uint8_t low, high;
};

Lead classify(unsigned char lead) {
  if (lead < 0xC2) return {0, 0, 0};
  if (lead < 0xE0) return {1, 0x80, 0xBF};
  if (lead == 0xE0) return {2, 0xA0, 0xBF};
  if (lead == 0xED) return {2, 0x80, 0x9F};  // no surrogates
  if (lead < 0xF0) return {2, 0x80, 0xBF};
  if (lead == 0xF0) return {3, 0x90, 0xBF};
  if (lead < 0xF4) return {3, 0x80, 0xBF};
  if (lead == 0xF4) return {3, 0x80, 0x8F};  // at most U+10FFFF
  return {0, 0, 0};
}

// Length of the ASCII run at the start of `text`.
size_t ascii_prefix(std::string_view text) {
  size_t i = 0;
  for (uint64_t word; i + 8 <= text.size(); i += 8) {
    std::memcpy(&word, text.data() + i, 8);
    if (word & 0x8080808080808080u) break;
  }
  while (i < text.size() && static_cast<unsigned char>(text[i]) < 0x80) ++i;
  return i;
}

}  // namespace

bool is_valid_utf8(std::string_view text) {
  for (size_t i = ascii_prefix(text); i < text.size();) {
    const Lead lead = classify(text[i]);
    if (lead.missing == 0 || text.size() - i <= lead.missing) return false;
    const auto second = static_cast<unsigned char>(text[i + 1]);
    if (second < lead.low || second > lead.high) return false;
    for (int k = 2; k <= lead.missing; ++k) {
      if ((text[i + k] & 0xC0) != 0x80) return false;
    }
    i += 1 + lead.missing;
    i += ascii_prefix(text.substr(i));
  }
  return true;
}

void append_utf8(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += char(c);
  } else if (c < 0x800) {
    out += {char(0xC0 | c >> 6), char(0x80 | (c & 0x3F))};
  } else if (c < 0x10000) {
    out += {char(0xE0 | c >> 12), char(0x80 | (c >> 6 & 0x3F)), char(0x80 | (c & 0x3F))};
  } else {
    out += {char(0xF0 | c >> 18), char(0x80 | (c >> 12 & 0x3F)), char(0x80 | (c >> 6 & 0x3F)),
            char(0x80 | (c & 0x3F))};
  }
}

int64_t utf8_length(std::string_view text) {
  int64_t count = 0;
  for (char c : text) count += (c & 0xC0) != 0x80;
  return count;
}

void Utf8Stream::append(std::string_view bytes, std::string& out) {
  while (!bytes.empty()) {
    if (held_ == 0) {
      const size_t plain = ascii_prefix(bytes);
      out.append(bytes.substr(0, plain));
      bytes.remove_prefix(plain);
      if (bytes.empty()) return;
    }
    take(bytes.front(), out);
    bytes.remove_prefix(1);
  }
}

void Utf8Stream::take(unsigned char byte, std::string& out) {
  if (held_ > 0 && (byte < low_ || byte > high_)) flush(out);  // `byte` may start the next one
  if (held_ == 0) {
    const Lead lead = classify(byte);
    if (byte < 0x80) {
      out.push_back(char(byte));
    } else if (lead.missing == 0) {
      out.append(kReplacementCharacter);
    } else {
      pending_[0] = char(byte);
      held_ = 1;
      missing_ = lead.missing;
      low_ = lead.low;
      high_ = lead.high;
    }
    return;
  }
  pending_[held_++] = char(byte);
  low_ = 0x80;
  high_ = 0xBF;
  if (--missing_ == 0) {
    out.append(pending_, held_);
    held_ = 0;
  }
}

void Utf8Stream::flush(std::string& out) {
  if (held_ > 0) out.append(kReplacementCharacter);
  held_ = 0;
}

std::string_view as_valid_utf8(std::string_view text, std::string& replaced) {
  if (is_valid_utf8(text)) return text;
  Utf8Stream stream;
  stream.append(text, replaced);
  stream.flush(replaced);
  return replaced;
}

}  // namespace kivi
