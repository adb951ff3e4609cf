// SPDX-License-Identifier: Apache-2.0
// Rows of activations that an op quantizes to e4m3 in place of writing them: the codes and scales
// are those of the rows that it would have written, and so is a product of them.
#include <span>

#include "kernels/kv_codec.h"
#include "tests/cuda/gpu_weight.h"

namespace kivi::test {
namespace {

struct RowCodes {
  std::vector<uint8_t> codes;
  std::vector<float> scales;

  // The numbers that the codes stand for.
  std::vector<float> numbers() const {
    std::vector<float> out(codes.size());
    for (size_t i = 0; i < codes.size(); ++i)
      out[i] = scales[i / (codes.size() / scales.size())] * from_e4m3(codes[i]);
    return out;
  }
};

RowCodes codes_of(Backend& backend, const Operand& x) {
  RowCodes r{std::vector<uint8_t>(size_t(x.rows.size())), std::vector<float>(size_t(x.count()))};
  backend.download(r.codes.data(), x.codes, r.codes.size());
  backend.download(r.scales.data(), x.scales, r.scales.size() * sizeof(float));
  return r;
}

// `write(backend, out)` writes rows, and then the same rows quantized, which must be the rows
// rounded, bit for bit. Returns the quantized rows, which lie in `out`.
template <class Write>
Operand check_quantized(Pair& out, Pair& rows, const Write& write) {
  const int64_t t = rows.on_gpu().rows(), k = rows.columns();
  write(gpu(), Operand(rows.on_gpu()));
  const Operand quantized = quantized_in(out.on_gpu()).value();
  write(gpu(), quantized);
  const RowCodes got = codes_of(gpu(), quantized);
  out.gpu_result();  // looks at the guard bytes
  RowCodes want{std::vector<uint8_t>(size_t(t * k)), std::vector<float>(size_t(t))};
  const std::vector<float> numbers = rows.gpu_result();
  for (int64_t i = 0; i < t; ++i)
    quantize_e4m3_row({&numbers[size_t(i * k)], size_t(k)}, &want.codes[size_t(i * k)],
                      want.scales[size_t(i)]);
  REQUIRE(got.scales == want.scales);
  // A zero may have either sign.
  REQUIRE(got.numbers() == want.numbers());
  const Operand on_cpu = quantized_in(out.on_cpu()).value();
  write(cpu(), on_cpu);
  CHECK(close_everywhere(got.numbers(), codes_of(cpu(), on_cpu).numbers(), k,
                         e4m3_rows_tolerance(rows.on_gpu().dtype)));
  return quantized;
}

}  // namespace

TEST_CASE("quantized: a norm quantizes the rows that it would write, bit for bit") {
  const uint32_t seed = 80;
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (const DType type : kTypes)
    for (const NormKind kind : {NormKind::rms, NormKind::layer})
      for (const int n : {48, 304, 4096, 8208})
        for (const int t : {9, 40})
          for (const bool adds : {false, true}) {
            CAPTURE(name_of(type), int(kind), n, t, adds);
            Pair x(t, n, type), delta(t, n, type), weight(1, n, type), bias(1, n, type);
            Pair rows(t, n, type), out(t, n, type);
            x.randomize(random);
            delta.randomize(random);
            weight.randomize(random);
            bias.randomize(random);
            const std::vector<float> first = x.values();
            std::vector<float> sums;
            check_quantized(out, rows, [&](Backend& backend, const Operand& to) {
              const bool on_gpu = &backend == &gpu();
              const auto of = [&](Pair& p) { return on_gpu ? p.on_gpu() : p.on_cpu(); };
              const auto vector_of = [&](Pair& p) {
                return make_tensor(of(p).data, of(p).dtype, int64_t(n));
              };
              const Tensor added = kind == NormKind::layer ? vector_of(bias) : Tensor{};
              x.set(first);
              if (adds)
                backend.add_norm(of(x), of(delta), vector_of(weight), added, kind, 1e-5f, to);
              else
                backend.norm(of(x), vector_of(weight), added, kind, 1e-5f, to);
              if (!on_gpu) return;
              if (sums.empty()) sums = x.gpu_result();
              REQUIRE(x.gpu_result() == sums);
            });
          }
}

TEST_CASE("quantized: a gated activation quantizes the rows that it would write, bit for bit") {
  const uint32_t seed = 81;
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (const DType type : kTypes)
    for (const Activation activation : {Activation::silu, Activation::gelu, Activation::gelu_tanh})
      for (const int f : {48, 688, 11008, 14336, 16400, 30000}) {
        const int t = f > 10000 ? 9 : 40;
        CAPTURE(name_of(type), int(activation), f, t);
        Pair gate_up(t, 2 * f, type), rows(t, f, type), out(t, f, type);
        gate_up.randomize(random, 2);
        check_quantized(out, rows, [&](Backend& backend, const Operand& to) {
          backend.gated_activation(&backend == &gpu() ? gate_up.on_gpu() : gate_up.on_cpu(),
                                   activation, to);
        });
      }
}

TEST_CASE("quantized: a product of quantized rows is the product of the rows, bit for bit") {
  std::mt19937 random(82);
  for (const DType type : kTypes)
    for (const int t : {9, 17, 130}) {
      const int64_t n = 304, f = 512;
      CAPTURE(name_of(type), t);
      GpuWeight w(random_rows({WeightKind::e4m3}, n, f, random));
      give_scratch(w.weight, t);
      Pair gate_up(t, 2 * f, type), rows(t, f, type), quantized(t, f, type);
      Pair out(t, n, type), again(t, n, type);
      if (gpu().product_input(rows.on_gpu(), w.weight, {}, out.on_gpu()) != ProductInput::e4m3_rows)
        continue;
      std::vector<float> values(size_t(t * 2 * f));
      std::normal_distribution<float> normal;
      for (float& v : values) v = normal(random);
      values[size_t(2 * 2 * f + 5)] = std::nanf("");  // in row 2
      gate_up.set(values);
      gpu().gated_activation(gate_up.on_gpu(), Activation::silu, rows.on_gpu());
      gpu().matmul(rows.on_gpu(), w.weight, {}, out.on_gpu());
      const Operand x = quantized_in(quantized.on_gpu()).value();
      gpu().gated_activation(gate_up.on_gpu(), Activation::silu, x);
      gpu().matmul(x, w.weight, {}, again.on_gpu());
      const std::vector<float> want = out.gpu_result(), got = again.gpu_result();
      for (size_t i = 0; i < want.size(); ++i) {
        REQUIRE(std::isnan(want[i]) == (i / size_t(n) == 2));
        REQUIRE((got[i] == want[i] || (std::isnan(got[i]) && std::isnan(want[i]))));
      }
    }
}

}  // namespace kivi::test
