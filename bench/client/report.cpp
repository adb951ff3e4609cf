// SPDX-License-Identifier: Apache-2.0
#include "bench/client/report.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

namespace kivi::load {
namespace {

using nlohmann::ordered_json;

void add_latency(ordered_json& out, const std::string& name, const Latency& l) {
  out["mean_" + name + "_ms"] = l.mean;
  out["median_" + name + "_ms"] = l.p50;
  out["std_" + name + "_ms"] = l.std;
  out["p50_" + name + "_ms"] = l.p50;
  out["p90_" + name + "_ms"] = l.p90;
  out["p99_" + name + "_ms"] = l.p99;
  out["p99.9_" + name + "_ms"] = l.p999;
}

ordered_json generator_json(const Figures& f) {
  return {
      {"cpu_seconds", f.cpu_seconds},
      {"cpu_share_of_a_core", f.cpu_share},
      {"busiest_thread_share",
       f.busiest_thread_share ? ordered_json(*f.busiest_thread_share) : ordered_json(nullptr)},
      {"late_p50_ms", f.late.p50},
      {"late_p99_ms", f.late.p99},
      {"late_max_ms", f.late.sorted.empty() ? 0 : f.late.sorted.back()},
      {"loop_delay_p50_ms", f.loop_delay.p50},
      {"loop_delay_p99_ms", f.loop_delay.p99},
      {"bottleneck", f.bottleneck.empty() ? ordered_json(nullptr) : ordered_json(f.bottleneck)}};
}

void add_details(ordered_json& out, const std::vector<RequestRecord>& records) {
  for (const char* key : {"input_lens", "output_lens", "ttfts", "itls", "start_times", "errors"})
    out[key] = ordered_json::array();
  for (const RequestRecord& r : records) {
    out["input_lens"].push_back(r.prompt_tokens);
    out["output_lens"].push_back(r.output_tokens);
    out["ttfts"].push_back(r.token_events > 0 ? r.first_token - r.due : 0.0);
    out["itls"].push_back(r.gaps);
    out["start_times"].push_back(r.due);
    out["errors"].push_back(
        r.error_kind.empty() ? "" : fmt::format("{}: {}", r.error_kind, r.error_message));
  }
}

std::string row_of(const std::string& label, const Latency& l) {
  return fmt::format("{:<18}{:>10.2f}{:>10.2f}{:>10.2f}{:>10.2f}{:>10.2f}\n", label, l.mean, l.p50,
                     l.p90, l.p99, l.p999);
}

std::string latency_table(const char* title, std::span<const RunReport> runs,
                          Latency Figures::*which) {
  std::string text = fmt::format("\n{:<18}{:>10}{:>10}{:>10}{:>10}{:>10}\n", title, "mean", "p50",
                                 "p90", "p99", "p99.9");
  for (const RunReport& run : runs) text += row_of(run.label, run.figures.*which);
  return text;
}

std::string notes_of(const RunReport& run) {
  const Figures& f = run.figures;
  std::string text;
  for (const auto& [kind, error] : f.errors)
    text += fmt::format("{}: {} x {}{}{}\n", run.label, error.count, kind,
                        error.example.empty() ? "" : ", first: ", error.example);
  if (!f.server_counts && f.completed > 0)
    text += fmt::format(
        "{}: the server sent no usage, so events count as output tokens, and input tokens are as "
        "asked\n",
        run.label);
  text += fmt::format(
      "{}: generator: {:.2f} s of CPU ({:.0f} % of a core, busiest thread {}), starts late "
      "by "
      "p50 {:.2f} ms, p99 {:.2f} ms, loop late by p99 {:.2f} ms\n",
      run.label, f.cpu_seconds, 100 * f.cpu_share, busiest_thread_text(f), f.late.p50, f.late.p99,
      f.loop_delay.p99);
  if (!f.bottleneck.empty())
    text += fmt::format("{}: THE GENERATOR MAY BE THE BOTTLENECK: {}\n", run.label, f.bottleneck);
  return text;
}

}  // namespace

ordered_json run_json(const ordered_json& settings, const RunReport& run, bool detailed) {
  const Figures& f = run.figures;
  ordered_json out = settings;
  out["num_prompts"] = f.requests;
  out["request_rate"] =
      std::isinf(run.request_rate) ? ordered_json("inf") : ordered_json(run.request_rate);
  out["max_concurrency"] =
      run.concurrency > 0 ? ordered_json(run.concurrency) : ordered_json(nullptr);
  out["duration"] = f.seconds;
  out["completed"] = f.completed;
  out["failed"] = f.failed;
  out["cancelled"] = f.cancelled;
  out["total_input_tokens"] = f.input_tokens;
  out["total_output_tokens"] = f.output_tokens;
  out["cancelled_output_tokens"] = f.cancelled_output_tokens;
  out["token_counts"] = f.server_counts ? "usage" : "events";
  out["request_throughput"] = f.requests_per_s;
  out["request_goodput"] = f.goodput ? ordered_json(*f.goodput) : ordered_json(nullptr);
  if (f.goodput) out["good_share"] = f.good_share;
  out["output_throughput"] = f.output_tokens_per_s;
  out["total_token_throughput"] = f.total_tokens_per_s;
  out["max_output_tokens_per_s"] = f.output_tokens_per_s_max;
  out["max_concurrent_requests"] = f.concurrent_max;
  add_latency(out, "ttft", f.ttft);
  add_latency(out, "tpot", f.tpot);
  add_latency(out, "itl", f.itl);
  add_latency(out, "e2el", f.e2el);
  out["error_counts"] = ordered_json::object();
  for (const auto& [kind, error] : f.errors) out["error_counts"][kind] = error.count;
  out["generator"] = generator_json(f);
  if (detailed) add_details(out, run.result.records);
  return out;
}

ordered_json report_json(const ordered_json& settings, std::span<const RunReport> runs,
                         bool detailed) {
  if (runs.size() == 1) return run_json(settings, runs.front(), detailed);
  ordered_json out = settings;
  out["runs"] = ordered_json::array();
  for (const RunReport& run : runs)
    out["runs"].push_back(run_json(ordered_json::object(), run, detailed));
  return out;
}

std::string report_text(std::span<const RunReport> runs) {
  std::string text = fmt::format("{:<18}{:>9}{:>7}{:>7}{:>10}{:>9}{:>13}{:>13}{:>10}{:>9}\n", "run",
                                 "completed", "cut", "failed", "seconds", "req/s", "input tok/s",
                                 "output tok/s", "in flight", "good/s");
  for (const RunReport& run : runs) {
    const Figures& f = run.figures;
    text += fmt::format("{:<18}{:>9}{:>7}{:>7}{:>10.2f}{:>9.2f}{:>13.1f}{:>13.1f}{:>10}{:>9}\n",
                        run.label, f.completed, f.cancelled, f.failed, f.seconds, f.requests_per_s,
                        f.total_tokens_per_s - f.output_tokens_per_s, f.output_tokens_per_s,
                        f.concurrent_max, f.goodput ? fmt::format("{:.2f}", *f.goodput) : "-");
  }
  text += latency_table("TTFT ms", runs, &Figures::ttft);
  text += latency_table("TPOT ms", runs, &Figures::tpot);
  text += latency_table("ITL ms", runs, &Figures::itl);
  text += latency_table("E2E ms", runs, &Figures::e2el) + "\n";
  for (const RunReport& run : runs) text += notes_of(run);
  return text;
}

}  // namespace kivi::load
