// SPDX-License-Identifier: Apache-2.0
// What the readers of GBNF and Lark share: characters, escapes, named rules.
#pragma once

#include <fmt/format.h>

#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "base/hex.h"
#include "base/utf8.h"
#include "engine/grammar/program.h"
#include "engine/grammar/regular.h"
#include "engine/grammar/text_reader.h"

namespace kivi::grammar {

class RuleReader : protected TextReader {
 protected:
  using TextReader::TextReader;

  [[noreturn]] void wrong(const std::string& what) const {
    fail(fmt::format("the grammar, line {}: {}", line(), what));
  }
  int line() const {
    int n = 1;
    for (size_t i = 0; i < at_ && i < text_.size(); ++i) n += text_[i] == '\n';
    return n;
  }

  uint32_t character() {
    const auto taken = take_character();
    if (!taken) wrong("the text is not UTF-8");
    return *taken;
  }

  // Where no expression begins.
  [[noreturn]] void unexpected() {
    const size_t begin = at_;
    character();
    const std::string_view found = text_.substr(begin, at_ - begin);
    at_ = begin;  // for the line
    if (!is_valid_utf8(found)) wrong("the text is not UTF-8");
    wrong(fmt::format("unexpected character '{}'", found));
  }

  uint32_t hex(int digits) {
    uint32_t value = 0;
    for (int i = 0; i < digits; ++i) {
      const int digit = hex_digit(peek());
      if (digit < 0) wrong("an escape lacks hexadecimal digits");
      value = value * 16 + uint32_t(digit);
      ++at_;
    }
    return value;
  }

  // Behind a backslash.
  uint32_t escaped() {
    if (ends()) wrong("the text ends in a backslash");
    const uint32_t c = character();
    switch (c) {
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 't':
        return '\t';
      case 'x':
        return hex(2);
      case 'u':
        return hex(4);
      case 'U':
        return hex(8);
      default:
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'))
          wrong(fmt::format("the escape \\{} is not supported", char(c)));
        return c;
    }
  }

  // Takes one of the marks *, + and ? behind an expression, and applies it.
  bool take_mark(Expr& e) {
    if (take("*")) {
      e = repeat(std::move(e), 0, -1);
    } else if (take("+")) {
      e = repeat(std::move(e), 1, -1);
    } else if (take("?")) {
      e = optional(std::move(e));
    } else {
      return false;
    }
    return true;
  }

  int number() {
    if (peek() < '0' || peek() > '9') wrong("a number is missing");
    int n = 0;
    while (peek() >= '0' && peek() <= '9') {
      n = n * 10 + (text_[at_++] - '0');
      if (n > 10'000) wrong("a repetition has more than 10000 times");
    }
    return n;
  }

  int rule(const std::string& name) {
    const auto [place, fresh] = rules_.try_emplace(name, int(grammar_.rules.size()));
    if (fresh) {
      grammar_.rules.push_back({name, nullptr, false});
      defined_.push_back(false);
    }
    return place->second;
  }
  void define(const std::string& name, Expr body) {
    const int id = rule(name);
    if (defined_[size_t(id)]) wrong(fmt::format("the rule {} is defined twice", name));
    defined_[size_t(id)] = true;
    grammar_.rules[size_t(id)].body = std::move(body);
  }
  Grammar finish(const std::string& root) {
    if (!rules_.contains(root) || !defined_[size_t(rules_[root])])
      fail(fmt::format("the grammar has no rule {}, with which a text begins", root));
    for (size_t i = 0; i < defined_.size(); ++i)
      if (!defined_[i])
        fail(fmt::format("the grammar names the rule {}, but does not define it",
                         grammar_.rules[i].name));
    grammar_.root = rules_[root];
    return std::move(grammar_);
  }
  void enter() {
    if (++depth_ > 100) wrong("groups nest more than 100 deep");
  }
  void leave() { --depth_; }

  Grammar grammar_;
  std::map<std::string, int> rules_;
  std::vector<bool> defined_;
  int depth_ = 0;
};

}  // namespace kivi::grammar
