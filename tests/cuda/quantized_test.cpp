// SPDX-License-Identifier: Apache-2.0
// Products by quantized matrices on CUDA against their meaning: the CPU's product of the numbers
// that the codes stand for (kernels/weight_codec.h), of x as product_input() says that it is
// rounded.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>

#include "kernels/cuda/matmul_tiles.h"
#include "kernels/hadamard.h"
#include "kernels/kv_codec.h"
#include "tests/cuda/gpu_weight.h"

namespace kivi::test {
namespace {

const std::vector<WeightFormat> kTileFormats = {
    {WeightKind::int4, 32},  {WeightKind::int4, 64}, {WeightKind::int4, 128},
    {WeightKind::int4, 256}, {WeightKind::int4, 0},  {WeightKind::q4_0},
    {WeightKind::q4_1},      {WeightKind::q4_k},     {WeightKind::q5_0},
    {WeightKind::q5_1},      {WeightKind::q5_k},     {WeightKind::q6_k},
    {WeightKind::q8_0}};

// Rows of x as ProductInput::e4m3_rows rounds them.
std::vector<float> rounded_rows(std::vector<float> x, int64_t k) {
  for (size_t begin = 0; begin < x.size(); begin += size_t(k)) {
    const auto row = std::span(x).subspan(begin, size_t(k));
    float most = 0;
    for (const float v : row) most = std::max(most, std::abs(v));
    if (most < 1e-30f) most = 0;
    const float inverse = most > 0 ? 448.0f / most : 0.0f, scale = most / 448.0f;
    for (float& v : row) v = scale * from_e4m3(to_e4m3(v * inverse));
  }
  return x;
}

// x times W on the GPU, judged. `moved`: what x becomes for the CPU before it is rounded.
template <class Move>
void check_moved(std::mt19937& random, GpuWeight& w, DType type, DType out_type, int64_t t,
                 bool biased, const RowTolerance* tolerance, const Move& moved) {
  const int64_t n = w.weight.rows, k = w.weight.columns;
  CAPTURE(name_of(w.weight.format), name_of(type), name_of(out_type), t, n, k, biased);
  Pair x(t, k, type), out(t, n, out_type), bias(1, n, type);
  x.randomize(random);
  bias.randomize(random);
  const auto bias_of = [&](Tensor v) {
    return biased ? make_tensor(v.data, v.dtype, n) : Tensor{};
  };
  give_scratch(w.weight, t);
  const ProductInput input =
      gpu().product_input(x.on_gpu(), w.weight, bias_of(bias.on_gpu()), out.on_gpu());
  const bool slabs = input == ProductInput::plain &&
                     (w.weight.format.kind == WeightKind::e4m3 ? t > 8 || k % 16 != 0
                                                               : cuda::rounds_weights(t, w.weight));
  gpu().matmul(x.on_gpu(), w.weight, bias_of(bias.on_gpu()), out.on_gpu());

  std::vector<float> values = moved(x.values());
  if (input == ProductInput::e4m3_rows) values = rounded_rows(std::move(values), k);
  cpu().matmul(make_tensor(values.data(), DType::f32, t, k), w.numbers(slabs ? type : DType::f32),
               bias_of(bias.on_cpu()), out.on_cpu());
  const RowTolerance expected = input == ProductInput::e4m3_rows ? e4m3_product_tolerance(out_type)
                                : slabs ? slab_product_tolerance(out_type, type)
                                        : product_tolerance(out_type);
  // The mean square of a row of few elements may be anything.
  CHECK(out.agrees(tolerance == nullptr ? expected : *tolerance, n < 16 ? t * n : n));
}

void check(std::mt19937& random, GpuWeight& w, DType type, DType out_type, int64_t t, bool biased) {
  check_moved(random, w, type, out_type, t, biased, nullptr,
              [](const std::vector<float>& x) { return x; });
}

}  // namespace

TEST_CASE("quantized: products by 4-bit matrices equal the CPU's for awkward sizes") {
  const uint32_t seed = 71;
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (const WeightFormat& format : kTileFormats)
    for (const auto& [n, wanted] : {std::pair{1, 32},
                                    {17, 96},
                                    {300, 288},
                                    {520, 2080},
                                    {1000, 4096},
                                    {70, 4128},
                                    {40, 4864},
                                    {24, 14336}}) {
      const int64_t unit = layout_of(format.kind).unit;
      const int64_t k = unit == 256 ? (wanted + 255) / 256 * 256 : wanted;
      GpuWeight w(random_rows(format, n, k, random));
      for (const DType type : kTypes)
        for (const int t : {1, 2, 7, 8, 9, 16, 17, 40, 48, 64}) {
          if (t > 9 && n == 1000 && t != 64) continue;
          check(random, w, type, type, t, t % 2 == 0);
          if (t == 7 || t == 17) check(random, w, type, DType::f32, t, false);
        }
    }
}

TEST_CASE("quantized: a row of int4 need not fill its last block or group") {
  std::mt19937 random(72);
  for (const int group : {32, 64, 128, 0})
    for (const auto& [n, k] : {std::pair{20, 8}, {33, 40}, {16, 72}, {257, 200}, {40, 328}}) {
      GpuWeight w(random_rows({WeightKind::int4, group}, n, k, random));
      for (const DType type : kTypes)
        for (const int t : {1, 9, 33, 130}) check(random, w, type, type, t, true);
    }
}

TEST_CASE("quantized: products of many rows by 4-bit matrices equal the CPU's") {
  std::mt19937 random(73);
  for (const WeightFormat& format : kTileFormats) {
    GpuWeight w(random_rows(format, 304, 512, random));
    for (const DType type : kTypes)
      for (const int t : {65, 96, 100, 128, 129, 161, 200, 300, 384, 450, 576, 640, 641, 1100}) {
        check(random, w, type, type, t, t == 129);
        if (t >= 96) check(random, w, type, DType::f32, t, false);
      }
  }
  // Blocks with several stages of a tile, parts that are left early, and tiles of more than four
  // blocks.
  for (const auto& [n, k, rows] : {std::tuple{8600, 1024, std::vector{192, 384, 512, 640}},
                                   {1300, 4096, {96, 128, 160, 192}},
                                   {26000, 1024, {48, 96}}}) {
    GpuWeight w(random_rows({WeightKind::int4, 128}, n, k, random));
    for (const DType type : kTypes)
      for (const int t : rows) check(random, w, type, type, t, false);
  }
  for (const WeightFormat& format : {WeightFormat{WeightKind::int4, 32},
                                     {WeightKind::q4_1},
                                     {WeightKind::q5_0},
                                     {WeightKind::q6_k},
                                     {WeightKind::q8_0}}) {
    GpuWeight w(random_rows(format, 8600, 1024, random));
    for (const DType type : kTypes)
      for (const int t : {16, 64, 192, 400}) check(random, w, type, type, t, false);
  }
  // More than one slab.
  GpuWeight large(random_rows({WeightKind::q4_k}, 4112, 8448, random));
  check(random, large, DType::bf16, DType::bf16, 700, true);
}

TEST_CASE("quantized: products by fp8 matrices equal the CPU's of the activations that are said") {
  const uint32_t seed = 74;
  CAPTURE(seed);
  std::mt19937 random(seed);
  int rounded_products = 0;
  for (const auto& [n, k] : {std::pair{1, 16},
                             {15, 48},
                             {17, 1040},
                             {304, 512},
                             {64, 2064},
                             {100, 72},
                             {1024, 4096},
                             {96, 14336},
                             {2064, 4096},
                             {8608, 4096},
                             {5008, 5024}}) {
    GpuWeight w(random_rows({WeightKind::e4m3}, n, k, random));
    for (const DType type : kTypes)
      for (const int t : {1, 2, 5, 8, 9, 16, 17, 33, 48, 64, 96, 100, 128, 130}) {
        // Blocks with several stages, with parts of two tiles, and whole tiles.
        if (n > 2000 && t < 16) continue;
        check(random, w, type, type, t, t == 5 || t == 64 || t == 100);
        if (t == 8 || t == 9 || t == 96) check(random, w, type, DType::f32, t, false);
        Pair x(t, k, type), out(t, n, type);
        rounded_products +=
            gpu().product_input(x.on_gpu(), w.weight, {}, out.on_gpu()) == ProductInput::e4m3_rows;
      }
  }
  std::printf("quantized: %d of the fp8 products had activations of 8 bits\n", rounded_products);
}

TEST_CASE("quantized: x is rotated and reordered before it meets a matrix that asks for it") {
  std::mt19937 random(75);
  for (const DType type : kTypes)
    for (const WeightFormat& format :
         {WeightFormat{WeightKind::int4, 64}, {WeightKind::q4_1}, {WeightKind::e4m3}})
      for (const int t : {1, 12, 150})
        for (const bool reordered : {false, true}) {
          if (reordered && format.kind != WeightKind::int4) continue;
          const int64_t k = 384;
          GpuWeight w(random_rows(format, 48, k, random));
          w.weight.hadamard = reordered && t == 12 ? 0 : 64;
          std::vector<int32_t> order(size_t(k), 0);
          std::iota(order.begin(), order.end(), 0);
          std::shuffle(order.begin(), order.end(), random);
          PairOfInts columns(order);
          if (reordered) {
            w.weight.order = columns.on_gpu();
            w.weight.format.reordered = true;
          }
          // x is rounded to 16 bits after it has moved. Sums in another order may round a number
          // to its neighbor, which is 1/8 off in e4m3.
          const bool e4m3 = format.kind == WeightKind::e4m3;
          const RowTolerance tolerance = {e4m3 ? "product of moved x, e4m3" : "product of moved x",
                                          e4m3 ? 4e-2 : 5e-3, 1e-2};
          check_moved(random, w, type, type, t, false, &tolerance, [&](std::vector<float> x) {
            for (size_t at = 0; w.weight.hadamard > 0 && at < x.size(); at += 64)
              hadamard_transform(&x[at], 64);
            std::vector<float> y(x.size(), 0.f);
            for (size_t at = 0; at < x.size(); ++at) {
              const size_t c = reordered ? size_t(order[at % size_t(k)]) : at % size_t(k);
              y[at] = rounded(x[at / size_t(k) * size_t(k) + c], type);
            }
            return y;
          });
        }
}

TEST_CASE("quantized: a row of up to 8 has the same bits in any company, and in any repetition") {
  std::mt19937 random(76);
  for (const auto& [format, n, k] : {std::tuple{WeightFormat{WeightKind::e4m3}, 1312, 4096},
                                     {WeightFormat{WeightKind::e4m3}, 8608, 1040},
                                     {WeightFormat{WeightKind::int4, 128}, 1300, 4096},
                                     {WeightFormat{WeightKind::int4, 128}, 260, 14336},
                                     {WeightFormat{WeightKind::int4, 32}, 1300, 4096},
                                     {WeightFormat{WeightKind::q4_k}, 1300, 4096},
                                     {WeightFormat{WeightKind::q4_1}, 300, 4512},
                                     {WeightFormat{WeightKind::q5_k}, 260, 4096},
                                     {WeightFormat{WeightKind::q6_k}, 1300, 4096},
                                     {WeightFormat{WeightKind::q8_0}, 1300, 4096},
                                     {WeightFormat{WeightKind::q4_0}, 260, 14336}})
    for (const DType type : kTypes) {
      CAPTURE(name_of(format), name_of(type), n, k);
      GpuWeight w(random_rows(format, n, k, random));
      give_scratch(w.weight, 64);
      Pair x(64, k, type), all(8, n, DType::f32);
      x.randomize(random);
      gpu().matmul(x.on_gpu().slice_rows(0, 8), w.weight, {}, all.on_gpu());
      const std::vector<float> expected = all.gpu_result();
      for (const int count : {1, 3, 8})
        for (int row = 0; row + count <= 8; ++row) {
          Pair some(count, n, DType::f32);
          gpu().matmul(x.on_gpu().slice_rows(row, count), w.weight, {}, some.on_gpu());
          REQUIRE(some.gpu_result() == std::vector<float>(expected.begin() + row * n,
                                                          expected.begin() + (row + count) * n));
        }
      // Sums that blocks share are added up in one order, whichever block is last.
      Pair first(64, n, DType::f32), again(64, n, DType::f32);
      gpu().matmul(x.on_gpu(), w.weight, {}, first.on_gpu());
      const std::vector<float> once = first.gpu_result();
      for (int i = 0; i < 20; ++i) {
        for (int j = 0; j < 3; ++j) gpu().matmul(x.on_gpu(), w.weight, {}, again.on_gpu());
        REQUIRE(again.gpu_result() == once);
      }
    }
}

TEST_CASE("quantized: a row of up to 8 may be of any size, and has the same bits") {
  std::mt19937 random(79);
  for (const WeightFormat& format : {WeightFormat{WeightKind::int4, 32},
                                     {WeightKind::int4, 128},
                                     {WeightKind::q4_0},
                                     {WeightKind::q4_1},
                                     {WeightKind::q4_k},
                                     {WeightKind::q5_0},
                                     {WeightKind::q6_k},
                                     {WeightKind::q8_0}})
    for (const int64_t k : {4096, 14336}) {
      CAPTURE(name_of(format), k);
      const int64_t n = 24;
      GpuWeight w(random_rows(format, n, k, random));
      give_scratch(w.weight, 8);
      Pair x(8, k, DType::bf16), large(8, k, DType::bf16), out(8, n, DType::f32);
      x.randomize(random);
      std::vector<float> values = x.values();
      for (int64_t row = 0; row < 8; ++row)
        for (int64_t c = 0; c < k; ++c)
          values[size_t(row * k + c)] = std::ldexp(values[size_t(row * k + c)], int(row - 4) * 16);
      large.set(values);
      gpu().matmul(x.on_gpu(), w.weight, {}, out.on_gpu());
      std::vector<float> expected = out.gpu_result();
      for (size_t i = 0; i < expected.size(); ++i)
        expected[i] = std::ldexp(expected[i], (int(i) / int(n) - 4) * 16);
      gpu().matmul(large.on_gpu(), w.weight, {}, out.on_gpu());
      CHECK(out.gpu_result() == expected);
    }
}

TEST_CASE("quantized: a row that is no number stays among its own") {
  std::mt19937 random(77);
  for (const WeightFormat& format : {WeightFormat{WeightKind::e4m3},
                                     {WeightKind::int4, 32},
                                     {WeightKind::int4, 128},
                                     {WeightKind::q4_1},
                                     {WeightKind::q4_k},
                                     {WeightKind::q5_0},
                                     {WeightKind::q6_k},
                                     {WeightKind::q8_0}})
    for (const int t : {4, 40, 200}) {
      CAPTURE(name_of(format), t);
      const int64_t n = 160, k = 256;
      GpuWeight w(random_rows(format, n, k, random));
      give_scratch(w.weight, t);
      std::vector<float> values(size_t(t * k), 0.5f);
      values[size_t(2 * k + 5)] = std::nanf("");
      Pair x(t, k, DType::bf16), out(t, n, DType::bf16);
      x.set(values);
      gpu().matmul(x.on_gpu(), w.weight, {}, out.on_gpu());
      const std::vector<float> got = out.gpu_result();
      for (int64_t i = 0; i < t; ++i)
        for (int64_t j = 0; j < n; ++j) REQUIRE(std::isnan(got[size_t(i * n + j)]) == (i == 2));
    }
}

TEST_CASE("quantized: rows of a quantized table are embedded, and unknown rows are zeros") {
  std::mt19937 random(78);
  std::vector<WeightFormat> formats = kTileFormats;
  formats.push_back({WeightKind::e4m3});
  for (const WeightFormat& format : formats)
    for (const DType type : kTypes) {
      CAPTURE(name_of(format), name_of(type));
      const int64_t k = 512;
      GpuWeight w(random_rows(format, 40, k, random));
      Pair out(6, k, type);
      const int wanted[] = {39, 0, 17, 17, 16, 40};
      PairOfInts ids({39, 0, 17, 17, 16, 40});
      gpu().embed(w.weight, ids.on_gpu(), out.on_gpu());
      const std::vector<float> got = out.gpu_result();
      const Tensor numbers = w.numbers();
      std::vector<float> want;
      for (const int id : wanted)
        for (int64_t c = 0; c < k; ++c) want.push_back(id < 40 ? numbers.row<float>(id)[c] : 0.0f);
      CHECK(close_everywhere(got, want, k, elementwise_tolerance(type)));
    }
}

}  // namespace kivi::test
