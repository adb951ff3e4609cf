// SPDX-License-Identifier: Apache-2.0
#include "bench/client/html_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/percentile.h"
#include "base/report/html_text.h"
#include "base/report/svg_plot.h"

namespace kivi::load {
namespace {

constexpr int kCdfPoints = 200;

constexpr const char* kStyle = R"(
:root { color-scheme: light dark; --bg: #fcfcfb; --ink: #20242a; --soft: #5c6570; --line: #d9dde2;
  --card: #ffffff; --warn: #9a3412; }
@media (prefers-color-scheme: dark) { :root { --bg: #15181c; --ink: #e6e8ea; --soft: #9aa4af;
  --line: #333a42; --card: #1c2026; --warn: #f4a261; } }
body { margin: 0 auto; max-width: 1040px; padding: 24px 20px 60px; background: var(--bg);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 24px; margin: 0 0 2px; } h2 { font-size: 18px; margin: 34px 0 8px; }
p { margin: 6px 0; color: var(--soft); } .warn { color: var(--warn); font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 4px 10px; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 500; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 16px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px; }
figcaption { font-weight: 600; margin-bottom: 4px; }
)";

Plot cdf_plot(const char* title, std::span<const RunReport> runs, Latency Figures::*which) {
  Plot plot{
      .title = title, .x_label = "ms", .y_label = "% of samples", .log_x = true, .y_max = 100};
  for (const RunReport& run : runs) {
    const std::vector<double>& sorted = (run.figures.*which).sorted;
    Series series{.name = run.label};
    if (!sorted.empty())
      for (int i = 0; i <= kCdfPoints; ++i) {
        const double q = 100.0 * i / kCdfPoints;
        series.points.emplace_back(percentile(sorted, q), q);
      }
    plot.series.push_back(std::move(series));
  }
  return plot;
}

// p50 and p99 of a latency over the runs' throughput, joined in the order of the sweep: past its
// limit a server's latency rises and its throughput does not.
Plot throughput_plot(const char* title, const char* y_label, std::span<const RunReport> runs,
                     Latency Figures::*which) {
  Plot plot{.title = title, .x_label = "output tokens/s", .y_label = y_label};
  for (const auto& [name, value] : {std::pair{"p50", &Latency::p50}, {"p99", &Latency::p99}}) {
    Series series{.name = name, .dots = true};
    for (const RunReport& run : runs) {
      series.points.emplace_back(run.figures.output_tokens_per_s, (run.figures.*which).*value);
      series.labels.push_back(run.label);
    }
    plot.series.push_back(std::move(series));
  }
  return plot;
}

template <class T>
Plot timeline_plot(const char* title, const char* y_label, std::span<const RunReport> runs,
                   std::vector<T> Timeline::*which) {
  Plot plot{.title = title, .x_label = "seconds since the run began", .y_label = y_label};
  for (const RunReport& run : runs) {
    Series series{.name = run.label};
    const std::vector<T>& values = run.figures.timeline.*which;
    for (size_t i = 0; i < values.size(); ++i) {  // a step a second
      series.points.emplace_back(double(i), double(values[i]));
      series.points.emplace_back(std::min(double(i + 1), run.figures.seconds), double(values[i]));
    }
    plot.series.push_back(std::move(series));
  }
  return plot;
}

std::string rates_table(std::span<const RunReport> runs) {
  std::string out =
      "<div class=wide><table><tr><th>run<th>completed<th>cut<th>failed<th>seconds<th>req/s"
      "<th>input tok/s<th>output tok/s<th>in flight<th>good/s</tr>\n";
  for (const RunReport& run : runs) {
    const Figures& f = run.figures;
    out += fmt::format(
        "<tr><td>{}<td>{}<td>{}<td>{}<td>{:.2f}<td>{:.2f}<td>{:.1f}<td>{:.1f}<td>{}<td>{}</tr>\n",
        escape_html(run.label), f.completed, f.cancelled, f.failed, f.seconds, f.requests_per_s,
        f.total_tokens_per_s - f.output_tokens_per_s, f.output_tokens_per_s, f.concurrent_max,
        f.goodput ? fmt::format("{:.2f} ({:.0f} %)", *f.goodput, 100 * f.good_share) : "&ndash;");
  }
  return out + "</table></div>\n";
}

std::string latency_table(std::span<const RunReport> runs) {
  std::string out =
      "<div class=wide><table><tr><th>run<th>ms<th>mean<th>p50<th>p90<th>p99<th>p99.9</tr>\n";
  const std::pair<const char*, Latency Figures::*> kinds[] = {{"TTFT", &Figures::ttft},
                                                              {"TPOT", &Figures::tpot},
                                                              {"ITL", &Figures::itl},
                                                              {"E2E", &Figures::e2el}};
  for (const RunReport& run : runs)
    for (const auto& [name, which] : kinds) {
      const Latency& l = run.figures.*which;
      out +=
          fmt::format("<tr><td>{}<td>{}<td>{:.2f}<td>{:.2f}<td>{:.2f}<td>{:.2f}<td>{:.2f}</tr>\n",
                      escape_html(run.label), name, l.mean, l.p50, l.p90, l.p99, l.p999);
    }
  return out + "</table></div>\n";
}

std::string generator_notes(std::span<const RunReport> runs) {
  std::string out;
  for (const RunReport& run : runs) {
    const Figures& f = run.figures;
    out += fmt::format(
        "<p>{}: {:.2f} s of CPU, {:.0f} % of a core, its busiest thread {}; starts late by "
        "p50 {:.2f} ms, p99 {:.2f} ms; event loop late by p99 {:.2f} ms.</p>\n",
        escape_html(run.label), f.cpu_seconds, 100 * f.cpu_share, busiest_thread_text(f),
        f.late.p50, f.late.p99, f.loop_delay.p99);
    if (!f.bottleneck.empty())
      out += fmt::format("<p class=warn>{}: the generator may be the bottleneck: {}.</p>\n",
                         escape_html(run.label), escape_html(f.bottleneck));
    for (const auto& [kind, error] : f.errors)
      out += fmt::format("<p class=warn>{}: {} × {}: {}</p>\n", escape_html(run.label), error.count,
                         escape_html(kind), escape_html(error.example));
  }
  return out;
}

std::string settings_table(const nlohmann::ordered_json& settings) {
  std::string out = "<div class=wide><table>\n";
  for (const auto& [key, value] : settings.items())
    if (!value.is_null())
      out += fmt::format("<tr><td>{}<td>{}</tr>\n", escape_html(key),
                         escape_html(value.is_string() ? value.get<std::string>() : value.dump()));
  return out + "</table></div>\n";
}

}  // namespace

std::string html_report(const nlohmann::ordered_json& settings, std::span<const RunReport> runs) {
  std::string out = fmt::format(
      "<!doctype html>\n<html lang=en><head><meta charset=utf-8>\n"
      "<meta name=viewport content=\"width=device-width, initial-scale=1\">\n"
      "<title>kivi bench serve: {0}</title>\n<style>{1}</style></head>\n<body>\n"
      "<h1>{0}</h1>\n<p>kivi bench serve, {2}. Latencies count from when a request was due.</p>\n",
      escape_html(settings.value("model_id", "")), kStyle + plot_style(),
      escape_html(settings.value("date", "")));
  out += "<h2>Throughput</h2>\n" + rates_table(runs);
  out += "<h2>Latency</h2>\n" + latency_table(runs) + "<h2>Plots</h2>\n<div class=plots>\n";
  out += svg_plot(cdf_plot("Time to first token", runs, &Figures::ttft));
  out += svg_plot(cdf_plot("Time per output token", runs, &Figures::tpot));
  out += svg_plot(cdf_plot("Between tokens", runs, &Figures::itl));
  out += svg_plot(cdf_plot("End to end", runs, &Figures::e2el));
  if (runs.size() > 1) {
    out += svg_plot(throughput_plot("Throughput against time to first token", "TTFT, ms", runs,
                                    &Figures::ttft));
    out += svg_plot(throughput_plot("Throughput against time per output token", "TPOT, ms", runs,
                                    &Figures::tpot));
  }
  out +=
      svg_plot(timeline_plot("Output tokens a second", "tokens/s", runs, &Timeline::output_tokens));
  out += svg_plot(timeline_plot("Requests in flight", "requests", runs, &Timeline::in_flight));
  out += "</div>\n<h2>The generator</h2>\n" + generator_notes(runs);
  return out + "<h2>Settings</h2>\n" + settings_table(settings) + "</body></html>\n";
}

}  // namespace kivi::load
