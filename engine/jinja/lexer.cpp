// SPDX-License-Identifier: Apache-2.0
#include "engine/jinja/lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "base/utf8.h"
#include "engine/jinja/text.h"
#include "engine/jinja/value.h"

namespace kivi::jinja {
namespace {

using TokenKind = Token::Kind;

bool is_digit(char c) { return c >= '0' && c <= '9'; }
// A character of a name; all that is not ASCII counts.
bool is_word(char c) {
  return is_digit(c) || c == '_' || (c & 0x80) != 0 || (c >= 'a' && c <= 'z') ||
         (c >= 'A' && c <= 'Z');
}

// "\r\n" and "\r" become "\n"; one line break at the end goes.
std::string normalized(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
    } else {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) read_root();
    push(TokenKind::end, "");
    return std::move(tokens_);
  }

 private:
  // How a tag of this kind closes: "-%}" takes the white space behind it, "%}" a line break.
  struct Closing {
    std::string_view mark;
    bool plus = false;     // "+%}": nothing is taken
    bool newline = false;  // trim_blocks
  };

  std::string_view rest() const { return std::string_view(source_).substr(at_); }
  bool starts(std::string_view what) const { return rest().starts_with(what); }

  void push(TokenKind kind, std::string text) { tokens_.push_back({kind, line_, std::move(text)}); }
  void advance(size_t bytes) {
    line_ +=
        int(std::count(source_.begin() + long(at_), source_.begin() + long(at_ + bytes), '\n'));
    at_ += bytes;
    line_start_ = at_ > 0 && source_[at_ - 1] == '\n';
  }
  size_t spaces_at(size_t at) const {
    const auto text = std::string_view(source_).substr(at);
    return text.size() - strip(text, Side::left).size();
  }

  // Text up to the next tag, then the tag.
  void read_root() {
    size_t tag = at_;
    while ((tag = source_.find('{', tag)) != std::string::npos) {
      const char next = tag + 1 < source_.size() ? source_[tag + 1] : '\0';
      if (next == '{' || next == '%' || next == '#') break;
      ++tag;
    }
    if (tag == std::string::npos) {
      push_data(rest());
      return advance(rest().size());
    }
    const std::string_view text = rest().substr(0, tag - at_);
    const char kind = source_[tag + 1];
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    push_data(stripped(text, sign, kind != '{'));
    advance(text.size() + 2 + (sign == '-' || sign == '+' ? 1 : 0));
    if (kind == '#') return skip_comment();
    if (kind == '%' && read_raw()) return;
    if (kind == '%')
      read_tag(TokenKind::begin_block, TokenKind::end_block, {"%}", true, true});
    else
      read_tag(TokenKind::begin_print, TokenKind::end_print, {"}}"});
  }

  void push_data(std::string_view text) {
    if (!text.empty()) push(TokenKind::data, std::string(text));
  }

  // What is left of the text before a tag with this sign.
  std::string_view stripped(std::string_view text, char sign, bool block) const {
    if (sign == '-') return strip(text, Side::right);
    if (sign == '+' || !block) return text;
    const size_t line = text.rfind('\n') + 1;  // npos + 1 == 0
    if (line == 0 && !line_start_) return text;
    return strip(text.substr(line), Side::left).empty() ? text.substr(0, line) : text;
  }

  // The bytes of a closing mark here, with what it takes behind it; 0: none is here.
  size_t closing(const Closing& close, size_t at) const {
    const auto text = std::string_view(source_).substr(at);
    const size_t size = close.mark.size();
    if (close.plus && text.starts_with('+') && text.substr(1).starts_with(close.mark))
      return size + 1;
    if (text.starts_with('-') && text.substr(1).starts_with(close.mark))
      return size + 1 + spaces_at(at + size + 1);
    if (!text.starts_with(close.mark)) return 0;
    return size + (close.newline && text.substr(size).starts_with('\n') ? 1 : 0);
  }

  void skip_comment() {
    const int line = line_;
    for (size_t end = at_; end < source_.size(); ++end)
      if (const size_t size = closing({"#}", true, true}, end); size > 0)
        return advance(end - at_ + size);
    fail("a comment {# without its end #}", line);
  }

  // {% raw %}...{% endraw %}; false where no raw block begins here.
  bool read_raw() {
    size_t end = at_ + spaces_at(at_);
    if (!std::string_view(source_).substr(end).starts_with("raw")) return false;
    end += 3;
    end += spaces_at(end);
    const size_t size = closing({"%}"}, end);
    if (size == 0) return false;
    const int line = line_;
    advance(end - at_ + size);
    for (size_t tag = at_; (tag = source_.find("{%", tag)) != std::string::npos; ++tag) {
      const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
      size_t word = tag + 2 + (sign == '-' || sign == '+' ? 1 : 0);
      word += spaces_at(word);
      if (!std::string_view(source_).substr(word).starts_with("endraw")) continue;
      word += 6;
      word += spaces_at(word);
      const size_t close = closing({"%}", true, true}, word);
      if (close == 0) continue;
      push_data(stripped(rest().substr(0, tag - at_), sign, true));
      advance(word - at_ + close);
      return true;
    }
    fail("a block {% raw %} without its end", line);
  }

