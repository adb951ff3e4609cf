// SPDX-License-Identifier: Apache-2.0
// Times of products by quantized matrices, for docs/benchmarks/weights.md: cuda_test "[.bench]"
// with activations in bf16, and cuda_test "[.bench-f16]". -c fp8 chooses a format.
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

std::vector<uint16_t> normal_numbers(DType type, int64_t count, float deviation,
                                     std::mt19937& random) {
  std::normal_distribution<float> normal(0, deviation);
  std::vector<uint16_t> numbers;
  for (int64_t i = 0; i < count; ++i) {
    const float v = normal(random);
    numbers.push_back(type == DType::f16 ? to_f16(v).bits : to_bf16(v).bits);
  }
  return numbers;
}
const std::byte* bytes_of(const std::vector<uint16_t>& numbers) {
  return reinterpret_cast<const std::byte*>(numbers.data());
}

// Copies of a matrix that together are larger than the level-2 cache.
class BenchWeights {
 public:
  BenchWeights(const WeightFormat& format, DType type, int64_t n, int64_t k, std::mt19937& random) {
    constexpr int64_t kRows = 64, kBytesMin = int64_t(500) << 20, kCopiesMax = 32;
    if (format.kind == WeightKind::plain) {
      const std::vector<uint16_t> numbers = normal_numbers(type, kRows * k, 0.02f, random);
      bytes = n * k * 2;
      for (int64_t i = 0; i < kCopiesMax && i * bytes < kBytesMin; ++i) {
        buffers_.push_back(repeated(bytes_of(numbers), int64_t(numbers.size()) * 2, bytes));
        copies.emplace_back(make_tensor(buffers_.back().data(), type, n, k));
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

// Prints microseconds a product, GB/s of W, and TFLOP/s.
void time_format(const WeightFormat& format, DType type, const std::vector<int>& rows) {
  std::mt19937 random(79);
  constexpr int64_t kRowsMax = 4096, kWidest = 28672;
  const std::vector<uint16_t> numbers = normal_numbers(type, 1'000'003, 1, random);
  const int64_t bytes = int64_t(numbers.size()) * 2;
  const Buffer x = repeated(bytes_of(numbers), bytes, kRowsMax * kWidest * 2);
  const Buffer out = repeated(bytes_of(numbers), bytes, kRowsMax * kWidest * 2);
  for (const auto& [n, k] : {std::pair{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}}) {
    const BenchWeights w(format, type, n, k, random);
    give_scratch(w.copies[0], kRowsMax);
    for (const int t : rows) {
      const double us = microseconds_of_product(w, make_tensor(x.data(), type, t, k),
                                                make_tensor(out.data(), type, t, n));
      std::printf("%-9s [%d, %d] rows %4d: %8.2f us %6.0f GB/s %5.0f TFLOP/s\n",
                  name_of(format).c_str(), n, k, t, us, double(w.bytes) / us / 1e3,
                  2.0 * t * n * k / us / 1e6);
    }
  }
}

// A section for each format.
void time_products(DType type, const std::vector<int>& rows) {
  for (const WeightFormat& format : {WeightFormat{},
                                     {WeightKind::e4m3},
                                     {WeightKind::int4, 32},
                                     {WeightKind::int4, 128},
                                     {WeightKind::q4_0},
                                     {WeightKind::q4_k},
                                     {WeightKind::q5_k},
                                     {WeightKind::q6_k},
                                     {WeightKind::q8_0}})
    DYNAMIC_SECTION(name_of(format)) { time_format(format, type, rows); }
}

}  // namespace

TEST_CASE("Bench: products by quantized matrices of Llama-3-8B, bf16", "[.bench]") {
  time_products(DType::bf16, {1, 4, 8, 9, 16, 32, 64, 96, 128, 160, 192, 256, 320, 384, 448, 512,
                              640, 1024, 4096});
}
TEST_CASE("Bench: products by quantized matrices of Llama-3-8B, f16", "[.bench-f16]") {
  time_products(DType::f16, {1, 8, 9, 16, 32, 64, 128, 256, 448, 1024});
}

}  // namespace kivi::test
