// SPDX-License-Identifier: Apache-2.0
// The rules that every grammar of JSON has: strings, numbers, any value. Each is made when it is
// first asked for.
#pragma once

#include <map>
#include <string>

#include "engine/grammar/program.h"

namespace kivi::grammar {

class JsonRules {
 public:
  explicit JsonRules(Grammar& grammar) : grammar_(grammar) {}

  Expr string();
  Expr number();
  Expr integer();
  Expr value();
  Expr object();
  Expr array();

  // White space that may stand behind { [ and , and before } and ]: nothing, a space, or a line
  // break and some indentation. Bounded, so that a model cannot write it without end.
  Expr space();
  Expr separator();                   // the comma between two
  Expr member(Expr key, Expr value);  // a property
  Expr braces(char open, Expr inside, char close);

 private:
  Expr rule(const char* name, Expr (JsonRules::*body)());
  Expr string_body();
  Expr number_body();
  Expr integer_body();
  Expr value_body();
  Expr object_body();
  Expr array_body();
  Expr space_body();

  Grammar& grammar_;
  std::map<std::string, int> known_;
};

// Adds a rule without a body.
int add_rule(Grammar& grammar, std::string name, bool keep_apart);

}  // namespace kivi::grammar
