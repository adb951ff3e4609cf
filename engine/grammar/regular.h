// SPDX-License-Identifier: Apache-2.0
// Regular expressions, as JSON Schema's patterns and `regex` use them: the part of ECMA-262 that is
// regular. Classes \d \w \s are ASCII's. What is outside (look-around, back references, \b, \p,
// flags) is refused by name.
#pragma once

#include <functional>
#include <string_view>

#include "engine/grammar/expression.h"

namespace kivi::grammar {

// Makes the expression of one character out of a set: utf8 or json_characters.
using CharEncoder = std::function<Expr(const CharRanges&)>;

enum class RegexAnchors {
  search,  // may match anywhere unless ^ and $ say otherwise, as a pattern of JSON Schema
  whole,   // matches the whole text; ^ and $ at the ends change nothing
};

// Throws Failure, naming the place.
Expr parse_regex(std::string_view pattern, RegexAnchors anchors, const CharEncoder& encode);

}  // namespace kivi::grammar
