// SPDX-License-Identifier: Apache-2.0
// `kivi kv-stats` repeats the KIVI paper's study on any model and text: how keys and values are
// distributed, and what quantizing them along either axis costs. docs/kv-stats.md describes the
// measurements.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "study/kv_stats_page.h"
#include "study/kv_stats_report.h"
#include "tools/commands.h"

namespace kivi {
namespace {

Status run(const Settings& settings) {
  const bool terminal = ::isatty(STDERR_FILENO) == 1;
  KIVI_ASSIGN_OR_RETURN(const KvStatsReport report,
                        study(settings.kv_stats, [&](const std::string& line) {
                          if (terminal) fmt::print(stderr, "\r\033[K{}", line);
                        }));
  fmt::print("{}", kv_stats_text(report));
  if (!settings.json.empty())
    KIVI_RETURN_IF_ERROR(write_file("json", settings.json, kv_stats_json(report).dump(1) + "\n"));
  if (!settings.html.empty())
    KIVI_RETURN_IF_ERROR(write_file("html", settings.html, kv_stats_page(report)));
  return ok_status();
}

}  // namespace

int run_kv_stats(const Arguments& args) {
  Settings settings;
  if (const auto code = read_settings(kKvStats, args, settings)) return *code;
  settings.kv_stats.engine = settings.engine;
  settings.kv_stats.text = settings.text;
  const Status status = run(settings);
  return status.ok() ? 0 : report(status.error());
}

}  // namespace kivi
