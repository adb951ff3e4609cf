// SPDX-License-Identifier: Apache-2.0
// KL divergence by hand, and from one cache format to another through the engine.
#include "study/divergence.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <numeric>

#include "study/score.h"
#include "tests/study/scoring_model.h"

namespace kivi {

namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

std::vector<float> logs(std::vector<float> probabilities, float shift) {
  for (float& p : probabilities) p = std::log(p) + shift;
  return probabilities;
}

}  // namespace

TEST_CASE("The divergence of a distribution from itself is 0, whatever is added to its logits") {
  const std::vector<float> p = {0.5f, -1.25f, 3.f, 2.9f, kNever};
  std::vector<float> q = p;
  CHECK(kl_divergence(p, q) == Approx(0).margin(1e-12));
  for (float& logit : q) logit += 100;
  CHECK(kl_divergence(p, q) == Approx(0).margin(1e-6));
}

TEST_CASE("The divergence is the sum of p log(p / q)") {
  // (1/2, 1/4, 1/4) from (1/4, 1/4, 1/2): 1/2 log 2 - 1/4 log 2.
  CHECK(kl_divergence(logs({0.5f, 0.25f, 0.25f}, 3), logs({0.25f, 0.25f, 0.5f}, -7)) ==
        Approx(0.25 * std::log(2)).epsilon(1e-6));
  // (0.9, 0.1) from (0.6, 0.4), and the other way: it is not symmetric.
  const double there = 0.9 * std::log(1.5) + 0.1 * std::log(0.25);
  const double back = 0.6 * std::log(0.6 / 0.9) + 0.4 * std::log(4);
  CHECK(kl_divergence(logs({0.9f, 0.1f}, 0), logs({0.6f, 0.4f}, 0)) == Approx(there).epsilon(1e-5));
  CHECK(kl_divergence(logs({0.6f, 0.4f}, 0), logs({0.9f, 0.1f}, 0)) == Approx(back).epsilon(1e-5));
  // A token that p never gives adds nothing: (1, 0) from (1/2, 1/2) is log 2.
  const std::vector<float> one = {0, kNever}, half = {0, 0};
  CHECK(kl_divergence(one, half) == Approx(std::log(2)));
  CHECK(std::isinf(kl_divergence(half, one)));
}

TEST_CASE("The mean, the 99th percentile and the agreement are over all rows") {
  const int threads = GENERATE(1, 4);
  // 101 + 100 rows of two logits; rows differ from the reference by their index.
  const std::vector<std::vector<int32_t>> prompts = {std::vector<int32_t>(102, 1),
                                                     std::vector<int32_t>(101, 1)};
  ReferenceLogits reference(prompts, 2);
  REQUIRE(reference.rows() == 201);
  CHECK(ReferenceLogits::bytes(prompts, 2) == 201 * 2 * 4);
  const auto record = reference.recorder();
  DivergenceMeter meter(reference, threads);
  const auto compare = meter.observer();
  const std::vector<float> expected = {1, 0};
  std::vector<double> kl;
  int same = 0;
  for (int prompt = 0; prompt < 2; ++prompt) {
    for (int position = 0; position < int(prompts[size_t(prompt)].size()); ++position) {
      const std::string id = std::to_string(prompt);
      record(id, position, expected);
      const std::vector<float> other = {1, float(kl.size()) / 100};
      compare(id, position, other);
      if (position + 1 == int(prompts[size_t(prompt)].size())) continue;  // predicts nothing
      kl.push_back(kl_divergence(expected, other));
      same += other[1] <= 1 ? 1 : 0;  // equal logits: the lower id
    }
  }
  const Divergence result = meter.result();
  CHECK(result.kl_mean == Approx(std::accumulate(kl.begin(), kl.end(), 0.0) / 201));
  // Two prompts of 101 and 100 rows: the standard error of two means is half their distance.
  const double first = std::accumulate(kl.begin(), kl.begin() + 101, 0.0) / 101;
  const double second = std::accumulate(kl.begin() + 101, kl.end(), 0.0) / 100;
  CHECK(result.kl_error == Approx(std::abs(first - second) / 2));
  CHECK(result.kl_p99 == kl[198]);  // the 199th of 201, which grow
  CHECK(result.top1_agreement == Approx(double(same) / 201));
}

TEST_CASE("Through the engine: no divergence of fp16 from itself, more with fewer bits", "[long]") {
  std::vector<std::vector<int32_t>> prompts(3);
  for (int i = 0; i < 3 * 150; ++i) prompts[size_t(i / 150)].push_back(3 + i * 37 % 4000);
  const auto fp16 = scoring_model("fp16", 64);
  ReferenceLogits reference(prompts, fp16->engine->model().vocab_size);
  fp16->engine->on_logits(reference.recorder());
  const auto logprobs = score_prompts(*fp16->engine, prompts);
  REQUIRE(logprobs.ok());
  // What was observed is what was scored.
  const std::span<const float> row = reference.logits(reference.row_of(1, 70));
  double sum = 0;
  for (const float logit : row) sum += std::exp(double(logit));
  CHECK(double(row[size_t(prompts[1][71])]) - std::log(sum) ==
        Approx(double((*logprobs)[1][70])).margin(1e-4));

  const auto divergence = [&](Engine& engine) {
    DivergenceMeter meter(reference);
    engine.on_logits(meter.observer());
    REQUIRE(score_prompts(engine, prompts).ok());
    engine.on_logits({});
    return meter.result();
  };
  const Divergence none = divergence(*fp16->engine);
  CHECK(none.kl_p99 < 1e-6);
  CHECK(none.top1_agreement == 1);
  const Divergence four = divergence(*scoring_model("kivi4", 1)->engine);
  const Divergence two = divergence(*scoring_model("kivi2", 1)->engine);
  CAPTURE(four.kl_mean, two.kl_mean, two.kl_p99, four.top1_agreement, two.top1_agreement);
  CHECK(four.kl_mean > 1e-6);
  CHECK(two.kl_mean > 4 * four.kl_mean);
  CHECK(two.kl_mean < 0.5);
  CHECK(two.kl_p99 > two.kl_mean);
  CHECK(two.top1_agreement <= four.top1_agreement);
}

}  // namespace kivi
