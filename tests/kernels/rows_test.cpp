// SPDX-License-Identifier: Apache-2.0
// embed, norms, add, rope, activations, gather against their formulas in fp64.
#include <bit>

#include "kernels/kv_codec.h"
#include "tests/kernels/quantized.h"
#include "tests/kernels/support.h"

using namespace kivi;
using namespace kivi::test;

namespace {

double reference_act(double x, Activation a) {
  if (a == Activation::silu) return x / (1 + std::exp(-x));
  if (a == Activation::gelu) return x * (1 + std::erf(x / std::sqrt(2.0))) / 2;
  return x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))) / 2;
}

}  // namespace

TEST_CASE("embed and gather_rows copy the rows that the indices name") {
  std::mt19937 random(31);
  const auto backend = make_cpu_backend(2);
  for (const DType type : kWeightTypes)
    for (const int t : {1, 3, 65}) {
      Guarded table(type, 17, 67, 3), ids(DType::i32, 1, t), out(DType::f32, t, 67, 5);
      Guarded gathered(DType::f32, t, 67);
      table.fill(random);
      for (int i = 0; i < t; ++i) ids.set(0, i, float(random() % 17));
      backend->embed(*table, ids.vector(), *out);
      for (int i = 0; i < t; ++i)
        for (int c = 0; c < 67; ++c) REQUIRE(out.get(i, c) == table.get(int(ids.get(0, i)), c));
      for (int i = 0; i < t; ++i) ids.set(0, i, float(random() % unsigned(t)));
      backend->gather_rows(*out, ids.vector(), *gathered);
      for (int i = 0; i < t; ++i)
        for (int c = 0; c < 67; ++c) REQUIRE(gathered.get(i, c) == out.get(int(ids.get(0, i)), c));
      CHECK(out.intact());
      CHECK(gathered.intact());
    }
}

TEST_CASE("norm and add_norm equal their formulas and x takes the sum") {
  const uint32_t seed = 32;
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto backend = make_cpu_backend(2);
  for (const DType type : kWeightTypes)
    for (const NormKind kind : {NormKind::rms, NormKind::layer})
      for (const auto& [t, n] : {std::pair{1, 1}, {3, 5}, {17, 67}, {65, 256}, {200, 130}})
        for (const bool with_delta : {false, true}) {
          INFO(name_of(type) << " t " << t << " n " << n << " delta " << with_delta);
          Guarded x(DType::f32, t, n, 3), delta(DType::f32, t, n), weight(type, 1, n);
          Guarded bias(type, 1, n), out(DType::f32, t, n, 1);
          x.fill(random, 3);
          delta.fill(random);
          weight.fill(random);
          bias.fill(random);
          std::vector<double> sum;
          for (int i = 0; i < t; ++i)
            for (int c = 0; c < n; ++c)
              sum.push_back(with_delta ? double(x.get(i, c) + delta.get(i, c))
                                       : double(x.get(i, c)));
          const bool with_bias = kind == NormKind::layer;
          const Tensor b = with_bias ? bias.vector() : Tensor{};
          if (with_delta)
            backend->add_norm(*x, *delta, weight.vector(), b, kind, 1e-5f, *out);
          else
            backend->norm(*x, weight.vector(), b, kind, 1e-5f, *out);
          Worst worst(kNorm);
          for (int i = 0; i < t; ++i) {
            const double* row = &sum[size_t(i * n)];
            double mean = 0, square = 0;
            for (int c = 0; c < n; ++c) mean += row[c] / n;
            if (kind == NormKind::rms) mean = 0;
            for (int c = 0; c < n; ++c) square += (row[c] - mean) * (row[c] - mean) / n;
            for (int c = 0; c < n; ++c) {
              REQUIRE(double(x.get(i, c)) == row[c]);
              const double y = (row[c] - mean) / std::sqrt(square + double(1e-5f));
              worst.add(double(out.get(i, c)),
                        y * double(weight.get(0, c)) + (with_bias ? double(bias.get(0, c)) : 0));
            }
          }
          REQUIRE(worst.ok());
          REQUIRE(x.intact());
          REQUIRE(out.intact());
        }
}

