// SPDX-License-Identifier: Apache-2.0
// Grammars that a user writes: GBNF, as llama.cpp reads it, and a part of Lark's language.
// docs/structured-output.md lists what is supported. What is outside is refused by name and line.
#pragma once

#include <string_view>

#include "engine/grammar/program.h"

namespace kivi::grammar {

// Begins at the rule `root`. Throws Failure.
Grammar parse_gbnf(std::string_view text);
// Begins at the rule `start`. Throws Failure.
Grammar parse_lark(std::string_view text);
// GBNF, if it has the sign ::=, else Lark.
Grammar parse_grammar(std::string_view text);

}  // namespace kivi::grammar
