// SPDX-License-Identifier: Apache-2.0
#include "server/openai/long_values.h"

#include <algorithm>

#include "base/utf8.h"
#include "server/openai/json_scanner.h"

namespace kivi {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Where the string that began before `begin` ends: its closing quote, or npos.
size_t string_end(std::string_view body, size_t begin) {
  for (size_t at = begin;; ++at) {
    at = body.find('"', at);
    if (at == body.npos) return at;
    size_t backslashes = 0;
    while (at - backslashes > begin && body[at - backslashes - 1] == '\\') ++backslashes;
    if (backslashes % 2 == 0) return at;
  }
}

// Appends what the escape behind the backslash at `at` stands for, and moves `at` behind it. False:
// it is none.
bool take_escape(std::string_view raw, size_t& at, std::string& out) {
  constexpr std::string_view kFrom = "\"\\/bfnrt", kTo = "\"\\/\b\f\n\r\t";
  const char kind = at + 1 < raw.size() ? raw[at + 1] : '\0';
  if (const size_t place = kFrom.find(kind); place != kFrom.npos) {
    out += kTo[place];
    at += 2;
    return true;
  }
  const int unit = kind == 'u' ? escaped_unit(raw, at + 2) : -1;
  if (unit < 0 || (unit >= 0xDC00 && unit < 0xE000)) return false;
  at += 6;
  if (unit < 0xD800 || unit >= 0xE000) {
    append_utf8(out, char32_t(unit));
    return true;
  }
  const int low = raw.substr(at, 2) == "\\u" ? escaped_unit(raw, at + 2) : -1;
  if (low < 0xDC00 || low >= 0xE000) return false;
  append_utf8(out, 0x10000 + (char32_t(unit - 0xD800) << 10) + char32_t(low - 0xDC00));
  at += 6;
  return true;
}

// What a string holds. Nothing if JSON does not allow it.
std::optional<std::string> unescaped(std::string_view raw) {
  unsigned char least = 0xFF;  // without a way out of the loop, so that it is vectorized
  for (const char c : raw) least = std::min(least, static_cast<unsigned char>(c));
  if (least < 0x20 || !is_valid_utf8(raw)) return std::nullopt;
  std::string out;
  out.reserve(raw.size());
  for (size_t at = 0; at < raw.size();) {
    const size_t backslash = std::min(raw.find('\\', at), raw.size());
    out.append(raw, at, backslash - at);
    at = backslash;
    if (at < raw.size() && !take_escape(raw, at, out)) return std::nullopt;
  }
  return out;
}

// Reads a list of whole numbers below a billion, behind its bracket at `at`. True: `at` is behind
// its end. False: it is no such list, and `at` is where that shows.
bool take_list(std::string_view body, size_t& at, std::vector<uint32_t>& values) {
  constexpr size_t kDigitsMax = 9;
  const auto skip_blanks = [&] {
    while (at < body.size() && is_json_blank(body[at])) ++at;
  };
  for (;;) {
    skip_blanks();
    const size_t begin = at;
    uint32_t value = 0;
    for (; at < body.size() && is_digit(body[at]) && at - begin < kDigitsMax; ++at)
      value = value * 10 + uint32_t(body[at] - '0');
    if (at == begin || (body[begin] == '0' && at - begin > 1)) return false;
    values.push_back(value);
    skip_blanks();
    if (at == body.size()) return false;
    if (body[at] == ']') {
      ++at;
      return true;
    }
    if (body[at] != ',') return false;
    ++at;
  }
}

}  // namespace

std::optional<BodyOutline> outline_of(std::string_view body) {
  BodyOutline outline;
  size_t lists = 0, texts = 0;
  size_t copied = 0;  // the bytes of `body` before this one stand in the outline
  const auto put = [&](size_t begin, size_t end, std::string_view instead) {
    outline.body.append(body, copied, begin - copied);
    outline.body += instead;
    copied = end;
  };
  std::vector<uint32_t> values;
  for (size_t at = 0; at < body.size();) {
    const size_t begin = at++;
    if (body[begin] == '"') {
      const size_t quote = string_end(body, at);
      if (quote == body.npos) return std::nullopt;
      if (quote - at >= kLongTextBytes) {
        auto text = unescaped(body.substr(at, quote - at));
        if (!text) return std::nullopt;
        put(begin, quote + 1, "\"\"");
        outline.texts.push_back({texts, std::move(*text)});
      }
      ++texts;
      at = quote + 1;
    } else if (body[begin] == '[') {
      values.clear();
      if (take_list(body, at, values) && values.size() >= kLongListValues) {
        put(begin, at, "[]");
        outline.lists.push_back({lists, std::move(values)});
      }
      ++lists;
    }
  }
  if (outline.lists.empty() && outline.texts.empty()) return std::nullopt;
  outline.body.append(body, copied);
  return outline;
}

}  // namespace kivi