TEST_CASE("add adds") {
  std::mt19937 random(33);
  const auto backend = make_cpu_backend(2);
  Guarded x(DType::f32, 65, 67, 2), delta(DType::f32, 65, 67), want(DType::f32, 65, 67);
  x.fill(random);
  delta.fill(random);
  for (int i = 0; i < 65; ++i)
    for (int c = 0; c < 67; ++c) want.set(i, c, x.get(i, c) + delta.get(i, c));
  backend->add(*x, *delta);
  for (int i = 0; i < 65; ++i)
    for (int c = 0; c < 67; ++c) REQUIRE(x.get(i, c) == want.get(i, c));
  CHECK(x.intact());
}

TEST_CASE("add_rows adds the rows to the sums in their order") {
  std::mt19937 random(36);
  const auto backend = make_cpu_backend(2);
  for (const auto& [t, n] : {std::pair{1, 1}, {3, 17}, {65, 63}, {130, 200}}) {
    INFO("t " << t << " n " << n);
    Guarded x(DType::f32, t, n, 3), sums(DType::f32, 1, n);
    x.fill(random, 3);
    sums.fill(random);
    std::vector<float> want;
    for (int c = 0; c < n; ++c) {
      float sum = sums.get(0, c);
      for (int i = 0; i < t; ++i) sum += x.get(i, c);
      want.push_back(sum);
    }
    backend->add_rows(*x, sums.vector());
    for (int c = 0; c < n; ++c) REQUIRE(sums.get(0, c) == want[size_t(c)]);
    CHECK(sums.intact());
  }
}

TEST_CASE("Activations equal their formulas, from very negative to very positive") {
  std::mt19937 random(34);
  const auto backend = make_cpu_backend(2);
  for (const Activation a : {Activation::silu, Activation::gelu, Activation::gelu_tanh})
    for (const auto& [t, f] : {std::pair{1, 1}, {3, 17}, {65, 688}}) {
      INFO("activation " << int(a) << " t " << t << " f " << f);
      Guarded gate_up(DType::f32, t, 2 * f, 3), out(DType::f32, t, f, 1);
      gate_up.fill(random, 4);
      gate_up.set(0, 0, t == 1 ? -200.0f : 200.0f);
      backend->gated_activation(*gate_up, a, *out);
      Worst worst(kElementwise);
      for (int i = 0; i < t; ++i)
        for (int c = 0; c < f; ++c)
          worst.add(double(out.get(i, c)),
                    reference_act(double(gate_up.get(i, c)), a) * double(gate_up.get(i, f + c)));
      CHECK(out.intact());
      const Tensor x = gate_up->slice_columns(0, f);
      std::vector<double> before;
      for (int i = 0; i < t; ++i)
        for (int c = 0; c < f; ++c) before.push_back(double(gate_up.get(i, c)));
      backend->activate(x, a);
      for (int i = 0; i < t; ++i)
        for (int c = 0; c < f; ++c)
          worst.add(double(gate_up.get(i, c)), reference_act(before[size_t(i * f + c)], a));
      REQUIRE(worst.ok());
      CHECK(gate_up.intact());
    }
}

