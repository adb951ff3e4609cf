// SPDX-License-Identifier: Apache-2.0
// `kivi eval` measures what each format of the KV cache costs a model in quality. It prints a table
// and writes JSON. docs/benchmarks/perplexity.md describes the measurements.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "study/eval_report.h"
#include "study/eval_run.h"
#include "tools/commands.h"

namespace kivi {
namespace {

Status evaluate(const EvalOptions& options, const std::string& json) {
  if (options.stride > options.window)
    return Error{
        ErrorCode::invalid,
        fmt::format("--stride is {}, must be at most --window {}", options.stride, options.window),
        "stride"};
  const bool terminal = ::isatty(STDERR_FILENO) == 1;
  KIVI_ASSIGN_OR_RETURN(const auto cells, run_evaluation(options, [&](const std::string& news) {
                          if (terminal) fmt::print(stderr, "\r{:50}\r{}", "", news);
                        }));
  fmt::print("{}", eval_table(cells));
  return json.empty() ? ok_status()
                      : write_file("json", json, eval_json(options, cells).dump(1) + "\n");
}

}  // namespace

int run_eval(const Arguments& args) {
  Settings settings;
  if (const auto code = read_settings(kEval, args, settings)) return *code;
  settings.eval.engine = settings.engine;
  settings.eval.text = settings.text;
  const Status status = evaluate(settings.eval, settings.json);
  return status.ok() ? 0 : report(status.error());
}

}  // namespace kivi
