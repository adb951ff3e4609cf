// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <set>

#include "engine/grammar/grammar_text.h"
#include "engine/grammar/regular.h"
#include "engine/grammar/rule_reader.h"

namespace kivi::grammar {
namespace {

// Terminals of Lark's common.lark, as regular expressions.
struct CommonTerminal {
  std::string_view name, pattern;
};
constexpr CommonTerminal kCommon[] = {
    {"DIGIT", "[0-9]"},
    {"HEXDIGIT", "[0-9a-fA-F]"},
    {"INT", "[0-9]+"},
    {"SIGNED_INT", "[+-]?[0-9]+"},
    {"DECIMAL", "[0-9]+\\.[0-9]*|\\.[0-9]+"},
    {"FLOAT", "[0-9]+[eE][+-]?[0-9]+|(?:[0-9]+\\.[0-9]*|\\.[0-9]+)(?:[eE][+-]?[0-9]+)?"},
    {"SIGNED_FLOAT",
     "[+-]?(?:[0-9]+[eE][+-]?[0-9]+|(?:[0-9]+\\.[0-9]*|\\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"},
    {"NUMBER", "(?:[0-9]+(?:\\.[0-9]*)?|\\.[0-9]+)(?:[eE][+-]?[0-9]+)?"},
    {"SIGNED_NUMBER", "[+-]?(?:[0-9]+(?:\\.[0-9]*)?|\\.[0-9]+)(?:[eE][+-]?[0-9]+)?"},
    {"ESCAPED_STRING", "\"(?:[^\"\\\\\\n]|\\\\.)*\""},
    {"LCASE_LETTER", "[a-z]"},
    {"UCASE_LETTER", "[A-Z]"},
    {"LETTER", "[A-Za-z]"},
    {"WORD", "[A-Za-z]+"},
    {"CNAME", "[A-Za-z_][A-Za-z_0-9]*"},
    {"WS_INLINE", "[ \\t]+"},
    {"WS", "[ \\t\\f\\r\\n]+"},
    {"CR", "\\r"},
    {"LF", "\\n"},
    {"NEWLINE", "(?:\\r?\\n)+"},
};

bool of_lark_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

bool is_terminal(std::string_view name) {
  const size_t first = name.find_first_not_of('_');
  return first != std::string_view::npos && name[first] >= 'A' && name[first] <= 'Z';
}

class LarkParser : RuleReader {
 public:
  explicit LarkParser(std::string_view text) : RuleReader(text) {}

  Grammar run() {
    for (space(true); !ends(); space(true)) {
      if (take("%"))
        directive();
      else
        definition();
    }
    // What may be left out stands behind each terminal, and at the beginning.
    std::vector<Expr> ignored;
    for (const std::string& name : ignored_) ignored.push_back(call(rule(name)));
    grammar_.rules[size_t(rule(kIgnored))].body = repeat(choice(std::move(ignored)), 0, -1);
    defined_[size_t(rule(kIgnored))] = true;
    define(kBegin, sequence({call(rule(kIgnored)), call(rule("start"))}));
    Grammar grammar = finish("start");
    grammar.root = rules_[kBegin];
    return grammar;
  }

 private:
  static constexpr const char* kIgnored = "%ignore";
  static constexpr const char* kBegin = "%begin";

  void space(bool lines) {
    while (!ends()) {
      const char c = peek();
      if (c == '/' && peek(1) == '/') {
        while (!ends() && peek() != '\n') ++at_;
      } else if (c == ' ' || c == '\t' || c == '\r' || (lines && c == '\n')) {
        ++at_;
      } else {
        return;
      }
    }
  }

  // The next line goes on with an alternative.
  bool goes_on() {
    const size_t before = at_;
    space(true);
    if (peek() == '|') return true;
    at_ = before;
    return false;
  }

  std::string read_name() {
    const size_t begin = at_;
    while (!ends() && of_lark_name(peek())) ++at_;
    if (at_ == begin) wrong("expected a name");
    return std::string(text_.substr(begin, at_ - begin));
  }

  void directive() {
    const std::string name = read_name();
    space(false);
    if (name == "ignore") {
      in_terminal_ = true;
      const std::string rule_name = fmt::format("%ignore {}", ignored_.size());
      define(rule_name, alternatives(false));
      ignored_.push_back(rule_name);
    } else if (name == "import") {
      if (!take("common.")) wrong("%import of anything but common is not supported");
      const std::string terminal = read_name();
      const auto known = std::ranges::find(kCommon, terminal, &CommonTerminal::name);
      if (known == std::end(kCommon)) wrong(fmt::format("common has no terminal {}", terminal));
      space(false);
      std::string as = terminal;
      if (take("->")) {
        space(false);
        as = read_name();
      }
      define(as, parse_regex(known->pattern, RegexAnchors::whole, utf8));
    } else {
      wrong(fmt::format("%{} is not supported", name));
    }
    space(false);
    if (!ends() && peek() != '\n') wrong("expected the end of the line");
  }

