// SPDX-License-Identifier: Apache-2.0
// The evaluator's expressions.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "engine/jinja/evaluator.h"
#include "engine/jinja/text.h"

namespace kivi::jinja {
namespace {

using ExpressionKind = Expression::Kind;

// Of nested statements, expressions and macro calls; each takes about 2 KB of the thread's stack.
constexpr int kMaxDepth = 500;

[[noreturn]] void fail_operands(const std::string& symbol, const Value& left, const Value& right) {
  for (const Value* value : {&left, &right})
    if (const auto* undefined = std::get_if<Undefined>(&value->state))
      fail(undefined_message(*undefined));
  fail(fmt::format("{} {} {} cannot be computed", type_name(left), symbol, type_name(right)));
}

[[noreturn]] void fail_overflow() { fail("a whole number does not fit in 64 bits"); }

int64_t power(int64_t base, int64_t exponent) {
  int64_t result = 1;
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) fail_overflow();
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) fail_overflow();
  }
  return result;
}

// Division as Python has it: rounded down; the rest has the divisor's sign.
Value divide_integers(const std::string& symbol, int64_t a, int64_t b) {
  if (b == 0) fail("a division by zero");
  if (symbol == "/") return Value(double(a) / double(b));
  if (b == -1) {
    int64_t negative = 0;
    if (symbol == "%") return Value::integer(0);
    if (__builtin_sub_overflow(int64_t(0), a, &negative)) fail_overflow();
    return Value::integer(negative);
  }
  const int64_t rest = a % b;
  const bool down = rest != 0 && (rest < 0) != (b < 0);
  if (symbol == "//") return Value::integer(a / b - (down ? 1 : 0));
  return Value::integer(down ? rest + b : rest);
}

Value compute_numbers(const std::string& symbol, double a, double b) {
  if (symbol == "-") return Value(a - b);
  if (symbol == "*") return Value(a * b);
  if (symbol == "**") return Value(std::pow(a, b));
  if (b == 0) fail("a division by zero");
  if (symbol == "/") return Value(a / b);
  double rest = std::fmod(a, b);
  if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
  if (symbol == "%") return Value(rest);
  return Value(std::floor((a - rest) / b + 0.5));
}

Value compute_integers(const std::string& symbol, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  if (symbol == "+") {
    overflow = __builtin_add_overflow(a, b, &result);
  } else if (symbol == "-") {
    overflow = __builtin_sub_overflow(a, b, &result);
  } else if (symbol == "*") {
    overflow = __builtin_mul_overflow(a, b, &result);
  } else if (symbol == "**") {
    if (b < 0) return Value(std::pow(double(a), double(b)));
    result = power(a, b);
  } else {
    return divide_integers(symbol, a, b);
  }
  if (overflow) fail_overflow();
  return Value::integer(result);
}

// A bound of a slice of `length` items: counted from the end where negative, cut to the range.
int64_t bound_of(const Value& value, int64_t otherwise, int64_t length, int64_t low, int64_t high) {
  if (value.is_undefined() || value.is_none()) return otherwise;
  if (!value.is_integral()) fail(fmt::format("a {} cannot bound a slice", type_name(value)));
  int64_t bound = value.as_integer();
  if (bound < 0) bound = std::max(bound, -length - 1) + length;
  return std::clamp(bound, low, high);
}

}  // namespace

Evaluator::Depth::Depth(Evaluator& evaluator) : evaluator_(evaluator) {
  if (++evaluator_.depth_ > kMaxDepth) {
    --evaluator_.depth_;
    fail(fmt::format("the template recurses deeper than {} levels", kMaxDepth));
  }
}

