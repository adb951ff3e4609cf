// SPDX-License-Identifier: Apache-2.0
// kv_attend against dense attention in fp64 over the numbers that the store is defined to hold
// (kivi_reference.h, e4m3, fp16), and the bit-for-bit promises.
#include "tests/kernels/store_harness.h"

using namespace kivi;
using namespace kivi::test;

namespace {

struct Case {
  KvLayout layout;
  int group = 1;  // query heads a KV head
  int window = 0;
  Tolerance tolerance = kAttention;
};

KvLayout kivi_layout(int k, int v, int group, int residual, int d, int heads = 2) {
  return {{KvKind::kivi, k, v, group, residual}, {1, heads, d}};
}
// With sinks and parameters of 8 bits, and the correction of keys.
KvLayout second_layout(int k, int v, int group, int residual, int d, int sinks, bool key_bias,
                       int heads = 2) {
  return {{KvKind::kivi, k, v, group, residual, sinks, 8, key_bias}, {1, heads, d}};
}
KvLayout f16_layout(int d, int heads = 2) { return {{KvKind::f16, 16, 16, 0, 0}, {1, heads, d}}; }
KvLayout f8_layout(int d, int heads = 2) { return {{KvKind::f8, 8, 8, 0, 0}, {1, heads, d}}; }

// What rows of a step read of one KV head: history of `past` tokens as stored (or f16, where it
// stands in staging), then the step's own in f16.
struct Visible {
  std::vector<std::vector<double>> keys, values;  // [tokens][d]
  std::vector<std::vector<double>> steps;  // [tokens][d]: scales of keys that are codes; else empty
};

Visible visible(const KvLayout& l, const TestSequence& s, int head, int past, int tokens) {
  const int d = l.shape.head_dim;
  const KvFormat& f = l.format;
  KiviReference reference(f.key_bits, f.value_bits, std::max(1, f.group), std::max(1, f.residual),
                          d, f.sinks, f.parameter_bits);
  Visible out;
  out.steps.resize(size_t(tokens));
  for (int t = 0; t < tokens; ++t) {
    std::vector<double> key, value;
    for (int c = 0; c < d; ++c) {
      key.push_back(double(to_float(s.tokens[0][size_t(t)][size_t(head * d + c)])));
      value.push_back(
          double(to_float(s.tokens[0][size_t(t)][size_t((l.shape.heads + head) * d + c)])));
    }
    reference.append(key, value);
    out.keys.push_back(key);
    out.values.push_back(value);
  }
  if (s.in_staging || f.kind == KvKind::f16) return out;
  for (int t = 0; t < past; ++t)
    for (int c = 0; c < d; ++c) {
      double& key = out.keys[size_t(t)][size_t(c)];
      double& value = out.values[size_t(t)][size_t(c)];
      if (f.kind == KvKind::f8) {
        key = double(from_e4m3(to_e4m3(float(key))));
        value = double(from_e4m3(to_e4m3(float(value))));
        continue;
      }
      if (reference.key_is_quantized(t, past)) {
        key = reference.dequantized_key(t, c);
        out.steps[size_t(t)].push_back(reference.key_group(t, c).scale);
      }
      if (reference.value_is_quantized(t, past)) value = reference.dequantized_value(t, c);
    }
  return out;
}

// With `biased`, the logits of keys that are codes lose what their noise adds to them on average:
// (scale q_c D_c)^2 / 24, summed over channels c of step D_c (docs/design/kv-format.md, section 9).
std::vector<double> dense(const Visible& seen, const float* q, int position, int window,
                          double scale, bool biased) {
  const int begin = window > 0 ? std::max(0, position - window + 1) : 0;
  std::vector<double> scores, out(seen.values[0].size());
  double largest = -1e300, sum = 0;
  for (int t = begin; t <= position; ++t) {
    double score = 0;
    for (size_t c = 0; c < out.size(); ++c) score += double(q[c]) * seen.keys[size_t(t)][c];
    score *= scale;
    if (biased)
      for (size_t c = 0; c < seen.steps[size_t(t)].size(); ++c)
        score -= std::pow(scale * double(q[c]) * seen.steps[size_t(t)][c], 2) / 24;
    scores.push_back(score);
    largest = std::max(largest, scores.back());
  }
  for (int t = begin; t <= position; ++t) {
    const double p = std::exp(scores[size_t(t - begin)] - largest);
    sum += p;
    for (size_t c = 0; c < out.size(); ++c) out[c] += p * seen.values[size_t(t)][c];
  }
  for (double& x : out) x /= sum;
  return out;
}

// Attends with random queries, checks every row against dense(), returns the output.
std::vector<float> attend(Backend& backend, const StoreHarness& store, const Case& c,
                          const std::vector<Part>& parts, uint32_t seed, bool check = true) {
  const int d = c.layout.shape.head_dim, heads = c.layout.shape.heads;
  TestStep step(store, parts);
  step.view().sliding_window = c.window;
  const int columns = heads * c.group * d;
  Guarded q(DType::f32, step.view().rows, columns, 8), out(DType::f32, step.view().rows, columns);
  // A row's query depends on its sequence's first token and its position: the same in any company.
  int row = 0;
  for (const Part& part : parts)
    for (int i = 0; i < part.count; ++i, ++row) {
      std::mt19937 random(seed + uint32_t(part.sequence->past + i) * 977 +
                          part.sequence->tokens[0][0][0].bits);
      std::normal_distribution<float> normal;
      for (int x = 0; x < columns; ++x) q.set(row, x, normal(random));
    }
  const float scale = 1 / std::sqrt(float(d));
  backend.begin_step(step.view(), store.view(), heads * c.group);
  backend.kv_attend(*q, step.kv(0), store.view(), step.view(), 0, scale, *out);
  REQUIRE(out.intact());
  std::vector<float> result;
  for (int i = 0; i < step.view().rows; ++i)
    result.insert(result.end(), out->row<float>(i), out->row<float>(i) + columns);
  if (!check) return result;
  row = 0;
  Worst worst(c.tolerance);
  for (const Part& part : parts) {
    const TestSequence& s = *part.sequence;
    for (int head = 0; head < heads; ++head) {
      const int total = s.past + part.count;
      const Visible seen = visible(c.layout, s, head, s.past, total);
      const bool biased =
          c.layout.format.key_bias && part.count == 1 && part.mode == KvMode::append;
      for (int i = 0; i < part.count; ++i)
        for (int h = 0; h < c.group; ++h) {
          const int column = (head * c.group + h) * d;
          const auto want = dense(seen, q->row<float>(row + i) + column, s.past + i, c.window,
                                  double(scale), biased);
          for (int x = 0; x < d; ++x)
            worst.add(double(out->row<float>(row + i)[column + x]), want[size_t(x)]);
        }
    }
    row += part.count;
  }
  REQUIRE(worst.ok());
  return result;
}

std::string text(const Case& c) {
  const KvFormat& f = c.layout.format;
  return "K" + std::to_string(f.key_bits) + "V" + std::to_string(f.value_bits) + " G " +
         std::to_string(f.group) + " R " + std::to_string(f.residual) + " S " +
         std::to_string(f.sinks) + " parameters " + std::to_string(f.parameter_bits) +
         (f.key_bias ? " biased" : "") + " d " + std::to_string(c.layout.shape.head_dim) +
         " query heads a KV head " + std::to_string(c.group) + " window " +
         std::to_string(c.window);
}

}  // namespace

