// SPDX-License-Identifier: Apache-2.0
// From the records of a run to figures. Pure functions.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "bench/client/load_run.h"
#include "bench/client/options.h"

namespace kivi::load {

// Milliseconds; zeros where there is no sample.
struct Latency {
  size_t count = 0;
  double mean = 0, std = 0;
  double p50 = 0, p90 = 0, p99 = 0, p999 = 0;
  std::vector<double> sorted;  // all samples, ascending
};
Latency latency_of(std::vector<double> samples_ms);

struct ErrorCount {
  int count = 0;
  std::string example;  // a message
};

// Per second of the run, from its begin; the last entry may be a part of a second.
struct Timeline {
  std::vector<double> output_tokens;  // events that came, as tokens
  std::vector<double> in_flight;      // requests, mean over the second
  std::vector<int> started, failed;
};

struct Figures {
  int requests = 0;
  int completed = 0, cancelled = 0, failed = 0;
  double seconds = 0;
  // Of completed requests; `cancelled_output_tokens` are those of cancelled ones, by events.
  int64_t input_tokens = 0, output_tokens = 0, cancelled_output_tokens = 0;
  bool server_counts = true;  // each completed request's tokens are the server's count
  double requests_per_s = 0, output_tokens_per_s = 0, total_tokens_per_s = 0;
  std::optional<double> goodput;  // good requests a second, where an SLO is set
  double good_share = 0;          // of all requests that were not cancelled by us
  int concurrent_max = 0;
  double output_tokens_per_s_max = 0;  // of a whole second
  // Of completed requests, from when they were due. ttft: to the first token; e2el: to the end of
  // the stream; itl: between events that carry text; tpot: of each request with two tokens or more,
  // (last - first token) / (tokens - 1).
  Latency ttft, tpot, itl, e2el;
  std::map<std::string, ErrorCount> errors;
  Timeline timeline;

  // The generator's own.
  double cpu_seconds = 0, cpu_share = 0;       // share: of one core
  int cores = 0;                               // of this machine
  std::optional<double> busiest_thread_share;  // nothing: see GeneratorLoad
  Latency late;                                // of starting requests
  Latency loop_delay;                          // of its event loops
  std::string bottleneck;  // why its figures are not the server's; "": nothing speaks for that
};

Figures figures_of(const RunResult& run, const Slo& slo);
// "37 %", or "not measured".
std::string busiest_thread_text(const Figures& figures);

// Above these the generator, not the server, may be what is measured.
inline constexpr double kBusyThread =
    0.9;                               // share of a core of one of its threads, or of all cores
inline constexpr double kLateMs = 10;  // p99 of starting late, and of the loop's delay
inline constexpr double kLateOfTtft = 0.05;  // ... where that is this share of the median TTFT too

}  // namespace kivi::load
