// SPDX-License-Identifier: Apache-2.0
// The offline benchmark over an engine that invents tokens: the figures' sums hold.
#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <sstream>

#include "bench/structured_work.h"
#include "bench/throughput_report.h"
#include "engine/text/byte_tokenizer.h"
#include "tests/engine/fake_runner.h"

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
      const Request asked = throughput_request(options, 1000, 5, 0, {i, 0});
      const ThroughputRequest& got = run->requests[size_t(i)];
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

TEST_CASE("Structured work gives every row a mask over the whole vocabulary, and never ends") {
  constexpr int kVocabulary = 5000;
  const auto bytes = make_byte_tokenizer(kVocabulary);
  REQUIRE(bytes.ok());
  auto work = StructuredWork::make(**bytes, kVocabulary);
  REQUIRE(work.ok());
  const ThroughputOptions options = options_of(6, {3, 9}, {40, 40});
  FakeEngineOptions fake;
  fake.runner.vocab_size = kVocabulary;
  const auto engine = make_fake_engine(fake);
  const auto run = measure_throughput(*engine, options, 5, 6, 0, [&] { return (*work)->begin(); });
  REQUIRE(run.ok());
  for (const ThroughputRequest& request : run->requests) CHECK(request.output_tokens == 40);
  const auto constraint = (*work)->begin();
  std::mt19937 random(3);
  bool made_up = false;
  for (int i = 0; i < 2000; ++i) {
    const auto mask = constraint->mask();
    REQUIRE(mask.size() == size_t(kVocabulary + 31) / 32);
    int32_t id = int32_t(random() % kVocabulary);
    while ((mask[size_t(id) / 32] >> (id % 32) & 1) == 0) id = (id + 1) % kVocabulary;
    made_up = made_up || id >= 256;
    REQUIRE(constraint->accept(id) == TokenConstraint::Verdict::going_on);
  }
  CHECK(made_up);
}

TEST_CASE("Requests are a pure function of seed and index, and lengths fill their range") {
  const ThroughputOptions options = options_of(1, {5, 8}, {2, 3});
  std::set<size_t> prompts;
  std::set<int> outputs;
  for (int i = 0; i < 200; ++i) {
    const Request a = throughput_request(options, 50, 1, 0, {i, 0});
    CHECK(a.prompt == throughput_request(options, 50, 1, 0, {i, 0}).prompt);
    CHECK(a.prompt != throughput_request(options, 50, 2, 0, {i, 0}).prompt);
    const Request later = throughput_request(options, 50, 1, 1, {i, 0});
    CHECK(a.prompt != later.prompt);
    CHECK(a.prompt.size() == later.prompt.size());
    CHECK(a.sampling.max_tokens == later.sampling.max_tokens);
    for (const int32_t id : a.prompt) CHECK((id >= 0 && id < 50));
    prompts.insert(a.prompt.size());
    outputs.insert(a.sampling.max_tokens);
    CHECK(a.sampling.ignore_eos);
  }
  CHECK(prompts == std::set<size_t>{5, 6, 7, 8});
  CHECK(outputs == std::set<int>{2, 3});
}

