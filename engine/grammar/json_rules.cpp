// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar/json_rules.h"

#include <cstring>
#include <utility>

#include "engine/grammar/json_text.h"

namespace kivi::grammar {

int add_rule(Grammar& grammar, std::string name, bool keep_apart) {
  grammar.rules.push_back({std::move(name), nullptr, keep_apart});
  return int(grammar.rules.size()) - 1;
}

Expr JsonRules::rule(const char* name, Expr (JsonRules::*body)()) {
  const auto [place, fresh] = known_.try_emplace(name, 0);
  if (fresh) {
    const int id = place->second = add_rule(grammar_, name, std::strcmp(name, "space") != 0);
    Expr made = (this->*body)();
    grammar_.rules[size_t(id)].body = std::move(made);
    return call(id);
  }
  return call(place->second);
}

Expr JsonRules::string() { return rule("string", &JsonRules::string_body); }
Expr JsonRules::number() { return rule("number", &JsonRules::number_body); }
Expr JsonRules::integer() { return rule("integer", &JsonRules::integer_body); }
Expr JsonRules::value() { return rule("value", &JsonRules::value_body); }
Expr JsonRules::object() { return rule("object", &JsonRules::object_body); }
Expr JsonRules::array() { return rule("array", &JsonRules::array_body); }
Expr JsonRules::space() { return rule("space", &JsonRules::space_body); }

Expr JsonRules::separator() { return sequence({text(","), space()}); }

Expr JsonRules::member(Expr key, Expr value) {
  return sequence({std::move(key), text(":"), optional(text(" ")), std::move(value)});
}

Expr JsonRules::braces(char open, Expr inside, char close) {
  return sequence({text(std::string(1, open)), space(), std::move(inside), space(),
                   text(std::string(1, close))});
}

Expr JsonRules::string_body() {
  return sequence({text("\""), repeat(json_any_character(), 0, -1), text("\"")});
}

Expr JsonRules::number_body() { return json_number({}); }
Expr JsonRules::integer_body() { return json_integer({}, 0); }

Expr JsonRules::value_body() {
  return choice({object(), array(), string(), number(), text("true"), text("false"), text("null")});
}

Expr JsonRules::object_body() {
  return braces('{', listing({}, separator(), member(string(), value())), '}');
}

Expr JsonRules::array_body() { return braces('[', listing({}, separator(), value()), ']'); }

Expr JsonRules::space_body() {
  constexpr int kSpaces = 24, kTabs = 6;
  return optional(
      choice({text(" "), sequence({text("\n"), choice({repeat(text(" "), 0, kSpaces),
                                                       repeat(text("\t"), 1, kTabs)})})}));
}

}  // namespace kivi::grammar
