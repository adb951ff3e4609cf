// SPDX-License-Identifier: Apache-2.0
// What a study computes from keys, values and queries, on constructed ones.
#include "study/kv_quantizer.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <random>

#include "study/kv_layer_study.h"
#include "tests/kernels/kivi_reference.h"

namespace kivi {

namespace {

// Normal numbers; channel 5 of each head is 20 times as large, as in real keys.
KvRows with_outlier_channel(int tokens, int heads, int head_dim, uint32_t seed) {
  KvRows rows{tokens, heads, head_dim, {}};
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (int i = 0; i < tokens * heads * head_dim; ++i)
    rows.data.push_back(to_f16(normal(random) + (i % head_dim == 5 ? 20.0f : 0.0f)));
  return rows;
}

// Normal numbers; every 16th token is 20 times as large.
KvRows with_outlier_tokens(int tokens, int heads, int head_dim, uint32_t seed) {
  KvRows rows{tokens, heads, head_dim, {}};
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (int i = 0; i < tokens * heads * head_dim; ++i)
    rows.data.push_back(to_f16(normal(random) * (i / (heads * head_dim) % 16 == 3 ? 20.0f : 1.0f)));
  return rows;
}

QueryRows queries(int tokens, int heads, int head_dim, uint32_t seed) {
  QueryRows q{tokens, heads, head_dim, {}, 1 / std::sqrt(float(head_dim)), 0};
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (int i = 0; i < tokens * heads * head_dim; ++i) q.data.push_back(normal(random));
  return q;
}

// One group by the literal transcription of the method.
std::vector<double> literal(std::vector<double> x, int bits) {
  const test::ReferenceGroup g = test::reference_quantize(x, bits);
  for (size_t i = 0; i < x.size(); ++i) x[i] = test::fp16(g.scale * g.codes[i] + g.minimum);
  return x;
}

double at(const KvRows& rows, int token, int column) {
  return double(to_float(rows.data[size_t(token * rows.columns() + column)]));
}

bool same_bits(const KvRows& a, const KvRows& b) {
  return std::ranges::equal(a.data, b.data, {}, &f16::bits, &f16::bits);
}

// softmax(q K^T scale) V in doubles.
std::vector<float> attend(const QueryRows& q, const KvRows& keys, const KvRows& values) {
  std::vector<float> out;
  for (int t = 0; t < q.tokens; ++t)
    for (int h = 0; h < q.heads; ++h) {
      const int kv_head = h / (q.heads / keys.heads);
      const std::vector<float> p = probabilities(q, keys, h, t);
      for (int c = 0; c < q.head_dim; ++c) {
        double sum = 0;
        for (size_t j = 0; j < p.size(); ++j)
          sum +=
              double(p[j]) * at(values, t + 1 - int(p.size()) + int(j), kv_head * q.head_dim + c);
        out.push_back(float(sum));
      }
    }
  return out;
}

}  // namespace

TEST_CASE("Simulated keys and values are the literal transcription's, along both axes") {
  const int bits = GENERATE(2, 4);
  const int tokens = 11, heads = 2, d = 8, group = 4;  // 3 tokens fill no group
  const KvRows rows = with_outlier_channel(tokens, heads, d, 7);
  const KvRows channel = simulated(rows, {bits, KvAxis::channel, group});
  const KvRows token = simulated(rows, {bits, KvAxis::token, group});
  for (int t = 0; t < tokens; ++t)
    for (int c = 0; c < heads * d; ++c) {
      std::vector<double> along_channel, along_token;
      for (int i = 0; i < group; ++i) {
        along_token.push_back(at(rows, t, c / group * group + i));
        if (t < 8) along_channel.push_back(at(rows, t / group * group + i, c));
      }
      CAPTURE(bits, t, c);
      CHECK(at(token, t, c) == literal(along_token, bits)[size_t(c % group)]);
      CHECK(at(channel, t, c) ==
            (t < 8 ? literal(along_channel, bits)[size_t(t % group)] : at(rows, t, c)));
    }
}

TEST_CASE("16 bits leave keys alone; e4m3 keeps three bits of the mantissa") {
  const KvRows rows = with_outlier_channel(32, 1, 32, 3);
  CHECK(same_bits(simulated(rows, {16, KvAxis::token, 32}), rows));
  const KvRows e4m3 = simulated(rows, {8, KvAxis::token, 32});
  const double error = relative_error(e4m3, rows, 0);
  CHECK(error > 0.001);
  CHECK(error < 1.0 / 16);
}

TEST_CASE("An outlier channel favors groups along channels, outlier tokens those along tokens") {
  const int bits = GENERATE(2, 4), group = GENERATE(32, 64);
  const KvRows channels = with_outlier_channel(128, 2, 64, 1);
  const KvRows tokens = with_outlier_tokens(128, 2, 64, 2);
  const KvQuantizer along_channel{bits, KvAxis::channel, group};
  const KvQuantizer along_token{bits, KvAxis::token, group};
  for (int head = 0; head < 2; ++head) {
    CHECK(2 * relative_error(simulated(channels, along_channel), channels, head) <
          relative_error(simulated(channels, along_token), channels, head));
    // Small tokens beside a large one in a group lose all they have: their own error says so.
    KvRows small = tokens, kept = simulated(tokens, along_token),
           lost = simulated(tokens, along_channel);
    for (KvRows* rows : {&small, &kept, &lost})
      for (int i = 0; i < 128 * 128; ++i)
        if (i / 128 % 16 == 3) rows->data[size_t(i)] = {0};
    CHECK(2 * relative_error(kept, small, head) < relative_error(lost, small, head));
  }
}

TEST_CASE("Probabilities are a causal softmax within the window, by KV head") {
  const KvRows keys = with_outlier_channel(24, 2, 8, 5);
  QueryRows q = queries(24, 4, 8, 6);
  q.window = GENERATE(0, 5);
  for (const int head : {0, 1, 2, 3})
    for (const int token : {0, 3, 23}) {
      const std::vector<float> p = probabilities(q, keys, head, token);
      const int first = q.window == 0 ? 0 : std::max(0, token - 4);
      REQUIRE(int(p.size()) == token + 1 - first);
      std::vector<double> weights;
      double sum = 0;
      for (int j = first; j <= token; ++j) {
        double score = 0;
        for (int c = 0; c < 8; ++c)
          score +=
              double(q.data[size_t((token * 4 + head) * 8 + c)]) * at(keys, j, head / 2 * 8 + c);
        weights.push_back(std::exp(score * double(q.scale)));
        sum += weights.back();
      }
      for (size_t j = 0; j < p.size(); ++j)
        CHECK(double(p[j]) == Approx(weights[j] / sum).epsilon(1e-4).margin(1e-7));
    }
}

TEST_CASE("Sparsity counts what it says") {
  SparsitySums even, one;
  even.add(std::vector<float>(200, 0.005f));
  std::vector<float> spike(200, 0.0001f);
  spike[17] = 1 - 199 * 0.0001f;
  one.add(spike);
  CHECK(even.sums.top_5_percent == Approx(0.05));
  CHECK(even.sums.top_10_percent == Approx(0.10));
  CHECK(even.sums.tokens_for_90 == Approx(0.9).margin(0.006));
  CHECK(even.sums.below_1_percent == 0);
  CHECK(one.sums.top_1_percent == Approx(spike[17] + spike[0]));
  CHECK(one.sums.tokens_for_90 == Approx(1.0 / 200));
  CHECK(one.sums.below_1_percent == Approx(199.0 / 200));
}

TEST_CASE("A layer's study finds the outlier channel, its magnitude and what the axes cost") {
  constexpr int kTokens = 128, kHeads = 2, kDim = 64;
  const KvRows keys = with_outlier_channel(kTokens, kHeads, kDim, 11);
  const KvRows values = with_outlier_tokens(kTokens, kHeads, kDim, 12);
  const QueryRows q = queries(kTokens, 4, kDim, 13);
  KvStudyOptions options;
  options.map_rows = 16;
  KvLayerStudy study(3, options);
  const auto exact = [&](const KvRows& k, const KvRows& v) { return attend(q, k, v); };
  study.add(q, keys, values, exact);
  study.add(q, keys, values, exact);
  const KvLayerStatistics s = study.result();
  CHECK(study.windows() == 2);
  CHECK(s.layer == 3);
  CHECK(s.keys.outliers == std::vector<int>{5, kDim + 5});
  CHECK(s.values.outliers.empty());
  double mean = 0;
  for (int t = 0; t < kTokens; ++t) mean += std::abs(at(keys, t, 5)) / kTokens;
  CHECK(double(s.keys.channel_mean[5]) == Approx(mean).epsilon(1e-3));
  CHECK(s.keys.peak_over_median > 10);
  // A row of the map is 8 tokens; two windows do not add up in it.
  double run = 0;
  for (int t = 8; t < 16; ++t) run += std::abs(at(keys, t, 5)) / 8;
  CHECK(double(s.keys.map[size_t(kHeads * kDim + 5)]) == Approx(run).epsilon(1e-3));
  CHECK(s.values.token_mean[3] > 10 * s.values.token_mean[4]);

  const auto output = [&](KvAxis key, KvAxis value) {
    const KvSimulation wanted{{2, key, 32}, {2, value, 32}};
    return std::ranges::find(s.outputs, wanted, &KvOutputError::simulation)->error;
  };
  const auto score = [&](KvAxis key) {
    return std::ranges::find(s.scores, KvQuantizer{2, key, 32}, &KvScoreError::key)->error;
  };
  CHECK(score(KvAxis::channel) < score(KvAxis::token));
  CHECK(output(KvAxis::channel, KvAxis::token) < output(KvAxis::token, KvAxis::token));
  CHECK(output(KvAxis::channel, KvAxis::token) < output(KvAxis::channel, KvAxis::channel));
  for (const KvReconstruction& r : s.reconstruction) {
    const double expected = (relative_error(simulated(keys, r.quantizer), keys, 0) +
                             relative_error(simulated(keys, r.quantizer), keys, 1)) /
                            2;
    CHECK(r.key_error == Approx(expected));
  }
}

}  // namespace kivi
