// SPDX-License-Identifier: Apache-2.0
// The page of `kivi kv-stats --html`: one self-contained file, readable in light and in dark.
#pragma once

#include <string>

#include "study/kv_stats_run.h"

namespace kivi {

// HTML with inline SVG plots and heat maps as data URIs; no script, no reference to anything else.
std::string kv_stats_page(const KvStatsReport& report);

}  // namespace kivi
