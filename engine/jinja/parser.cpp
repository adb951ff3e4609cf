// SPDX-License-Identifier: Apache-2.0
#include "engine/jinja/parser.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/jinja/expression_parser.h"

namespace kivi::jinja {
namespace {

using StatementKind = Statement::Kind;
using Ends = std::initializer_list<std::string_view>;

class Parser : private ExpressionParser {
 public:
  explicit Parser(std::string_view source) : ExpressionParser(source) {}

  Template run() {
    Template result;
    result.body = parse_block({});
    result.names = std::move(names_);
    return result;
  }

 private:
  // Statements up to a tag that is one of `ends`, of which "{%" has been read then; or up to the
  // end of the template.
  Block parse_block(Ends ends);
  // A block that ends in the tag `end`, tag and all.
  Block parse_body(std::string_view end);
  void parse_statement(Block& block);

  std::unique_ptr<Statement> start(StatementKind kind);
  void end_tag() { expect(Token::Kind::end_block, "%}"); }
  void parse_if(Block& block);
  void parse_for(Block& block);
  void parse_set(Block& block);
  void parse_with(Block& block);
  void parse_macro(Block& block);
  void parse_call_block(Block& block);
  void parse_filter_block(Block& block);
  void parse_print(Block& block);
  void parse_scope(Block& block, std::string_view end);
  void parse_jump(Block& block, StatementKind kind);
  void parse_signature(Signature& signature);
  // The body of a macro or call block, and which special names it reads.
  Block parse_macro_body(std::string_view end, Signature& signature);

