// SPDX-License-Identifier: Apache-2.0
// matmul against fp64, and the promise that a row of `out` depends on its row of x alone.
#include "tests/kernels/support.h"

using namespace kivi;
using namespace kivi::test;

namespace {

struct Product {
  Guarded x, w, bias, out;
  Product(DType type, int t, int k, int n, std::mt19937& random, int gap = 3)
      : x(DType::f32, t, k, gap), w(type, n, k, gap), bias(type, 1, n), out(DType::f32, t, n, gap) {
    x.fill(random);
    w.fill(random);
    bias.fill(random);
  }
  void run(Backend& backend, bool with_bias) {
    backend.matmul(*x, *w, with_bias ? bias.vector() : Tensor{}, *out);
  }
};

}  // namespace

TEST_CASE("A matrix product equals fp64 for sizes that divide by nothing") {
  const uint32_t seed = 21;
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto one = make_cpu_backend(1), two = make_cpu_backend(2);
  for (const DType type : kWeightTypes)
    for (const int t : {1, 2, 3, 17, 64, 65})
      for (const auto& [k, n] : {std::pair{1, 1},
                                 {7, 5},
                                 {16, 33},
                                 {61, 67},
                                 {129, 4},
                                 {256, 66},
                                 {688, 40},
                                 {333, 259}}) {
        INFO(name_of(type) << " t " << t << " k " << k << " n " << n);
        const bool with_bias = random() % 2;
        Product p(type, t, k, n, random);
        p.run(random() % 2 ? *one : *two, with_bias);
        Worst worst(kMatmul);
        for (int i = 0; i < t; ++i)
          for (int j = 0; j < n; ++j) {
            double want = with_bias ? double(p.bias.get(0, j)) : 0;
            for (int c = 0; c < k; ++c) want += double(p.x.get(i, c)) * double(p.w.get(j, c));
            worst.add(double(p.out.get(i, j)), want);
          }
        REQUIRE(worst.ok());
        REQUIRE(p.out.intact());
      }
}

TEST_CASE("A row of a product has the same bits in any company, on any number of threads") {
  const uint32_t seed = 22;
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto one = make_cpu_backend(1), three = make_cpu_backend(3);
  for (const DType type : kWeightTypes)
    for (const auto& [k, n] : {std::pair{61, 67}, {256, 130}, {688, 256}}) {
      INFO(name_of(type) << " k " << k << " n " << n);
      Product all(type, 131, k, n, random);
      // A neighbor that is not a number stays among its own.
      for (int c = 0; c < k; ++c) all.x.set(40, c, std::nanf(""));
      all.run(*three, true);
      for (const int count : {1, 2, 3, 4, 5, 6, 7, 17, 64, 65})
        for (const int begin : {0, 41, 131 - count}) {
          if (begin == 0 && count > 40) continue;
          Guarded out(DType::f32, count, n);
          one->matmul(all.x->slice_rows(begin, count), *all.w, all.bias.vector(), *out);
          REQUIRE(out.intact());
          for (int i = 0; i < count; ++i)
            REQUIRE(same_bits(out->row<float>(i), all.out->row<float>(begin + i), n));
        }
    }
}

TEST_CASE("Weights that are not finite reach their own column alone") {
  std::mt19937 random(23);
  const auto backend = make_cpu_backend(2);
  for (const DType type : kWeightTypes) {
    Product p(type, 9, 61, 19, random);
    p.w.set(7, 60, std::numeric_limits<float>::infinity());
    p.run(*backend, false);
    for (int i = 0; i < 9; ++i)
      for (int j = 0; j < 19; ++j) CHECK(std::isfinite(p.out.get(i, j)) == (j != 7));
  }
}

// Hidden: kernels_test "[.bench]". Prints GFLOP/s.
TEST_CASE("Bench: matrix products of tales-llama", "[.bench]") {
  std::mt19937 random(24);
  for (const int threads : {1, 2}) {
    const auto backend = make_cpu_backend(threads);
    std::printf("%s\n", backend->info().name.c_str());
    for (const DType type : {DType::bf16, DType::f16, DType::f32})
      for (const auto& [k, n] : {std::pair{256, 256}, {256, 1376}, {688, 256}, {256, 4096}}) {
        std::printf("matmul %-4s k %4d n %4d:", name_of(type), k, n);
        for (const int t : {1, 8, 32, 512}) {
          Product p(type, t, k, n, random, /*gap=*/0);
          const double flop = 2.0 * t * k * n;
          const double us = best_us([&] { p.run(*backend, false); }, threads > 1);
          std::printf("  t %d %.1f us %.1f GFLOP/s", t, us, flop / us / 1e3);
        }
        std::printf("\n");
      }
  }
}