TEST_CASE("rope norms and turns q and k by the formulas and narrows k and v to fp16") {
  std::mt19937 random(35);
  const auto backend = make_cpu_backend(2);
  for (const auto& [d, rotary, dynamic, hadamard, normed] : {std::tuple{64, 64, 0.f, false, false},
                                                             {128, 128, 0.f, false, false},
                                                             {96, 96, 0.f, false, false},
                                                             {64, 32, 0.f, false, false},
                                                             {80, 0, 0.f, false, false},
                                                             {64, 64, 2.5f, false, false},
                                                             {96, 48, 4.f, false, false},
                                                             {64, 64, 0.f, true, false},
                                                             {128, 32, 0.f, true, false},
                                                             {16, 0, 0.f, true, false},
                                                             {128, 128, 0.f, false, true},
                                                             {80, 40, 0.f, false, true},
                                                             {64, 64, 0.f, true, true}})
    for (const int t : {1, 3, 65}) {
      INFO("d " << d << " rotary " << rotary << " dynamic " << dynamic << " t " << t
                << (hadamard ? " Hadamard" : "") << (normed ? " normed" : ""));
      constexpr int kTrained = 200;
      const uint32_t positions_max = dynamic > 0 ? 600 : 2048;  // r costs a rounding of the angle
      const int heads = 2, q_heads = 6, columns = (q_heads + 2 * heads) * d;
      Guarded qkv(DType::f32, t, columns, 4), positions(DType::i32, 1, t);
      Guarded lengths(DType::i32, 1, t);
      Guarded frequencies(DType::f32, 1, std::max(1, rotary / 2));
      Guarded q(DType::f32, t, q_heads * d, 3), kv(DType::f16, t, 2 * heads * d, 8);
      qkv.fill(random);
      qkv.set(0, columns - 1, 1e9f);
      if (!hadamard) qkv.set(0, columns - 2, std::nanf(""));  // it would spread over the head
      for (int i = 0; i < t; ++i) positions.set(0, i, float(random() % positions_max));
      for (int i = 0; i < t; ++i) lengths.set(0, i, positions.get(0, i) + float(1 + random() % 9));
      for (int i = 0; i < rotary / 2; ++i)
        frequencies.set(0, i, std::pow(10000.0f, -2.0f * float(i) / float(rotary)));
      Rope rope{frequencies.vector(), rotary,   1.25f, dynamic, kTrained,
                lengths.vector(),     hadamard, {},    {},      0};
      const DType norm_type = t == 3 ? DType::bf16 : DType::f32;
      Guarded q_norm(norm_type, 1, d), k_norm(norm_type, 1, d);
      q_norm.fill(random);
      k_norm.fill(random);
      constexpr float kEps = 0.125f;  // large enough to be seen beside squares of 1
      if (normed) {
        rope.q_norm = q_norm.vector();
        rope.k_norm = k_norm.vector();
        rope.norm_eps = kEps;
      }
      backend->rope(*qkv, positions.vector(), rope, {1, heads, d}, *q, *kv);
      Worst wide(kRope), narrow(kRopeF16);
      for (int i = 0; i < t; ++i)
        for (int head = 0; head < q_heads + 2 * heads; ++head) {
          std::vector<double> turned(static_cast<size_t>(d));
          double squares = 0;
          for (int c = 0; c < d; ++c)
            squares += double(qkv.get(i, head * d + c)) * double(qkv.get(i, head * d + c));
          for (int c = 0; c < d; ++c) {
            const auto in = [&](int channel) {
              const auto x = double(qkv.get(i, head * d + channel));
              if (!normed || head >= q_heads + heads) return x;
              return x / std::sqrt(squares / d + double(kEps)) *
                     double((head < q_heads ? q_norm : k_norm).get(0, channel));
            };
            double x = in(c);
            const int half = rotary / 2;
            if (head < q_heads + heads && c < rotary) {
              double angle = double(positions.get(0, i)) * double(frequencies.get(0, c % half));
              const double length = double(lengths.get(0, i));
              if (dynamic > 0 && length > kTrained)
                angle *= std::pow(double(dynamic) * length / kTrained - (double(dynamic) - 1),
                                  -2.0 * (c % half) / (rotary - 2));
              const double other = c < half ? -in(c + half) : in(c - half);
              x = (x * std::cos(angle) + other * std::sin(angle)) * 1.25;
            }
            turned[size_t(c)] = x;
          }
          for (int c = 0; c < d; ++c) {
            double want = turned[size_t(c)];
            if (hadamard) {
              want = 0;
              for (int j = 0; j < d; ++j)
                want += (std::popcount(unsigned(c & j)) % 2 ? -1 : 1) * turned[size_t(j)] /
                        std::sqrt(double(d));
            }
            if (std::isnan(want)) want = 0;
            if (head < q_heads)
              wide.add(double(q.get(i, head * d + c)), want);
            else
              narrow.add(double(kv.get(i, (head - q_heads) * d + c)),
                         std::clamp(want, -65504.0, 65504.0));
          }
        }
      REQUIRE(wide.ok());
      REQUIRE(narrow.ok());
      CHECK(q.intact());
      CHECK(kv.intact());
    }
}

TEST_CASE("a rope of another factor at the same positions is another rope") {
  const auto backend = make_cpu_backend(1);
  const int d = 16;
  Guarded qkv(DType::f32, 1, 3 * d, 4), positions(DType::i32, 1, 1), lengths(DType::i32, 1, 1);
  Guarded frequencies(DType::f32, 1, d / 2), q(DType::f32, 1, d, 3), kv(DType::f16, 1, 2 * d, 8);
  for (int c = 0; c < 3 * d; ++c) qkv.set(0, c, float(c + 1));
  for (int c = 0; c < d / 2; ++c) frequencies.set(0, c, 0.5f);
  positions.set(0, 0, 3);
  lengths.set(0, 0, 4);
  const auto first_of = [&](float factor) {
    const Rope rope{frequencies.vector(), d, factor, 0, 0, lengths.vector(), false, {}, {}, 0};
    backend->rope(*qkv, positions.vector(), rope, {1, 1, d}, *q, *kv);
    return q.get(0, 0);
  };
  const auto one = first_of(1);
  CHECK(first_of(2) == 2 * one);
  CHECK(first_of(1) == one);
}

