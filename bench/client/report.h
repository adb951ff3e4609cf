// SPDX-License-Identifier: Apache-2.0
// The figures of runs as text and as JSON.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "bench/client/figures.h"

namespace kivi::load {

// A run and what was asked for.
struct RunReport {
  std::string label;        // "rate 4", "concurrency 8"
  double request_rate = 0;  // infinity: closed loop, or all at once; 0: a trace's
  int concurrency = 0;      // 0: no limit
  Figures figures;
  RunResult result;
};

// Settings that all runs share, as JSON: date, backend, model_id, num_prompts, ... A run has the
// keys of `vllm bench serve --save-result`, and p50, p90 and p99.9, errors, cancelled, slo and
// "generator". With `detailed` it also has the lengths, ttfts, itls and errors of each request.
nlohmann::ordered_json run_json(const nlohmann::ordered_json& settings, const RunReport& run,
                                bool detailed);
// Returns the object of a single run. With several runs, it returns the settings and the objects in
// "runs".
nlohmann::ordered_json report_json(const nlohmann::ordered_json& settings,
                                   std::span<const RunReport> runs, bool detailed);

// Returns tables of throughput, latencies, errors, and how busy the generator was.
std::string report_text(std::span<const RunReport> runs);

}  // namespace kivi::load
