// SPDX-License-Identifier: Apache-2.0
// Products by quantized matrices against their literal meaning: dequantize W, quantize x in the
// same way, multiply in fp64.
#include <hwy/targets.h>

#include <algorithm>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/hadamard.h"
#include "tests/kernels/quantized.h"
#include "tests/kernels/support.h"

using namespace kivi;
using namespace kivi::test;

namespace {

// What backend.h says that x becomes.
std::vector<double> quantized_x(const WeightFormat& format, std::vector<float> x) {
  if (format.kind == WeightKind::e4m3) return {x.begin(), x.end()};
  std::vector<double> made;
  for (size_t b = 0; b < x.size(); b += 32) {
    const size_t end = std::min(b + 32, x.size());
    float most = 0;
    for (size_t c = b; c < end; ++c) most = std::max(most, std::abs(x[c]));
    for (size_t c = b; c < end; ++c)
      made.push_back(
          most == 0 ? 0.0 : double(std::nearbyint(x[c] * (127.0f / most))) * double(most / 127.0f));
  }
  return made;
}

std::vector<float> row_of(const Tensor& x, int64_t i) {
  return {x.row<float>(i), x.row<float>(i) + x.shape[1]};
}

// Worst over all elements of |got - want| / sum of |terms|.
double worst_error(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& out) {
  double worst = 0;
  std::vector<std::vector<float>> rows;
  for (int64_t j = 0; j < w.rows; ++j) {
    rows.emplace_back(size_t(w.columns), 0.f);
    read_weight_row(w, j, rows.back());
  }
  for (int64_t i = 0; i < x.rows(); ++i) {
    std::vector<float> moved = row_of(x, i);
    for (int64_t c = 0; w.hadamard > 0 && c < w.columns; c += w.hadamard)
      hadamard_transform(&moved[size_t(c)], w.hadamard);
    const std::vector<float> turned = moved;
    for (int64_t c = 0; !w.order.empty() && c < w.columns; ++c)
      moved[size_t(c)] = turned[size_t(w.order.as<int32_t>()[c])];
    const std::vector<double> xq = quantized_x(w.format, moved);
    for (int64_t j = 0; j < w.rows; ++j) {
      double want = bias.empty() ? 0 : double(bias.as<float>()[j]), size = 1 + std::abs(want);
      for (size_t c = 0; c < xq.size(); ++c) {
        const double term = xq[c] * double(rows[size_t(j)][c]);
        want += term;
        size += std::abs(term);
      }
      const double error = std::abs(double(out.row<float>(i)[j]) - want) / size;
      if (!(error <= worst)) worst = error;
    }
  }
  return worst;
}

struct Isa {
  const char* name;
  int64_t disabled;
  bool byte_dots;
};
constexpr Isa kIsas[] = {{"best", 0, true},
                         {"best, no VNNI", 0, false},
                         {"AVX2", HWY_AVX3 | HWY_AVX3_DL, true},
                         {"AVX2, no VNNI", HWY_AVX3 | HWY_AVX3_DL, false}};

// Chooses an instruction set for as long as it lives.
class UseIsa {
 public:
  UseIsa(const Isa& isa, CpuBackend& backend) {
    hwy::DisableTargets(isa.disabled);
    backend.use_byte_dots(isa.byte_dots);
  }
  ~UseIsa() { hwy::DisableTargets(0); }
};

int64_t columns_for(const WeightFormat& format, int64_t wanted) {
  const int unit = layout_of(format.kind).unit;
  if (unit == 256) return (wanted + 255) / 256 * 256;
  return unit == 0 ? wanted : (wanted + unit - 1) / unit * unit;
}

std::string name(const WeightFormat& format, int64_t t, int64_t k, int64_t n) {
  return name_of(format) + " t " + std::to_string(t) + " k " + std::to_string(k) + " n " +
         std::to_string(n);
}

}  // namespace

TEST_CASE("A matrix in tiles gives back the rows that were written") {
  std::mt19937 random(51);
  for (const WeightFormat& format : quantized_formats())
    for (const int64_t n : {1, 15, 16, 17, 40}) {
      const int64_t k = columns_for(format, 288);
      INFO(name(format, 0, k, n));
      const QuantizedRows rows = random_rows(format, n, k, random);
      const QuantizedMatrix matrix(rows);
      std::vector<float> want(size_t(k), 0.f), got(size_t(k), 1.f);
      for (int64_t i = 0; i < n; ++i) {
        dequantize_row(format, rows.row(i), want);
        read_weight_row(matrix.weight, i, got);
        REQUIRE(same_bits(got.data(), want.data(), k));
      }
    }
}

