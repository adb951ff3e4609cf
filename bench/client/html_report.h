// SPDX-License-Identifier: Apache-2.0
// The report as one HTML page that needs nothing else: tables and plots, light and dark.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>

#include "bench/client/report.h"

namespace kivi::load {

// `settings`: those of report_json; shown as they are.
std::string html_report(const nlohmann::ordered_json& settings, std::span<const RunReport> runs);

}  // namespace kivi::load