  void read_tag(TokenKind begin, TokenKind end, const Closing& close) {
    push(begin, "");
    const int line = line_;
    std::string brackets;  // the closing ones that are due
    while (at_ < source_.size()) {
      if (brackets.empty()) {
        if (const size_t size = closing(close, at_); size > 0) {
          push(end, "");
          return advance(size);
        }
      }
      if (const size_t spaces = spaces_at(at_); spaces > 0)
        advance(spaces);
      else if (!read_number() && !read_name() && !read_string())
        read_symbol(brackets);
    }
    fail(begin == TokenKind::begin_block ? "a tag {% without its end %}"
                                         : "a tag {{ without its end }}",
         line);
  }

  // Digits with single underscores between them; 0: none.
  size_t digits_at(size_t at) const {
    size_t end = at;
    while (end < source_.size() &&
           (is_digit(source_[end]) || (end > at && source_[end] == '_' && source_[end - 1] != '_' &&
                                       end + 1 < source_.size() && is_digit(source_[end + 1]))))
      ++end;
    return end - at;
  }

  bool read_number() {
    if (!is_digit(source_[at_])) return false;
    size_t end = at_ + digits_at(at_);
    bool whole = true;
    if (at_ == 0 || source_[at_ - 1] != '.') {
      if (end < source_.size() && source_[end] == '.' && digits_at(end + 1) > 0) {
        end += 1 + digits_at(end + 1);
        whole = false;
      }
      if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
        size_t exponent = end + 1;
        if (exponent < source_.size() && (source_[exponent] == '+' || source_[exponent] == '-'))
          ++exponent;
        if (digits_at(exponent) > 0) {
          end = exponent + digits_at(exponent);
          whole = false;
        }
      }
    }
    std::string text = source_.substr(at_, end - at_);
    std::erase(text, '_');
    const bool based = text == "0" && end < source_.size() && is_word(source_[end]);
    if (based || (whole && text.size() > 1 && text[0] == '0'))
      fail_unsupported(fmt::format("the number {}", source_.substr(at_, end - at_ + 1)), line_);
    push(whole ? TokenKind::integer : TokenKind::number, text);
    Token& token = tokens_.back();
    const char *first = text.data(), *last = first + text.size();
    const auto read = whole ? std::from_chars(first, last, token.integer)
                            : std::from_chars(first, last, token.number);
    if (read.ec != std::errc())
      fail(fmt::format("the number {} does not fit in 64 bits", text), line_);
    advance(end - at_);
    return true;
  }

  bool read_name() {
    size_t end = at_;
    while (end < source_.size() && is_word(source_[end])) ++end;
    if (end == at_) return false;
    push(TokenKind::name, source_.substr(at_, end - at_));
    advance(end - at_);
    return true;
  }

  bool read_string() {
    const char quote = source_[at_];
    if (quote != '\'' && quote != '"') return false;
    size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) fail("a string without its end", line_);
    push(TokenKind::string, unescaped(rest().substr(1, end - at_ - 1)));
    advance(end + 1 - at_);
    return true;
  }

  // The escapes of Python's strings. An unknown one stays as it is written.
  std::string unescaped(std::string_view text) const {
    static constexpr std::string_view kSimple = "\\'\"abfnrtv";
    static constexpr std::string_view kMeant = "\\'\"\a\b\f\n\r\t\v";
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\\' || i + 1 == text.size()) {
        out += text[i];
        continue;
      }
      const char c = text[++i];
      const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
      if (const size_t simple = kSimple.find(c); simple != std::string_view::npos) {
        out += kMeant[simple];
      } else if (c == '\n') {
      } else if (digits > 0) {
        append_code(out, text.substr(i + 1, digits), digits, 16);
        i += digits;
      } else if (c >= '0' && c <= '7') {
        std::string_view octal = text.substr(i, 3);
        octal = octal.substr(0, octal.find_first_not_of("01234567"));
        append_code(out, octal, octal.size(), 8);
        i += octal.size() - 1;
      } else if (c == 'N') {
        fail_unsupported("the escape \\N in a string", line_);
      } else {
        out += {'\\', c};
      }
    }
    return out;
  }

  void append_code(std::string& out, std::string_view digits, size_t count, int base) const {
    uint32_t code = 0;
    const auto end = digits.data() + digits.size();
    const auto read = std::from_chars(digits.data(), end, code, base);
    if (digits.size() != count || read.ec != std::errc() || read.ptr != end || code > 0x10FFFF ||
        (code >= 0xD800 && code < 0xE000))
      fail(fmt::format("the escape \\{}... in a string is no character", digits), line_);
    append_utf8(out, code);
  }

  void read_symbol(std::string& brackets) {
    static constexpr std::string_view kSymbols[] = {
        "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
        "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};
    const auto symbol =
        std::ranges::find_if(kSymbols, [&](std::string_view s) { return starts(s); });
    if (symbol == std::end(kSymbols)) {
      size_t at = 0;
      std::string character;
      append_utf8(character, next_character(rest(), at));
      fail(fmt::format("unexpected character {}", character), line_);
    }
    static constexpr std::string_view kOpen = "([{", kClose = ")]}";
    const char c = symbol->front();
    if (const size_t open = kOpen.find(c); open != std::string_view::npos) brackets += kClose[open];
    if (kClose.find(c) != std::string_view::npos) {
      if (brackets.empty() || brackets.back() != c) fail(fmt::format("unexpected {}", c), line_);
      brackets.pop_back();
    }
    push(TokenKind::symbol, std::string(*symbol));
    advance(symbol->size());
  }

  const std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_start_ = true;  // `at_` is the first of a line
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> read_tokens(std::string_view source) {
  if (!is_valid_utf8(source)) fail("the template is not UTF-8", 1);
  return Lexer(normalized(source)).run();
}

}  // namespace kivi::jinja