TEST_CASE("A product by a quantized matrix is the product of the numbers that it stands for") {
  const uint32_t seed = 52;
  CAPTURE(seed);
  std::mt19937 random(seed);
  CpuBackend backend(2);
  for (const WeightFormat& format : quantized_formats())
    for (const auto& [t, wanted, n] : {std::tuple{1, 32, 1},
                                       {1, 576, 40},
                                       {2, 96, 16},
                                       {3, 150, 17},
                                       {5, 5, 16},
                                       {7, 288, 33},
                                       {195, 64, 20}}) {
      const int64_t k = columns_for(format, wanted);
      INFO(name(format, t, k, n));
      const QuantizedMatrix matrix(random_rows(format, n, k, random));
      Guarded x(DType::f32, t, k, 3), bias(DType::f32, 1, n), out(DType::f32, t, n, 3);
      x.fill(random);
      bias.fill(random);
      const Tensor with = random() % 2 ? bias.vector() : Tensor{};
      for (const Isa& isa : kIsas) {
        INFO(isa.name);
        const UseIsa use(isa, backend);
        out.fill(random);
        backend.matmul(*x, matrix.weight, with, *out);
        REQUIRE(out.intact());
        REQUIRE(worst_error(*x, matrix.weight, with, *out) < 3e-7);
      }
    }
}

TEST_CASE("The largest codes and activations overflow no sum") {
  CpuBackend backend(1);
  for (const WeightFormat& format : quantized_formats()) {
    std::mt19937 random(53);
    const int64_t k = 512, n = 16;
    QuantizedRows rows = random_rows(format, n, k, random);
    const int bits = layout_of(format.kind).bits;
    if (format.kind != WeightKind::e4m3)
      std::fill(rows.codes.begin(), rows.codes.end(), uint8_t((1 << bits) - 1));
    const QuantizedMatrix matrix(rows);
    for (const float sign : {1.f, -1.f}) {
      Guarded x(DType::f32, 1, k), out(DType::f32, 1, n);
      for (int64_t c = 0; c < k; ++c) x.set(0, c, sign * 1000);
      for (const Isa& isa : kIsas) {
        INFO(name_of(format) << " " << isa.name << " sign " << sign);
        const UseIsa use(isa, backend);
        backend.matmul(*x, matrix.weight, {}, *out);
        REQUIRE(worst_error(*x, matrix.weight, {}, *out) < 3e-7);
      }
    }
  }
}

TEST_CASE("A row of a quantized product has the same bits in any company and instruction set") {
  const uint32_t seed = 54;
  CAPTURE(seed);
  std::mt19937 random(seed);
  CpuBackend one(1), three(3);
  for (const WeightFormat& format : quantized_formats()) {
    const int64_t k = columns_for(format, 576), n = 83, t = 200;
    const QuantizedMatrix matrix(random_rows(format, n, k, random));
    Guarded x(DType::f32, t, k), all(DType::f32, t, n);
    x.fill(random);
    // Neighbors that are not numbers stay among their own.
    for (int64_t c = 0; c < k; ++c) x.set(40, c, std::nanf(""));
    x.set(41, 5, std::numeric_limits<float>::infinity());
    three.matmul(*x, matrix.weight, {}, *all);
    CHECK(std::isnan(all.get(40, 0)));
    CHECK_FALSE(std::isfinite(all.get(41, n - 1)));
    CHECK(std::isfinite(all.get(42, 0)));
    for (const Isa& isa : kIsas) {
      // The float product of e4m3 adds up in as many lanes as a vector has.
      if (format.kind == WeightKind::e4m3 && isa.disabled != 0) continue;
      const UseIsa use(isa, one);
      for (const int count : {1, 2, 3, 4, 5, 6, 7, 17, 150})
        for (const int64_t begin : {int64_t(0), int64_t(42), t - count}) {
          if (begin < 42 && begin + count > 40) continue;
          INFO(name(format, count, k, n) << " " << isa.name << " from " << begin);
          Guarded out(DType::f32, count, n);
          one.matmul(x->slice_rows(begin, count), matrix.weight, {}, *out);
          REQUIRE(out.intact());
          for (int i = 0; i < count; ++i)
            REQUIRE(same_bits(out->row<float>(i), all->row<float>(begin + i), n));
        }
    }
  }
}

