// SPDX-License-Identifier: Apache-2.0
// A JSON Schema (draft 2020-12) as a grammar of the JSON texts that it accepts. What it means for
// order, white space and spelling, and what is refused: docs/structured-output.md.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "engine/grammar/program.h"

namespace kivi::grammar {

// Throws Failure, naming the keyword and its path.
Grammar grammar_of_schema(const nlohmann::ordered_json& schema);

// A text of the parts that JSON has in common: any value, or any object.
Grammar grammar_of_any_object();

}  // namespace kivi::grammar