TEST_CASE("Decode attention equals dense attention over the stored numbers at every length") {
  const uint32_t seed = 11;
  CAPTURE(seed);
  const auto backend = make_cpu_backend(2);
  for (const Case& c : {Case{kivi_layout(2, 2, 32, 32, 64), 2},
                        {kivi_layout(4, 2, 32, 64, 96), 3},
                        {kivi_layout(2, 4, 64, 128, 128), 1},
                        {kivi_layout(4, 4, 128, 128, 128), 4},
                        {f16_layout(64), 2},
                        {f8_layout(64), 2},
                        {second_layout(2, 2, 32, 32, 64, 32, true), 2},
                        {second_layout(4, 2, 64, 64, 128, 64, false), 1},
                        {second_layout(4, 4, 32, 64, 96, 96, true), 2},
                        {second_layout(2, 4, 32, 32, 256, 32, true), 1},
                        {second_layout(2, 2, 128, 128, 128, 128, true), 1}}) {
    INFO(text(c));
    const int tokens = 270;
    StoreHarness store(*backend, c.layout, 1, tokens, seed);
    TestSequence s = store.sequence(tokens);
    for (int t = 0; t < tokens; ++t) {
      // All lengths round the borders of pages, groups and residuals; some others.
      if (t % 32 < 2 || t % 32 == 31 || t % 7 == 0) attend(*backend, store, c, {{&s, 1}}, seed);
      append(*backend, store, {{&s, 1}});
    }
  }
}