TEST_CASE("x is rotated and reordered before it meets a matrix that asks for it") {
  std::mt19937 random(55);
  CpuBackend backend(2);
  for (const WeightFormat& format :
       {WeightFormat{WeightKind::int4, 64}, {WeightKind::q4_1}, {WeightKind::e4m3}}) {
    INFO(name_of(format));
    const int64_t k = 192, n = 24, t = 5;
    QuantizedMatrix matrix(random_rows(format, n, k, random));
    Guarded x(DType::f32, t, k), out(DType::f32, t, n), order(DType::i32, 1, k);
    x.fill(random);
    matrix.weight.hadamard = 64;
    backend.matmul(*x, matrix.weight, {}, *out);
    CHECK(worst_error(*x, matrix.weight, {}, *out) < 3e-7);
    matrix.weight.hadamard = 0;
    CHECK(worst_error(*x, matrix.weight, {}, *out) > 1e-3);
    if (format.kind != WeightKind::int4) continue;
    std::vector<int32_t> columns(size_t(k), 0);
    for (int64_t c = 0; c < k; ++c) columns[size_t(c)] = int32_t(c);
    std::shuffle(columns.begin(), columns.end(), random);
    for (int64_t c = 0; c < k; ++c) order.set(0, c, float(columns[size_t(c)]));
    matrix.weight.order = order.vector();
    matrix.weight.format.reordered = true;
    for (const int hadamard : {0, 64}) {
      matrix.weight.hadamard = hadamard;
      backend.matmul(*x, matrix.weight, {}, *out);
      CHECK(worst_error(*x, matrix.weight, {}, *out) < 3e-7);
    }
  }
}

TEST_CASE("A bias of a quantized product may be of any type") {
  std::mt19937 random(56);
  CpuBackend backend(1);
  for (const WeightFormat& format : {WeightFormat{WeightKind::q8_0}, {WeightKind::e4m3}}) {
    const QuantizedMatrix matrix(random_rows(format, 21, 64, random));
    Guarded x(DType::f32, 3, 64), out(DType::f32, 3, 21), plain(DType::f32, 3, 21);
    x.fill(random);
    for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
      Guarded bias(type, 1, 21), wide(DType::f32, 1, 21);
      bias.fill(random);
      for (int j = 0; j < 21; ++j) wide.set(0, j, bias.get(0, j));
      backend.matmul(*x, matrix.weight, bias.vector(), *out);
      backend.matmul(*x, matrix.weight, wide.vector(), *plain);
      for (int i = 0; i < 3; ++i) REQUIRE(same_bits(out->row<float>(i), plain->row<float>(i), 21));
      CHECK(worst_error(*x, matrix.weight, wide.vector(), *out) < 3e-7);
    }
  }
}

TEST_CASE("Rows of a quantized table are embedded as the numbers that they stand for") {
  std::mt19937 random(57);
  CpuBackend backend(2);
  for (const WeightFormat& format : quantized_formats()) {
    INFO(name_of(format));
    const int64_t k = columns_for(format, 96);
    const QuantizedRows rows = random_rows(format, 40, k, random);
    const QuantizedMatrix matrix(rows);
    Guarded ids(DType::i32, 1, 5), out(DType::f32, 5, k, 2);
    const int wanted[] = {39, 0, 17, 17, 16};
    for (int i = 0; i < 5; ++i) ids.set(0, i, float(wanted[i]));
    backend.embed(matrix.weight, ids.vector(), *out);
    REQUIRE(out.intact());
    std::vector<float> want(size_t(k), 0.f);
    for (int i = 0; i < 5; ++i) {
      dequantize_row(format, rows.row(wanted[i]), want);
      REQUIRE(same_bits(out->row<float>(i), want.data(), k));
    }
  }
}

// Hidden: kernels_test "[.bench]". Prints microseconds, G multiply-adds a second and GB/s of W.
TEST_CASE("Bench: products by quantized matrices of SmolLM2-135M", "[.bench]") {
  std::mt19937 random(58);
  for (const int threads : {1, 2}) {
    CpuBackend backend(threads);
    std::printf("%s\n", backend.info().name.c_str());
    for (const auto& [k, n] : {std::pair{576, 3072}, {1536, 576}})
      for (const WeightFormat& format : quantized_formats()) {
        if (!weight_fits(format, k)) continue;
        const QuantizedMatrix matrix(random_rows(format, n, k, random));
        const double bytes =
            double(weight_codes_bytes(format, n, k)) + double(weight_scales_bytes(format, n, k));
        std::printf("%-12s k %4d n %4d:", name_of(format).c_str(), k, n);
        for (const int t : {1, 2, 4, 8, 64, 512}) {
          Guarded x(DType::f32, t, k), out(DType::f32, t, n);
          x.fill(random);
          const double us =
              best_us([&] { backend.matmul(*x, matrix.weight, {}, *out); }, threads > 1);
          std::printf("  t %d %.1f us %.0f G/s", t, us, double(t) * k * n / us / 1e3);
          if (t == 1) std::printf(" %.1f GB/s", bytes / us / 1e3);
        }
        std::printf("\n");
      }
  }
}
