// SPDX-License-Identifier: Apache-2.0
// From the records of a throughput run to figures, and their text and JSON. Pure functions.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "bench/throughput_run.h"

namespace kivi {

// Milliseconds.
struct LatencyFigures {
  double mean = 0, p50 = 0, p90 = 0, p99 = 0;
};

// Of the steps in which every sequence decodes, at (nearly) the largest batch that decoded: what a
// step of decoding costs, whatever prompts cost before it. A step counts where the one before it
// decoded too, so that the gap between them has no prompt in it.
struct DecodeFigures {
  uint64_t steps = 0;  // that count; 0: the device's times are not known, or no such steps
  int batch = 0;       // sequences, the largest
  double tokens_per_s = 0;
  double context_mean = 0;                        // cached tokens of a sequence
  double step_ms_p50 = 0;                         // begin to begin: idle + busy
  double idle_share = 0;                          // of the time, in [0, 1]
  double idle_us_p50 = 0, idle_us_p99 = 0;        // a gap between two steps
  double device_ms_total = 0, idle_ms_total = 0;  // idle + busy; idle
};

struct ThroughputFigures {
  int in_flight = 0;
  int completed = 0;
  double seconds = 0;
  int64_t prompt_tokens = 0, output_tokens = 0;
  double requests_per_s = 0, prompt_tokens_per_s = 0, output_tokens_per_s = 0;
  LatencyFigures ttft;  // submission to first token, queueing included
  LatencyFigures itl;   // between tokens that follow each other, all requests
  LatencyFigures tpot;  // of each request: (last - first token) / (tokens - 1)
  LatencyFigures e2el;  // submission to last token
  uint64_t steps = 0;
  double batch_mean = 0;  // sequences, by time
  int batch_max = 0;
  int64_t kv_bytes_peak = 0;
  uint64_t preemptions = 0;
  int64_t cached_tokens = 0;  // of prompts, reused from the prefix cache
  // Time to the first token of requests that reused at least half of their prompt, and of the
  // others. Queueing included.
  LatencyFigures ttft_hit, ttft_miss;
  PrefixCounts prefix;
  DecodeFigures decode;
};

// Steps count from this share of the largest decoding batch on.
inline constexpr double kFullBatch = 0.95;

DecodeFigures decode_figures(std::span<const StepTrace> trace);

// One JSON object a line and step: step, rows, sequences, decodes, context_tokens, planned_us and
// collected_us (the host's clock, since the run began), idle_us and busy_us (the device's, null
// where they are not known).
std::string trace_lines(std::span<const StepTrace> trace);

ThroughputFigures figures_of(const ThroughputRun& run);

// Mean of StepRecord::running in `columns` equal spans of time. Spans without a step repeat the one
// before.
std::vector<double> batch_over_time(const ThroughputRun& run, int columns);

// "▁▂▅█": one block a value, of eight heights up to `top`; zero is a blank.
std::string sparkline(std::span<const double> values, double top);

// The tables of all runs, in order, with the batch size over time of each.
std::string throughput_text(std::span<const ThroughputRun> runs);

// The names of `vllm bench serve` (request_throughput, mean_ttft_ms, ...) and ours.
nlohmann::ordered_json throughput_json(const ThroughputRun& run);

}  // namespace kivi