TEST_CASE("Any format, head size, GQA ratio, row count and window equals dense attention") {
  const uint32_t seed = 12;
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto backend = make_cpu_backend(2);
  const std::vector<KvLayout> layouts = {f16_layout(64),
                                         f16_layout(96),
                                         f16_layout(128),
                                         f16_layout(16),
                                         f16_layout(80),
                                         f16_layout(256),
                                         f8_layout(64),
                                         f8_layout(96),
                                         f8_layout(128),
                                         f8_layout(80),
                                         kivi_layout(2, 2, 32, 32, 64),
                                         kivi_layout(4, 4, 32, 32, 64),
                                         kivi_layout(4, 2, 64, 64, 64),
                                         kivi_layout(2, 4, 32, 128, 96),
                                         kivi_layout(2, 2, 32, 128, 128),
                                         kivi_layout(4, 4, 64, 128, 128),
                                         kivi_layout(2, 2, 128, 128, 128),
                                         kivi_layout(4, 2, 32, 64, 256),
                                         second_layout(2, 2, 32, 32, 64, 32, true),
                                         second_layout(2, 4, 64, 64, 128, 0, true),
                                         second_layout(4, 2, 32, 64, 128, 96, true)};
  for (size_t i = 0; i < layouts.size(); ++i)
    for (int repeat = 0; repeat < 4; ++repeat) {
      const int groups[] = {1, 2, 3, 4, 8}, counts[] = {1, 3, 17, 64, 65};
      const Case c{layouts[i], groups[random() % 5], random() % 2 ? 0 : 1 + int(random() % 120)};
      INFO(text(c));
      StoreHarness store(*backend, c.layout, 3, 300, seed);
      std::vector<TestSequence> sequences;
      std::vector<Part> parts;
      for (int n = 0; n < 3; ++n) sequences.push_back(store.sequence(300));
      for (TestSequence& s : sequences) {
        const int past = int(random() % 200);
        if (past > 0) append(*backend, store, {{&s, past}});
        parts.push_back({&s, counts[random() % 5]});
      }
      attend(*backend, store, c, parts, seed);
    }
}

TEST_CASE("One KV head serves 71 query heads") {
  const auto backend = make_cpu_backend(2);
  for (const KvLayout& layout :
       {f16_layout(64, 1), f8_layout(64, 1), kivi_layout(2, 2, 32, 32, 64, 1)}) {
    const Case c{layout, 71};
    StoreHarness store(*backend, layout, 2, 200, 13);
    TestSequence a = store.sequence(200), b = store.sequence(200);
    append(*backend, store, {{&a, 130}});
    attend(*backend, store, c, {{&a, 1}, {&b, 17}}, 13);
    attend(*backend, store, c, {{&a, 3}}, 13);
  }
}

TEST_CASE("Chunks of a prompt in staging attend its f16 history, then commit leaves the pages") {
  const auto backend = make_cpu_backend(2);
  for (const KvLayout& layout :
       {f16_layout(64), f8_layout(96), kivi_layout(2, 2, 32, 64, 64),
        kivi_layout(4, 4, 64, 64, 128), second_layout(2, 2, 32, 32, 128, 32, true)})
    for (const int window : {0, 70}) {
      const Case c{layout, 2, window};
      INFO(text(c));
      StoreHarness store(*backend, layout, 1, 260, 14);
      TestSequence s = store.sequence(260);
      for (const int n : {65, 64, 17}) {
        s.in_staging = true;
        attend(*backend, store, c, {{&s, n, KvMode::stage}}, 14);
        append(*backend, store, {{&s, n, KvMode::stage}});
      }
      attend(*backend, store, c, {{&s, 100, KvMode::seal}}, 14);
      append(*backend, store, {{&s, 100, KvMode::seal}});
      attend(*backend, store, c, {{&s, 1}}, 14);
      append(*backend, store, {{&s, 1}});
      attend(*backend, store, c, {{&s, 3}}, 14);
    }
}