TEST_CASE("a row in e4m3 is its largest magnitude as 448, and every number the nearest code") {
  std::mt19937 random(41);
  std::normal_distribution<float> normal;
  for (const int k : {1, 16, 67}) {
    std::vector<float> x(size_t(k), 0.0f);
    for (float& v : x) v = normal(random);
    std::vector<uint8_t> codes(x.size());
    float scale = 0;
    quantize_e4m3_row(x, codes.data(), scale);
    float most = 0;
    for (const float v : x) most = std::max(most, std::abs(v));
    CHECK(scale == most / 448);
    for (int c = 0; c < k; ++c) {
      CHECK(codes[size_t(c)] == to_e4m3(x[size_t(c)] * (448 / most)));
      CHECK(std::abs(scale * from_e4m3(codes[size_t(c)]) - x[size_t(c)]) <=
            std::max(std::abs(x[size_t(c)]) / 16, scale * 0x1p-10f) * 1.001f);
    }
    x[0] = std::nanf("");
    quantize_e4m3_row(x, codes.data(), scale);
    CHECK(std::isnan(scale));
    std::fill(x.begin(), x.end(), 1e-31f);
    quantize_e4m3_row(x, codes.data(), scale);
    CHECK(scale == 0);
    CHECK(codes == std::vector<uint8_t>(x.size(), 0));
  }
}

TEST_CASE("ops quantize the rows that they would write, and products read them") {
  std::mt19937 random(42);
  const auto backend = make_cpu_backend(2);
  for (const auto& [t, k] : {std::pair{1, 304}, {3, 112}, {17, 64}}) {
    INFO("t " << t << " k " << k);
    Guarded x(DType::f32, t, 2 * k), weight(DType::f32, 1, k), rows(DType::f32, t, k);
    Guarded memory(DType::f32, t, k);
    x.fill(random);
    weight.fill(random);
    const Operand quantized = quantized_in(*memory).value();
    const auto check = [&](const auto& write) {
      write(Operand(*rows));
      write(quantized);
      std::vector<uint8_t> codes(size_t(k), 0);
      for (int i = 0; i < t; ++i) {
        float scale = 0;
        quantize_e4m3_row({rows->row<float>(i), size_t(k)}, codes.data(), scale);
        REQUIRE(quantized.scales[i] == scale);
        REQUIRE(std::memcmp(codes.data(), quantized.codes + i * k, size_t(k)) == 0);
      }
      REQUIRE(memory.intact());
    };
    check([&](const Operand& out) {
      backend->norm(x->slice_columns(0, k), weight.vector(), {}, NormKind::rms, 1e-5f, out);
    });
    check([&](const Operand& out) { backend->gated_activation(*x, Activation::silu, out); });

    const QuantizedMatrix w(random_rows({WeightKind::e4m3}, 33, k, random));
    Guarded got(DType::f32, t, 33), want(DType::f32, t, 33);
    for (int i = 0; i < t; ++i)
      for (int c = 0; c < k; ++c)
        rows.set(i, c, quantized.scales[i] * from_e4m3(quantized.codes[i * k + c]));
    backend->matmul(quantized, w.weight, {}, *got);
    backend->matmul(*rows, w.weight, {}, *want);
    for (int i = 0; i < t; ++i)
      for (int c = 0; c < 33; ++c) REQUIRE(got.get(i, c) == want.get(i, c));
  }
}

TEST_CASE("quantized rows have room in the memory of their rows, or there are none") {
  Guarded few(DType::f16, 1, 128), enough(DType::f16, 1, 304), gaps(DType::f16, 3, 304, 8);
  CHECK(!quantized_in(*few).has_value());
  CHECK(!quantized_in(*gaps).has_value());
  const std::optional<Operand> x = quantized_in(*enough);
  REQUIRE(x.has_value());
  CHECK(x->quantized());
  CHECK(x->codes == enough->as<uint8_t>());
  CHECK(reinterpret_cast<std::byte*>(x->scales + 1) <= enough->as<std::byte>() + enough->bytes());
}
