// SPDX-License-Identifier: Apache-2.0
// What `kivi eval` prints of its figures.
#pragma once

#include <string>
#include <vector>

#include "study/eval_run.h"

namespace kivi {

// Returns a table with a line for each cell and a column for each figure that at least one cell
// has. "x first" is the perplexity divided by that of the first cell. Refused cells follow with the
// reasons.
std::string eval_table(const std::vector<EvalFigures>& cells);

// {"kind": "eval", "model", "text", "window", "prefill", "results": cells}.
nlohmann::ordered_json eval_json(const EvalOptions& options, const std::vector<EvalFigures>& cells);

}  // namespace kivi