TEST_CASE("fp16: a row's bits do not depend on where its history came from") {
  const uint32_t seed = 15;
  const auto backend = make_cpu_backend(2);
  for (const int d : {64, 80, 128})
    for (const int window : {0, 90}) {
      const Case c{f16_layout(d), 3, window};
      const int tokens = 201, columns = 2 * 3 * d;
      StoreHarness store(*backend, c.layout, 4, tokens, seed);
      TestSequence whole = store.sequence(tokens);
      TestSequence single = store.twin(whole), chunked = store.twin(whole);
      TestSequence staged = store.twin(whole);
      const std::vector<float> want =
          attend(*backend, store, c, {{&whole, tokens}}, seed, /*check=*/false);
      const auto grow = [&](TestSequence& s, int n, KvMode mode) {
        const int past = s.past;
        const auto got = attend(*backend, store, c, {{&s, n, mode}}, seed, /*check=*/false);
        REQUIRE(same_bits(got.data(), want.data() + past * columns, n * columns));
        append(*backend, store, {{&s, n, mode}});
      };
      for (int t = 0; t < tokens; ++t) grow(single, 1, KvMode::append);
      for (const int n : {3, 64, 65, 17, 52}) grow(chunked, n, KvMode::append);
      for (const int n : {70, 1, 63}) grow(staged, n, KvMode::stage);
      grow(staged, 60, KvMode::seal);
      for (int t = 194; t < tokens; ++t) grow(staged, 1, KvMode::append);
    }
}

TEST_CASE("A sequence's attention has the same bits alone and between poisoned neighbors") {
  const uint32_t seed = 16;
  const auto one = make_cpu_backend(1), two = make_cpu_backend(2);
  for (const KvLayout& layout :
       {f16_layout(64), f8_layout(64), kivi_layout(2, 2, 32, 32, 64),
        kivi_layout(4, 4, 64, 128, 128), second_layout(2, 2, 32, 32, 64, 32, true)}) {
    const Case c{layout, 4};
    INFO(text(c));
    StoreHarness store(*one, layout, 4, 220, seed);
    TestSequence alone = store.sequence(220), company = store.twin(alone);
    TestSequence before = store.twin(alone), behind = store.twin(alone);
    for (TestSequence* s : {&before, &behind})
      for (auto& row : s->tokens[0])
        for (size_t i = 0; i < row.size(); ++i) row[i].bits = i % 2 ? 0x7e00 : 0xfc00;
    for (const int n : {150, 1, 1, 17, 1}) {
      const auto a = attend(*one, store, c, {{&alone, n}}, seed);
      const auto b = attend(*two, store, c, {{&before, 3}, {&company, n}, {&behind, n}}, seed,
                            /*check=*/false);
      const int columns = layout.shape.heads * c.group * layout.shape.head_dim;
      REQUIRE(same_bits(a.data(), b.data() + 3 * columns, int64_t(a.size())));
      append(*one, store, {{&alone, n}});
      append(*two, store, {{&before, 3}, {&company, n}, {&behind, n}});
    }
  }
}

TEST_CASE("Large scores neither overflow nor lose the largest") {
  const auto backend = make_cpu_backend(1);
  const Case c{f16_layout(64, 1), 1, 0, kAttentionLargeScores};
  StoreHarness store(*backend, c.layout, 1, 200, 17);
  TestSequence s = store.sequence(200, /*size=*/300);
  append(*backend, store, {{&s, 190}});
  attend(*backend, store, c, {{&s, 10}}, 17);
}

