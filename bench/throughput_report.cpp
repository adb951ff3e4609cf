// SPDX-License-Identifier: Apache-2.0
#include "bench/throughput_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/percentile.h"

namespace kivi {
namespace {

constexpr int kSparklineColumns = 60;

LatencyFigures latency(std::vector<double> seconds) {
  if (seconds.empty()) return {};
  std::sort(seconds.begin(), seconds.end());
  const double mean = std::accumulate(seconds.begin(), seconds.end(), 0.0) / double(seconds.size());
  return {mean * 1e3, percentile(seconds, 50) * 1e3, percentile(seconds, 90) * 1e3,
          percentile(seconds, 99) * 1e3};
}

double mib(int64_t bytes) { return double(bytes) / (1 << 20); }

std::string latency_columns(const LatencyFigures& l) {
  return fmt::format("{:>9.2f} {:>9.2f} {:>9.2f} {:>9.2f}", l.mean, l.p50, l.p90, l.p99);
}

void add_latency(nlohmann::ordered_json& out, const std::string& name, const LatencyFigures& l) {
  out["mean_" + name + "_ms"] = l.mean;
  out["median_" + name + "_ms"] = l.p50;
  out["p90_" + name + "_ms"] = l.p90;
  out["p99_" + name + "_ms"] = l.p99;
}

double milliseconds(double seconds) { return seconds * 1e3; }
double microseconds(double seconds) { return seconds * 1e6; }

void add_decode(nlohmann::ordered_json& out, const DecodeFigures& d) {
  if (d.steps == 0) return;
  out["decode"] = {{"steps", d.steps},
                   {"batch_size", d.batch},
                   {"throughput", d.tokens_per_s},
                   {"mean_context", d.context_mean},
                   {"median_step_ms", d.step_ms_p50},
                   {"device_ms_total", d.device_ms_total},
                   {"idle_ms_total", d.idle_ms_total},
                   {"idle_share", d.idle_share},
                   {"median_idle_us", d.idle_us_p50},
                   {"p99_idle_us", d.idle_us_p99}};
}

}  // namespace

DecodeFigures decode_figures(std::span<const StepTrace> trace) {
  std::vector<const StepTrace*> steps;
  DecodeFigures d;
  for (size_t i = 1; i < trace.size(); ++i) {
    const StepTrace &before = trace[i - 1], &step = trace[i];
    if (!step.device || !step.decodes_only() || !before.decodes_only()) continue;
    if (step.step != before.step + 1) continue;
    steps.push_back(&step);
    d.batch = std::max(d.batch, step.decodes);
  }
  std::erase_if(steps, [&](const StepTrace* s) { return s->decodes < kFullBatch * d.batch; });
  std::vector<double> spans, gaps;
  double busy = 0, idle = 0;
  int64_t tokens = 0, context = 0;
  for (const StepTrace* s : steps) {
    tokens += s->decodes;
    context += s->context_tokens;
    busy += s->device->busy;
    idle += s->device->idle;
    spans.push_back(milliseconds(s->device->idle + s->device->busy));
    gaps.push_back(microseconds(s->device->idle));
  }
  d.steps = steps.size();
  if (tokens == 0 || busy + idle <= 0) return d;
  std::sort(spans.begin(), spans.end());
  std::sort(gaps.begin(), gaps.end());
  d.tokens_per_s = double(tokens) / (busy + idle);
  d.context_mean = double(context) / double(tokens);
  d.step_ms_p50 = percentile(spans, 50);
  d.idle_share = idle / (busy + idle);
  d.idle_us_p50 = percentile(gaps, 50);
  d.idle_us_p99 = percentile(gaps, 99);
  d.device_ms_total = milliseconds(busy + idle);
  d.idle_ms_total = milliseconds(idle);
  return d;
}

std::string trace_lines(std::span<const StepTrace> trace) {
  std::string text;
  for (const StepTrace& step : trace) {
    nlohmann::ordered_json line;
    line["step"] = step.step;
    line["rows"] = step.rows;
    line["sequences"] = step.sequences;
    line["decodes"] = step.decodes;
    line["context_tokens"] = step.context_tokens;
    line["planned_us"] = double(step.planned.count()) / 1e3;
    line["collected_us"] = double(step.collected.count()) / 1e3;
    line["idle_us"] = nullptr;
    line["busy_us"] = nullptr;
    if (step.device) {
      line["idle_us"] = microseconds(step.device->idle);
      line["busy_us"] = microseconds(step.device->busy);
    }
    text += line.dump() + "\n";
  }
  return text;
}

ThroughputFigures figures_of(const ThroughputRun& run) {
  ThroughputFigures f;
  f.in_flight = run.in_flight;
  f.seconds = run.seconds;
  f.steps = run.steps.size();
  f.preemptions = run.preemptions;
  f.decode = decode_figures(run.trace);
  f.prefix = run.prefix;
  std::vector<double> ttft, ttft_hit, ttft_miss, itl, tpot, e2el;
  for (const ThroughputRequest& r : run.requests) {
    f.prompt_tokens += r.prompt_tokens;
    f.output_tokens += r.output_tokens;
    f.cached_tokens += r.cached_tokens;
    if (r.output_tokens == 0) continue;
    ++f.completed;
    ttft.push_back(r.first_token - r.submitted);
    (2 * r.cached_tokens >= r.prompt_tokens ? ttft_hit : ttft_miss).push_back(ttft.back());
    e2el.push_back(r.last_token - r.submitted);
    itl.insert(itl.end(), r.gaps.begin(), r.gaps.end());
    if (r.output_tokens > 1) tpot.push_back((r.last_token - r.first_token) / (r.output_tokens - 1));
  }
  f.ttft = latency(std::move(ttft));
  f.ttft_hit = latency(std::move(ttft_hit));
  f.ttft_miss = latency(std::move(ttft_miss));
  f.itl = latency(std::move(itl));
  f.tpot = latency(std::move(tpot));
  f.e2el = latency(std::move(e2el));

  double begin = 0, sequence_seconds = 0;
  for (const StepRecord& step : run.steps) {
    sequence_seconds += step.running * (step.end - begin);
    begin = step.end;
    f.batch_max = std::max(f.batch_max, step.running);
    f.kv_bytes_peak = std::max(f.kv_bytes_peak, step.kv_bytes);
  }
  if (begin > 0) f.batch_mean = sequence_seconds / begin;
  if (f.seconds > 0) {
    f.requests_per_s = f.completed / f.seconds;
    f.prompt_tokens_per_s = double(f.prompt_tokens) / f.seconds;
    f.output_tokens_per_s = double(f.output_tokens) / f.seconds;
  }
  return f;
}

std::vector<double> batch_over_time(const ThroughputRun& run, int columns) {
  std::vector<double> sum(size_t(columns), 0), count(size_t(columns), 0);
  for (const StepRecord& step : run.steps) {
    const double share = run.seconds > 0 ? step.end / run.seconds : 0;
    const auto column = size_t(std::clamp(int(share * columns), 0, columns - 1));
    sum[column] += step.running;
    count[column] += 1;
  }
  std::vector<double> mean(size_t(columns), 0);
  for (size_t i = 0; i < mean.size(); ++i)
    mean[i] = count[i] > 0 ? sum[i] / count[i] : (i > 0 ? mean[i - 1] : 0);
  return mean;
}

std::string sparkline(std::span<const double> values, double top) {
  static constexpr const char* kBlocks[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  std::string out;
  for (const double value : values) {
    const int height = top > 0 ? int(std::ceil(value / top * 8)) : 0;
    out += kBlocks[std::clamp(height, 0, 8)];
  }
  return out;
}

std::string throughput_text(std::span<const ThroughputRun> runs) {
  std::string rates = fmt::format("{:>9} {:>9} {:>9} {:>13} {:>13} {:>11} {:>10} {:>9} {:>9}\n",
                                  "in flight", "seconds", "req/s", "prompt tok/s", "output tok/s",
                                  "batch mean", "batch max", "cache MiB", "preempted");
  std::string latencies = fmt::format(
      "{:>9} {:>39}   {:>39}\n{:>9} {:>9} {:>9} {:>9} {:>9}   {:>9} {:>9} {:>9} {:>9}\n", "",
      "TTFT ms", "ITL ms", "in flight", "mean", "p50", "p90", "p99", "mean", "p50", "p90", "p99");
  std::string batches, decodes, prefixes;
  for (const ThroughputRun& run : runs) {
    const ThroughputFigures f = figures_of(run);
    rates += fmt::format(
        "{:>9} {:>9.2f} {:>9.2f} {:>13.1f} {:>13.1f} {:>11.1f} {:>10} {:>9.2f} {:>9}\n",
        f.in_flight, f.seconds, f.requests_per_s, f.prompt_tokens_per_s, f.output_tokens_per_s,
        f.batch_mean, f.batch_max, mib(f.kv_bytes_peak), f.preemptions);
    latencies += fmt::format("{:>9} {}   {}\n", f.in_flight, latency_columns(f.ttft),
                             latency_columns(f.itl));
    batches += fmt::format("{:>9} |{}| {} max, {} steps\n", f.in_flight,
                           sparkline(batch_over_time(run, kSparklineColumns), f.batch_max),
                           f.batch_max, f.steps);
    if (f.cached_tokens > 0)
      prefixes += fmt::format(
          "{:>9} {:>13} {:>13} {:>13} {:>10.1f} {:>13.2f} {:>13.2f}\n", f.in_flight,
          f.prompt_tokens, f.cached_tokens, f.prefix.reachable,
          100.0 * double(f.cached_tokens) / double(std::max<uint64_t>(f.prefix.reachable, 1)),
          f.ttft_hit.p50, f.ttft_miss.p50);
    const DecodeFigures& d = f.decode;
    if (d.steps > 0)
      decodes += fmt::format(
          "{:>9} {:>9} {:>9} {:>13.1f} {:>13.1f} {:>11.3f} {:>10.2f} {:>9.1f} {:>9.1f}\n",
          f.in_flight, d.steps, d.batch, d.context_mean, d.tokens_per_s, d.step_ms_p50,
          100 * d.idle_share, d.idle_us_p50, d.idle_us_p99);
  }
  if (!decodes.empty())
    decodes = fmt::format(
                  "\n{:>9} {:>9} {:>9} {:>13} {:>13} {:>11} {:>10} {:>19}\n"
                  "{:>9} {:>9} {:>9} {:>13} {:>13} {:>11} {:>10} {:>9} {:>9}\n",
                  "decoding", "steps at", "largest", "mean context", "decode tok/s", "step ms",
                  "device", "idle us a step", "in flight", "full", "batch", "tokens", "", "p50",
                  "idle %", "p50", "p99") +
              decodes;
  if (!prefixes.empty())
    prefixes = fmt::format("\n{:>9} {:>13} {:>13} {:>13} {:>10} {:>13} {:>13}\n", "in flight",
                           "prompt tokens", "reused", "reachable", "reused %", "TTFT hit p50",
                           "TTFT miss p50") +
               prefixes;
  return rates + "\n" + latencies + prefixes + decodes + "\nbatch size over time\n" + batches;
}

nlohmann::ordered_json throughput_json(const ThroughputRun& run) {
  const ThroughputFigures f = figures_of(run);
  nlohmann::ordered_json out;
  out["max_concurrency"] = f.in_flight;
  out["completed"] = f.completed;
  out["duration"] = f.seconds;
  out["total_input_tokens"] = f.prompt_tokens;
  out["total_output_tokens"] = f.output_tokens;
  out["request_throughput"] = f.requests_per_s;
  out["prompt_throughput"] = f.prompt_tokens_per_s;
  out["output_throughput"] = f.output_tokens_per_s;
  out["total_token_throughput"] = f.prompt_tokens_per_s + f.output_tokens_per_s;
  add_latency(out, "ttft", f.ttft);
  add_latency(out, "itl", f.itl);
  add_latency(out, "tpot", f.tpot);
  add_latency(out, "e2el", f.e2el);
  out["steps"] = f.steps;
  out["batch_size_mean"] = f.batch_mean;
  out["batch_size_max"] = f.batch_max;
  out["batch_size_over_time"] = batch_over_time(run, kSparklineColumns);
  out["kv_cache_bytes_peak"] = f.kv_bytes_peak;
  out["preemptions"] = f.preemptions;
  out["total_cached_tokens"] = f.cached_tokens;
  out["prefix_reachable_tokens"] = f.prefix.reachable;
  if (f.cached_tokens > 0) {
    add_latency(out, "ttft_hit", f.ttft_hit);
    add_latency(out, "ttft_miss", f.ttft_miss);
  }
  add_decode(out, f.decode);
  return out;
}

}  // namespace kivi
