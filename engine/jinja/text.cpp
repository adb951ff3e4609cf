// SPDX-License-Identifier: Apache-2.0
#include "engine/jinja/text.h"

#include <fmt/format.h>
#include <locale.h>
#include <string.h>
#include <wctype.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/regex.h"
#include "base/utf8.h"

namespace kivi::jinja {
namespace {

// The C library's tables of Unicode; its own locale, so that the process's does not matter.
locale_t unicode_locale() {
  static const locale_t locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", nullptr);
  return locale;
}

char32_t upper_of(char32_t c) { return char32_t(towupper_l(wint_t(c), unicode_locale())); }
char32_t lower_of(char32_t c) { return char32_t(towlower_l(wint_t(c), unicode_locale())); }
bool is_upper(char32_t c) { return iswupper_l(wint_t(c), unicode_locale()) != 0; }
bool is_lower(char32_t c) { return iswlower_l(wint_t(c), unicode_locale()) != 0; }
bool is_alpha(char32_t c) { return iswalpha_l(wint_t(c), unicode_locale()) != 0; }

// One character becomes two only here: German's sharp s.
void append_upper(std::string& out, char32_t c, bool titled) {
  if (c == 0xDF) {
    out += titled ? "Ss" : "SS";
  } else {
    append_utf8(out, upper_of(c));
  }
}

template <class Convert>
std::string convert(std::string_view text, const Convert& convert_one) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) convert_one(out, next_character(text, at));
  return out;
}

bool is_in(std::string_view characters, char32_t wanted) {
  for (size_t at = 0; at < characters.size();)
    if (next_character(characters, at) == wanted) return true;
  return false;
}

// What repr shows as it is.
bool is_printable(char32_t c) {
  if (c < 0x7F) return c >= 0x20;
  static const Result<Regex> other = Regex::compile("[\\p{C}\\p{Z}]");
  thread_local RegexScratch scratch;
  std::string character;
  append_utf8(character, c);
  std::vector<Span> found;
  if (other.ok()) other->find_all(character, scratch, found);
  return found.empty();
}

size_t last_character(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (text[at] & 0xC0) == 0x80) --at;
  return at;
}

}  // namespace

char32_t next_character(std::string_view text, size_t& at) {
  const auto byte = [&](size_t i) { return char32_t(static_cast<unsigned char>(text[i])); };
  const char32_t first = byte(at);
  const size_t more = first < 0xC0 ? 0 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
  char32_t c = more == 0 ? first : first & (0x3Fu >> more);
  for (size_t i = 1; i <= more && at + i < text.size(); ++i) c = c << 6 | (byte(at + i) & 0x3F);
  at = std::min(text.size(), at + more + 1);
  return c;
}

bool is_space(char32_t c) {
  return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

std::string_view strip(std::string_view text, Side side,
                       std::optional<std::string_view> characters) {
  const auto goes = [&](char32_t c) { return characters ? is_in(*characters, c) : is_space(c); };
  while (side != Side::right && !text.empty()) {
    size_t end = 0;
    if (!goes(next_character(text, end))) break;
    text.remove_prefix(end);
  }
  while (side != Side::left && !text.empty()) {
    const size_t begin = last_character(text);
    size_t at = begin;
    if (!goes(next_character(text, at))) break;
    text = text.substr(0, begin);
  }
  return text;
}

int64_t length(std::string_view text) { return utf8_length(text); }

size_t byte_of(std::string_view text, int64_t index) {
  size_t at = 0;
  for (; index > 0 && at < text.size(); --index) next_character(text, at);
  return at;
}

std::string upper(std::string_view text) {
  return convert(text, [](std::string& out, char32_t c) { append_upper(out, c, false); });
}
std::string lower(std::string_view text) {
  return convert(text, [](std::string& out, char32_t c) { append_utf8(out, lower_of(c)); });
}

std::string capitalize(std::string_view text) {
  return convert(text, [](std::string& out, char32_t c) {
    if (out.empty())
      append_upper(out, c, true);
    else
      append_utf8(out, lower_of(c));
  });
}

std::string title(std::string_view text) {
  bool inside = false;  // a word
  return convert(text, [&](std::string& out, char32_t c) {
    const bool cased = is_upper(c) || is_lower(c);
    if (inside)
      append_utf8(out, lower_of(c));
    else
      append_upper(out, c, true);
    inside = cased;
  });
}

std::string title_filter(std::string_view text) {
  bool inside = false;
  return convert(text, [&](std::string& out, char32_t c) {
    const bool border = is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
    if (border || inside)
      append_utf8(out, border ? c : lower_of(c));
    else
      append_upper(out, c, false);
    inside = !border;
  });
}

bool all_are(std::string_view text, CharacterClass wanted) {
  const bool cased_only = wanted == CharacterClass::upper || wanted == CharacterClass::lower;
  bool any = false;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = next_character(text, at);
    const bool digit = c >= '0' && c <= '9';
    if (cased_only) {  // characters without case do not count
      if (wanted == CharacterClass::upper ? is_lower(c) : is_upper(c)) return false;
      any = any || is_upper(c) || is_lower(c);
      continue;
    }
    any = true;
    if (wanted == CharacterClass::digit && !digit) return false;
    if (wanted == CharacterClass::alpha && !is_alpha(c)) return false;
    if (wanted == CharacterClass::alnum && !digit && !is_alpha(c)) return false;
    if (wanted == CharacterClass::space && !is_space(c)) return false;
  }
  return any;
}