TEST_CASE("Turns send the whole conversation again, and prompts share their beginning") {
  ThroughputOptions options = options_of(5, {3, 9}, {2, 6});
  options.turns = 4;
  options.prefix_len = 20;
  for (const int in_flight : {1, 3, 5}) {
    const auto engine = make_fake_engine({});
    const auto run = measure_throughput(*engine, options, 5, in_flight);
    REQUIRE(run.ok());
    REQUIRE(run->requests.size() == 20);
    for (int c = 0; c < 5; ++c) {
      int before = options.prefix_len;
      for (int turn = 0; turn < 4; ++turn) {
        const Request alone = throughput_request(options, 1000, 5, 0, {c, turn});
        const ThroughputRequest& got = run->requests[size_t(4 * c + turn)];
        // The first prompt holds the common beginning itself.
        CHECK(got.prompt_tokens == int(alone.prompt.size()) + (turn == 0 ? 0 : before));
        CHECK(got.output_tokens == alone.sampling.max_tokens);
        before = got.prompt_tokens + got.output_tokens;
      }
    }
  }
  const auto beginning = [&](int conversation) {
    const Request r = throughput_request(options, 1000, 5, 0, {conversation, 0});
    return std::vector(r.prompt.begin(), r.prompt.begin() + 20);
  };
  CHECK(beginning(0) == beginning(3));
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

StepTrace step_of(uint64_t number, int rows, int decodes, int sequences, double idle, double busy) {
  StepTrace step;
  step.step = number;
  step.rows = rows;
  step.sequences = sequences;
  step.decodes = decodes;
  step.context_tokens = 100 * sequences;
  step.device = StepTimes{idle, busy};
  return step;
}

TEST_CASE("Decode figures are of steps at full batch that follow a step without prompts") {
  std::vector<StepTrace> trace = {
      step_of(1, 30, 0, 2, 0, 9),           // a prompt
      step_of(2, 100, 100, 100, 5, 1),      // decodes, but follows the prompt
      step_of(3, 100, 100, 100, 0.1, 0.9),  // counts
      step_of(4, 96, 96, 96, 0.3, 0.7),     // counts: at least 95 of 100
      step_of(5, 90, 90, 90, 0.5, 0.5),     // too few
      step_of(6, 200, 100, 101, 0, 9),      // a prompt in it
      step_of(7, 100, 100, 100, 7, 1),      // follows it
      step_of(9, 100, 100, 100, 7, 1),      // a step between is missing
  };
  trace[0].device.reset();
  const DecodeFigures d = decode_figures(trace);
  CHECK(d.steps == 2);
  CHECK(d.batch == 100);
  CHECK(d.tokens_per_s == Approx(196 / 2.0));
  CHECK(d.context_mean == Approx(100));
  CHECK(d.step_ms_p50 == Approx(1000));
  CHECK(d.idle_share == Approx(0.4 / 2));
  CHECK(d.idle_us_p50 == Approx(200'000));
  CHECK(d.idle_us_p99 == Approx(298'000));
  CHECK(d.device_ms_total == Approx(2000));
  CHECK(d.idle_ms_total == Approx(400));
  ThroughputRun run;
  run.trace = trace;
  CHECK(throughput_json(run)["decode"]["idle_share"] == Approx(0.2));
  CHECK(throughput_text(std::vector{run}).find("decode tok/s") != std::string::npos);
}

TEST_CASE("Without the device's times there are no decode figures") {
  std::vector<StepTrace> trace = {step_of(1, 4, 4, 4, 1, 1), step_of(2, 4, 4, 4, 1, 1)};
  for (StepTrace& step : trace) step.device.reset();
  CHECK(decode_figures(trace).steps == 0);
  CHECK(decode_figures({}).steps == 0);
  ThroughputRun run;
  run.trace = trace;
  CHECK_FALSE(throughput_json(run).contains("decode"));
  CHECK(throughput_text(std::vector{run}).find("decode tok/s") == std::string::npos);
}

TEST_CASE("A trace is one JSON object a step") {
  std::vector<StepTrace> trace = {step_of(1, 4, 3, 4, 0.001, 0.5), step_of(2, 4, 4, 4, 0, 0)};
  trace[1].device.reset();
  std::istringstream lines(trace_lines(trace));
  std::vector<nlohmann::json> steps;
  for (std::string line; std::getline(lines, line);) steps.push_back(nlohmann::json::parse(line));
  REQUIRE(steps.size() == 2);
  CHECK(steps[0]["decodes"] == 3);
  CHECK(steps[0]["context_tokens"] == 400);
  CHECK(steps[0]["idle_us"] == Approx(1000));
  CHECK(steps[0]["busy_us"] == Approx(500'000));
  CHECK(steps[1]["busy_us"].is_null());
}

TEST_CASE("A run's trace has the rows of its steps") {
  FakeEngineOptions fake;
  const auto engine = make_fake_engine(fake);
  const auto run = measure_throughput(*engine, options_of(9, {5, 50}, {2, 20}), 1, 4);
  REQUIRE(run.ok());
  REQUIRE(run->trace.size() == run->steps.size());
  for (size_t i = 0; i < run->trace.size(); ++i) CHECK(run->trace[i].rows == run->steps[i].rows);
}

TEST_CASE("A sparkline has one block a value") {
  CHECK(sparkline(std::vector<double>{0, 1, 4, 8}, 8) == " ▁▄█");
  CHECK(sparkline(std::vector<double>{0, 0}, 0) == "  ");
}

}  // namespace
}  // namespace kivi
