// SPDX-License-Identifier: Apache-2.0
// Code that all commands share: reading settings, printing errors, loading a model.
#include "tools/commands.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <fstream>

#include "server/logging.h"

namespace kivi {

int report(const Error& error) {
  fmt::print(stderr, "kivi: {}\n", error.message);
  return error.code == ErrorCode::invalid || error.code == ErrorCode::unsupported ? kExitUsage
                                                                                  : kExitFailed;
}

std::optional<int> read_settings(Command command, const Arguments& args, Settings& settings) {
  const Result<ParseOutcome> outcome =
      parse_settings(command, args, process_environment(), settings);
  if (!outcome.ok()) return report(outcome.error());
  for (const std::string& warning : outcome->warnings) fmt::print(stderr, "kivi: {}\n", warning);
  if (!outcome->help.empty()) {
    fmt::print("{}", outcome->help);
    return 0;
  }
  if ((command & kStudies) != 0 && settings.text.empty())
    return report({ErrorCode::invalid, "--text is missing. Name the file of the text", "text"});
  if (const Status status = validate(settings.engine); !status.ok()) return report(status.error());
  if (const Status status = setup_logging(settings.server); !status.ok())
    return report(status.error());
  if (settings.dry_run) {
    const Result<MemoryPlan> plan = plan_memory(settings.engine);
    if (!plan.ok()) return report(plan.error());
    fmt::print("{}", plan->text());
    return 0;
  }
  return std::nullopt;
}

Status write_file(const char* flag, const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  if ((file << text) && file.flush()) return ok_status();
  return Error{ErrorCode::invalid,
               fmt::format("--{} is \"{}\", must be a file that can be written", flag, path), flag};
}

Result<std::unique_ptr<LoadedModel>> load_with_progress(const EngineConfig& config) {
  if (isatty(STDERR_FILENO) == 0) return load_model(config, {});
  const Clock::time_point begin = Clock::now();
  Clock::time_point shown = begin;
  bool any = false;
  auto loaded =
      load_model(config, [&](const std::string& phase, int64_t bytes_done, int64_t bytes_total) {
        const Clock::time_point now = Clock::now();
        if (bytes_done < bytes_total && now - shown < std::chrono::milliseconds(100)) return;
        shown = now;
        any = true;
        const double seconds = std::chrono::duration<double>(now - begin).count();
        fmt::print(stderr, "\r\033[Kloading {}: {:.0f} of {:.0f} MB, {:.2f} GB/s", phase,
                   double(bytes_done) / 1e6, double(bytes_total) / 1e6,
                   double(bytes_done) / 1e9 / std::max(seconds, 1e-9));
        std::fflush(stderr);
      });
  if (any) fmt::print(stderr, "\r\033[K");
  return loaded;
}

}  // namespace kivi
