// The offline benchmark over an engine that invents tokens: the figures' sums hold.
#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/engine/fake_runner.h"
#include "tools/throughput_report.h"

namespace kivi {
namespace {

using testing::FakeEngineOptions;
using testing::make_fake_engine;

ThroughputOptions options_of(int prompts, LengthRange prompt, LengthRange output) {
  return {.num_prompts = prompts, .prompt_len = prompt, .output_len = output};
}

TEST_CASE("Every request gets exactly the tokens it asked for, at every number in flight") {
  const ThroughputOptions options = options_of(37, {3, 90}, {1, 40});
  for (const int in_flight : {1, 2, 7, 37, 1000}) {
    FakeEngineOptions fake;
    fake.config.max_num_seqs = 8;
    const auto engine = make_fake_engine(fake);
    const auto run = measure_throughput(*engine, options, 5, in_flight);
    REQUIRE(run.ok());
    REQUIRE(run->requests.size() == 37);
    int64_t rows = 0, expected_rows = 0;
    for (const StepRecord& step : run->steps) {
      rows += step.rows;
      CHECK(step.running <= std::min(in_flight, 8));
    }
    for (int i = 0; i < 37; ++i) {
      const Request asked = throughput_request(options, 1000, 5, i);
      const RequestRecord& got = run->requests[size_t(i)];
      CHECK(got.prompt_tokens == int(asked.prompt.size()));
      CHECK(got.output_tokens == asked.sampling.max_tokens);
      CHECK(int(got.gaps.size()) == got.output_tokens - 1);
      CHECK(got.submitted <= got.first_token);
      CHECK(got.first_token <= got.last_token);
      // The last token is never computed upon.
      expected_rows += got.prompt_tokens + got.output_tokens - 1;
    }
    CHECK(rows == expected_rows);
    CHECK(engine->stats().running == 0);
    const ThroughputFigures f = figures_of(*run);
    CHECK(f.completed == 37);
    CHECK(f.batch_max == std::min(in_flight, 8));
    CHECK(f.batch_mean <= f.batch_max);
    CHECK(f.kv_bytes_peak > 0);
  }
}

TEST_CASE("Requests are a pure function of seed and index, and lengths fill their range") {
  const ThroughputOptions options = options_of(1, {5, 8}, {2, 3});
  std::set<size_t> prompts;
  std::set<int> outputs;
  for (int i = 0; i < 200; ++i) {
    const Request a = throughput_request(options, 50, 1, i);
    CHECK(a.prompt == throughput_request(options, 50, 1, i).prompt);
    CHECK(a.prompt != throughput_request(options, 50, 2, i).prompt);
    for (const int32_t id : a.prompt) CHECK((id >= 0 && id < 50));
    prompts.insert(a.prompt.size());
    outputs.insert(a.sampling.max_tokens);
    CHECK(a.sampling.ignore_eos);
  }
  CHECK(prompts == std::set<size_t>{5, 6, 7, 8});
  CHECK(outputs == std::set<int>{2, 3});
}

TEST_CASE("A refused request is an error, not a figure") {
  FakeEngineOptions fake;
  fake.max_model_len = 64;
  const auto engine = make_fake_engine(fake);
  const auto run = measure_throughput(*engine, options_of(2, {100, 100}, {4, 4}), 0, 2);
  REQUIRE_FALSE(run.ok());
  CHECK(run.error().code == ErrorCode::context_length);
}

TEST_CASE("A failing step is an error, not a figure") {
  FakeEngineOptions fake;
  fake.runner.fail_at_step = 3;
  const auto engine = make_fake_engine(fake);
  CHECK_FALSE(measure_throughput(*engine, options_of(2, {4, 4}, {9, 9}), 0, 2).ok());
}

TEST_CASE("Percentiles interpolate between ranks") {
  const std::vector<double> x = {1, 2, 4, 8};
  CHECK(percentile(x, 0) == 1);
  CHECK(percentile(x, 50) == Approx(3));
  CHECK(percentile(x, 90) == Approx(6.8));
  CHECK(percentile(x, 100) == 8);
  CHECK(percentile(std::vector<double>{5}, 99) == 5);
  CHECK(percentile({}, 50) == 0);
}

TEST_CASE("Figures of a hand-made run") {
  ThroughputRun run;
  run.in_flight = 2;
  run.seconds = 4;
  run.requests = {
      {.prompt_tokens = 10,
       .output_tokens = 3,
       .submitted = 0,
       .first_token = 1,
       .last_token = 3,
       .gaps = {0.5f, 1.5f}},
      {.prompt_tokens = 6, .output_tokens = 1, .submitted = 1, .first_token = 4, .last_token = 4}};
  run.steps = {{1, 16, 2, 100}, {3, 2, 2, 300}, {4, 1, 1, 200}};
  const ThroughputFigures f = figures_of(run);
  CHECK(f.prompt_tokens_per_s == Approx(4));
  CHECK(f.output_tokens_per_s == Approx(1));
  CHECK(f.ttft.mean == Approx(2000));
  CHECK(f.itl.p50 == Approx(1000));
  CHECK(f.tpot.mean == Approx(1000));
  CHECK(f.e2el.mean == Approx(3000));
  CHECK(f.batch_mean == Approx(7.0 / 4));
  CHECK(f.kv_bytes_peak == 300);
  CHECK(batch_over_time(run, 4) == std::vector<double>{0, 2, 2, 1.5});
  const nlohmann::ordered_json json = throughput_json(run);
  for (const char* key : {"request_throughput", "output_throughput", "total_token_throughput",
                          "mean_ttft_ms", "median_tpot_ms", "p99_itl_ms", "p99_e2el_ms",
                          "completed", "total_input_tokens", "total_output_tokens"})
    CHECK(json.contains(key));
  CHECK(json["total_token_throughput"] == Approx(5));
  CHECK(throughput_text(std::vector{run}).find("2 max, 3 steps") != std::string::npos);
}

TEST_CASE("A sparkline has one block a value") {
  CHECK(sparkline(std::vector<double>{0, 1, 4, 8}, 8) == " ▁▄█");
  CHECK(sparkline(std::vector<double>{0, 0}, 0) == "  ");
}

}  // namespace
}  // namespace kivi
