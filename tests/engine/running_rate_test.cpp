// SPDX-License-Identifier: Apache-2.0
#include "engine/running_rate.h"

#include <catch2/catch.hpp>

using kivi::RunningRate;

TEST_CASE("a rate is a ratio of sums, and what is long ago counts for little") {
  RunningRate rate;
  CHECK(rate.per_second() == 0);
  rate.add(0, 1);
  rate.add(1, 0);
  CHECK(rate.per_second() == 0);
  rate.add(100, 0.001);
  CHECK(rate.per_second() == Approx(100'000));
  // Small pieces of work at another rate change it little.
  rate.add(1, 0.0001);
  CHECK(rate.per_second() == Approx(101 / 0.0011).epsilon(1e-3));
  for (int i = 0; i < 1000; ++i) rate.add(10, 0.1);
  CHECK(rate.per_second() == Approx(100).epsilon(1e-3));
}
