// SPDX-License-Identifier: Apache-2.0
// Times of products by quantized matrices, for docs/benchmarks/weights.md: cuda_test "[.bench]".
#include <algorithm>

#include "tests/cuda/gpu_weight.h"

namespace kivi::test {
namespace {

// Device memory that repeats some bytes.
Buffer repeated(const std::byte* pattern, int64_t length, int64_t bytes) {
  auto made = gpu().allocate(size_t(bytes), "bench");
  REQUIRE(made.ok());
  for (int64_t begin = 0; begin < bytes; begin += length)
    gpu().upload(made->data() + begin, pattern, size_t(std::min(length, bytes - begin)));
  return std::move(made).value();
}

// Copies of a matrix that together are larger than the level-2 cache.
class BenchWeights {
 public:
  BenchWeights(const WeightFormat& format, int64_t n, int64_t k, std::mt19937& random) {
    constexpr int64_t kRows = 64, kBytesMin = int64_t(500) << 20, kCopiesMax = 32;
    if (format.kind == WeightKind::plain) {
      std::vector<bf16> numbers;
      std::normal_distribution<float> normal(0, 0.02f);
      for (int64_t i = 0; i < kRows * k; ++i) numbers.push_back(to_bf16(normal(random)));
      const auto* pattern = reinterpret_cast<const std::byte*>(numbers.data());
      bytes = n * k * 2;
      for (int64_t i = 0; i < kCopiesMax && i * bytes < kBytesMin; ++i) {
        buffers_.push_back(repeated(pattern, int64_t(numbers.size()) * 2, bytes));
        copies.emplace_back(make_tensor(buffers_.back().data(), DType::bf16, n, k));
      }
      return;
    }
    const QuantizedMatrix few(random_rows(format, kRows, k, random));
    const int64_t codes = weight_codes_bytes(format, n, k);
    const int64_t scales = weight_scales_bytes(format, n, k);
    bytes = codes + scales;
    for (int64_t i = 0; i < kCopiesMax && i * bytes < kBytesMin; ++i) {
      Weight w = few.weight;
      w.rows = n;
      buffers_.push_back(repeated(w.codes, weight_codes_bytes(format, kRows, k), codes));
      w.codes = buffers_.back().data();
      buffers_.push_back(repeated(w.scales, weight_scales_bytes(format, kRows, k), scales));
      w.scales = buffers_.back().data();
      copies.push_back(w);
    }
  }
  std::vector<Weight> copies;
  int64_t bytes = 0;  // of a copy

 private:
  std::vector<Buffer> buffers_;
};

double microseconds_of_product(const BenchWeights& w, const Tensor& x, const Tensor& out) {
  static uint64_t key = uint64_t(1) << 40;
  ++key;
  const auto ops = [&] {
    for (const Weight& copy : w.copies) gpu().matmul(x, copy, {}, out);
  };
  for (int i = 0; i < 3; ++i) gpu().run_recorded(key, ops);
  gpu().mark(0);
  constexpr int kRuns = 10;
  for (int i = 0; i < kRuns; ++i) gpu().run_recorded(key, ops);
  gpu().mark(1);
  return gpu().seconds_between(0, 1) * 1e6 / kRuns / double(w.copies.size());
}

}  // namespace

// Hidden: cuda_test "[.bench]". Microseconds a product, GB/s of W, TFLOP/s.
TEST_CASE("Bench: products by quantized matrices of Llama-3-8B", "[.bench]") {
  std::mt19937 random(79);
  constexpr int64_t kRowsMax = 4096, kWidest = 28672;
  std::vector<bf16> numbers;
  std::normal_distribution<float> normal;
  for (int i = 0; i < 1'000'003; ++i) numbers.push_back(to_bf16(normal(random)));
  const auto* pattern = reinterpret_cast<const std::byte*>(numbers.data());
  const Buffer x = repeated(pattern, int64_t(numbers.size()) * 2, kRowsMax * kWidest * 2);
  const Buffer out = repeated(pattern, int64_t(numbers.size()) * 2, kRowsMax * kWidest * 2);
  for (const auto& [n, k] : {std::pair{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}})
    for (const WeightFormat& format : {WeightFormat{},
                                       {WeightKind::e4m3},
                                       {WeightKind::int4, 32},
                                       {WeightKind::int4, 128},
                                       {WeightKind::q4_0},
                                       {WeightKind::q4_k},
                                       {WeightKind::q5_k},
                                       {WeightKind::q6_k},
                                       {WeightKind::q8_0}}) {
      const BenchWeights w(format, n, k, random);
      give_scratch(w.copies[0], kRowsMax);
      for (const int t :
           {1, 4, 8, 9, 16, 32, 64, 96, 128, 160, 192, 256, 320, 384, 448, 512, 640, 1024, 4096}) {
        const double us = microseconds_of_product(w, make_tensor(x.data(), DType::bf16, t, k),
                                                  make_tensor(out.data(), DType::bf16, t, n));
        std::printf("%-9s [%d, %d] rows %4d: %8.2f us %6.0f GB/s %5.0f TFLOP/s\n",
                    name_of(format).c_str(), n, k, t, us, double(w.bytes) / us / 1e3,
                    2.0 * t * n * k / us / 1e6);
      }
    }
}

}  // namespace kivi::test
