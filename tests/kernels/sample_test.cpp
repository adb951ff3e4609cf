// SPDX-License-Identifier: Apache-2.0
// The sampler: sets, penalties, scores, and that a token depends on its own row alone.
#include <algorithm>
#include <map>
#include <set>

#include "kernels/philox.h"
#include "tests/kernels/support.h"

using namespace kivi;
using namespace kivi::test;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<SampledToken> sample(Backend& backend, const std::vector<std::vector<float>>& logits,
                                 const std::vector<SampleRow>& rows) {
  Guarded x(DType::f32, int64_t(rows.size()), int64_t(logits[0].size()), 3);
  Guarded ids(DType::i32, 1, int64_t(rows.size()));
  for (size_t i = 0; i < rows.size(); ++i)
    for (size_t c = 0; c < logits[i].size(); ++c) x.set(int64_t(i), int64_t(c), logits[i][c]);
  backend.sample(*x, rows, ids.vector());
  std::vector<SampledToken> out;
  backend.collect_samples(out);
  REQUIRE(out.size() == rows.size());
  for (size_t i = 0; i < rows.size(); ++i) REQUIRE(int(ids.get(0, int64_t(i))) == out[i].id);
  REQUIRE(ids.intact());
  return out;
}

SampledToken sample(Backend& backend, const std::vector<float>& logits, const SampleRow& row) {
  return sample(backend, std::vector<std::vector<float>>(1, logits),
                std::vector<SampleRow>{row})[0];
}

// How often each token comes over `n` positions.
std::map<int, int> frequencies(Backend& backend, const std::vector<float>& logits, SampleRow row,
                               int n) {
  std::map<int, int> count;
  std::vector<SampleRow> rows;
  for (int i = 0; i < n; ++i) {
    row.position = i;
    rows.push_back(row);
  }
  for (const SampledToken& t : sample(backend, std::vector(size_t(n), logits), rows)) ++count[t.id];
  return count;
}

std::vector<float> random_logits(std::mt19937& random, int vocab, float deviation = 2) {
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> x;
  for (int i = 0; i < vocab; ++i) x.push_back(normal(random));
  return x;
}

std::set<int> keys_of(const std::map<int, int>& m) {
  std::set<int> out;
  for (const auto& [id, count] : m) out.insert(id);
  return out;
}

}  // namespace

