// SPDX-License-Identifier: Apache-2.0
// Measures a model's quality over a grid of formats of the key-value store: `kivi eval` without its
// command line and its table.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "engine/serving/load.h"
#include "study/options.h"
#include "study/passkey.h"

namespace kivi {

// One place of the grid. Group and residual are 0 for fp16 and fp8, which have neither.
struct EvalCell {
  std::string format;
  int group = 0, residual = 0;

  friend bool operator==(const EvalCell&, const EvalCell&) = default;
};
// Returns formats x groups x residuals, each combination once, with formats outermost.
std::vector<EvalCell> grid_of(const EvalOptions& options);

// Returns what the figures of a cell depend on besides model and text: the settings and the version
// of the program.
nlohmann::ordered_json settings_of(const EvalOptions& options, const EvalCell& cell,
                                   const std::string& choices_hash);

// The figures of a cell: "format" ("kivi2 G32 R128"), "bytes_per_token", "seconds", and those of
// "perplexity", "strided", "divergence", "passkey" and "choices" that were asked for. If the model
// cannot have the combination, "format" and the reason as "refused".
using EvalFigures = nlohmann::ordered_json;

// Measures all cells, in the order of grid_of. Cells that the results file holds are not measured
// again. `news` gets lines of progress, and "" at the end of each cell. Wrong options and files are
// errors, and so is a refused combination if it is the only one.
Result<std::vector<EvalFigures>> run_evaluation(
    const EvalOptions& options, const std::function<void(const std::string&)>& news);

}  // namespace kivi
