// SPDX-License-Identifier: Apache-2.0
// The grammar of expressions, and the stream of tokens that both parsers read.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/jinja/ast.h"
#include "engine/jinja/lexer.h"

namespace kivi::jinja {

// Nesting of a template's expressions and blocks: recursion over the tree is bounded by it.
inline constexpr int kMaxTreeDepth = 400;

class ExpressionParser {
 public:
  explicit ExpressionParser(std::string_view source) : tokens_(read_tokens(source)) {}

 protected:
  enum class Choices { allowed, no };  // a if b else c
  ExpressionPtr parse_expression(Choices choices = Choices::allowed);
  // Expressions with commas between are a tuple. `end`: a name at which it may end.
  ExpressionPtr parse_tuple(Choices choices = Choices::allowed, std::string_view end = "",
                            bool in_parentheses = false);
  // A name, or a tuple of targets.
  ExpressionPtr parse_target(std::string_view end = "");
  ExpressionPtr parse_call(ExpressionPtr callee);
  // "| name(...)" as often as it comes. `first_bare`: the first has no bar before it.
  ExpressionPtr parse_filters(ExpressionPtr input, bool first_bare = false);

  const Token& token() const { return tokens_[at_]; }
  const Token& look() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  void next() { at_ += at_ + 1 < tokens_.size() ? 1 : 0; }
  bool skip_symbol(std::string_view symbol);
  bool skip_name(std::string_view name);
  void expect_symbol(std::string_view symbol);
  void expect(Token::Kind kind, const char* what);
  std::string expect_name();
  [[noreturn]] void unexpected(const std::string& wanted) const;
  int number_of(const std::string& name);
  ExpressionPtr make(Expression::Kind kind, int line, std::vector<ExpressionPtr> parts = {});

  // Counts the levels of nesting while it lives.
  class Level {
   public:
    explicit Level(ExpressionParser& parser);
    ~Level() { --parser_.depth_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;

   private:
    ExpressionParser& parser_;
  };

  std::vector<std::string> names_;
  std::vector<bool> read_;  // by name: read since it was last cleared (loop, caller, ...)

 private:
  ExpressionPtr parse_or();
  ExpressionPtr parse_and();
  ExpressionPtr parse_not();
  ExpressionPtr parse_compare();
  ExpressionPtr parse_sum();
  ExpressionPtr parse_concat();
  ExpressionPtr parse_product();
  ExpressionPtr parse_power();
  ExpressionPtr parse_operand() { return parse_unary(true); }
  ExpressionPtr parse_unary(bool with_filters);
  ExpressionPtr parse_primary();
  ExpressionPtr parse_string();
  ExpressionPtr parse_dict();
  ExpressionPtr parse_list();
  ExpressionPtr parse_postfix(ExpressionPtr object);
  ExpressionPtr parse_subscript(ExpressionPtr object);
  ExpressionPtr parse_test(ExpressionPtr object);
  ExpressionPtr parse_binary(std::initializer_list<std::string_view> symbols,
                             ExpressionPtr (ExpressionParser::*operand)());
  void parse_arguments(Expression& call);

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  std::unordered_map<std::string, int> numbers_;  // of names_
};

}  // namespace kivi::jinja
