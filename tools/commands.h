// SPDX-License-Identifier: Apache-2.0
// The commands of `kivi`, one file each. Each takes the words after its name and returns the
// process's exit code: 0 done, 1 it failed, 2 usage error.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/serving/load.h"
#include "tools/flags.h"

namespace kivi {

using Arguments = std::vector<std::string>;

int run_serve(const Arguments& args);
int run_generate(const Arguments& args);
int run_health(const Arguments& args);
int run_info(const Arguments& args);
int run_throughput(const Arguments& args);
int run_bench_serve(const Arguments& args);
int run_kernels(const Arguments& args);
int run_eval(const Arguments& args);
int run_kv_stats(const Arguments& args);
int run_tune(const Arguments& args);
int run_kv_disk_clear(const Arguments& args);

inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;

// Prints the error to standard error and returns the exit code for it: kExitUsage for `invalid` and
// `unsupported`, else kExitFailed.
int report(const Error& error);

// The settings of a command from its words, the environment and --config, judged by validate();
// sets up logging by them.
// Holds an exit code where the command is done: --help (printed), --dry-run (the memory plan is
// printed), a bad setting.
std::optional<int> read_settings(Command command, const Arguments& args, Settings& settings);

// Writes `text` to the file that --`flag` names. Error: names the flag and the file.
Status write_file(const char* flag, const std::string& path, const std::string& text);

// load_model with the progress on standard error where that is a terminal.
Result<std::unique_ptr<LoadedModel>> load_with_progress(const EngineConfig& config);

}  // namespace kivi
