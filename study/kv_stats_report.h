// SPDX-License-Identifier: Apache-2.0
// What `kivi kv-stats` prints, and its JSON. Pure functions.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "study/kv_stats_run.h"

namespace kivi {

// Means over the studied layers. All KIVI_VERIFY that what is asked for was studied.
double mean_key_error(const KvStatistics& s, const KvQuantizer& q);
double mean_value_error(const KvStatistics& s, const KvQuantizer& q);
double mean_score_error(const KvStatistics& s, const KvQuantizer& q);
double mean_output_error(const KvStatistics& s, const KvSimulation& simulation);
AttentionSparsity mean_sparsity(const KvStatistics& s);

// What the model makes of a simulation; null where that was not measured.
const SimulatedQuality* find_quality(const KvStatsReport& report, const KvSimulation& simulation,
                                     int residual);

// Keys alone, along the channel at 2 bits, by G: those of the report's qualities whose values are
// left alone.
std::vector<SimulatedQuality> key_groups(const KvStatsReport& report);

// Whether an axis was studied at this G: along a token G must divide head_dim.
bool was_studied(const KvStatistics& s, const KvQuantizer& q);

// The recommendation in one line: "kivi2, G 32, R 128".
std::string text_of(const KvRecommendation& r);

std::string kv_stats_text(const KvStatsReport& report);
nlohmann::ordered_json kv_stats_json(const KvStatsReport& report);

}  // namespace kivi
