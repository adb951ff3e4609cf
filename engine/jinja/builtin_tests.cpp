// SPDX-License-Identifier: Apache-2.0
// The tests of `x is ...`.
#include <algorithm>

#include "engine/jinja/evaluator.h"
#include "engine/jinja/text.h"

namespace kivi::jinja {
namespace {

const Value& only(const Arguments& arguments, size_t count, Value& storage) {
  const auto all = arguments.bind("the test", {"other"}, count);
  storage = all[0];
  return storage;
}

template <class Holds>
bool with_other(const Arguments& arguments, const Holds& holds) {
  Value storage;
  return holds(only(arguments, 1, storage));
}

int64_t whole(const Value& value) {
  if (const auto* undefined = std::get_if<Undefined>(&value.state))
    fail(undefined_message(*undefined));
  return integer_of(value, 0, "the value of a test");
}

bool is_case(Evaluator& e, const Value& value, CharacterClass wanted) {
  const std::string text = text_of(e, value);
  return all_are(text, wanted);
}

bool same(const Value& a, const Value& b) {
  if (a.state.index() != b.state.index()) return false;
  if (a.sequence() != nullptr) return a.sequence() == b.sequence();
  if (a.dict() != nullptr) return a.dict() == b.dict();
  return equal(a, b);
}

bool is_iterable(const Value& value) {
  return value.is_undefined() || value.string() != nullptr || value.sequence() != nullptr ||
         value.dict() != nullptr;
}

// What has a length and an index; an undefined value has both, as far as Python asks.
bool is_sequence(const Value& value) {
  if (const auto* sequence = value.sequence()) return sequence->has_index();
  return is_iterable(value);
}

bool is_callable(const Value& value) {
  return value.is_undefined() || std::holds_alternative<const Macro*>(value.state) ||
         std::holds_alternative<std::shared_ptr<const Method>>(value.state) ||
         std::holds_alternative<Function>(value.state) ||
         std::holds_alternative<Loop*>(value.state);
}

using Values = const Arguments&;

const Test kTests[] = {
    {"defined", [](Evaluator&, const Value& v, Values) { return !v.is_undefined(); }},
    {"undefined", [](Evaluator&, const Value& v, Values) { return v.is_undefined(); }},
    {"none", [](Evaluator&, const Value& v, Values) { return v.is_none(); }},
    {"boolean", [](Evaluator&, const Value& v, Values) { return v.boolean() != nullptr; }},
    {"true",
     [](Evaluator&, const Value& v, Values) { return v.boolean() != nullptr && *v.boolean(); }},
    {"false",
     [](Evaluator&, const Value& v, Values) { return v.boolean() != nullptr && !*v.boolean(); }},
    {"integer", [](Evaluator&, const Value& v, Values) { return v.integer() != nullptr; }},
    {"float", [](Evaluator&, const Value& v, Values) { return v.number() != nullptr; }},
    {"number", [](Evaluator&, const Value& v, Values) { return v.is_numeric(); }},
    {"string", [](Evaluator&, const Value& v, Values) { return v.string() != nullptr; }},
    {"mapping", [](Evaluator&, const Value& v, Values) { return v.dict() != nullptr; }},
    {"iterable", [](Evaluator&, const Value& v, Values) { return is_iterable(v); }},
    {"sequence", [](Evaluator&, const Value& v, Values) { return is_sequence(v); }},
    {"callable", [](Evaluator&, const Value& v, Values) { return is_callable(v); }},
    {"lower",
     [](Evaluator& e, const Value& v, Values) { return is_case(e, v, CharacterClass::lower); }},
    {"upper",
     [](Evaluator& e, const Value& v, Values) { return is_case(e, v, CharacterClass::upper); }},
    {"odd", [](Evaluator&, const Value& v, Values) { return whole(v) % 2 != 0; }},
    {"even", [](Evaluator&, const Value& v, Values) { return whole(v) % 2 == 0; }},
    {"divisibleby",
     [](Evaluator&, const Value& v, Values a) {
       return with_other(a, [&](const Value& other) {
         const int64_t divisor = whole(other);
         if (divisor == 0) fail("a division by zero");
         return divisor == -1 || whole(v) % divisor == 0;
       });
     }},
    {"sameas",
     [](Evaluator&, const Value& v, Values a) {
       return with_other(a, [&](const Value& other) { return same(v, other); });
     }},
    {"in",
     [](Evaluator& e, const Value& v, Values a) {
       return with_other(a, [&](const Value& other) { return contains(e, other, v); });
     }},
    {"filter", [](Evaluator&, const Value& v,
                  Values) { return v.string() != nullptr && find_filter(*v.string()) != nullptr; }},
    {"test", [](Evaluator&, const Value& v,
                Values) { return v.string() != nullptr && find_test(*v.string()) != nullptr; }},
    {"eq",
     [](Evaluator& e, const Value& v, Values a) {
       return with_other(a, [&](const Value& other) { return e.compare("==", v, other); });
     }},
    {"ne",
     [](Evaluator& e, const Value& v, Values a) {
       return with_other(a, [&](const Value& other) { return e.compare("!=", v, other); });
     }},
    {"lt",
     [](Evaluator& e, const Value& v, Values a) {
       return with_other(a, [&](const Value& other) { return e.compare("<", v, other); });
     }},
    {"le",
     [](Evaluator& e, const Value& v, Values a) {
       return with_other(a, [&](const Value& other) { return e.compare("<=", v, other); });
     }},
    {"gt",
     [](Evaluator& e, const Value& v, Values a) {
       return with_other(a, [&](const Value& other) { return e.compare(">", v, other); });
     }},
    {"ge",
     [](Evaluator& e, const Value& v, Values a) {
       return with_other(a, [&](const Value& other) { return e.compare(">=", v, other); });
     }},
};

}  // namespace

const Test* find_test(std::string_view name) {
  static constexpr std::pair<std::string_view, std::string_view> kOther[] = {
      {"==", "eq"}, {"equalto", "eq"}, {"!=", "ne"},          {"<", "lt"}, {"lessthan", "lt"},
      {"<=", "le"}, {">", "gt"},       {"greaterthan", "gt"}, {">=", "ge"}};
  for (const auto& [other, own] : kOther)
    if (name == other) name = own;
  const auto* test =
      std::ranges::find(kTests, name, [](const Test& t) { return std::string_view(t.name); });
  return test == std::end(kTests) ? nullptr : test;
}

}  // namespace kivi::jinja
