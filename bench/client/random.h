// SPDX-License-Identifier: Apache-2.0
// Random numbers of a workload. They are the same on every machine and library, which the
// distributions of the standard library are not.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <random>

namespace kivi::load {

class Random {
 public:
  // Streams of the same seed are independent. So more draws for one purpose (arrivals, lengths, the
  // tokens of a prompt) do not change another.
  Random(uint64_t seed, uint64_t stream) : bits_(mix(mix(seed) + stream)) {}

  double uniform() { return double(bits_() >> 11) * 0x1p-53; }  // [0, 1)
  int64_t integer(int64_t min, int64_t max) {                   // [min, max]
    return min + int64_t(uniform() * double(max - min + 1));
  }
  double exponential() { return -std::log1p(-uniform()); }  // mean 1
  double normal() {
    const double radius = std::sqrt(2 * exponential());
    return radius * std::cos(2 * std::numbers::pi * uniform());
  }

 private:
  static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }
  std::mt19937_64 bits_;
};

}  // namespace kivi::load
