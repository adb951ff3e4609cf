// SPDX-License-Identifier: Apache-2.0
// The division of a budget among layers against every selection there is.
#include "study/bit_budget.h"

#include <catch2/catch.hpp>
#include <random>

namespace kivi {

namespace {

struct Sum {
  int64_t bytes = 0;
  double cost = 0;
};

Sum sum_of(const std::vector<std::vector<LayerChoice>>& layers, const std::vector<int>& chosen) {
  Sum sum;
  for (size_t i = 0; i < layers.size(); ++i) {
    sum.bytes += layers[i][size_t(chosen[i])].bytes;
    sum.cost += layers[i][size_t(chosen[i])].cost;
  }
  return sum;
}

// The least cost of all selections within the budget, found by trying them all; negative: none is.
double least_cost(const std::vector<std::vector<LayerChoice>>& layers, int64_t budget) {
  double best = -1;
  std::vector<int> chosen(layers.size());
  for (;;) {
    const Sum sum = sum_of(layers, chosen);
    if (sum.bytes <= budget && (best < 0 || sum.cost < best)) best = sum.cost;
    size_t i = 0;
    while (i < layers.size() && ++chosen[i] == int(layers[i].size())) chosen[i++] = 0;
    if (i == layers.size()) return best;
  }
}

}  // namespace

TEST_CASE("No selection of choices within the budget costs less than the one that is found") {
  const uint32_t seed = 3;
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 300; ++round) {
    std::vector<std::vector<LayerChoice>> layers(1 + random() % 6);
    int64_t most = 0;
    for (auto& choices : layers) {
      // Two thirds: as layers of a cache have them. Else any.
      const bool like_a_cache = round % 3 != 0;
      const int n = like_a_cache ? 4 : 1 + int(random() % 4);
      int64_t largest = 0;
      for (int c = 0; c < n; ++c) {
        const int64_t bytes = like_a_cache ? (c == 0 ? 4 : c == 3 ? 2 : 3) : int64_t(random() % 50);
        choices.push_back({bytes, double(random() % 100) / 10});
        largest = std::max(largest, bytes);
      }
      most += largest;
    }
    for (int64_t budget = 0; budget <= most + 1; budget += 1 + most / 9) {
      CAPTURE(round, budget);
      const double best = least_cost(layers, budget);
      const auto found = spend_budget(layers, budget);
      REQUIRE(found.ok() == (best >= 0));
      if (!found.ok()) continue;
      const Sum sum = sum_of(layers, *found);
      CHECK(sum.bytes <= budget);
      CHECK(sum.cost == Approx(best).margin(1e-9));
    }
  }
}

TEST_CASE("Of selections that cost the same, the smallest one is taken") {
  const std::vector<std::vector<LayerChoice>> layers = {{{8, 0}, {5, 0}}, {{8, 1}, {5, 2}}};
  const auto found = spend_budget(layers, 100);
  REQUIRE(found.ok());
  CHECK(*found == std::vector<int>{1, 0});
}

TEST_CASE("A budget below the smallest choices is refused with their bytes") {
  const std::vector<std::vector<LayerChoice>> layers = {{{8, 0}, {5, 1}}, {{7, 0}}};
  const auto found = spend_budget(layers, 11);
  REQUIRE_FALSE(found.ok());
  CHECK_THAT(found.error().message, Catch::Contains("must be at least 12"));
}

TEST_CASE("256 layers of a cache are divided at once") {
  std::mt19937 random(4);
  std::vector<std::vector<LayerChoice>> layers(256);
  for (auto& choices : layers)
    for (const int64_t bytes : {9216, 7168, 7168, 5120})
      choices.push_back({bytes, double(random() % 1000)});
  CHECK(spend_budget(layers, 256 * 7168).ok());
}

}  // namespace kivi