Value Evaluator::evaluate(const Expression& expression, Scope& scope) {
  const Depth depth(*this);
  step();
  switch (expression.kind) {
    case ExpressionKind::constant:
      return expression.constant;
    case ExpressionKind::name:
      return look_up(expression.name, scope);
    case ExpressionKind::list:
    case ExpressionKind::tuple:
      return evaluate_list(expression, scope);
    case ExpressionKind::dict:
      return evaluate_dict(expression, scope);
    case ExpressionKind::attribute:
      return get_attribute(*this, evaluate(*expression.parts[0], scope), expression.text);
    case ExpressionKind::item:
      return evaluate_item(expression, scope);
    case ExpressionKind::slice:
      return evaluate_slice(expression, scope);
    case ExpressionKind::call:
      return evaluate_call(expression, scope);
    case ExpressionKind::filter:
      return evaluate_filter(expression, scope);
    case ExpressionKind::test: {
      const Value value = evaluate(*expression.parts[0], scope);
      return Value::boolean(
          expression.test->holds(*this, value, evaluate_arguments(expression, scope)));
    }
    case ExpressionKind::negate:
    case ExpressionKind::plus:
      return evaluate_sign(expression, scope);
    case ExpressionKind::not_:
      return Value::boolean(!truthy(evaluate(*expression.parts[0], scope)));
    case ExpressionKind::binary:
      return evaluate_binary(expression, scope);
    case ExpressionKind::concat:
      return evaluate_concat(expression, scope);
    case ExpressionKind::compare:
      return Value::boolean(evaluate_compare(expression, scope));
    case ExpressionKind::and_:
    case ExpressionKind::or_: {
      Value value;
      for (const auto& part : expression.parts) {
        value = evaluate(*part, scope);
        if (truthy(value) != (expression.kind == ExpressionKind::and_)) break;
      }
      return value;
    }
    case ExpressionKind::choice:
      if (truthy(evaluate(*expression.parts[0], scope)))
        return evaluate(*expression.parts[1], scope);
      return expression.parts[2] ? evaluate(*expression.parts[2], scope) : Value();
  }
  return Value();
}

Value Evaluator::evaluate_list(const Expression& expression, Scope& scope) {
  std::vector<Value> items;
  items.reserve(expression.parts.size());
  for (const auto& part : expression.parts) items.push_back(evaluate(*part, scope));
  return list(
      expression.kind == ExpressionKind::list ? Sequence::Kind::list : Sequence::Kind::tuple,
      std::move(items));
}

Value Evaluator::evaluate_dict(const Expression& expression, Scope& scope) {
  Dict dict;
  charge(sizeof(Dict) + expression.parts.size() * sizeof(Value));
  for (size_t i = 0; i < expression.parts.size(); i += 2) {
    Value key = evaluate(*expression.parts[i], scope);
    dict.set(std::move(key), evaluate(*expression.parts[i + 1], scope));
  }
  return make_dict(std::move(dict));
}

Value Evaluator::evaluate_item(const Expression& expression, Scope& scope) {
  const Value object = evaluate(*expression.parts[0], scope);
  return get_item(*this, object, evaluate(*expression.parts[1], scope));
}

Value Evaluator::evaluate_sign(const Expression& expression, Scope& scope) {
  const Value value = evaluate(*expression.parts[0], scope);
  const bool negate = expression.kind == ExpressionKind::negate;
  if (value.is_integral()) return compute_integers(negate ? "-" : "+", 0, value.as_integer());
  if (const auto* number = value.number()) return Value(negate ? -*number : *number);
  fail_operands(negate ? "-" : "+", value, Value::none());
}

