// SPDX-License-Identifier: Apache-2.0
#include "engine/jinja/expression_parser.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/jinja/builtins.h"

namespace kivi::jinja {
namespace {

using ExpressionKind = Expression::Kind;

std::string shown(const Token& token) {
  switch (token.kind) {
    case Token::Kind::end:
      return "the end of the template";
    case Token::Kind::data:
      return "text";
    case Token::Kind::begin_print:
      return "{{";
    case Token::Kind::end_print:
      return "}}";
    case Token::Kind::begin_block:
      return "{%";
    case Token::Kind::end_block:
      return "%}";
    case Token::Kind::string:
      return "a string";
    default:
      return token.text;
  }
}

template <class... Parts>
std::vector<ExpressionPtr> parts_of(Parts... parts) {
  std::vector<ExpressionPtr> all;
  (all.push_back(std::move(parts)), ...);
  return all;
}

// A call of a method, or of a global function, that Python or Jinja has and this has not.
void check_call(const Expression& callee) {
  if (callee.kind == ExpressionKind::attribute && is_unsupported_method(callee.text))
    fail_unsupported(fmt::format("the method {}", callee.text), callee.line);
}

// Of map('upper') and select('odd'): the filter or test that is named in a string.
void check_inner_name(const Expression& filter, const std::string& name) {
  const bool attribute = name == "selectattr" || name == "rejectattr";
  const size_t at = attribute ? 2 : 1;
  if (!attribute && name != "map" && name != "select" && name != "reject") return;
  if (filter.parts.size() <= at || filter.parts[at]->kind != ExpressionKind::constant) return;
  const std::string* inner = filter.parts[at]->constant.string();
  if (inner == nullptr) return;
  if (name == "map" ? find_filter(*inner) == nullptr : find_test(*inner) == nullptr)
    fail_unsupported(fmt::format("the {} {}", name == "map" ? "filter" : "test", *inner),
                     filter.line);
}

}  // namespace

ExpressionParser::Level::Level(ExpressionParser& parser) : parser_(parser) {
  if (++parser_.depth_ > kMaxTreeDepth) {
    --parser_.depth_;
    fail(fmt::format("the template nests deeper than {} levels", kMaxTreeDepth),
         parser_.token().line);
  }
}

bool ExpressionParser::skip_symbol(std::string_view symbol) {
  const bool here = token().is_symbol(symbol);
  if (here) next();
  return here;
}

bool ExpressionParser::skip_name(std::string_view name) {
  const bool here = token().is_name(name);
  if (here) next();
  return here;
}

void ExpressionParser::unexpected(const std::string& wanted) const {
  fail(fmt::format("expected {}, got {}", wanted, shown(token())), token().line);
}

void ExpressionParser::expect_symbol(std::string_view symbol) {
  if (!skip_symbol(symbol)) unexpected(std::string(symbol));
}

void ExpressionParser::expect(Token::Kind kind, const char* what) {
  if (token().kind != kind) unexpected(what);
  next();
}

std::string ExpressionParser::expect_name() {
  if (token().kind != Token::Kind::name) unexpected("a name");
  std::string name = token().text;
  next();
  return name;
}

int ExpressionParser::number_of(const std::string& name) {
  const auto [it, added] = numbers_.emplace(name, int(names_.size()));
  if (added) {
    names_.push_back(name);
    read_.push_back(false);
  }
  return it->second;
}

ExpressionPtr ExpressionParser::make(ExpressionKind kind, int line,
                                     std::vector<ExpressionPtr> parts) {
  auto expression = std::make_unique<Expression>();
  expression->kind = kind;
  expression->line = line;
  expression->parts = std::move(parts);
  return expression;
}

ExpressionPtr ExpressionParser::parse_expression(Choices choices) {
  const Level level(*this);
  if (choices == Choices::no) return parse_or();
  const int line = token().line;
  ExpressionPtr value = parse_or();
  while (skip_name("if")) {
    ExpressionPtr condition = parse_or();
    ExpressionPtr otherwise = skip_name("else") ? parse_expression() : nullptr;
    value = make(ExpressionKind::choice, line,
                 parts_of(std::move(condition), std::move(value), std::move(otherwise)));
  }
  return value;
}

ExpressionPtr ExpressionParser::parse_or() {
  ExpressionPtr left = parse_and();
  if (!token().is_name("or")) return left;
  left = make(ExpressionKind::or_, token().line, parts_of(std::move(left)));
  while (skip_name("or")) left->parts.push_back(parse_and());
  return left;
}

ExpressionPtr ExpressionParser::parse_and() {
  ExpressionPtr left = parse_not();
  if (!token().is_name("and")) return left;
  left = make(ExpressionKind::and_, token().line, parts_of(std::move(left)));
  while (skip_name("and")) left->parts.push_back(parse_not());
  return left;
}

ExpressionPtr ExpressionParser::parse_not() {
  const Level level(*this);
  const int line = token().line;
  if (skip_name("not")) return make(ExpressionKind::not_, line, parts_of(parse_not()));
  return parse_compare();
}

ExpressionPtr ExpressionParser::parse_compare() {
  const int line = token().line;
  ExpressionPtr first = parse_sum();
  ExpressionPtr compare;
  for (;;) {
    std::string comparison;
    static constexpr std::string_view kSymbols[] = {"==", "!=", "<", "<=", ">", ">="};
    if (token().kind == Token::Kind::symbol &&
        std::ranges::find(kSymbols, token().text) != std::end(kSymbols)) {
      comparison = token().text;
    } else if (token().is_name("in")) {
      comparison = "in";
    } else if (token().is_name("not") && look().is_name("in")) {
      comparison = "not in";
      next();
    } else {
      return compare ? std::move(compare) : std::move(first);
    }
    next();
    if (!compare) compare = make(ExpressionKind::compare, line, parts_of(std::move(first)));
    compare->operators.push_back(comparison);
    compare->parts.push_back(parse_sum());
  }
}

ExpressionPtr ExpressionParser::parse_binary(std::initializer_list<std::string_view> symbols,
                                             ExpressionPtr (ExpressionParser::*operand)()) {
  ExpressionPtr left = (this->*operand)();
  // A chain of operators is a tree that leans to the left: it is as deep as it is long.
  std::vector<std::unique_ptr<Level>> levels;
  while (token().kind == Token::Kind::symbol &&
         std::find(symbols.begin(), symbols.end(), token().text) != symbols.end()) {
    levels.push_back(std::make_unique<Level>(*this));
    const Token symbol = token();
    next();
    ExpressionPtr right = (this->*operand)();
    if (symbol.text == "%" && left->kind == ExpressionKind::constant &&
        left->constant.string() != nullptr)
      fail_unsupported("formatting a string with %", symbol.line);
    left = make(ExpressionKind::binary, symbol.line, parts_of(std::move(left), std::move(right)));
    left->text = symbol.text;
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_sum() {
  return parse_binary({"+", "-"}, &ExpressionParser::parse_concat);
}

ExpressionPtr ExpressionParser::parse_concat() {
  ExpressionPtr left = parse_product();
  if (!token().is_symbol("~")) return left;
  left = make(ExpressionKind::concat, token().line, parts_of(std::move(left)));
  while (skip_symbol("~")) left->parts.push_back(parse_product());
  return left;
}

ExpressionPtr ExpressionParser::parse_product() {
  return parse_binary({"*", "/", "//", "%"}, &ExpressionParser::parse_power);
}

ExpressionPtr ExpressionParser::parse_power() {
  return parse_binary({"**"}, &ExpressionParser::parse_operand);
}

ExpressionPtr ExpressionParser::parse_unary(bool with_filters) {
  const Level level(*this);
  const int line = token().line;
  ExpressionPtr value;
  if (skip_symbol("-")) {
    value = make(ExpressionKind::negate, line, parts_of(parse_unary(false)));
  } else if (skip_symbol("+")) {
    value = make(ExpressionKind::plus, line, parts_of(parse_unary(false)));
  } else {
    value = parse_primary();
  }
  value = parse_postfix(std::move(value));
  if (!with_filters) return value;
  std::vector<std::unique_ptr<Level>> levels;
  for (;;) {
    levels.push_back(std::make_unique<Level>(*this));
    if (token().is_symbol("|")) {
      value = parse_filters(std::move(value));
    } else if (token().is_name("is")) {
      value = parse_test(std::move(value));
    } else if (token().is_symbol("(")) {
      value = parse_call(std::move(value));
    } else {
      return value;
    }
  }
}

ExpressionPtr ExpressionParser::parse_primary() {
  const Level level(*this);
  const Token here = token();
  ExpressionPtr value = make(ExpressionKind::constant, here.line);
  switch (here.kind) {
    case Token::Kind::name:
      next();
      if (here.text == "true" || here.text == "True") {
        value->constant = Value::boolean(true);
      } else if (here.text == "false" || here.text == "False") {
        value->constant = Value::boolean(false);
      } else if (here.text == "none" || here.text == "None") {
        value->constant = Value::none();
      } else {
        if (is_unsupported_global(here.text))
          fail_unsupported(fmt::format("the function {}", here.text), here.line);
        value->kind = ExpressionKind::name;
        value->name = number_of(here.text);
        read_[size_t(value->name)] = true;
      }
      return value;
    case Token::Kind::string:
      return parse_string();
    case Token::Kind::integer:
      next();
      value->constant = Value::integer(here.integer);
      return value;
    case Token::Kind::number:
      next();
      value->constant = Value(here.number);
      return value;
    default:
      break;
  }
  if (skip_symbol("(")) {
    value = parse_tuple(Choices::allowed, "", /*in_parentheses=*/true);
    expect_symbol(")");
    return value;
  }
  if (here.is_symbol("[")) return parse_list();
  if (here.is_symbol("{")) return parse_dict();
  unexpected("an expression");
}

// Strings side by side are one.
ExpressionPtr ExpressionParser::parse_string() {
  ExpressionPtr value = make(ExpressionKind::constant, token().line);
  std::string text;
  for (; token().kind == Token::Kind::string; next()) text += token().text;
  value->constant = Value(std::move(text));
  return value;
}

ExpressionPtr ExpressionParser::parse_list() {
  ExpressionPtr list = make(ExpressionKind::list, token().line);
  expect_symbol("[");
  while (!skip_symbol("]")) {
    if (!list->parts.empty()) {
      expect_symbol(",");
      if (skip_symbol("]")) break;
    }
    list->parts.push_back(parse_expression());
  }
  return list;
}

ExpressionPtr ExpressionParser::parse_dict() {
  ExpressionPtr dict = make(ExpressionKind::dict, token().line);
  expect_symbol("{");
  while (!skip_symbol("}")) {
    if (!dict->parts.empty()) {
      expect_symbol(",");
      if (skip_symbol("}")) break;
    }
    dict->parts.push_back(parse_expression());
    expect_symbol(":");
    dict->parts.push_back(parse_expression());
  }
  return dict;
}

ExpressionPtr ExpressionParser::parse_tuple(Choices choices, std::string_view end,
                                            bool in_parentheses) {
  const Level level(*this);
  const auto ended = [&] {
    return token().kind == Token::Kind::end_print || token().kind == Token::Kind::end_block ||
           token().is_symbol(")") || (!end.empty() && token().is_name(end));
  };
  ExpressionPtr tuple = make(ExpressionKind::tuple, token().line);
  bool comma = false;
  while (!ended()) {
    tuple->parts.push_back(parse_expression(choices));
    if (!skip_symbol(",")) break;
    comma = true;
  }
  if (comma) return tuple;
  if (!tuple->parts.empty()) return std::move(tuple->parts[0]);
  if (!in_parentheses) unexpected("an expression");
  return tuple;
}

ExpressionPtr ExpressionParser::parse_target(std::string_view end) {
  const Level level(*this);
  ExpressionPtr tuple = make(ExpressionKind::tuple, token().line);
  bool comma = false;
  while (!token().is_name(end) && (token().kind == Token::Kind::name || token().is_symbol("("))) {
    if (skip_symbol("(")) {
      tuple->parts.push_back(parse_target());
      expect_symbol(")");
    } else {
      static constexpr std::string_view kConstants[] = {"true",  "True", "false",
                                                        "False", "none", "None"};
      if (std::ranges::find(kConstants, token().text) != std::end(kConstants))
        fail(fmt::format("{} cannot be assigned to", token().text), token().line);
      ExpressionPtr name = make(ExpressionKind::name, token().line);
      name->name = number_of(expect_name());
      tuple->parts.push_back(std::move(name));
    }
    if (!skip_symbol(",")) break;
    comma = true;
  }
  if (tuple->parts.empty()) unexpected("a name");
  if (comma) return tuple;
  return std::move(tuple->parts[0]);
}

ExpressionPtr ExpressionParser::parse_postfix(ExpressionPtr object) {
  std::vector<std::unique_ptr<Level>> levels;
  for (;;) {
    levels.push_back(std::make_unique<Level>(*this));
    if (token().is_symbol(".") || token().is_symbol("[")) {
      object = parse_subscript(std::move(object));
    } else if (token().is_symbol("(")) {
      object = parse_call(std::move(object));
    } else {
      return object;
    }
  }
}

ExpressionPtr ExpressionParser::parse_subscript(ExpressionPtr object) {
  const int line = token().line;
  if (skip_symbol(".")) {
    if (token().kind == Token::Kind::integer) {
      ExpressionPtr index = make(ExpressionKind::constant, line);
      index->constant = Value::integer(token().integer);
      next();
      return make(ExpressionKind::item, line, parts_of(std::move(object), std::move(index)));
    }
    ExpressionPtr attribute = make(ExpressionKind::attribute, line, parts_of(std::move(object)));
    attribute->text = expect_name();
    return attribute;
  }
  expect_symbol("[");
  ExpressionPtr bounds[3];
  bool slice = false;
  for (int i = 0; i < 3; ++i) {
    if (!token().is_symbol(":") && !token().is_symbol("]")) bounds[i] = parse_expression();
    if (!skip_symbol(":")) break;
    slice = true;
  }
  if (token().is_symbol(",")) fail_unsupported("an index of several parts", line);
  expect_symbol("]");
  if (slice)
    return make(ExpressionKind::slice, line,
                parts_of(std::move(object), std::move(bounds[0]), std::move(bounds[1]),
                         std::move(bounds[2])));
  if (!bounds[0]) fail("an index is missing between [ and ]", line);
  return make(ExpressionKind::item, line, parts_of(std::move(object), std::move(bounds[0])));
}

void ExpressionParser::parse_arguments(Expression& call) {
  const Level level(*this);
  const int line = token().line;
  const auto ensure = [&](bool in_order) {
    if (!in_order) fail("the arguments of a call are in the wrong order", line);
  };
  expect_symbol("(");
  for (bool first = true; !skip_symbol(")"); first = false) {
    if (!first) {
      expect_symbol(",");
      if (skip_symbol(")")) return;
    }
    if (skip_symbol("*")) {
      ensure(!call.list_argument && !call.dict_argument);
      call.list_argument = parse_expression();
    } else if (skip_symbol("**")) {
      ensure(!call.dict_argument);
      call.dict_argument = parse_expression();
    } else if (token().kind == Token::Kind::name && look().is_symbol("=")) {
      ensure(!call.dict_argument);
      std::string name = expect_name();
      next();
      for (const auto& keyword : call.keywords)
        if (keyword.first == name) fail(fmt::format("the argument {} stands twice", name), line);
      call.keywords.emplace_back(std::move(name), parse_expression());
    } else {
      ensure(!call.list_argument && !call.dict_argument && call.keywords.empty());
      call.parts.push_back(parse_expression());
    }
  }
}

ExpressionPtr ExpressionParser::parse_call(ExpressionPtr callee) {
  check_call(*callee);
  ExpressionPtr call = make(ExpressionKind::call, token().line, parts_of(std::move(callee)));
  parse_arguments(*call);
  return call;
}

ExpressionPtr ExpressionParser::parse_filters(ExpressionPtr input, bool first_bare) {
  std::vector<std::unique_ptr<Level>> levels;
  while (first_bare || skip_symbol("|")) {
    levels.push_back(std::make_unique<Level>(*this));
    first_bare = false;
    ExpressionPtr filter = make(ExpressionKind::filter, token().line, parts_of(std::move(input)));
    std::string name = expect_name();
    while (skip_symbol(".")) name += "." + expect_name();
    filter->filter = find_filter(name);
    if (filter->filter == nullptr)
      fail_unsupported(fmt::format("the filter {}", name), filter->line);
    if (token().is_symbol("(")) parse_arguments(*filter);
    check_inner_name(*filter, name);
    input = std::move(filter);
  }
  return input;
}

ExpressionPtr ExpressionParser::parse_test(ExpressionPtr object) {
  const int line = token().line;
  next();  // is
  const bool negated = skip_name("not");
  ExpressionPtr test = make(ExpressionKind::test, line, parts_of(std::move(object)));
  std::string name = expect_name();
  while (skip_symbol(".")) name += "." + expect_name();
  test->test = find_test(name);
  if (test->test == nullptr) fail_unsupported(fmt::format("the test {}", name), line);
  const Token& here = token();
  const bool value = here.kind == Token::Kind::string || here.kind == Token::Kind::integer ||
                     here.kind == Token::Kind::number || here.is_symbol("[") ||
                     here.is_symbol("{") ||
                     (here.kind == Token::Kind::name && here.text != "else" && here.text != "or" &&
                      here.text != "and");
  if (here.is_symbol("(")) {
    parse_arguments(*test);
  } else if (value) {
    if (here.is_name("is")) fail("tests with is cannot be chained", here.line);
    test->parts.push_back(parse_postfix(parse_primary()));
  }
  if (!negated) return test;
  return make(ExpressionKind::not_, line, parts_of(std::move(test)));
}

}  // namespace kivi::jinja