size_t find_text(std::string_view text, std::string_view what, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  const void* found = memmem(text.data() + from, text.size() - from, what.data(), what.size());
  if (found == nullptr) return std::string_view::npos;
  return size_t(static_cast<const char*>(found) - text.data());
}

std::vector<std::string_view> split(std::string_view text,
                                    std::optional<std::string_view> separator, int64_t limit) {
  std::vector<std::string_view> parts;
  if (separator) {
    for (size_t at; limit != 0 && (at = find_text(text, *separator)) != std::string_view::npos;
         --limit) {
      parts.push_back(text.substr(0, at));
      text.remove_prefix(at + separator->size());
    }
    parts.push_back(text);
    return parts;
  }
  text = strip(text, Side::left);
  for (; !text.empty() && limit != 0; --limit) {
    size_t end = 0, next = 0;
    while (end < text.size() && !is_space(next_character(text, next))) end = next;
    parts.push_back(text.substr(0, end));
    text = strip(text.substr(end), Side::left);
  }
  if (!text.empty()) parts.push_back(text);
  return parts;
}

std::vector<std::string_view> rsplit(std::string_view text,
                                     std::optional<std::string_view> separator, int64_t limit) {
  std::vector<std::string_view> parts;
  if (separator) {
    for (size_t at; limit != 0 && (at = text.rfind(*separator)) != std::string_view::npos;
         --limit) {
      parts.push_back(text.substr(at + separator->size()));
      text = text.substr(0, at);
    }
    parts.push_back(text);
  } else {
    text = strip(text, Side::right);
    for (; !text.empty() && limit != 0; --limit) {
      size_t begin = text.size();
      while (begin > 0) {
        const size_t last = last_character(text.substr(0, begin));
        size_t at = last;
        if (is_space(next_character(text, at))) break;
        begin = last;
      }
      parts.push_back(text.substr(begin));
      text = strip(text.substr(0, begin), Side::right);
    }
    if (!text.empty()) parts.push_back(text);
  }
  std::ranges::reverse(parts);
  return parts;
}

std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = at;
    const char32_t c = next_character(text, at);
    const bool ends =
        (c >= 10 && c <= 13) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
    if (!ends) continue;
    if (c == '\r' && at < text.size() && text[at] == '\n') ++at;
    lines.push_back(text.substr(begin, (keep_ends ? at : end) - begin));
    begin = at;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

std::optional<std::string> replace(std::string_view text, std::string_view from,
                                   std::string_view to, int64_t count, size_t bytes_max) {
  std::string out;
  size_t begin = 0, at = 0;  // copied so far; where to look on
  while (count != 0) {
    // An empty string is found before every character and at the end.
    const size_t found = from.empty() ? (at <= text.size() ? at : std::string_view::npos)
                                      : find_text(text, from, at);
    if (found == std::string_view::npos) break;
    out.append(text.substr(begin, found - begin)).append(to);
    if (out.size() > bytes_max) return std::nullopt;
    begin = found + from.size();
    at = begin;
    if (from.empty()) {
      if (at == text.size()) break;
      next_character(text, at);
    }
    if (count > 0) --count;
  }
  out.append(text.substr(begin));
  if (out.size() > bytes_max) return std::nullopt;
  return out;
}

void append_quoted(std::string& out, std::string_view text) {
  const bool both =
      text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
  const char quote = both ? '"' : '\'';
  out += quote;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = next_character(text, at);
    if (c == char32_t(quote) || c == '\\') {
      out += {'\\', char(c)};
    } else if (c == '\n' || c == '\r' || c == '\t') {
      out += {'\\', c == '\n' ? 'n' : c == '\r' ? 'r' : 't'};
    } else if (is_printable(c)) {
      append_utf8(out, c);
    } else {
      out += c < 0x100     ? fmt::format("\\x{:02x}", uint32_t(c))
             : c < 0x10000 ? fmt::format("\\u{:04x}", uint32_t(c))
                           : fmt::format("\\U{:08x}", uint32_t(c));
    }
  }
  out += quote;
}

std::string number_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  // The shortest digits that read back, written plainly for exponents of -4 to 15.
  char buffer[64];
  auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific);
  std::string text(buffer, end.ptr);
  const int exponent = std::stoi(text.substr(text.find('e') + 1));
  if (exponent < -4 || exponent >= 16) return text;
  end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::fixed);
  text.assign(buffer, end.ptr);
  return text.find('.') == std::string::npos ? text + ".0" : text;
}

void append_json_text(std::string& out, std::string_view text, bool ascii) {
  out += '"';
  for (size_t at = 0; at < text.size();) {
    const char32_t c = next_character(text, at);
    const auto unit = [&](uint32_t u) { out += fmt::format("\\u{:04x}", u); };
    if (c == '"' || c == '\\') {
      out += {'\\', char(c)};
    } else if (c == '\n' || c == '\r' || c == '\t' || c == '\b' || c == '\f') {
      out += {'\\', c == '\n' ? 'n' : c == '\r' ? 'r' : c == '\t' ? 't' : c == '\b' ? 'b' : 'f'};
    } else if (c < 0x20) {
      unit(uint32_t(c));
    } else if (ascii && c > 0x7E) {
      if (c == 0x7F) {
        out += char(c);
      } else if (c < 0x10000) {
        unit(uint32_t(c));
      } else {
        unit(0xD800 + ((uint32_t(c) - 0x10000) >> 10));
        unit(0xDC00 + ((uint32_t(c) - 0x10000) & 0x3FF));
      }
    } else {
      append_utf8(out, c);
    }
  }
  out += '"';
}

}  // namespace kivi::jinja