  int loops_ = 0;  // around here, within the macro
};

std::unique_ptr<Statement> Parser::start(StatementKind kind) {
  auto statement = std::make_unique<Statement>();
  statement->kind = kind;
  statement->line = token().line;
  return statement;
}

Block Parser::parse_block(Ends ends) {
  const Level level(*this);
  Block block;
  for (;;) {
    switch (token().kind) {
      case Token::Kind::data:
        block.push_back(start(StatementKind::text));
        block.back()->text = token().text;
        next();
        break;
      case Token::Kind::begin_print:
        next();
        block.push_back(start(StatementKind::print));
        block.back()->expressions.push_back(parse_tuple());
        expect(Token::Kind::end_print, "}}");
        break;
      case Token::Kind::begin_block:
        next();
        if (token().kind == Token::Kind::name &&
            std::find(ends.begin(), ends.end(), token().text) != ends.end())
          return block;
        parse_statement(block);
        end_tag();
        break;
      default:
        if (ends.size() > 0) unexpected(fmt::format("{{% {} %}}", *(ends.end() - 1)));
        return block;
    }
  }
}

Block Parser::parse_body(std::string_view end) {
  skip_symbol(":");
  end_tag();
  Block block = parse_block({end});
  next();
  return block;
}

void Parser::parse_statement(Block& block) {
  const int line = token().line;
  const std::string tag = expect_name();
  if (tag == "if") return parse_if(block);
  if (tag == "for") return parse_for(block);
  if (tag == "set") return parse_set(block);
  if (tag == "with") return parse_with(block);
  if (tag == "macro") return parse_macro(block);
  if (tag == "call") return parse_call_block(block);
  if (tag == "filter") return parse_filter_block(block);
  if (tag == "print") return parse_print(block);
  if (tag == "generation") return parse_scope(block, "endgeneration");
  if (tag == "break") return parse_jump(block, StatementKind::break_);
  if (tag == "continue") return parse_jump(block, StatementKind::continue_);
  if (tag.starts_with("end") || tag == "else" || tag == "elif")
    fail(fmt::format("{{% {} %}} closes nothing here", tag), line);
  fail_unsupported(fmt::format("the tag {{% {} %}}", tag), line);
}

void Parser::parse_if(Block& block) {
  auto statement = start(StatementKind::if_);
  for (;;) {
    statement->expressions.push_back(parse_tuple(Choices::no));
    skip_symbol(":");
    end_tag();
    statement->blocks.push_back(parse_block({"elif", "else", "endif"}));
    if (!skip_name("elif")) break;
  }
  if (skip_name("else"))
    statement->blocks.push_back(parse_body("endif"));
  else
    next();
  block.push_back(std::move(statement));
}

void Parser::parse_for(Block& block) {
  auto statement = start(StatementKind::for_);
  statement->targets.push_back(parse_target("in"));
  if (!skip_name("in")) unexpected("in");
  statement->expressions.push_back(parse_tuple(Choices::no, "recursive"));
  if (skip_name("if")) statement->expressions.push_back(parse_expression());
  if (token().is_name("recursive")) fail_unsupported("a recursive loop", token().line);
  skip_symbol(":");
  end_tag();
  const auto loop = size_t(number_of("loop"));
  const bool outer_uses = read_[loop];
  read_[loop] = false;
  ++loops_;
  statement->blocks.push_back(parse_block({"else", "endfor"}));
  --loops_;
  statement->uses_loop = read_[loop];
  read_[loop] = outer_uses;
  if (skip_name("else"))
    statement->blocks.push_back(parse_body("endfor"));
  else
    next();
  block.push_back(std::move(statement));
}

void Parser::parse_set(Block& block) {
  auto statement = start(StatementKind::set);
  if (token().kind == Token::Kind::name && look().is_symbol(".")) {
    statement->name = number_of(expect_name());
    next();
    statement->text = expect_name();
  } else {
    statement->targets.push_back(parse_target());
  }
  if (skip_symbol("=")) {
    statement->expressions.push_back(parse_tuple());
  } else {
    statement->kind = StatementKind::set_block;
    if (token().is_symbol("|")) statement->expressions.push_back(parse_filters(nullptr));
    statement->blocks.push_back(parse_body("endset"));
  }
  block.push_back(std::move(statement));
}

void Parser::parse_with(Block& block) {
  auto statement = start(StatementKind::with);
  while (token().kind != Token::Kind::end_block) {
    if (!statement->targets.empty()) expect_symbol(",");
    ExpressionPtr target = make(Expression::Kind::name, token().line);
    target->name = number_of(expect_name());
    statement->targets.push_back(std::move(target));
    expect_symbol("=");
    statement->expressions.push_back(parse_expression());
  }
  statement->blocks.push_back(parse_body("endwith"));
  block.push_back(std::move(statement));
}

void Parser::parse_signature(Signature& signature) {
  expect_symbol("(");
  while (!skip_symbol(")")) {
    if (!signature.parameters.empty()) expect_symbol(",");
    const int line = token().line;
    signature.parameters.push_back(number_of(expect_name()));
    if (skip_symbol("="))
      signature.defaults.push_back(parse_expression());
    else if (!signature.defaults.empty())
      fail("a parameter without a default follows one that has a default", line);
  }
}

Block Parser::parse_macro_body(std::string_view end, Signature& signature) {
  const std::pair<const char*, bool*> special[] = {{"varargs", &signature.uses_varargs},
                                                   {"kwargs", &signature.uses_kwargs},
                                                   {"caller", &signature.uses_caller}};
  bool before[3];
  for (int i = 0; i < 3; ++i) {
    const auto name = size_t(number_of(special[i].first));
    before[i] = read_[name];
    read_[name] = false;
  }
  const int loops = std::exchange(loops_, 0);
  Block body = parse_body(end);
  loops_ = loops;
  for (int i = 0; i < 3; ++i) {
    const auto name = size_t(number_of(special[i].first));
    *special[i].second = read_[name];
    if (before[i]) read_[name] = true;
  }
  return body;
}

void Parser::parse_macro(Block& block) {
  auto statement = start(StatementKind::macro);
  statement->name = number_of(expect_name());
  parse_signature(statement->signature);
  statement->blocks.push_back(parse_macro_body("endmacro", statement->signature));
  block.push_back(std::move(statement));
}

void Parser::parse_call_block(Block& block) {
  auto statement = start(StatementKind::call);
  if (token().is_symbol("(")) parse_signature(statement->signature);
  statement->expressions.push_back(parse_expression());
  if (statement->expressions[0]->kind != Expression::Kind::call)
    fail("expected a call after {% call", statement->line);
  statement->blocks.push_back(parse_macro_body("endcall", statement->signature));
  block.push_back(std::move(statement));
}

void Parser::parse_filter_block(Block& block) {
  auto statement = start(StatementKind::filter);
  statement->expressions.push_back(parse_filters(nullptr, /*first_bare=*/true));
  statement->blocks.push_back(parse_body("endfilter"));
  block.push_back(std::move(statement));
}

void Parser::parse_print(Block& block) {
  auto statement = start(StatementKind::print);
  while (token().kind != Token::Kind::end_block) {
    if (!statement->expressions.empty()) expect_symbol(",");
    statement->expressions.push_back(parse_expression());
  }
  block.push_back(std::move(statement));
}

void Parser::parse_scope(Block& block, std::string_view end) {
  auto statement = start(StatementKind::scope);
  const int loops = std::exchange(loops_, 0);  // Jinja runs it as a function
  statement->blocks.push_back(parse_body(end));
  loops_ = loops;
  block.push_back(std::move(statement));
}

void Parser::parse_jump(Block& block, StatementKind kind) {
  if (loops_ == 0)
    fail(fmt::format("{{% {} %}} outside of a loop",
                     kind == StatementKind::break_ ? "break" : "continue"),
         token().line);
  block.push_back(start(kind));
}

}  // namespace

Template parse_template(std::string_view source) { return Parser(source).run(); }

}  // namespace kivi::jinja
