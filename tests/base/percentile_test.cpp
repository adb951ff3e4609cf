// SPDX-License-Identifier: Apache-2.0
// Percentiles against numpy's definition.
#include "base/percentile.h"

#include <catch2/catch.hpp>

namespace kivi {

TEST_CASE("Percentiles interpolate between ranks") {
  CHECK(percentile({}, 50) == 0);
  CHECK(percentile({7}, 99.9) == 7);
  CHECK(percentile({1, 2}, 50) == Approx(1.5));
  const std::vector<double> x = {1, 2, 4, 8};
  CHECK(percentile(x, 0) == 1);
  CHECK(percentile(x, 50) == Approx(3));
  CHECK(percentile(x, 90) == Approx(6.8));
  CHECK(percentile(x, 100) == 8);
  std::vector<double> hundred_and_one;
  for (int i = 0; i <= 100; ++i) hundred_and_one.push_back(i);
  for (const double q : {0.0, 50.0, 90.0, 99.0, 99.9, 100.0})
    CHECK(percentile(hundred_and_one, q) == Approx(q));
}

}  // namespace kivi