TEST_CASE("Histories of several segments equal dense attention, whole, in chunks or single") {
  const uint32_t seed = 18;
  const auto one = make_cpu_backend(1), two = make_cpu_backend(2);
  for (const int window : {0, 1500}) {
    const Case f16{f16_layout(64, 1), 2, window},
        codes{kivi_layout(4, 2, 32, 64, 64, 1), 2, window},
        second{second_layout(2, 2, 32, 32, 64, 32, true, 1), 2, window};
    const int tokens = 2120, columns = 2 * 64;
    StoreHarness store(*one, f16.layout, 2, tokens, seed),
        packed(*one, codes.layout, 1, tokens, seed);
    TestSequence whole = store.sequence(tokens), parts = store.twin(whole);
    const auto want = attend(*two, store, f16, {{&whole, tokens}}, seed, /*check=*/false);
    for (const int n : {1000, 60, 1000, 1, 1, 58}) {
      const int past = parts.past;
      const auto got = attend(*one, store, f16, {{&parts, n}}, seed, /*check=*/n == 1);
      REQUIRE(same_bits(got.data(), want.data() + past * columns, n * columns));
      append(*two, store, {{&parts, n}});
    }
    TestSequence s = packed.sequence(tokens);
    append(*two, packed, {{&s, 2100}});
    attend(*two, packed, codes, {{&s, 3}}, seed);
    StoreHarness sinks(*one, second.layout, 1, tokens, seed);
    TestSequence z = sinks.sequence(tokens);
    append(*two, sinks, {{&z, 2100}});
    attend(*two, sinks, second, {{&z, 1}}, seed);
  }
}

TEST_CASE("Bench: decode attention", "[.bench]") {
  const auto backend = make_cpu_backend(1);
  struct Shape {
    const char* name;
    int heads, group, d;
  };
  for (const Shape& shape : {Shape{"tales-llama", 2, 2, 64}, {"8 KV heads d 128", 8, 4, 128}})
    for (const int tokens : {256, 1024, 4096})
      for (KvLayout layout :
           {f16_layout(shape.d), f8_layout(shape.d), kivi_layout(4, 4, 32, 128, shape.d),
            kivi_layout(2, 2, 32, 128, shape.d)}) {
        layout.shape.heads = shape.heads;
        StoreHarness store(*backend, layout, 1, tokens + 1, 19);
        TestSequence s = store.sequence(tokens + 1);
        append(*backend, store, {{&s, tokens}});
        std::mt19937 random(1);
        const int columns = shape.heads * shape.group * shape.d;
        Guarded q(DType::f32, 1, columns), out(DType::f32, 1, columns);
        q.fill(random);
        TestStep step(store, {{&s, 1}});
        backend->begin_step(step.view(), store.view(), shape.heads * shape.group);
        const double us = best_us([&] {
          backend->kv_attend(*q, step.kv(0), store.view(), step.view(), 0, 0.125f, *out);
        });
        std::printf("attend %-16s %2d bits, %4d tokens: %8.1f us, %.2f ns a token and KV head\n",
                    shape.name, layout.format.key_bits, tokens, us,
                    us * 1e3 / tokens / shape.heads);
      }
}

TEST_CASE("Bench: append", "[.bench]") {
  const auto backend = make_cpu_backend(1);
  for (const KvLayout& layout : {f16_layout(64), f8_layout(64), kivi_layout(4, 4, 32, 128, 64),
                                 kivi_layout(2, 2, 32, 128, 64)}) {
    StoreHarness store(*backend, layout, 1, 1024, 20);
    TestSequence s = store.sequence(1024);
    TestStep prompt(store, {{&s, 512}});
    const double chunk =
        best_us([&] { backend->kv_append(prompt.kv(0), store.view(), prompt.view(), 0); });
    append(*backend, store, {{&s, 512}});
    // 128 decode steps, one of which flushes keys.
    std::vector<std::unique_ptr<TestStep>> steps;
    for (int i = 0; i < 128; ++i) {
      steps.push_back(std::make_unique<TestStep>(store, std::vector<Part>{{&s, 1}}));
      ++s.past;
    }
    const double decode = best_us([&] {
      for (auto& step : steps) backend->kv_append(step->kv(0), store.view(), step->view(), 0);
    });
    std::printf(
        "append %2d bits, 2 KV heads d 64: %.2f us a decoded token, %.2f us a prompt token\n",
        layout.format.key_bits, decode / 128, chunk / 512);
  }
}
