// SPDX-License-Identifier: Apache-2.0
// The arithmetic of the figures, on records whose times are given: exact, without a clock.
#include "bench/client/figures.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/report/svg_plot.h"
#include "bench/client/html_report.h"
#include "bench/client/report.h"

namespace kivi::load {
namespace {

// A request that was due and started at `due`, whose tokens came after `ttft` and then every `gap`.
RequestRecord answered(double due, double ttft, double gap, int tokens) {
  RequestRecord r;
  r.due = r.started = due;
  for (int i = 0; i < tokens; ++i) note_token(r, due + ttft + gap * i);
  note_event(r, {.has_usage = true, .prompt_tokens = 10, .completion_tokens = tokens}, 0);
  note_completed(r, due + ttft + gap * (tokens - 1));
  return r;
}

RunResult run_of(std::vector<RequestRecord> records) {
  RunResult run{.records = std::move(records)};
  for (const RequestRecord& r : run.records) run.seconds = std::max(run.seconds, r.ended);
  return run;
}

TEST_CASE("Latencies of known delays are exact") {
  // TTFT 1..1000 ms, in no order; 5 ms a token.
  std::vector<RequestRecord> records;
  for (int i = 0; i < 1000; ++i)
    records.push_back(answered(i, 1e-3 * (i * 7 % 1000 + 1), 5e-3, 11));
  const Figures f = figures_of(run_of(std::move(records)), {});
  CHECK(f.completed == 1000);
  CHECK(f.ttft.mean == Approx(500.5));
  CHECK(f.ttft.p50 == Approx(500.5));
  CHECK(f.ttft.p90 == Approx(900.1));
  CHECK(f.ttft.p99 == Approx(990.01));
  CHECK(f.ttft.p999 == Approx(999.001));
  CHECK(f.tpot.p50 == Approx(5));
  CHECK(f.tpot.p999 == Approx(5));
  CHECK(f.itl.count == 10000);
  CHECK(f.itl.p50 == Approx(5).epsilon(1e-3));  // gaps are floats
  CHECK(f.e2el.p50 == Approx(550.5));
  CHECK(f.output_tokens == 11000);
  CHECK(f.input_tokens == 10000);
  CHECK(f.server_counts);
}

TEST_CASE("A late start counts from when the request was due") {
  RequestRecord r = answered(2.0, 0.1, 0.01, 3);
  r.due = 0.5;  // it could only be sent at 2.0
  const Figures f = figures_of(run_of({r}), {});
  CHECK(f.ttft.p50 == Approx(1600));
  CHECK(f.e2el.p50 == Approx(1620));
  CHECK(f.tpot.p50 == Approx(10));
}

TEST_CASE("Several tokens in an event count for TPOT, not for ITL") {
  RequestRecord r;
  note_token(r, 0.1);
  note_token(r, 0.4);  // brought three
  note_event(r, {.has_usage = true, .prompt_tokens = 2, .completion_tokens = 4}, 0.4);
  note_completed(r, 0.4);
  const Figures f = figures_of(run_of({r}), {});
  CHECK(f.tpot.p50 == Approx(100));
  CHECK(f.itl.p50 == Approx(300));
  CHECK(f.output_tokens == 4);
}

TEST_CASE("Without usage, events are counted, and the figures say so") {
  RequestRecord r;
  r.prompt_tokens = 5;
  note_token(r, 0.1);
  note_token(r, 0.2);
  note_completed(r, 0.25);
  RequestRecord silent;  // tokens that were never text
  note_event(silent, {.has_usage = true, .prompt_tokens = 1, .completion_tokens = 3}, 0.5);
  note_completed(silent, 0.5);
  const Figures f = figures_of(run_of({r, silent}), {});
  CHECK_FALSE(f.server_counts);
  CHECK(f.output_tokens == 5);
  CHECK(f.input_tokens == 6);
  CHECK(f.ttft.sorted == std::vector<double>{100, 500});
  CHECK(f.tpot.count == 1);
}

TEST_CASE("Cancelled and failed requests are counted apart and have no latency") {
  RequestRecord cut = answered(0, 0.1, 0.1, 4);
  cut.outcome = Outcome::cancelled;
  RequestRecord refused, closed, refused_too;
  note_failed(refused, "HTTP 503", "full", 0.2);
  note_failed(refused_too, "HTTP 503", "still full", 0.3);
  note_token(closed, 0.1);
  note_failed(closed, "closed", "", 0.4);
  const Figures f = figures_of(run_of({cut, refused, closed, refused_too, answered(0, 1, 1, 2)}),
                               Slo{.ttft = 1500});
  CHECK(f.completed == 1);
  CHECK(f.cancelled == 1);
  CHECK(f.failed == 3);
  CHECK(f.cancelled_output_tokens == 4);
  CHECK(f.output_tokens == 2);
  CHECK(f.ttft.count == 1);
  CHECK(f.errors.at("HTTP 503").count == 2);
  CHECK(f.errors.at("HTTP 503").example == "full");
  CHECK(f.errors.at("closed").count == 1);
  CHECK(*f.goodput == Approx(0.5));        // one in two seconds
  CHECK(f.good_share == Approx(1.0 / 4));  // those that failed are not good
}

TEST_CASE("Goodput wants every limit to hold") {
  const std::vector<RequestRecord> records = {
      answered(0, 0.1, 0.01, 11), answered(0, 0.3, 0.01, 11), answered(0, 0.1, 0.09, 11)};
  const auto good = [&](const char* slo) {
    const Figures f = figures_of(run_of(records), parse_slo(slo).value());
    return int(std::lround(*f.goodput * f.seconds));
  };
  CHECK(good("ttft:200") == 2);
  CHECK(good("tpot:50") == 2);
  CHECK(good("ttft:200,tpot:50") == 1);
  CHECK(good("e2el:400") == 2);
  CHECK(good("ttft:1") == 0);
  CHECK_FALSE(figures_of(run_of(records), {}).goodput.has_value());
  for (const char* text :
       {"", "ttft", "ttft:x", "ttft:0", "ttft:-1", "itl:3", "ttft:1,", "ttft:nan"})
    CHECK_FALSE(parse_slo(text).ok());
}

TEST_CASE("A stream that came in one piece keeps no limit on the time between tokens") {
  const auto good = [](int tokens) {
    RequestRecord r;
    note_token(r, 0.1);
    note_event(r, {.has_usage = true, .prompt_tokens = 2, .completion_tokens = tokens}, 0.1);
    note_completed(r, 0.1);
    return *figures_of(run_of({r}), Slo{.tpot = 50}).goodput > 0;
  };
  CHECK_FALSE(good(100));
  CHECK(good(1));  // there is no such time
}

TEST_CASE("The timeline's sums are the run's") {
  std::vector<RequestRecord> records;
  for (int i = 0; i < 50; ++i) records.push_back(answered(0.3 * i, 0.2, 0.05, 20 + i % 7));
  RequestRecord failed;
  failed.started = 3.2;
  note_failed(failed, "x", "", 3.5);
  records.push_back(failed);
  const RunResult run = run_of(records);
  const Figures f = figures_of(run, {});
  double tokens = 0, busy = 0, requests = 0;
  int started = 0, failures = 0;
  for (const double n : f.timeline.output_tokens) tokens += n;
  for (const double n : f.timeline.in_flight) busy += n;
  for (const int n : f.timeline.started) started += n;
  for (const int n : f.timeline.failed) failures += n;
  for (const RequestRecord& r : run.records) requests += r.ended - r.started;
  CHECK(tokens == Approx(double(f.output_tokens)));
  CHECK(busy == Approx(requests));
  CHECK(started == 51);
  CHECK(failures == 1);
  CHECK(f.concurrent_max >= 4);
  CHECK(f.concurrent_max <= 6);
}

TEST_CASE("An empty and an instant run give zeros, not nonsense") {
  const Figures none = figures_of({}, Slo{.ttft = 1});
  CHECK(none.output_tokens_per_s == 0);
  CHECK(none.ttft.p999 == 0);
  CHECK(*none.goodput == 0);
  RequestRecord r;
  note_failed(r, "connect", "refused", 0);
  CHECK(figures_of(run_of({r}), {}).failed == 1);
}

TEST_CASE("A generator that is late or busy says so, and an idle one does not") {
  const auto bottleneck = [](double busy, double late, float delay) {
    RunResult run = run_of({answered(0, 0.02, 0.01, 5), answered(0, 0.02, 0.01, 5)});
    for (RequestRecord& r : run.records) r.late = late;
    run.generator.busiest_thread_share = busy;
    run.generator.loop_delays.assign(100, delay);
    return figures_of(run, {}).bottleneck;
  };
  CHECK(bottleneck(0.3, 0.001, 0.001F).empty());
  CHECK(bottleneck(0.95, 0, 0).find("95 %") != std::string::npos);
  CHECK(bottleneck(0.3, 0.030, 0).find("started requests late") != std::string::npos);
  CHECK(bottleneck(0.3, 0, 0.030F).find("event loop") != std::string::npos);
}

TEST_CASE("Where threads cannot be seen, the process's CPU is what tells a busy generator") {
  const auto figures = [](double cpu_seconds) {
    RunResult run = run_of({answered(0, 1, 0.5, 3)});  // two seconds
    run.generator.cpu_seconds = cpu_seconds;
    run.generator.cores = 2;
    return figures_of(run, {});
  };
  CHECK(figures(3.0).bottleneck.empty());
  CHECK(figures(3.8).bottleneck.find("1.9 of 2 cores") != std::string::npos);
  const std::vector<RunReport> runs = {{.label = "c", .figures = figures(1)}};
  CHECK(report_text(runs).find("busiest thread not measured") != std::string::npos);
  CHECK(report_json({}, runs, false)["generator"]["busiest_thread_share"].is_null());
}

RunReport report_of(const char* label, double rate, int concurrency) {
  RunReport report{.label = label, .request_rate = rate, .concurrency = concurrency};
  report.result = run_of({answered(0, 0.1, 0.01, 11), answered(1, 0.2, 0.02, 11)});
  report.figures = figures_of(report.result, Slo{.ttft = 150});
  return report;
}

TEST_CASE("The JSON has vLLM's keys; a sweep is a list of runs") {
  const nlohmann::ordered_json settings = {{"date", "d"}, {"model_id", "m"}, {"num_prompts", 2}};
  const std::vector<RunReport> one = {report_of("c", std::numeric_limits<double>::infinity(), 4)};
  const auto json = report_json(settings, one, true);
  for (const char* key : {"date",
                          "model_id",
                          "num_prompts",
                          "request_rate",
                          "max_concurrency",
                          "duration",
                          "completed",
                          "failed",
                          "total_input_tokens",
                          "total_output_tokens",
                          "request_throughput",
                          "request_goodput",
                          "output_throughput",
                          "total_token_throughput",
                          "max_output_tokens_per_s",
                          "max_concurrent_requests",
                          "input_lens",
                          "output_lens",
                          "ttfts",
                          "itls",
                          "errors"})
    CHECK(json.contains(key));
  for (const std::string name : {"ttft", "tpot", "itl", "e2el"})
    for (const std::string kind : {"mean", "median", "std", "p50", "p90", "p99", "p99.9"})
      CHECK(json.at(kind + "_" + name + "_ms").get<double>() >= 0);
  CHECK(json["request_rate"] == "inf");
  CHECK(json["max_concurrency"] == 4);
  CHECK(json["median_ttft_ms"].get<double>() == Approx(150));
  CHECK(json["total_output_tokens"] == 22);
  CHECK(json["ttfts"].size() == 2);
  const std::vector<RunReport> two = {report_of("a", 1, 0), report_of("b", 2, 0)};
  const auto sweep = report_json(settings, two, false);
  CHECK(sweep["model_id"] == "m");
  CHECK(sweep["runs"].size() == 2);
  CHECK(sweep["runs"][1]["request_rate"] == 2);
  CHECK(sweep["runs"][0]["max_concurrency"].is_null());
  CHECK_FALSE(sweep["runs"][0].contains("ttfts"));
}

TEST_CASE("The page has a plot for each question, and asks nothing of the network") {
  const nlohmann::ordered_json settings = {{"date", "d"}, {"model_id", "<script>m"}};
  const std::vector<RunReport> runs = {report_of("rate 1", 1, 0), report_of("rate 2", 2, 0)};
  const std::string page = html_report(settings, runs);
  size_t plots = 0;
  for (size_t at = 0; (at = page.find("<svg", at)) != std::string::npos; ++at) ++plots;
  CHECK(plots == 8);
  CHECK(page.find("http") == std::string::npos);
  CHECK(page.find("<script") == std::string::npos);
  CHECK(page.find("&lt;script&gt;m") != std::string::npos);
  CHECK(page.find("nan") == std::string::npos);
  CHECK(page.find("inf") == std::string::npos);
  CHECK(page.find("prefers-color-scheme: dark") != std::string::npos);
}

TEST_CASE("Axes have round ticks inside their range") {
  CHECK(ticks(0, 10, 5) == std::vector<double>{0, 2, 4, 6, 8, 10});
  CHECK(ticks(0, 0.7, 7).size() == 8);
  CHECK(log_ticks(1, 20) == std::vector<double>{1, 2, 5, 10, 20});
  CHECK(log_ticks(0.5, 5000).size() == 4);
}

}  // namespace
}  // namespace kivi::load