  void definition() {
    while (take("?") || take("!")) {
    }
    const std::string name = read_name();
    if (peek() == '{') wrong("templates of rules are not supported");
    space(false);
    if (take(".")) {  // a priority, which matters to Lark's lexer alone
      take("-");
      number();
      space(false);
    }
    if (!take(":")) wrong(fmt::format("expected : behind the name {}", name));
    in_terminal_ = is_terminal(name);
    define(name, alternatives(false));
    if (!ends() && peek() != '\n') wrong("expected the end of the rule");
  }

  Expr alternatives(bool nested) {
    enter();
    std::vector<Expr> parts{alternative(nested)};
    while (nested ? peek() == '|' : goes_on()) {
      ++at_;
      parts.push_back(alternative(nested));
    }
    leave();
    return choice(std::move(parts));
  }

  Expr alternative(bool nested) {
    std::vector<Expr> parts;
    for (space(nested);
         !ends() && peek() != '|' && peek() != ')' && peek() != ']' && peek() != '\n';
         space(nested)) {
      if (take("->")) {
        space(false);
        read_name();
        continue;
      }
      parts.push_back(quantified(atom()));
    }
    return parts.empty() ? text("") : sequence(std::move(parts));
  }

  Expr quantified(Expr e) {
    while (true) {
      if (take_mark(e)) continue;
      if (peek() == '~' || (peek() == ' ' && peek(1) == '~')) {
        while (peek() == ' ' || peek() == '~') ++at_;
        const int least = number();
        const int most = take("..") ? number() : least;
        if (most < least) wrong("the bounds of a repetition are turned around");
        e = repeat(std::move(e), least, most);
      } else {
        return e;
      }
    }
  }

  // Behind a terminal of a rule may stand what is ignored.
  Expr terminal(Expr e) {
    return in_terminal_ ? e : sequence({std::move(e), call(rule(kIgnored))});
  }

  Expr atom() {
    if (take("(")) {
      Expr inside = alternatives(true);
      if (!take(")")) wrong("a ( lacks its )");
      return inside;
    }
    if (take("[")) {
      Expr inside = alternatives(true);
      if (!take("]")) wrong("a [ lacks its ]");
      return optional(std::move(inside));
    }
    if (peek() == '"') return literal();
    if (take("/")) return pattern();
    if (!of_lark_name(peek())) unexpected();
    const std::string name = read_name();
    if (peek() == '{') wrong("templates of rules are not supported");
    Expr called = call(rule(name));
    if (!is_terminal(name)) {
      if (in_terminal_) wrong(fmt::format("a terminal must not use the rule {}", name));
      return called;
    }
    return terminal(called);
  }

  std::vector<uint32_t> read_text() {
    ++at_;
    std::vector<uint32_t> chars;
    while (!take("\"")) {
      if (ends() || peek() == '\n') wrong("a text lacks its closing quote");
      chars.push_back(take("\\") ? escaped() : character());
    }
    return chars;
  }

  Expr literal() {
    const std::vector<uint32_t> chars = read_text();
    if (take("..")) {
      if (peek() != '"') wrong("expected a text behind ..");
      const std::vector<uint32_t> last = read_text();
      if (chars.size() != 1 || last.size() != 1 || last[0] < chars[0])
        wrong("the ends of a range must be one character each, in order");
      return terminal(utf8({{chars[0], last[0]}}));
    }
    const bool any_case = peek() == 'i' && !of_lark_name(peek(1));
    if (any_case) ++at_;
    std::vector<Expr> parts;
    for (const uint32_t c : chars) {
      CharRanges both{{c, c}};
      if (any_case && ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')))
        both.push_back({c ^ 32, c ^ 32});
      parts.push_back(utf8(both));
    }
    return terminal(parts.empty() ? text("") : sequence(std::move(parts)));
  }

  Expr pattern() {
    std::string inside;
    bool in_class = false;
    while (true) {
      if (ends() || peek() == '\n') wrong("a regular expression lacks its closing /");
      if (peek() == '/' && !in_class) break;
      if (peek() == '[') in_class = true;
      if (peek() == ']') in_class = false;
      if (peek() == '\\') inside += text_[at_++];
      if (!ends()) inside += text_[at_++];
    }
    ++at_;
    if (of_lark_name(peek())) wrong("flags of a regular expression are not supported");
    try {
      return terminal(parse_regex(inside, RegexAnchors::whole, utf8));
    } catch (const Failure& failure) {
      wrong(failure.message);
    }
  }

  std::vector<std::string> ignored_;
  bool in_terminal_ = false;
};

}  // namespace

Grammar parse_lark(std::string_view text) { return LarkParser(text).run(); }

}  // namespace kivi::grammar
