// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar/grammar_text.h"
#include "engine/grammar/rule_reader.h"

namespace kivi::grammar {
namespace {

bool of_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '_';
}

class GbnfParser : RuleReader {
 public:
  explicit GbnfParser(std::string_view text) : RuleReader(text) {}

  Grammar run() {
    for (space(true); !ends(); space(true)) {
      const std::string name = read_name();
      space(false);
      if (!take("::=")) wrong(fmt::format("expected ::= behind the name {}", name));
      space(true);
      define(name, alternatives(/*nested=*/false));
      if (!ends() && peek() != '\n') wrong("expected the end of the rule");
    }
    return finish("root");
  }

 private:
  // White space and comments. `lines`: line breaks too.
  void space(bool lines) {
    while (!ends()) {
      const char c = peek();
      if (c == '#') {
        while (!ends() && peek() != '\n') ++at_;
      } else if (c == ' ' || c == '\t' || c == '\r' || (lines && c == '\n')) {
        ++at_;
      } else {
        return;
      }
    }
  }

  std::string read_name() {
    const size_t begin = at_;
    while (!ends() && of_name(peek())) ++at_;
    if (at_ == begin) wrong("expected the name of a rule");
    return std::string(text_.substr(begin, at_ - begin));
  }

  Expr alternatives(bool nested) {
    enter();
    std::vector<Expr> parts{alternative(nested)};
    while (take("|")) {
      space(true);
      parts.push_back(alternative(nested));
    }
    leave();
    return choice(std::move(parts));
  }

  Expr alternative(bool nested) {
    std::vector<Expr> parts;
    for (space(nested); !ends() && peek() != '|' && peek() != ')' && peek() != '\n'; space(nested))
      parts.push_back(quantified(atom()));
    return parts.empty() ? text("") : sequence(std::move(parts));
  }

  Expr quantified(Expr e) {
    while (true) {
      if (take_mark(e)) continue;
      if (take("{")) {
        const int least = peek() == ',' ? 0 : number();
        int most = least;
        if (take(",")) most = peek() == '}' ? -1 : number();
        if (!take("}")) wrong("expected } behind the bounds of a repetition");
        if (most >= 0 && most < least) wrong("the bounds of a repetition are turned around");
        e = repeat(std::move(e), least, most);
      } else {
        return e;
      }
    }
  }

  Expr atom() {
    if (take("\"")) return literal();
    if (take("[")) return utf8(char_class());
    if (take(".")) return utf8({{0, kLastChar}});
    if (take("(")) {
      Expr inside = alternatives(/*nested=*/true);
      if (!take(")")) wrong("a ( lacks its )");
      return inside;
    }
    if (!of_name(peek())) unexpected();
    return call(rule(read_name()));
  }

  Expr literal() {
    std::vector<Expr> parts;
    while (!take("\"")) {
      if (ends() || peek() == '\n') wrong("a text lacks its closing quote");
      const uint32_t c = take("\\") ? escaped() : character();
      parts.push_back(utf8({{c, c}}));
    }
    return parts.empty() ? text("") : sequence(std::move(parts));
  }

  CharRanges char_class() {
    const bool negated = take("^");
    CharRanges set;
    const auto item = [&] { return take("\\") ? escaped() : character(); };
    while (!take("]")) {
      if (ends() || peek() == '\n') wrong("a [ lacks its ]");
      const uint32_t low = item();
      uint32_t high = low;
      if (peek() == '-' && peek(1) != ']') {
        ++at_;
        if (ends()) wrong("a [ lacks its ]");
        high = item();
      }
      if (high < low) wrong("the ends of a range are turned around");
      set.push_back({low, high});
    }
    return negated ? complement(set) : set;
  }
};

}  // namespace

Grammar parse_gbnf(std::string_view text) { return GbnfParser(text).run(); }

Grammar parse_grammar(std::string_view text) {
  return text.find("::=") != std::string_view::npos ? parse_gbnf(text) : parse_lark(text);
}

}  // namespace kivi::grammar