TEST_CASE("Philox4x32-10 gives the published known answers") {
  const auto words = [](PhiloxBlock counter, uint32_t k0, uint32_t k1) {
    const PhiloxBlock b = philox4x32_10(counter, k0, k1);
    return std::vector<uint32_t>(b.word, b.word + 4);
  };
  // Random123, kat_vectors.
  CHECK(words({{0, 0, 0, 0}}, 0, 0) ==
        std::vector<uint32_t>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(words({{~0u, ~0u, ~0u, ~0u}}, ~0u, ~0u) ==
        std::vector<uint32_t>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(words({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0) ==
        std::vector<uint32_t>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
  CHECK(uniform_of(0) > 0);
  CHECK(uniform_of(~0u) < 1);
}

TEST_CASE("Greedy takes the largest logit, the lowest id of equals") {
  const auto backend = make_cpu_backend(1);
  SampleRow greedy;
  greedy.temperature = 0;
  CHECK(sample(*backend, {1, 3, 2}, greedy).id == 1);
  CHECK(sample(*backend, {3, 1, 3, 3}, greedy).id == 0);
  CHECK(sample(*backend, {-kInfinity, 1, 2, std::nanf(""), kInfinity, 2}, greedy).id == 2);
  std::mt19937 random(41);
  for (const int vocab : {1, 3, 17, 1000, 4097}) {
    const auto x = random_logits(random, vocab);
    CHECK(sample(*backend, x, greedy).id == int(std::max_element(x.begin(), x.end()) - x.begin()));
  }
}

TEST_CASE("The noise of a token is that of philox.h, in vectors too") {
  // With equal logits the largest noise wins.
  const auto backend = make_cpu_backend(1);
  const int vocab = 1000;
  for (int position = 0; position < 20; ++position) {
    SampleRow row;
    row.seed = (uint64_t(7) << 32) + 5;
    row.position = position;
    int best = 0;
    for (int id = 1; id < vocab; ++id)
      if (sampler_uniform(row.seed, position, id) > sampler_uniform(row.seed, position, best))
        best = id;
    CHECK(sample(*backend, std::vector<float>(size_t(vocab), 0.0f), row).id == best);
  }
}

TEST_CASE("Frequencies follow the softmax at the temperature") {
  const uint32_t seed = 42;
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto backend = make_cpu_backend(2);
  const auto logits = random_logits(random, 30, 1);
  const int n = 20000;
  for (const float temperature : {0.5f, 1.0f, 1.7f}) {
    SampleRow row;
    row.temperature = temperature;
    row.seed = 99;
    auto count = frequencies(*backend, logits, row, n);
    double total = 0, chi = 0;
    for (const float x : logits) total += std::exp(double(x) / double(temperature));
    for (int i = 0; i < 30; ++i) {
      const double want = n * std::exp(double(logits[size_t(i)]) / double(temperature)) / total;
      chi += (count[i] - want) * (count[i] - want) / want;
    }
    INFO("temperature " << temperature << " chi-square " << chi << ", 29 degrees of freedom");
    CHECK(chi < 58);  // p = 0.001
    CHECK(chi > 10);  // and not suspiciously even
  }
}

TEST_CASE("A token is a function of its row alone: same seed, same token in any company") {
  const uint32_t seed = 43;
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto one = make_cpu_backend(1), three = make_cpu_backend(3);
  std::vector<std::vector<float>> logits;
  std::vector<SampleRow> rows;
  for (int i = 0; i < 65; ++i) {
    logits.push_back(random_logits(random, 1003, 1));
    SampleRow row;
    row.temperature = float(i % 4) * 0.5f;
    row.top_k = i % 3 ? 0 : 50;
    row.top_p = i % 5 ? 1.0f : 0.9f;
    row.min_p = i % 7 ? 0.0f : 0.05f;
    row.seed = random();
    row.position = i;
    row.logprobs = i % 2 ? 3 : -1;
    rows.push_back(row);
  }
  const auto together = sample(*three, logits, rows);
  std::set<int> distinct;
  for (size_t i = 0; i < rows.size(); ++i) {
    const SampledToken alone = sample(*one, logits[i], rows[i]);
    CHECK(alone.id == together[i].id);
    CHECK(alone.logprob == together[i].logprob);
    distinct.insert(alone.id);
  }
  CHECK(distinct.size() > 30);
  // Another seed or position gives other tokens.
  SampleRow row;
  const std::vector<float> flat(1000, 0.0f);
  const int id = sample(*one, flat, row).id;
  row.seed = 1;
  const int other_seed = sample(*one, flat, row).id;
  row.seed = uint64_t(1) << 40;
  const int high_bits = sample(*one, flat, row).id;
  row.seed = 0;
  row.position = 1;
  CHECK(std::set<int>{id, other_seed, high_bits, sample(*one, flat, row).id}.size() == 4);
}

TEST_CASE("top-k keeps the k largest, the lowest ids of equals") {
  const auto backend = make_cpu_backend(2);
  SampleRow row;
  row.temperature = 3;
  row.top_k = 3;
  CHECK(keys_of(frequencies(*backend, {0, 1, 2, 1, 1, 0.5f, 1}, row, 2000)) ==
        std::set<int>{1, 2, 3});
  row.top_k = 1;
  CHECK(keys_of(frequencies(*backend, {1, 2, 2}, row, 200)) == std::set<int>{1});
  row.top_k = 100;
  CHECK(keys_of(frequencies(*backend, {0, 1, 2}, row, 2000)) == std::set<int>{0, 1, 2});
}

TEST_CASE("top-p keeps the smallest set that reaches p, after top-k") {
  const auto backend = make_cpu_backend(2);
  const std::vector<float> logits = {std::log(0.1f), std::log(0.4f), std::log(0.2f),
                                     std::log(0.3f)};
  SampleRow row;
  row.top_p = 0.65f;
  CHECK(keys_of(frequencies(*backend, logits, row, 2000)) == std::set<int>{1, 3});
  row.top_p = 0.75f;
  CHECK(keys_of(frequencies(*backend, logits, row, 2000)) == std::set<int>{1, 2, 3});
  row.top_p = 1e-6f;
  CHECK(keys_of(frequencies(*backend, logits, row, 200)) == std::set<int>{1});
  // Of the two kept by top-k, the first alone has 4 / 7 of the probability.
  row.top_k = 2;
  row.top_p = 0.55f;
  CHECK(keys_of(frequencies(*backend, logits, row, 200)) == std::set<int>{1});
  row.top_p = 0.6f;
  CHECK(keys_of(frequencies(*backend, logits, row, 2000)) == std::set<int>{1, 3});
  // Against a sorted full list, on a large vocabulary.
  std::mt19937 random(44);
  const auto x = random_logits(random, 2000, 3);
  std::vector<int> order(2000);
  for (int i = 0; i < 2000; ++i) order[size_t(i)] = i;
  std::sort(order.begin(), order.end(), [&](int a, int b) { return x[size_t(a)] > x[size_t(b)]; });
  double total = 0, reached = 0;
  for (const float v : x) total += std::exp(double(v));
  std::set<int> allowed;
  for (const int id : order) {
    if (reached >= 0.8 * total) break;
    reached += std::exp(double(x[size_t(id)]));
    allowed.insert(id);
  }
  SampleRow large;
  large.top_p = 0.8f;
  const auto got = keys_of(frequencies(*backend, x, large, 3000));
  CHECK(std::includes(allowed.begin(), allowed.end(), got.begin(), got.end()));
  CHECK(got.size() > allowed.size() / 3);
}

TEST_CASE("min-p keeps what has that share of the largest probability") {
  const auto backend = make_cpu_backend(2);
  const std::vector<float> logits = {std::log(0.1f), std::log(0.4f), std::log(0.19f),
                                     std::log(0.31f)};
  SampleRow row;
  row.min_p = 0.5f;
  CHECK(keys_of(frequencies(*backend, logits, row, 2000)) == std::set<int>{1, 3});
  row.min_p = 0.4f;
  CHECK(keys_of(frequencies(*backend, logits, row, 2000)) == std::set<int>{1, 2, 3});
  // After temperature: at 2 the ratios are square roots.
  row.temperature = 2;
  row.min_p = 0.51f;
  CHECK(keys_of(frequencies(*backend, logits, row, 2000)) == std::set<int>{1, 2, 3});
}

TEST_CASE("Penalties and bias change the logits as the header says, in its order") {
  const auto backend = make_cpu_backend(1);
  const std::vector<float> logits = {2, -1, 0.5f, 1};
  const std::vector<PenaltyToken> seen = {{0, 3, 1}, {1, 0, 1}, {2, 1, 0}};
  const std::vector<LogitBias> bias = {{3, -2}, {0, 0.25f}};
  SampleRow row;
  row.temperature = 0;
  row.logprobs = 4;
  row.repetition_penalty = 2;
  row.frequency_penalty = 0.5f;
  row.presence_penalty = 0.125f;
  row.penalties = seen;
  row.bias = bias;
  const double want[] = {2.0 / 2 - 1.5 - 0.125 + 0.25, -2, 0.25 - 0.5 - 0.125, 1.0 - 2};
  double sum = 0;
  for (const double x : want) sum += std::exp(x);
  const SampledToken token = sample(*backend, logits, row);
  CHECK(token.id == 0);  // -0.375 and -0.375 are equal: the lowest id
  REQUIRE(token.top.size() == 4);
  const int order[] = {0, 2, 3, 1};
  for (int i = 0; i < 4; ++i) {
    CHECK(token.top[size_t(i)].id == order[i]);
    CHECK(close(double(token.top[size_t(i)].logprob), want[order[i]] - std::log(sum), kLogprob));
  }
}

TEST_CASE("A forbidden token never comes, whatever else there is") {
  const auto backend = make_cpu_backend(2);
  const std::vector<LogitBias> bias = {{1, -kInfinity}};
  SampleRow row;
  row.bias = bias;
  const auto count = frequencies(*backend, {0, 50, 1}, row, 500);
  CHECK(keys_of(count) == std::set<int>{0, 2});
  row.temperature = 0;
  CHECK(sample(*backend, {0, 50, 1}, row).id == 2);
  // No finite logit at all: the lowest id that is not forbidden, and no crash.
  const float nan = std::nanf("");
  for (const float temperature : {0.0f, 1.0f}) {
    row.temperature = temperature;
    row.logprobs = 2;
    CHECK(sample(*backend, {nan, nan, nan}, row).id == 0);
    CHECK(sample(*backend, {kInfinity, -kInfinity, nan}, row).id == 0);
    const std::vector<LogitBias> first = {{0, -kInfinity}};
    SampleRow other = row;
    other.bias = first;
    CHECK(sample(*backend, {nan, -kInfinity, nan}, other).id == 1);
    other.top_k = 2;
    other.top_p = 0.5f;
    CHECK(sample(*backend, {nan, -kInfinity, nan}, other).id == 1);
  }
}

TEST_CASE("A mask is the same as a bias of -infinity for what it leaves out, before all else") {
  const auto backend = make_cpu_backend(2);
  std::mt19937 random(47);
  for (const int vocab : {1, 31, 32, 33, 64, 200})
    for (int trial = 0; trial < 20; ++trial) {
      const std::vector<float> logits = random_logits(random, vocab);
      std::vector<uint32_t> mask(size_t(vocab + 31) / 32);
      std::vector<LogitBias> forbidden;
      const int kept = int(random() % uint32_t(vocab));
      for (int id = 0; id < vocab; ++id) {
        if (id == kept || random() % 3 == 0)
          mask[size_t(id) / 32] |= 1u << (id % 32);
        else
          forbidden.push_back({id, -kInfinity});
      }
      const std::vector<PenaltyToken> penalties = {{kept, 1, 1}};
      SampleRow row;
      row.temperature = trial % 3 == 0 ? 0.f : 1.f;
      row.top_k = trial % 4 == 1 ? 3 : 0;
      row.top_p = trial % 5 == 2 ? 0.7f : 1.f;
      row.seed = uint64_t(trial);
      row.logprobs = 0;
      row.penalties = penalties;
      row.frequency_penalty = 0.5f;
      SampleRow masked = row;
      masked.mask = mask;
      row.bias = forbidden;
      const SampledToken a = sample(*backend, logits, row), b = sample(*backend, logits, masked);
      CAPTURE(vocab, trial);
      CHECK_FALSE(b.broken);
      CHECK(b.id == a.id);
      CHECK(b.logprob == a.logprob);
      CHECK((mask[size_t(b.id) / 32] >> (b.id % 32) & 1) == 1);
    }
  const std::vector<uint32_t> nothing(1, 0);
  SampleRow row;
  row.mask = nothing;
  CHECK(sample(*backend, {1, 2, 3}, row).broken);
}

TEST_CASE("A row with NaN or +infinity, or with nothing finite, is told as broken") {
  const auto backend = make_cpu_backend(1);
  const float nan = std::nanf("");
  for (const float temperature : {0.0f, 1.0f})
    for (const int top_k : {0, 2}) {
      SampleRow row;
      row.temperature = temperature;
      row.top_k = top_k;
      CHECK_FALSE(sample(*backend, {1, 2, 3}, row).broken);
      CHECK_FALSE(sample(*backend, {1, -kInfinity, 3}, row).broken);
      CHECK(sample(*backend, {1, nan, 3}, row).broken);
      CHECK(sample(*backend, {1, kInfinity, 3}, row).broken);
      CHECK(sample(*backend, {-kInfinity, -kInfinity, -kInfinity}, row).broken);
      // In every place of a vector, and in the part that fills none.
      for (const size_t vocab : {size_t(1), size_t(17), size_t(67)})
        for (size_t i = 0; i < vocab; ++i) {
          std::vector<float> logits(vocab, 1.0f);
          logits[i] = nan;
          CHECK(sample(*backend, logits, row).broken);
        }
      row.forced_token = 0;
      row.logprobs = 1;
      CHECK(sample(*backend, {1, nan, 3}, row).broken);
      CHECK_FALSE(sample(*backend, {1, 2, 3}, row).broken);
      const std::vector<LogitBias> bias = {{0, -kInfinity}};
      row.forced_token = -1;
      row.bias = bias;
      CHECK_FALSE(sample(*backend, {1, 2, 3}, row).broken);
    }
}

TEST_CASE("A forced token is scored, and the largest stand beside it") {
  const uint32_t seed = 45;
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto backend = make_cpu_backend(2);
  const auto logits = random_logits(random, 4096);
  double sum = 0;
  for (const float x : logits) sum += std::exp(double(x));
  SampleRow row;
  row.forced_token = 77;
  row.logprobs = 5;
  row.temperature = 0.3f;  // no influence on log probabilities
  const SampledToken token = sample(*backend, logits, row);
  CHECK(token.id == 77);
  CHECK(close(double(token.logprob), double(logits[77]) - std::log(sum), kLogprob));
  REQUIRE(token.top.size() == 5);
  std::vector<float> sorted = logits;
  std::sort(sorted.rbegin(), sorted.rend());
  for (size_t i = 0; i < 5; ++i) {
    CHECK(logits[size_t(token.top[i].id)] == sorted[i]);
    CHECK(close(double(token.top[i].logprob), double(sorted[i]) - std::log(sum), kLogprob));
  }
  // The same float stands in both places.
  row.forced_token = token.top[2].id;
  CHECK(sample(*backend, logits, row).logprob == token.top[2].logprob);
  row.forced_token = -1;
  row.logprobs = 0;
  CHECK(sample(*backend, logits, row).top.empty());
}

TEST_CASE("A tiny temperature is greedy, a huge one is flat") {
  const auto backend = make_cpu_backend(1);
  SampleRow row;
  row.temperature = 1e-30f;
  CHECK(keys_of(frequencies(*backend, {1, 30, 29.9f}, row, 300)) == std::set<int>{1});
  row.temperature = 1e30f;
  CHECK(keys_of(frequencies(*backend, {1, 30, 29.9f}, row, 300)) == std::set<int>{0, 1, 2});
}

TEST_CASE("Bench: sampling", "[.bench]") {
  std::mt19937 random(46);
  const auto backend = make_cpu_backend(1);
  Guarded x(DType::f32, 32, 4096), ids(DType::i32, 1, 32);
  x.fill(random, 2);
  SampleRow greedy, plain, top_p, top_k;
  greedy.temperature = 0;
  top_p.top_p = 0.95f;
  top_k.top_k = 40;
  for (const auto& [name, row] : {std::pair{"greedy", greedy},
                                  {"temperature", plain},
                                  {"top-p 0.95", top_p},
                                  {"top-k 40", top_k}}) {
    const std::vector<SampleRow> rows(32, row);
    std::vector<SampledToken> out;
    const double us = best_us([&] {
      backend->sample(*x, rows, ids.vector());
      backend->collect_samples(out);
    });
    std::printf("sample %-12s 32 rows, vocab 4096: %7.1f us\n", name, us);
  }
}