Value Evaluator::evaluate_slice(const Expression& expression, Scope& scope) {
  const Value object = evaluate(*expression.parts[0], scope);
  Value bounds[3];
  for (size_t i = 0; i < 3; ++i)
    if (expression.parts[i + 1]) bounds[i] = evaluate(*expression.parts[i + 1], scope);
  const auto* text = object.string();
  const auto* sequence = object.sequence();
  if (const auto* undefined = std::get_if<Undefined>(&object.state))
    fail(undefined_message(*undefined));
  if (text == nullptr && (sequence == nullptr || !sequence->has_index())) return Value();

  const int64_t size = text != nullptr ? length(*text) : int64_t(sequence->items.size());
  const int64_t stride = integer_of(bounds[2].is_none() ? Value() : bounds[2], 1, "a slice's step");
  if (stride == 0) fail("a slice's step is 0");
  const bool up = stride > 0;
  const int64_t begin =
      bound_of(bounds[0], up ? 0 : size - 1, size, up ? 0 : -1, up ? size : size - 1);
  const int64_t end = bound_of(bounds[1], up ? size : -1, size, up ? 0 : -1, up ? size : size - 1);
  if (text != nullptr && stride == 1) {
    step(size / 16);
    if (begin >= end) return this->text("");
    const size_t from = byte_of(*text, begin);
    return this->text(
        text->substr(from, byte_of(std::string_view(*text).substr(from), end - begin)));
  }
  const std::vector<Value> items = text != nullptr ? iterate(*this, object) : sequence->items;
  std::vector<Value> picked;
  for (int64_t i = begin; up ? i < end : i > end;) {
    step();
    picked.push_back(items[size_t(i)]);
    if (__builtin_add_overflow(i, stride, &i)) break;
  }
  if (text == nullptr) return list(sequence->kind, std::move(picked));
  std::string joined;
  for (const Value& character : picked) joined += *character.string();
  return this->text(std::move(joined));
}

Arguments Evaluator::evaluate_arguments(const Expression& expression, Scope& scope) {
  Arguments arguments;
  for (size_t i = 1; i < expression.parts.size(); ++i)
    arguments.positional.push_back(evaluate(*expression.parts[i], scope));
  for (const auto& [name, value] : expression.keywords)
    arguments.keywords.emplace_back(name, evaluate(*value, scope));
  if (expression.list_argument)
    for (Value& value : iterate(*this, evaluate(*expression.list_argument, scope)))
      arguments.positional.push_back(std::move(value));
  if (expression.dict_argument) {
    const Value more = evaluate(*expression.dict_argument, scope);
    if (more.dict() == nullptr) fail(fmt::format("** takes a dict, got a {}", type_name(more)));
    for (const auto& [key, value] : more.dict()->items) {
      step();
      if (key.string() == nullptr) fail("the keys of what ** takes must be strings");
      for (const auto& known : arguments.keywords)
        if (known.first == *key.string())
          fail(fmt::format("the argument {} is given twice", known.first));
      arguments.keywords.emplace_back(*key.string(), value);
    }
  }
  return arguments;
}

Value Evaluator::evaluate_call(const Expression& expression, Scope& scope, Value* caller) {
  const Expression& callee = *expression.parts[0];
  const auto arguments = [&] {
    Arguments all = evaluate_arguments(expression, scope);
    if (caller != nullptr) all.keywords.emplace_back("caller", *caller);
    return all;
  };
  if (callee.kind != ExpressionKind::attribute) {
    const Value function = evaluate(callee, scope);
    return call(function, arguments());
  }
  // The method of a value, without an object for it.
  const Value object = evaluate(*callee.parts[0], scope);
  if (has_method(object, callee.text)) {
    const Arguments all = arguments();
    return call_method(*this, object, callee.text, all);
  }
  const Value function = get_attribute(*this, object, callee.text);
  return call(function, arguments());
}

Value Evaluator::evaluate_filter(const Expression& expression, Scope& scope, const Value* input) {
  Value value;
  if (!expression.parts[0])
    value = *input;
  else if (input != nullptr)
    value = evaluate_filter(*expression.parts[0], scope, input);
  else
    value = evaluate(*expression.parts[0], scope);
  return expression.filter->apply(*this, value, evaluate_arguments(expression, scope));
}

