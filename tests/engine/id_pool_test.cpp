// SPDX-License-Identifier: Apache-2.0
// IdPool against the stupid version of itself: a std::set of the ids that are taken.
#include "engine/id_pool.h"

#include <catch2/catch.hpp>
#include <random>
#include <set>

using kivi::IdPool;

TEST_CASE("a pool agrees with a set of taken ids under random operations") {
  for (uint32_t seed = 1; seed <= 50; ++seed) {
    INFO("seed " << seed);
    std::mt19937 random(seed);
    const int total = std::uniform_int_distribution(0, 70)(random);
    IdPool pool(total);
    std::set<int32_t> taken;
    for (int i = 0; i < 400; ++i) {
      if (random() % 2 == 0) {
        const int count = std::uniform_int_distribution(0, 12)(random);
        std::vector<int32_t> out = {-7};
        const bool fits = int(taken.size()) + count <= total;
        REQUIRE(pool.take(count, out) == fits);
        REQUIRE(out.size() == (fits ? size_t(count) + 1 : 1));  // appended, or untouched
        REQUIRE(out[0] == -7);
        for (size_t k = 1; k < out.size(); ++k) {
          REQUIRE((out[k] >= 0 && out[k] < total));
          REQUIRE(taken.insert(out[k]).second);  // nobody else holds it
        }
      } else if (!taken.empty()) {
        const auto place = std::next(taken.begin(), int(random() % taken.size()));
        pool.give_back(*place);
        taken.erase(place);
      }
      REQUIRE(pool.free() == total - int(taken.size()));
      REQUIRE(pool.total() == total);
    }
  }
}

TEST_CASE("the page given back last is taken first") {
  IdPool pool(8);
  std::vector<int32_t> out;
  REQUIRE(pool.take(5, out));
  pool.give_back(out[1]);
  pool.give_back(out[3]);
  std::vector<int32_t> again;
  REQUIRE(pool.take(2, again));
  CHECK(again == std::vector<int32_t>{out[3], out[1]});
}
