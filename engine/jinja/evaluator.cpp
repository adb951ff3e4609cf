// SPDX-License-Identifier: Apache-2.0
// Statements, scopes, loops and macros. Expressions: evaluate.cpp.
#include "engine/jinja/evaluator.h"

#include <fmt/format.h>

#include <algorithm>

namespace kivi::jinja {

using StatementKind = Statement::Kind;

// A scope that ends with its block, unless a macro refers to it: then it lives as long as the
// evaluator.
class Evaluator::OwnScope {
 public:
  OwnScope(Evaluator& evaluator, Scope* parent)
      : evaluator_(evaluator), scope_(std::make_unique<Scope>()) {
    scope_->parent = parent;
  }
  ~OwnScope() {
    if (scope_->captured) evaluator_.scopes_.push_back(std::move(scope_));
  }
  OwnScope(const OwnScope&) = delete;
  OwnScope& operator=(const OwnScope&) = delete;
  Scope& operator*() const { return *scope_; }

 private:
  Evaluator& evaluator_;
  std::unique_ptr<Scope> scope_;
};

std::string Evaluator::run(const std::vector<std::pair<std::string, Value>>& variables) {
  OwnScope root(*this, nullptr);
  for (const auto& [name, value] : variables)
    if (const int number = number_of(name.c_str()); number >= 0) store(number, value, *root);
  run_block(template_.body, *root);
  return std::move(output_);
}

void Evaluator::step(int64_t count) {
  if (__builtin_add_overflow(steps_, count, &steps_) || steps_ > limits_.steps)
    fail(fmt::format("the template takes more than {} steps", limits_.steps));
}

void Evaluator::charge(size_t bytes) {
  bytes_ += int64_t(bytes);
  if (bytes_ > limits_.bytes)
    fail(fmt::format("the template makes values of more than {} bytes", limits_.bytes));
}

Value Evaluator::text(std::string text) {
  if (text.size() > limits_.text_bytes)
    fail(fmt::format("a text grows beyond {} bytes", limits_.text_bytes));
  charge(text.size() + sizeof(Value));
  return Value(std::move(text));
}

Value Evaluator::list(Sequence::Kind kind, std::vector<Value> items) {
  charge((items.size() + 2) * sizeof(Value));
  return make_sequence(kind, std::move(items));
}

Namespace* Evaluator::make_namespace() {
  charge(sizeof(Namespace));
  namespaces_.push_back(std::make_unique<Namespace>());
  return namespaces_.back().get();
}

int Evaluator::number_of(const char* name) const {
  const auto it = std::ranges::find(template_.names, name);
  return it == template_.names.end() ? -1 : int(it - template_.names.begin());
}

Value Evaluator::look_up(int name, Scope& scope) const {
  for (const Scope* s = &scope; s != nullptr; s = s->parent)
    for (const auto& [known, value] : s->variables)
      if (known == name) return value;
  static constexpr std::pair<std::string_view, Function> kFunctions[] = {
      {"range", Function::range},
      {"dict", Function::dict},
      {"namespace", Function::namespace_},
      {"raise_exception", Function::raise_exception},
      {"strftime_now", Function::strftime_now}};
  const std::string& text = template_.names[size_t(name)];
  for (const auto& [known, function] : kFunctions)
    if (known == text) return Value(function);
  return Value(Undefined{&text});
}

void Evaluator::store(int name, Value value, Scope& scope) {
  for (auto& [known, old] : scope.variables) {
    if (known != name) continue;
    old = std::move(value);
    return;
  }
  scope.variables.emplace_back(name, std::move(value));
}

void Evaluator::assign(const Expression& target, Value value, Scope& scope) {
  if (target.kind == Expression::Kind::name) {
    charge(sizeof(Value));
    return store(target.name, std::move(value), scope);
  }
  std::vector<Value> items = iterate(*this, value);
  if (items.size() != target.parts.size())
    fail(fmt::format("{} values cannot be given to {} names", items.size(), target.parts.size()));
  for (size_t i = 0; i < items.size(); ++i) assign(*target.parts[i], std::move(items[i]), scope);
}

void Evaluator::write(const Value& value) {
  const size_t before = out_->size();
  append_str(*out_, value, limits_.text_bytes);
  charge(out_->size() - before);
}

Value Evaluator::capture(const Block& block, Scope& scope, Flow& flow) {
  std::string written;
  std::string* const before = std::exchange(out_, &written);
  flow = run_block(block, scope);
  out_ = before;
  return text(std::move(written));
}

Evaluator::Flow Evaluator::run_block(const Block& block, Scope& scope) {
  const Depth depth(*this);
  for (const auto& statement : block) {
    try {
      const Flow flow = run_statement(*statement, scope);
      if (flow != Flow::on) return flow;
    } catch (Failure& failure) {
      if (failure.line == 0) failure.line = statement->line;
      throw;
    }
  }
  return Flow::on;
}

Evaluator::Flow Evaluator::run_statement(const Statement& statement, Scope& scope) {
  step();
  Flow flow = Flow::on;
  switch (statement.kind) {
    case StatementKind::text:
      charge(statement.text.size());
      out_->append(statement.text);
      if (out_->size() > limits_.text_bytes)
        fail(fmt::format("the text grows beyond {} bytes", limits_.text_bytes));
      break;
    case StatementKind::print:
      for (const auto& expression : statement.expressions) write(evaluate(*expression, scope));
      break;
    case StatementKind::if_:
      return run_if(statement, scope);
    case StatementKind::for_:
      return run_for(statement, scope);
    case StatementKind::set:
      run_set(statement, evaluate(*statement.expressions[0], scope), scope);
      break;
    case StatementKind::set_block:
    case StatementKind::filter: {
      const OwnScope inner(*this, &scope);
      Value value = capture(statement.blocks[0], *inner, flow);
      if (flow != Flow::on) return flow;
      if (!statement.expressions.empty())
        value = evaluate_filter(*statement.expressions[0], scope, &value);
      if (statement.kind == StatementKind::filter)
        write(value);
      else
        run_set(statement, std::move(value), scope);
      break;
    }
    case StatementKind::with: {
      const OwnScope inner(*this, &scope);
      for (size_t i = 0; i < statement.targets.size(); ++i)
        assign(*statement.targets[i], evaluate(*statement.expressions[i], scope), *inner);
      return run_block(statement.blocks[0], *inner);
    }
    case StatementKind::scope: {
      const OwnScope inner(*this, &scope);
      return run_block(statement.blocks[0], *inner);
    }
    case StatementKind::macro: {
      const std::string& name = template_.names[size_t(statement.name)];
      store(statement.name,
            Value(make_macro(name, statement.signature, statement.blocks[0], scope)), scope);
      break;
    }
    case StatementKind::call: {
      static const std::string kCaller = "caller";
      Value caller(make_macro(kCaller, statement.signature, statement.blocks[0], scope));
      write(evaluate_call(*statement.expressions[0], scope, &caller));
      break;
    }
    case StatementKind::break_:
      return Flow::break_;
    case StatementKind::continue_:
      return Flow::continue_;
  }
  return Flow::on;
}

void Evaluator::run_set(const Statement& statement, Value value, Scope& scope) {
  if (statement.name < 0) return assign(*statement.targets[0], std::move(value), scope);
  const Value target = look_up(statement.name, scope);
  if (target.name_space() == nullptr)
    fail(fmt::format("{}.{} cannot be set, {} is no namespace",
                     template_.names[size_t(statement.name)], statement.text,
                     template_.names[size_t(statement.name)]));
  charge(sizeof(Value));
  auto& items = target.name_space()->items;
  const auto known =
      std::ranges::find(items, statement.text, &std::pair<std::string, Value>::first);
  if (known != items.end())
    known->second = std::move(value);
  else
    items.emplace_back(statement.text, std::move(value));
}

Evaluator::Flow Evaluator::run_if(const Statement& statement, Scope& scope) {
  const size_t conditions = statement.expressions.size();
  for (size_t i = 0; i < conditions; ++i)
    if (truthy(evaluate(*statement.expressions[i], scope)))
      return run_block(statement.blocks[i], scope);
  if (statement.blocks.size() == conditions) return Flow::on;
  return run_block(statement.blocks[conditions], scope);
}

Evaluator::Flow Evaluator::run_for(const Statement& statement, Scope& scope) {
  Loop own;
  Loop* loop = &own;
  if (statement.uses_loop) {
    charge(sizeof(Loop));
    loops_.push_back(std::make_unique<Loop>());
    loop = loops_.back().get();
  }
  loop->items = iterate(*this, evaluate(*statement.expressions[0], scope));
  loop->statement = &statement;
  loop->scope = &scope;
  const int loop_name = statement.uses_loop ? number_of("loop") : -1;
  bool any_whole = false;  // a round came to its end, as Jinja counts for `else`
  while (peek(*loop)) {
    loop->has_after = false;
    ++loop->index0;
    loop->before = std::exchange(loop->current, std::move(loop->after));
    const OwnScope inner(*this, &scope);
    charge(sizeof(Scope));
    assign(*statement.targets[0], loop->current, *inner);
    if (loop_name >= 0) store(loop_name, Value(loop), *inner);
    const Flow flow = run_block(statement.blocks[0], *inner);
    if (flow == Flow::break_) break;
    if (flow == Flow::on) any_whole = true;
  }
  loop->items.clear();  // and nothing will be pulled any more, when `scope` is gone
  loop->next = 0;
  if (any_whole || statement.blocks.size() < 2) return Flow::on;
  const OwnScope inner(*this, &scope);
  return run_block(statement.blocks[1], *inner);
}

bool Evaluator::pull(Loop& loop, Value& item) {
  while (loop.next < loop.items.size()) {
    step();
    item = loop.items[loop.next++];
    if (loop.tested || loop.statement->expressions.size() < 2) return true;
    const OwnScope inner(*this, loop.scope);
    assign(*loop.statement->targets[0], item, *inner);
    if (truthy(evaluate(*loop.statement->expressions[1], *inner))) return true;
  }
  return false;
}

bool Evaluator::peek(Loop& loop) {
  if (!loop.has_after) loop.has_after = pull(loop, loop.after);
  return loop.has_after;
}

Value Evaluator::loop_attribute(Loop& loop, const std::string& name) {
  const auto length = [&] {
    if (loop.length >= 0) return loop.length;
    std::vector<Value> rest;
    for (Value item; pull(loop, item);) rest.push_back(item);
    loop.length = loop.index0 + 1 + int64_t(rest.size()) + (loop.has_after ? 1 : 0);
    loop.items = std::move(rest);
    loop.next = 0;
    loop.tested = true;
    return loop.length;
  };
  if (name == "index") return Value::integer(loop.index0 + 1);
  if (name == "index0") return Value::integer(loop.index0);
  if (name == "first") return Value::boolean(loop.index0 == 0);
  if (name == "last") return Value::boolean(!peek(loop));
  if (name == "length") return Value::integer(length());
  if (name == "revindex") return Value::integer(length() - loop.index0);
  if (name == "revindex0") return Value::integer(length() - loop.index0 - 1);
  if (name == "previtem") return loop.index0 == 0 ? Value() : loop.before;
  if (name == "nextitem") return peek(loop) ? loop.after : Value();
  if (name == "depth") return Value::integer(1);
  if (name == "depth0") return Value::integer(0);
  return Value();
}

const Macro* Evaluator::make_macro(const std::string& name, const Signature& signature,
                                   const Block& body, Scope& scope) {
  charge(sizeof(Macro));
  for (Scope* s = &scope; s != nullptr && !s->captured; s = s->parent) s->captured = true;
  macros_.push_back(std::make_unique<Macro>(Macro{&name, &signature, &body, &scope}));
  return macros_.back().get();
}

Value Evaluator::call_macro(const Macro& macro, Arguments arguments) {
  const Signature& signature = *macro.signature;
  const size_t count = signature.parameters.size(), given = arguments.positional.size();
  const OwnScope frame(*this, macro.scope);
  charge(sizeof(Scope));
  if (given > count && !signature.uses_varargs)
    fail(fmt::format("the macro {} takes {} arguments, got {}", *macro.name, count, given));
  for (size_t i = 0; i < count; ++i) {
    const int parameter = signature.parameters[i];
    const std::string& name = template_.names[size_t(parameter)];
    const auto keyword =
        std::ranges::find(arguments.keywords, name, &std::pair<std::string, Value>::first);
    Value value(Undefined{&name});
    if (keyword != arguments.keywords.end()) {
      if (i < given) fail(fmt::format("the macro {} got {} twice", *macro.name, name));
      value = std::move(keyword->second);
      arguments.keywords.erase(keyword);
    } else if (i < given) {
      value = std::move(arguments.positional[i]);
    } else if (const size_t first = count - signature.defaults.size(); i >= first) {
      value = evaluate(*signature.defaults[i - first], *frame);
    }
    store(parameter, std::move(value), *frame);
  }
  const auto caller =
      std::ranges::find(arguments.keywords, "caller", &std::pair<std::string, Value>::first);
  if (signature.uses_caller) {
    const bool called = caller != arguments.keywords.end();
    store(number_of("caller"), called ? caller->second : Value(), *frame);
    if (called) arguments.keywords.erase(caller);
  }
  if (signature.uses_varargs) {
    std::vector<Value> rest;
    for (size_t i = count; i < given; ++i) rest.push_back(std::move(arguments.positional[i]));
    store(number_of("varargs"), list(Sequence::Kind::tuple, std::move(rest)), *frame);
  }
  if (signature.uses_kwargs) {
    Dict rest;
    for (auto& [name, value] : arguments.keywords) rest.set(text(name), std::move(value));
    store(number_of("kwargs"), make_dict(std::move(rest)), *frame);
  } else if (!arguments.keywords.empty()) {
    fail(
        fmt::format("the macro {} takes no argument {}", *macro.name, arguments.keywords[0].first));
  }
  Flow flow = Flow::on;
  return capture(*macro.body, *frame, flow);
}

Value Evaluator::call(const Value& callee, Arguments arguments) {
  const Depth depth(*this);
  step();
  if (const auto* macro = std::get_if<const Macro*>(&callee.state))
    return call_macro(**macro, std::move(arguments));
  if (const auto* function = std::get_if<Function>(&callee.state))
    return call_function(*this, *function, arguments);
  if (const auto* method = std::get_if<std::shared_ptr<const Method>>(&callee.state))
    return call_method(*this, (*method)->self, (*method)->name, arguments);
  if (const auto* undefined = std::get_if<Undefined>(&callee.state))
    fail(undefined_message(*undefined));
  fail(fmt::format("a {} cannot be called", type_name(callee)));
}

}  // namespace kivi::jinja
