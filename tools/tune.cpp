// SPDX-License-Identifier: Apache-2.0
// `kivi tune` chooses how many bits each layer of the KV cache gets under a budget, by what each
// costs in measured divergence. docs/kv-tune.md describes the method.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "engine/serving/kv_layer_table.h"
#include "study/kv_tune.h"
#include "tools/commands.h"

namespace kivi {
namespace {

Status tune(const TuneOptions& options, const std::string& json) {
  if (!options.output.empty() && options.budgets.size() != 1)
    return Error{ErrorCode::invalid,
                 fmt::format("--output takes the table of one budget, but --budget has {}",
                             options.budgets.size()),
                 "output"};
  const bool terminal = ::isatty(STDERR_FILENO) == 1;
  KIVI_ASSIGN_OR_RETURN(const TuneReport report,
                        tune_layer_bits(options, [&](const std::string& line) {
                          if (terminal) fmt::print(stderr, "\r\033[K{}", line);
                        }));
  fmt::print("{}", tune_text(report));
  if (!json.empty())
    KIVI_RETURN_IF_ERROR(write_file("json", json, tune_json(report).dump(1) + "\n"));
  if (options.output.empty()) return ok_status();
  return write_file("output", options.output, kv_layer_bits_text(report.tuned[0].bits));
}

}  // namespace

int run_tune(const Arguments& args) {
  Settings settings;
  if (const auto code = read_settings(kTune, args, settings)) return *code;
  settings.tune.engine = settings.engine;
  settings.tune.text = settings.text;
  const Status status = tune(settings.tune, settings.json);
  return status.ok() ? 0 : report(status.error());
}

}  // namespace kivi
