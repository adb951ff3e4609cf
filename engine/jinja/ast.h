// SPDX-License-Identifier: Apache-2.0
// The tree of a template. Names of variables are numbers (`Template::names`), so that scopes are
// short lists of numbers and values.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/jinja/value.h"

namespace kivi::jinja {

struct Filter;  // builtins.h
struct Test;

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct Expression {
  enum class Kind {
    constant,
    name,
    list,
    tuple,
    dict,       // parts: key, value, key, value, ...
    attribute,  // parts[0].text
    item,       // parts[0][parts[1]]
    slice,      // parts[0][parts[1]:parts[2]:parts[3]], null where left out
    call,       // parts[0](parts[1], ..., keywords)
    filter,     // parts[0] | filter(parts[1], ...); null parts[0]: of a block
    test,       // parts[0] is test(parts[1], ...)
    negate,
    plus,
    not_,
    binary,   // parts[0] text parts[1]: + - * / // % **
    concat,   // ~ of all parts
    compare,  // parts[0] operators[0] parts[1] operators[1] parts[2] ...
    and_,
    or_,
    choice,  // parts[1] if parts[0] else parts[2], which may be null
  };
  Kind kind = Kind::constant;
  int line = 0;
  Value constant = {};
  int name = -1;
  std::string text = {};  // attribute, operator
  std::vector<ExpressionPtr> parts = {};
  std::vector<std::pair<std::string, ExpressionPtr>> keywords = {};
  std::vector<std::string> operators = {};
  ExpressionPtr list_argument = {}, dict_argument = {};  // f(*list, **dict)
  const Filter* filter = nullptr;
  const Test* test = nullptr;
};

struct Statement;
using Block = std::vector<std::unique_ptr<Statement>>;

// What a macro takes, and what of the special names its body uses.
struct Signature {
  std::vector<int> parameters;
  std::vector<ExpressionPtr> defaults;  // of the last parameters
  bool uses_varargs = false, uses_kwargs = false, uses_caller = false;
};

struct Statement {
  enum class Kind {
    text,
    print,      // expressions
    if_,        // expressions[i] -> blocks[i]; one block more: else
    for_,       // target in expressions[0] [if expressions[1]]: blocks[0] else blocks[1]
    set,        // target = expressions[0]
    set_block,  // target = blocks[0] [through filter expressions[0]]
    with,       // targets[i] = expressions[i] around blocks[0]
    macro,      // name(signature): blocks[0]
    call,       // expressions[0] with blocks[0] as its caller(signature)
    filter,     // blocks[0] through expressions[0]
    scope,      // blocks[0], in a scope of its own (generation)
    break_,
    continue_,
  };
  Kind kind = Kind::text;
  int line = 0;
  std::string text = {};  // also: the attribute of a namespace that is set
  int name = -1;          // of a macro, or of the namespace
  std::vector<ExpressionPtr> expressions = {}, targets = {};
  std::vector<Block> blocks = {};
  Signature signature = {};
  bool uses_loop = false;
};

struct Template {
  std::vector<std::string> names;
  Block body;
};

}  // namespace kivi::jinja
