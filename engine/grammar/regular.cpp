// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar/regular.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/hex.h"
#include "engine/grammar/text_reader.h"

namespace kivi::grammar {
namespace {

constexpr int kRegexDepthMax = 100;
constexpr int kRepeatMax = 10'000;

const CharRanges kDigits{{'0', '9'}};
const CharRanges kWord{{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
const CharRanges kSpace{{'\t', '\r'}, {' ', ' '}};
const CharRanges kAny{{0, kLastChar}};

class RegexParser : TextReader {
 public:
  RegexParser(std::string_view pattern, RegexAnchors anchors, const CharEncoder& encode)
      : TextReader(pattern), anchors_(anchors), encode_(encode) {}

  Expr run() {
    Expr all = alternatives(/*top=*/true);
    if (at_ < text_.size()) wrong("has a ) without a (");
    return all;
  }

 private:
  [[noreturn]] void wrong(const std::string& what) const {
    fail(fmt::format("the regular expression {} {}, at byte {}", shown(), what, at_));
  }
  std::string shown() const {
    constexpr size_t kShown = 60;
    if (text_.size() <= kShown) return fmt::format("\"{}\"", text_);
    size_t end = kShown;
    while (end > 0 && (uint8_t(text_[end]) & 0xC0) == 0x80) --end;  // characters stay whole
    return fmt::format("\"{}...\"", text_.substr(0, end));
  }

  uint32_t character() {
    const auto taken = take_character();
    if (!taken) wrong("is not UTF-8");
    return *taken;
  }

  Expr alternatives(bool top) {
    if (++depth_ > kRegexDepthMax) wrong(fmt::format("nests more than {} deep", kRegexDepthMax));
    std::vector<Expr> parts;
    bool any = false;
    do {
      const Expr part = alternative(top);
      any = any || part != nullptr;
      parts.push_back(part);
    } while (take("|"));
    --depth_;
    return any ? choice(std::move(parts)) : nullptr;
  }

  Expr alternative(bool top) {
    bool from_start = false, to_end = false;
    std::vector<Expr> parts;
    while (!ends() && peek() != '|' && peek() != ')') {
      if (to_end) wrong("goes on behind a $");
      if (peek() == '^') {
        if (!top || !parts.empty()) wrong("has a ^ that is not at its beginning");
        ++at_;
        from_start = true;
        continue;
      }
      if (peek() == '$') {
        if (!top) wrong("has a $ that is not at its end");
        ++at_;
        to_end = true;
        continue;
      }
      parts.push_back(quantified(atom()));
    }
    if (top && anchors_ == RegexAnchors::search) {
      const Expr anything = repeat(encode_(kAny), 0, -1);
      if (!from_start) parts.insert(parts.begin(), anything);
      if (!to_end) parts.push_back(anything);
    }
    return parts.empty() ? text("") : sequence(std::move(parts));
  }

  Expr quantified(Expr e) {
    while (!ends()) {
      int least = 0, most = -1;
      if (take("*")) {
      } else if (take("+")) {
        least = 1;
      } else if (take("?")) {
        most = 1;
      } else if (!braces(least, most)) {
        break;
      }
      e = repeat(std::move(e), least, most);
      if (take("?")) continue;  // a lazy quantifier matches the same texts
      if (peek() == '+') wrong("has a possessive quantifier, which is not supported");
    }
    return e;
  }

  // {m}, {m,}, {m,n}; what only looks like it is a text.
  bool braces(int& least, int& most) {
    if (peek() != '{') return false;
    const size_t begin = at_++;
    const auto number = [&]() -> int {
      if (ends() || peek() < '0' || peek() > '9') return -1;
      int n = 0;
      while (peek() >= '0' && peek() <= '9') {
        n = n * 10 + (text_[at_++] - '0');
        if (n > kRepeatMax) wrong(fmt::format("repeats more than {} times", kRepeatMax));
      }
      return n;
    };
    least = number();
    most = least;
    if (least >= 0 && take(",")) most = number();
    if (least < 0 || !take("}")) {
      at_ = begin;
      return false;
    }
    if (most >= 0 && most < least) wrong("has a repetition whose bounds are turned around");
    return true;
  }

  Expr atom() {
    switch (peek()) {
      case '(':
        return group();
      case '[':
        return encode_(char_class());
      case '.':
        ++at_;
        return encode_(complement({{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}}));
      case '\\':
        return encode_(escape(/*in_class=*/false));
      case '*':
      case '+':
      case '?':
        wrong("has a quantifier with nothing before it");
      default:
        break;
    }
    const uint32_t c = character();
    return encode_({{c, c}});
  }

  Expr group() {
    ++at_;
    if (take("?")) {
      if (take("=") || take("!") || take("<=") || take("<!"))
        wrong("has a look-around, which is not supported");
      if (take("<") || take("P<")) {
        const size_t end = text_.find('>', at_);
        if (end == std::string_view::npos) wrong("has a group name without an end");
        at_ = end + 1;
      } else if (!take(":")) {
        wrong("has a group with flags, which is not supported");
      }
    }
    Expr inside = alternatives(/*top=*/false);
    if (!take(")")) wrong("has a ( without a )");
    return inside;
  }

  CharRanges char_class() {
    ++at_;
    const bool negated = take("^");
    CharRanges set;
    while (true) {
      if (ends()) wrong("has a [ without a ]");
      if (take("]")) break;
      if (text_.substr(at_, 2) == "[:") wrong("has a POSIX class, which is not supported");
      const CharRanges low = class_item();
      const bool single = low.size() == 1 && low[0].first == low[0].last;
      if (single && peek() == '-' && at_ + 1 < text_.size() && text_[at_ + 1] != ']') {
        ++at_;
        const CharRanges high = class_item();
        if (high.size() != 1 || high[0].first != high[0].last || high[0].first < low[0].first)
          wrong("has a range whose ends are turned around");
        set.push_back({low[0].first, high[0].first});
      } else {
        set.insert(set.end(), low.begin(), low.end());
      }
    }
    return negated ? complement(set) : normalized(std::move(set));
  }

  CharRanges class_item() {
    if (peek() == '\\') return escape(/*in_class=*/true);
    const uint32_t c = character();
    return {{c, c}};
  }

  uint32_t hex(int digits) {
    uint32_t value = 0;
    for (int i = 0; i < digits; ++i) {
      const int digit = hex_digit(peek());
      if (digit < 0) wrong("has an escape that lacks hexadecimal digits");
      value = value * 16 + uint32_t(digit);
      ++at_;
    }
    return value;
  }

  CharRanges escape(bool in_class) {
    ++at_;
    if (ends()) wrong("ends in a backslash");
    const auto one = [](uint32_t c) { return CharRanges{{c, c}}; };
    const uint32_t c = character();
    switch (c) {
      case 'd':
        return kDigits;
      case 'D':
        return complement(kDigits);
      case 'w':
        return kWord;
      case 'W':
        return complement(kWord);
      case 's':
        return kSpace;
      case 'S':
        return complement(kSpace);
      case 'n':
        return one('\n');
      case 't':
        return one('\t');
      case 'r':
        return one('\r');
      case 'f':
        return one('\f');
      case 'v':
        return one('\v');
      case '0':
        return one(0);
      case 'x':
        return one(hex(2));
      case 'u': {
        if (!take("{")) return one(hex(4));
        uint32_t value = 0;
        while (!take("}")) value = std::min(value * 16 + hex(1), kLastChar);
        return one(value);
      }
      case 'b':
        if (in_class) return one('\b');
        [[fallthrough]];
      case 'B':
      case 'A':
      case 'Z':
      case 'z':
        wrong(fmt::format("has \\{}, which is not supported", char(c)));
      case 'p':
      case 'P':
        wrong("has a Unicode property (\\p), which is not supported");
      default:
        if (c >= '1' && c <= '9') wrong("has a back reference, which is not supported");
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
          wrong(fmt::format("has the escape \\{}, which is not supported", char(c)));
        return one(c);
    }
  }

  const RegexAnchors anchors_;
  const CharEncoder& encode_;
  int depth_ = 0;
};

}  // namespace

Expr parse_regex(std::string_view pattern, RegexAnchors anchors, const CharEncoder& encode) {
  return RegexParser(pattern, anchors, encode).run();
}

}  // namespace kivi::grammar
