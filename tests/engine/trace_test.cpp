// SPDX-License-Identifier: Apache-2.0
// The trace of an engine's steps: its sums are the engine's own counters, and off means off.
#include <catch2/catch.hpp>

#include "tests/engine/fake_runner.h"

namespace kivi {
namespace {

using testing::FakeEngineOptions;
using testing::make_fake_engine;

void submit(Engine& engine, int prompt, int output) {
  Request request;
  request.prompt.assign(size_t(prompt), 5);
  request.sampling.max_tokens = output;
  request.sampling.ignore_eos = true;
  REQUIRE(engine.submit(std::move(request), [] {}).ok());
}

}  // namespace

TEST_CASE("A trace's steps follow each other, and their rows are those the engine counts") {
  for (const bool asynchronous : {false, true}) {
    FakeEngineOptions options;
    options.runner.asynchronous = asynchronous;
    options.config.prefill_chunk_tokens = 64;
    options.config.max_num_batched_tokens = 256;
    options.config.max_num_seqs = 4;
    const auto engine = make_fake_engine(options);
    std::vector<StepTrace> trace;
    engine->on_trace([&](const StepTrace& step) { trace.push_back(step); });
    for (int i = 0; i < 9; ++i) submit(*engine, 10 + 40 * i, 5 + i);
    engine->run_until_idle();

    const EngineStats stats = engine->stats();
    REQUIRE(trace.size() == stats.steps);
    uint64_t rows = 0, decodes = 0;
    for (size_t i = 0; i < trace.size(); ++i) {
      const StepTrace& step = trace[i];
      CHECK(step.step == i + 1);
      CHECK(step.sequences >= 1);
      CHECK(step.sequences <= 4);
      CHECK(step.decodes <= step.sequences);
      CHECK(step.decodes_only() == (step.rows == step.sequences && step.decodes == step.rows));
      CHECK(step.planned <= step.collected);
      if (i > 0) CHECK(trace[i - 1].collected <= step.collected);
      CHECK_FALSE(step.device);  // a runner without a device
      rows += uint64_t(step.rows);
      decodes += uint64_t(step.decodes);
    }
    CHECK(rows == stats.step_tokens);
    // All output tokens but each request's first, and what asynchronous steps computed in vain.
    CHECK(decodes >= stats.generation_tokens - 9);
  }
}

TEST_CASE("Without an observer nothing is timed, and an observer can be taken away") {
  class Runner : public testing::FakeRunner {
   public:
    explicit Runner(std::vector<bool>& asked) : FakeRunner({}), asked_(asked) {}
    void time_steps(bool on) override { asked_.push_back(on); }

   private:
    std::vector<bool>& asked_;
  };
  std::vector<bool> asked;
  const KvLayout layout{{KvKind::kivi, 2, 2, 32, 128}, {1, 1, 64}};
  Engine engine(EngineConfig{}, {1000, 2048, {2}}, layout, {64, 64, 64},
                std::make_unique<Runner>(asked));
  submit(engine, 3, 3);
  engine.run_until_idle();
  CHECK(asked.empty());
  int steps = 0;
  engine.on_trace([&](const StepTrace&) { ++steps; });
  submit(engine, 3, 3);
  engine.run_until_idle();
  CHECK(steps > 0);
  const int before = steps;
  engine.on_trace({});
  submit(engine, 3, 3);
  engine.run_until_idle();
  CHECK(steps == before);
  CHECK(asked == std::vector<bool>{true, false});
}

}  // namespace kivi
