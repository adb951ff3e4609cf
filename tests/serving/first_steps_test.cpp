// SPDX-License-Identifier: Apache-2.0
// The first steps of a device, made before anybody waits for them.
#include "engine/serving/first_steps.h"

#include <catch2/catch.hpp>

#include "tests/engine/fake_runner.h"

namespace kivi {
namespace {

// Notes what it was asked to compute.
class NotingRunner : public testing::FakeRunner {
 public:
  using FakeRunner::FakeRunner;
  void launch(const BatchPlan& plan) override {
    REQUIRE(plan.sequences.size() == 1);
    const PlannedSequence& p = plan.sequences[0];
    CHECK(plan.rows == p.count);
    CHECK(p.sequence->tokens.size() >= size_t(p.past + p.count));
    CHECK(p.sequence->kv.pages.size() * 64 >= size_t(p.past + p.count));
    steps.emplace_back(p.past, p.count);
    FakeRunner::launch(plan);
  }
  std::vector<std::pair<int, int>> steps;
};

using Steps = std::vector<std::pair<int, int>>;

}  // namespace

TEST_CASE("A prompt, then two decode steps of the same shape, within a page") {
  NotingRunner runner{testing::FakeRunnerOptions{}};
  REQUIRE(run_first_steps(runner, 2048).ok());
  CHECK(runner.steps == Steps{{0, 32}, {32, 1}, {32, 1}});
  NotingRunner narrow{testing::FakeRunnerOptions{}};
  REQUIRE(run_first_steps(narrow, 4).ok());
  CHECK(narrow.steps == Steps{{0, 3}, {3, 1}, {3, 1}});
  NotingRunner least{testing::FakeRunnerOptions{}};
  REQUIRE(run_first_steps(least, 1).ok());
  CHECK(least.steps == Steps{{0, 1}, {1, 1}, {1, 1}});
}

TEST_CASE("A first step that fails is an error of starting up") {
  NotingRunner runner{testing::FakeRunnerOptions{.fail_at_step = 1}};
  CHECK_FALSE(run_first_steps(runner, 64).ok());
}

}  // namespace kivi