Value Evaluator::evaluate_binary(const Expression& expression, Scope& scope) {
  const Value left = evaluate(*expression.parts[0], scope);
  const Value right = evaluate(*expression.parts[1], scope);
  const std::string& symbol = expression.text;
  if (symbol == "+") return add(left, right);
  if (left.is_integral() && right.is_integral())
    return compute_integers(symbol, left.as_integer(), right.as_integer());
  if (left.is_numeric() && right.is_numeric())
    return compute_numbers(symbol, left.as_number(), right.as_number());
  if (symbol == "*") return multiply(left, right);
  if (symbol == "%" && left.string() != nullptr)
    fail_unsupported("formatting a string with %", expression.line);
  fail_operands(symbol, left, right);
}

Value Evaluator::add(const Value& left, const Value& right) {
  if (left.is_integral() && right.is_integral())
    return compute_integers("+", left.as_integer(), right.as_integer());
  if (left.is_numeric() && right.is_numeric()) return Value(left.as_number() + right.as_number());
  if (left.string() != nullptr && right.string() != nullptr)
    return text(*left.string() + *right.string());
  const auto *a = left.sequence(), *b = right.sequence();
  if (a == nullptr || b == nullptr || a->kind != b->kind || a->kind > Sequence::Kind::tuple)
    fail_operands("+", left, right);
  step(int64_t(a->items.size() + b->items.size()));
  std::vector<Value> items = a->items;
  items.insert(items.end(), b->items.begin(), b->items.end());
  return list(a->kind, std::move(items));
}

Value Evaluator::multiply(const Value& left, const Value& right) {
  const Value& what = left.is_integral() ? right : left;
  const Value& count = left.is_integral() ? left : right;
  const auto* sequence = what.sequence();
  const bool repeats =
      what.string() != nullptr || (sequence != nullptr && sequence->kind <= Sequence::Kind::tuple);
  if (!repeats || !count.is_integral()) fail_operands("*", left, right);
  const auto size = int64_t(sequence != nullptr ? sequence->items.size() : what.string()->size());
  const int64_t times = std::max<int64_t>(0, count.as_integer());
  int64_t total = 0;
  if (__builtin_mul_overflow(size, times, &total) || total > int64_t(limits_.text_bytes))
    fail(fmt::format("a value grows beyond {} bytes", limits_.text_bytes));
  if (size == 0) return what;
  if (sequence == nullptr) {
    std::string repeated;
    repeated.reserve(size_t(total));
    for (int64_t i = 0; i < times; ++i) repeated += *what.string();
    return text(std::move(repeated));
  }
  step(total);
  std::vector<Value> items;
  for (int64_t i = 0; i < times; ++i)
    items.insert(items.end(), sequence->items.begin(), sequence->items.end());
  return list(sequence->kind, std::move(items));
}

Value Evaluator::evaluate_concat(const Expression& expression, Scope& scope) {
  std::string joined;
  for (const auto& part : expression.parts)
    append_str(joined, evaluate(*part, scope), limits_.text_bytes);
  return text(std::move(joined));
}

bool Evaluator::evaluate_compare(const Expression& expression, Scope& scope) {
  Value left = evaluate(*expression.parts[0], scope);
  for (size_t i = 0; i < expression.operators.size(); ++i) {
    Value right = evaluate(*expression.parts[i + 1], scope);
    if (!compare(expression.operators[i], left, right)) return false;
    left = std::move(right);
  }
  return true;
}

bool Evaluator::compare(const std::string& comparison, const Value& left, const Value& right) {
  step(std::min(weight_of(left), weight_of(right)));
  if (comparison == "==") return equal(left, right);
  if (comparison == "!=") return !equal(left, right);
  if (comparison == "in") return contains(*this, right, left);
  if (comparison == "not in") return !contains(*this, right, left);
  if (comparison == "<") return less(left, right);
  if (comparison == ">") return less(right, left);
  const bool strictly = comparison == "<=" ? less(left, right) : less(right, left);
  return strictly || equal(left, right);
}

}  // namespace kivi::jinja
