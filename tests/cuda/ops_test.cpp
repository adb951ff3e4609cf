// SPDX-License-Identifier: Apache-2.0
// Ops of a decoder step around attention: CUDA against the CPU.
#include "tests/cuda/pair.h"

namespace kivi::test {

TEST_CASE("embedding and gathered rows are copies, and unknown rows are zeros on the GPU") {
  std::mt19937 random(1);
  for (const DType type : kTypes)
    for (const int n : {8, 64, 100, 4096}) {
      Pair table(37, n, type), out(5, n, type);
      table.randomize(random);
      PairOfInts ids({3, 36, 0, 3, 17});
      gpu().embed(table.on_gpu(), ids.on_gpu(), out.on_gpu());
      const auto got = out.gpu_result();
      const int expected[] = {3, 36, 0, 3, 17};
      for (int r = 0; r < 5; ++r)
        for (int c = 0; c < n; ++c)
          REQUIRE(got[size_t(r * n + c)] == table.values()[size_t(expected[r] * n + c)]);
      Pair gathered(2, n, type);
      PairOfInts rows({4, 1});
      gpu().gather_rows(out.on_gpu(), rows.on_gpu(), gathered.on_gpu());
      REQUIRE(gathered.gpu_result()[0] == got[size_t(4 * n)]);
    }
}

TEST_CASE("added rows equal the CPU's bit for bit") {
  std::mt19937 random(7);
  for (const DType type : kTypes)
    for (const auto& [t, n] : {std::pair{1, 8}, {3, 100}, {65, 4096}, {2048, 1000}}) {
      CAPTURE(name_of(type), t, n);
      Pair x(t, n, type), sums(1, n, DType::f32);
      x.randomize(random);
      sums.randomize(random);
      const auto vector_of = [&](Tensor v) { return make_tensor(v.data, v.dtype, int64_t(n)); };
      cpu().add_rows(x.on_cpu(), vector_of(sums.on_cpu()));
      gpu().add_rows(x.on_gpu(), vector_of(sums.on_gpu()));
      REQUIRE(sums.gpu_result() == sums.cpu_result());
    }
}

TEST_CASE("norms equal the CPU's, with and without a residual to add and a bias") {
  std::mt19937 random(2);
  for (const DType type : kTypes)
    for (const NormKind kind : {NormKind::rms, NormKind::layer})
      for (const int n : {8, 128, 256, 4096, 4544, 8192}) {
        CAPTURE(name_of(type), int(kind), n);
        Pair x(17, n, type), delta(17, n, type), weight(1, n, type), bias(1, n, type),
            out(17, n, type);
        x.randomize(random);
        delta.randomize(random);
        weight.randomize(random);
        bias.randomize(random);
        const auto vector_of = [&](Tensor t) { return make_tensor(t.data, t.dtype, n); };
        cpu().add_norm(x.on_cpu(), delta.on_cpu(), vector_of(weight.on_cpu()),
                       vector_of(bias.on_cpu()), kind, 1e-5f, out.on_cpu());
        gpu().add_norm(x.on_gpu(), delta.on_gpu(), vector_of(weight.on_gpu()),
                       vector_of(bias.on_gpu()), kind, 1e-5f, out.on_gpu());
        CHECK(x.agrees(norm_tolerance(type)));
        CHECK(out.agrees(norm_tolerance(type)));
        x.randomize(random);
        cpu().norm(x.on_cpu(), vector_of(weight.on_cpu()), Tensor{}, kind, 1e-5f, out.on_cpu());
        gpu().norm(x.on_gpu(), vector_of(weight.on_gpu()), Tensor{}, kind, 1e-5f, out.on_gpu());
        CHECK(out.agrees(norm_tolerance(type)));
      }
}

// x W^T of [t, k] by [n, k], on both devices.
void check_product(std::mt19937& random, DType type, DType out_type, int t, int n, int k,
                   std::initializer_list<bool> biased) {
  CAPTURE(name_of(type), name_of(out_type), t, n, k);
  Pair x(t, k, type), w(n, k, type, type), out(t, n, out_type), bias(1, n, type, type);
  x.randomize(random);
  w.randomize(random, 0.1f);
  bias.randomize(random);
  const auto bias_of = [&](bool with, Tensor v) {
    return with ? make_tensor(v.data, v.dtype, int64_t(n)) : Tensor{};
  };
  for (const bool with : biased) {
    CAPTURE(with);
    cpu().matmul(x.on_cpu(), w.on_cpu(), bias_of(with, bias.on_cpu()), out.on_cpu());
    gpu().matmul(x.on_gpu(), w.on_gpu(), bias_of(with, bias.on_gpu()), out.on_gpu());
    CHECK(out.agrees(product_tolerance(out_type)));
  }
}

TEST_CASE("matrix products equal the CPU's for awkward sizes, 16-bit and f32 results") {
  std::mt19937 random(3);
  for (const DType type : kTypes)
    for (const auto& [t, n, k] : {std::tuple{1, 4096, 256},
                                  {3, 688, 256},
                                  {17, 512, 688},
                                  {64, 128, 4096},
                                  {65, 1000, 72},
                                  {300, 256, 128}}) {
      check_product(random, type, type, t, n, k, {false, true});
      check_product(random, type, DType::f32, t, n, k, {false});
    }
}

TEST_CASE("products of 1 to 8 rows equal the CPU's for awkward sizes, with and without a bias") {
  std::mt19937 random(31);
  for (const DType type : kTypes)
    for (const DType out_type : {type, DType::f32})
      for (const int t : {1, 2, 3, 5, 7, 8})
        for (const auto& [n, k] : {std::pair{1, 8},
                                   {15, 40},
                                   {16, 1024},
                                   {17, 1032},
                                   {4999, 136},
                                   {4544, 264},
                                   {100, 14336}})
          check_product(random, type, out_type, t, n, k, {false, true});
}

TEST_CASE("a row of a product of few rows has the same bits in any company") {
  std::mt19937 random(32);
  for (const DType type : kTypes) {
    const int n = 1000, k = 4096;
    Pair x(8, k, type), w(n, k, type, type), all(8, n, DType::f32);
    x.randomize(random);
    w.randomize(random, 0.1f);
    gpu().matmul(x.on_gpu(), w.on_gpu(), Tensor{}, all.on_gpu());
    const std::vector<float> expected = all.gpu_result();
    for (const int count : {1, 3, 8})
      for (int row = 0; row + count <= 8; ++row) {
        CAPTURE(name_of(type), count, row);
        Pair some(count, n, DType::f32);
        gpu().matmul(x.on_gpu().slice_rows(row, count), w.on_gpu(), Tensor{}, some.on_gpu());
        REQUIRE(some.gpu_result() == std::vector<float>(expected.begin() + row * n,
                                                        expected.begin() + (row + count) * n));
      }
  }
}

// Kernels may start before the ones whose results they read have ended: a chain of unlike lengths,
// repeated, must give what it gives one by one.
TEST_CASE("a chain of small kernels and products gives the same bits with a wait after each") {
  std::mt19937 random(33);
  const DType type = DType::bf16;
  const int n = 4096, f = 1024;
  Pair x(1, n, type), h(1, n, type), up(1, 2 * f, type), gated(1, f, type), delta(1, n, type),
      w_up(2 * f, n, type, type), w_down(n, f, type, type), weight(1, n, type, type);
  w_up.randomize(random, 0.02f);
  w_down.randomize(random, 0.02f);
  weight.randomize(random);
  x.randomize(random);
  delta.randomize(random);
  const std::vector<float> x_first = x.values(), delta_first = delta.values();
  const auto run = [&](bool waits) {
    x.set(x_first);
    delta.set(delta_first);
    const auto done = [&] {
      if (waits) gpu().synchronize();
    };
    for (int i = 0; i < 20; ++i) {
      gpu().add_norm(x.on_gpu(), delta.on_gpu(), make_tensor(weight.on_gpu().data, type, n),
                     Tensor{}, NormKind::rms, 1e-5f, h.on_gpu());
      done();
      gpu().matmul(h.on_gpu(), w_up.on_gpu(), Tensor{}, up.on_gpu());
      done();
      gpu().gated_activation(up.on_gpu(), Activation::silu, gated.on_gpu());
      done();
      gpu().matmul(gated.on_gpu(), w_down.on_gpu(), Tensor{}, delta.on_gpu());
      done();
    }
    return delta.gpu_result();
  };
  const std::vector<float> expected = run(true);
  for (int i = 0; i < 10; ++i) REQUIRE(run(false) == expected);
}

TEST_CASE("activations equal the CPU's") {
  std::mt19937 random(4);
  for (const DType type : kTypes)
    for (const Activation a : {Activation::silu, Activation::gelu, Activation::gelu_tanh})
      for (const int f : {8, 100, 688, 11008}) {
        CAPTURE(name_of(type), int(a), f);
        Pair gate_up(7, 2 * f, type), out(7, f, type);
        gate_up.randomize(random, 2);
        cpu().gated_activation(gate_up.on_cpu(), a, out.on_cpu());
        gpu().gated_activation(gate_up.on_gpu(), a, out.on_gpu());
        CHECK(out.agrees(elementwise_tolerance(type)));
        cpu().activate(gate_up.on_cpu(), a);
        gpu().activate(gate_up.on_gpu(), a);
        CHECK(gate_up.agrees(elementwise_tolerance(type)));
        Pair x(7, f, type), delta(7, f, type);
        x.randomize(random);
        delta.randomize(random);
        cpu().add(x.on_cpu(), delta.on_cpu());
        gpu().add(x.on_gpu(), delta.on_gpu());
        CHECK(x.agrees(elementwise_tolerance(type)));
      }
}

TEST_CASE("rope equals the CPU's at small and at large positions") {
  std::mt19937 random(5);
  for (const DType type : kTypes)
    for (const auto& [hq, hk, d, rotary, dynamic, hadamard, normed] :
         {std::tuple{4, 2, 64, 64, 0.f, false, false},
          {32, 8, 128, 128, 0.f, false, false},
          {71, 1, 64, 64, 0.f, false, false},
          {8, 8, 128, 32, 0.f, false, false},
          {6, 2, 96, 96, 4.f, false, false},
          {9, 3, 64, 64, 0.f, true, false},
          {32, 8, 128, 128, 0.f, true, false},
          {12, 4, 256, 256, 0.f, true, false},
          {12, 4, 256, 256, 0.f, false, true},
          {8, 8, 128, 32, 0.f, true, false},
          {4, 2, 64, 20, 0.f, true, false},
          {8, 1, 128, 128, 4.f, true, false},
          {32, 8, 128, 128, 0.f, false, true},
          {9, 3, 64, 32, 0.f, false, true},
          {5, 1, 96, 30, 0.f, false, true},
          {16, 8, 128, 128, 0.f, true, true}}) {
      CAPTURE(name_of(type), hq, hk, d, rotary, dynamic, hadamard, normed);
      const std::vector<int32_t> at = {0, 1, 17, 2047, 131071};
      const int t = int(at.size());
      Pair qkv(t, (hq + 2 * hk) * d, type), q(t, hq * d, DType::f16),
          kv(t, 2 * hk * d, DType::f16, DType::f16), frequencies(1, rotary / 2, DType::f32);
      qkv.randomize(random);
      std::vector<float> f;
      for (int i = 0; i < rotary / 2; ++i) f.push_back(float(std::pow(10000.0, -2.0 * i / rotary)));
      frequencies.set(f);
      PairOfInts positions(at), lengths({1, 2, 1000, 2048, 131072});
      Pair q_norm(1, d, type), k_norm(1, d, type);
      q_norm.randomize(random);
      k_norm.randomize(random);
      const auto rope_of = [&, multiplies = hadamard, has_norms = normed](
                               Tensor v, Tensor tokens, Tensor of_q, Tensor of_k) {
        Rope rope{make_tensor(v.data, DType::f32, rotary / 2),
                  rotary,
                  1.f,
                  dynamic,
                  1024,
                  tokens,
                  multiplies,
                  {},
                  {},
                  0};
        if (!has_norms) return rope;
        rope.q_norm = make_tensor(of_q.data, of_q.dtype, of_q.shape[1]);
        rope.k_norm = make_tensor(of_k.data, of_k.dtype, of_k.shape[1]);
        rope.norm_eps = 0.125f;
        return rope;
      };
      const KvShape shape{1, hk, d};
      cpu().rope(qkv.on_cpu(), positions.on_cpu(),
                 rope_of(frequencies.on_cpu(), lengths.on_cpu(), q_norm.on_cpu(), k_norm.on_cpu()),
                 shape, q.on_cpu(), kv.on_cpu());
      gpu().rope(qkv.on_gpu(), positions.on_gpu(),
                 rope_of(frequencies.on_gpu(), lengths.on_gpu(), q_norm.on_gpu(), k_norm.on_gpu()),
                 shape, q.on_gpu(), kv.on_gpu());
      CHECK(q.agrees(rope_tolerance(dynamic > 0), d));
      CHECK(kv.agrees(rope_tolerance(dynamic > 0), d));
    }
}

TEST_CASE("rope gives a row the same bits in any company") {
  std::mt19937 random(51);
  for (const DType type : kTypes)
    for (const auto& [hq, hk, d] : {std::tuple{32, 32, 128}, {32, 8, 128}, {6, 2, 64}}) {
      CAPTURE(name_of(type), hq, hk, d);
      const int t = 300;
      Pair qkv(t, (hq + 2 * hk) * d, type), frequencies(1, d / 2, DType::f32);
      Pair q(t, hq * d, DType::f16), kv(t, 2 * hk * d, DType::f16);
      qkv.randomize(random);
      std::vector<float> f;
      for (int i = 0; i < d / 2; ++i) f.push_back(float(std::pow(10000.0, -2.0 * i / d)));
      frequencies.set(f);
      std::vector<int32_t> at;
      for (int i = 0; i < t; ++i) at.push_back(int32_t(random() % 4096));
      PairOfInts positions(at);
      const Rope rope{make_tensor(frequencies.on_gpu().data, DType::f32, d / 2), d};
      const KvShape shape{1, hk, d};
      gpu().rope(qkv.on_gpu(), positions.on_gpu(), rope, shape, q.on_gpu(), kv.on_gpu());
      const std::vector<float> all_q = q.gpu_result(), all_kv = kv.gpu_result();
      for (const int count : {1, 3}) {
        const int row = 200;
        Pair some_q(count, hq * d, DType::f16), some_kv(count, 2 * hk * d, DType::f16);
        gpu().rope(qkv.on_gpu().slice_rows(row, count),
                   make_tensor(positions.on_gpu().as<int32_t>() + row, DType::i32, count), rope,
                   shape, some_q.on_gpu(), some_kv.on_gpu());
        const auto part = [&](const std::vector<float>& all, int columns) {
          return std::vector<float>(all.begin() + row * columns,
                                    all.begin() + (row + count) * columns);
        };
        REQUIRE(some_q.gpu_result() == part(all_q, hq * d));
        REQUIRE(some_kv.gpu_result() == part(all_kv, 2 * hk * d));
      }
    }
}

TEST_CASE("the sampler chooses what the CPU's chooses, and scores alike") {
  std::mt19937 random(6);
  // Few rows are cut into parts; `first` moves a row that is neither greedy nor filtered to the
  // front.
  const auto [rows, first] = GENERATE(table<int, int>({{48, 0}, {1, 6}, {3, 18}, {400, 0}}));
  for (const int vocab : {17, 4096, 8191, 128256}) {
    if (rows > 48 && vocab > 8191) continue;
    CAPTURE(rows, vocab);
    const auto n = size_t(rows);
    Pair logits(rows, vocab, DType::f32);
    logits.randomize(random, 3);
    std::vector<std::vector<PenaltyToken>> penalties(n);
    std::vector<std::vector<LogitBias>> bias(n);
    std::vector<SampleRow> plan(n);
    for (int row = 0; row < rows; ++row) {
      const int i = first + row;
      SampleRow& r = plan[size_t(row)];
      r.temperature = i % 4 == 0 ? 0.f : 0.5f + float(i % 3) * 0.5f;
      r.top_k = i % 3 == 1 ? 5 : 0;
      r.top_p = i % 5 == 2 ? 0.8f : 1.f;
      r.min_p = i % 7 == 3 ? 0.1f : 0.f;
      r.seed = uint64_t(i) * 7919;
      r.position = i;
      r.logprobs = i % 6 - 1;
      if (i == 11) r.forced_token = 3;
      if (i % 8 == 5) {
        r.repetition_penalty = 1.3f;
        r.frequency_penalty = 0.5f;
        r.presence_penalty = 0.7f;
        penalties[size_t(row)] = {{1, 2, 0}, {5, 0, 1}, {16, 1, 1}};
        bias[size_t(row)] = {{5, 4.f}, {7, -std::numeric_limits<float>::infinity()}};
      }
      r.penalties = penalties[size_t(row)];
      r.bias = bias[size_t(row)];
    }
    PairOfInts ids(std::vector<int32_t>(n, -1));
    std::vector<SampledToken> expected, got;
    cpu().sample(logits.on_cpu(), plan, ids.on_cpu());
    cpu().collect_samples(expected);
    gpu().sample(logits.on_gpu(), plan, ids.on_gpu());
    gpu().collect_samples(got);
    REQUIRE(got.size() == expected.size());
    int different = 0;  // a tie within rounding of the noise may fall either way
    for (size_t i = 0; i < got.size(); ++i) {
      CAPTURE(vocab, i);
      if (got[i].id != expected[i].id) {
        ++different;
        continue;
      }
      if (plan[i].logprobs < 0) continue;
      REQUIRE(got[i].logprob == Approx(expected[i].logprob).margin(1e-4));
      REQUIRE(got[i].top.size() == expected[i].top.size());
      for (size_t j = 0; j < got[i].top.size(); ++j) {
        REQUIRE(got[i].top[j].id == expected[i].top[j].id);
        REQUIRE(got[i].top[j].logprob == Approx(expected[i].top[j].logprob).margin(1e-4));
      }
    }
    REQUIRE(different <= 1);
  }
}

TEST_CASE("the sampler's masks leave out what the CPU's leave out") {
  std::mt19937 random(8);
  for (const int vocab : {1, 31, 33, 4097, 128256})
    for (const int rows : {1, 5, 70}) {
      CAPTURE(rows, vocab);
      const auto n = size_t(rows);
      Pair logits(rows, vocab, DType::f32);
      logits.randomize(random, 3);
      std::vector<std::vector<uint32_t>> masks(n);
      const std::vector<LogitBias> bias = {{0, 2.f}};
      std::vector<SampleRow> plan(n);
      for (size_t i = 0; i < n; ++i) {
        SampleRow& r = plan[i];
        r.temperature = i % 3 == 0 ? 0.f : 1.f;
        r.top_k = i % 5 == 1 ? 4 : 0;
        r.seed = i;
        r.position = int32_t(i);
        r.bias = bias;
        if (i % 4 == 3) continue;  // without a mask, between others
        masks[i].resize(size_t(vocab + 31) / 32);
        const uint32_t share = i % 2 == 0 ? 2 : 1000;  // many and few are allowed
        for (int id = 0; id < vocab; ++id)
          if (random() % share == 0 || id == int(i) % vocab)
            masks[i][size_t(id) / 32] |= 1u << (id % 32);
        r.mask = masks[i];
      }
      PairOfInts ids(std::vector<int32_t>(n, -1));
      std::vector<SampledToken> expected, got;
      // Twice: the second time the memory for masks is there.
      for (int round = 0; round < 2; ++round) {
        logits.randomize(random, 3);
        cpu().sample(logits.on_cpu(), plan, ids.on_cpu());
        cpu().collect_samples(expected);
        gpu().sample(logits.on_gpu(), plan, ids.on_gpu());
        gpu().collect_samples(got);
        REQUIRE(got.size() == expected.size());
        int different = 0;  // a tie within rounding of the noise may fall either way
        for (size_t i = 0; i < n; ++i) {
          CAPTURE(i, got[i].id);
          REQUIRE(got[i].broken == expected[i].broken);
          REQUIRE((masks[i].empty() ||
                   (masks[i][size_t(got[i].id) / 32] >> (got[i].id % 32) & 1) == 1));
          different += got[i].id != expected[i].id;
        }
        REQUIRE(different <= 1);
      }
    }
}

TEST_CASE("the sampler tells which rows are not finite, as the CPU's does") {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (const int vocab : {17, 8191, 128256}) {
    constexpr int kRows = 24;
    std::vector<float> values(size_t(kRows) * size_t(vocab));
    for (float& x : values) x = normal(random);
    std::vector<SampleRow> plan(kRows);
    for (int i = 0; i < kRows; ++i) {
      float* row = values.data() + size_t(i) * size_t(vocab);
      const int at = int(random() % unsigned(vocab));
      if (i % 4 == 1) row[at] = std::numeric_limits<float>::quiet_NaN();
      if (i % 4 == 2) row[at] = kInfinity;
      if (i % 4 == 3) row[at] = -kInfinity;
      if (i == 23) std::fill(row, row + vocab, -kInfinity);
      SampleRow& r = plan[size_t(i)];
      r.temperature = i % 3 == 0 ? 0.f : 1.f;
      r.top_p = i % 5 == 2 ? 0.8f : 1.f;  // rows of sampler_filter.cu
      r.logprobs = i % 6 == 5 ? 2 : -1;
      r.position = i;
    }
    Pair logits(kRows, vocab, DType::f32);
    logits.set(values);
    PairOfInts ids(std::vector<int32_t>(kRows, -1));
    std::vector<SampledToken> expected, got;
    cpu().sample(logits.on_cpu(), plan, ids.on_cpu());
    cpu().collect_samples(expected);
    gpu().sample(logits.on_gpu(), plan, ids.on_gpu());
    gpu().collect_samples(got);
    for (size_t i = 0; i < size_t(kRows); ++i) {
      CAPTURE(vocab, i);
      REQUIRE(expected[i].broken == (i % 4 == 1 || i % 4 == 2 || i == 23));
      REQUIRE(got[i].broken == expected[i].broken);
      REQUIRE(got[i].id >= 0);
    }
  }
}

}  // namespace kivi::test
