// SPDX-License-Identifier: Apache-2.0
// Measures a model's quality over a grid of formats of the key-value store: `kivi eval` without its
// command line and its table.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/serving/load.h"
#include "study/passkey.h"

namespace kivi {

struct EvalOptions {
  EngineConfig engine;                          // format, G, R, prefill and chunk are set by cell
  std::string text;                             // file
  std::vector<std::string> formats = {"auto"};  // --kv-cache-dtype
  std::vector<int> groups = {0};                // G; 0: the format's own
  std::vector<int> residuals = {0};             // R; 0: the format's own
  PrefillMode prefill = PrefillMode::stream;
  int chunk = 0;            // tokens; 0: 1, and 256 for fp16, which reads the same numbers
  int window = 1024;        // tokens
  int windows = 0;          // 0: all
  int stride = 0;           // 0: no strided perplexity
  bool divergence = false;  // from the fp16 cache
  int64_t reference_bytes = int64_t(2) << 30;  // for the fp16 cache's logits, at most
  PasskeyOptions passkey;                      // no lengths: not measured
  std::string choices;                         // file; "": not measured
  std::string results;                         // file; "": not kept
};

// One place of the grid. Group and residual are 0 for fp16 and fp8, which have neither.
struct EvalCell {
  std::string format;
  int group = 0, residual = 0;

  friend bool operator==(const EvalCell&, const EvalCell&) = default;
};
// formats x groups x residuals, each once, formats outermost.
std::vector<EvalCell> grid_of(const EvalOptions& options);

// What a cell's figures depend on besides model and text: settings, and the program's version.
nlohmann::ordered_json settings_of(const EvalOptions& options, const EvalCell& cell,
                                   const std::string& choices_hash);

// A cell's figures: "format" ("kivi2 G32 R128"), "bytes_per_token", "seconds", and what was asked
// for of "perplexity", "strided", "divergence", "passkey", "choices"; or "format" and "refused",
// the reason, where the model cannot have that combination.
using EvalFigures = nlohmann::ordered_json;

// All cells, in grid_of's order. Cells that the results file has are not measured again. `news`
// gets lines of progress, "" at the end of each cell. Errors: options, files, and a combination
// that is refused and alone.
Result<std::vector<EvalFigures>> run_evaluation(
    const EvalOptions& options, const std::function<void(const std::string&)>& news);

}  // namespace kivi
