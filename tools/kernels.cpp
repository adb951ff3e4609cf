// SPDX-License-Identifier: Apache-2.0
// kivi bench kernels MODEL: how fast each op of a step is, beside the device's own rates.
#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

#include "bench/kernels_report.h"
#include "tools/commands.h"

namespace kivi {

int run_kernels(const Arguments& args) {
  Settings settings;
  if (const auto code = read_settings(kKernels, args, settings)) return *code;
  // Rows are printed as they come; the rates they stand beside are known before the first.
  bool first = true;
  const auto result =
      benchmark_kernels(settings.engine, settings.kernels,
                        [&](const KernelBenchmark& so_far, const KernelMeasurement& m) {
                          if (std::exchange(first, false)) fmt::print("{}", kernels_header(so_far));
                          fmt::print("{}", kernels_line(so_far, m));
                          std::fflush(stdout);
                        });
  if (!result.ok()) return report(result.error());
  if (settings.json.empty()) return 0;
  const Status status = write_file("json", settings.json, kernels_json(*result).dump(2) + "\n");
  return status.ok() ? 0 : report(status.error());
}

}  // namespace kivi
