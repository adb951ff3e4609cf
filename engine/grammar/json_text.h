// SPDX-License-Identifier: Apache-2.0
// How JSON spells strings and numbers, as expressions.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "engine/grammar/expression.h"

namespace kivi::grammar {

// One character of `ranges` inside a JSON string, in the one spelling that we write: as it is, but
// for \" \\ \b \f \n \r \t and \u00XX of other control characters.
Expr json_characters(const CharRanges& ranges);
// One character in any spelling that JSON has; a pair of surrogates is one.
Expr json_any_character();
// A text as the inside of a JSON string.
std::string json_escaped(std::string_view text);

// Bounds of a number, as decimals: "-12.5". Throws Failure if they are not.
struct NumberBounds {
  std::optional<std::string> least, most;
  bool least_excluded = false, most_excluded = false;
  bool bounded() const { return least || most; }
};
// Numbers in JSON: integers have neither fraction nor exponent; with bounds no number has an
// exponent. `multiple_of`: integers only; 0: any. Null if there is none within the bounds.
Expr json_integer(const NumberBounds& bounds, int multiple_of);
Expr json_number(const NumberBounds& bounds);

}  // namespace kivi::grammar
