// SPDX-License-Identifier: Apache-2.0
// kv_append: the GPU's store equals the CPU's byte for byte, whatever the steps are.
#include "tests/cuda/store.h"

namespace kivi::test {
namespace {

// Keys and values as models make them: a few channels far larger than the others, ties, constants,
// and now and then a value that is not finite.
void fill(Pair& kv, std::mt19937& random, bool strange) {
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> x(kv.values().size());
  const size_t columns = size_t(kv.on_cpu().shape[1]);
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t c = i % columns;
    x[i] = normal(random) * (c % 17 == 3 ? 12.f : 1.f);
    if (c % 23 == 5) x[i] = 0.75f;                          // a constant channel
    if (c % 29 == 7) x[i] = std::round(x[i] * 2.f) * 0.5f;  // ties
    if (strange && random() % 97 == 0)
      x[i] = random() % 2 ? std::numeric_limits<float>::quiet_NaN()
                          : std::numeric_limits<float>::infinity();
    if (strange && c % 31 == 9) x[i] *= 30000.f;  // max - min overflows fp16
  }
  kv.set(x);
}

// The CPU stores layer by layer, the GPU all at once.
void append(TestStore& store, const std::vector<Chunk>& chunks, std::mt19937& random,
            bool strange) {
  const StepView& step = store.plan(chunks);
  const int layers = store.layout().shape.layers;
  Pair kv(int64_t(layers) * step.rows, store.kv_columns(), DType::f16, DType::f16);
  fill(kv, random, strange);
  for (int layer = 0; layer < layers; ++layer)
    cpu().kv_append(kv.on_cpu().slice_rows(int64_t(layer) * step.rows, step.rows), store.host(),
                    step, layer);
  gpu().kv_append(kv.on_gpu(), store.device(), step, 0, layers);
  store.commit(chunks);
}

void require_same(const TestStore& store) {
  CAPTURE(store.sequence(0).past, store.sequence(1).past, store.sequence(2).past);
  REQUIRE(store.same_bytes(0));
  REQUIRE(store.same_bytes(1));
  REQUIRE(store.same_bytes(2));
}

}  // namespace

TEST_CASE("decode appends leave the CPU's bytes after every token, from 0 to beyond 3 R") {
  for (const int d : {64, 128, 256})
    for (const KvFormat& format : all_formats(d)) {
      CAPTURE(d, int(format.kind), format.key_bits, format.value_bits, format.group,
              format.residual, format.sinks, format.parameter_bits);
      std::mt19937 random(11);
      const int r = std::max(format.residual, 64), sinks = format.sinks;
      TestStore store({format, {2, 2, d}}, 3, 4 * r + 70 + 2 * sinks, random);
      // Sequences 1 and 2 begin elsewhere, so that flushes do not coincide.
      append(store, {{1, sinks + r / 2 + 3}, {2, r - 1}}, random, d == 64);
      for (int token = 0; token < sinks + 3 * r + 5; ++token) {
        append(store, {{0}, {1}, {2}}, random, d == 64);
        const auto is_near_flush = [&](int i) {
          return (store.sequence(i).past + 8 * r - sinks) % r <= 1;
        };
        if (token % 16 == 0 || is_near_flush(0) || is_near_flush(2)) require_same(store);
      }
      require_same(store);
    }
}

// Short, for compute-sanitizer: in each step one sequence flushes and others evict, in one launch.
TEST_CASE("rows and flushes of one launch leave the CPU's bytes") {
  for (const KvFormat& format : {KvFormat{KvKind::kivi, 2, 2, 32, 64},
                                 {KvKind::kivi, 4, 2, 128, 128},
                                 {KvKind::kivi, 2, 2, 32, 64, 64, 8, true}})
    for (const int d : {128, 256}) {
      CAPTURE(d, format.group, format.residual, format.sinks);
      std::mt19937 random(13);
      const int r = format.residual;
      TestStore store({format, {2, 3, d}}, 3, 3 * r, random);
      append(store, {{0, r - 1}, {1, r - 2}, {2, 2 * r - 3}}, random, false);
      for (int token = 0; token < 4; ++token) append(store, {{0}, {1}, {2}}, random, false);
      require_same(store);
    }
}

// So many heads that a warp of a decode append has several, and the last of a sequence fewer.
TEST_CASE("decode appends of many heads leave the CPU's bytes") {
  for (const KvFormat& format :
       {KvFormat{KvKind::kivi, 2, 2, 32, 32}, KvFormat{KvKind::kivi, 4, 4, 32, 32},
        KvFormat{KvKind::kivi, 2, 2, 32, 32, 32, 8, true}}) {
    CAPTURE(format.key_bits, format.value_bits, format.sinks, format.parameter_bits);
    std::mt19937 random(16);
    TestStore store({format, {4, 711, 128}}, 3, format.sinks + 70, random);
    auto* slots = reinterpret_cast<uint32_t*>(store.host().slots);
    const int64_t bytes = store.layout().slot_bytes() * store.host().slot_count;
    for (int64_t i = 0; i < bytes / 4; ++i) slots[i] = uint32_t(random());
    store.send();
    // As if they had been stored: one is about to flush, one evicts, one does neither.
    store.commit({{0, format.sinks + 62}, {1, format.sinks + 45}, {2, format.sinks + 3}});
    for (int token = 0; token < 3; ++token) append(store, {{0}, {1}, {2}}, random, token == 1);
    require_same(store);
  }
}

TEST_CASE("values that are written early, and not again, leave the CPU's bytes") {
  for (const KvFormat& format : all_formats(128)) {
    if (format.kind != KvKind::kivi) continue;
    CAPTURE(format.key_bits, format.value_bits, format.group, format.residual, format.sinks);
    std::mt19937 random(14);
    const int r = format.residual, stored = 2 * std::max(r, 64), end = format.sinks + stored;
    TestStore store({format, {2, 3, 128}}, 3, 1000, random);
    // Sequence 0 appends, 1 seals, 2 does neither. All end behind the same boundary.
    append(store, {{0, end - 20}, {1, end - 20, KvMode::stage}, {2, end - 20}}, random, false);
    append(store, {{0, 30, KvMode::append, 0, stored}, {1, 30, KvMode::seal, 0, stored}, {2, 30}},
           random, false);
    require_same(store);
    for (int token = 0; token < r; ++token) {
      append(store, {{0, 1, KvMode::append, stored}, {1, 1, KvMode::append, stored}, {2}}, random,
             false);
      if (token % 8 == 0) require_same(store);
    }
    append(store, {{0, 40, KvMode::append, stored}, {1, 100, KvMode::append, stored}, {2, 3}},
           random, false);
    require_same(store);
  }
}

TEST_CASE("prompt chunks, staging and commit leave the CPU's bytes") {
  for (const int d : {64, 128, 256})
    for (const KvFormat& format : all_formats(d)) {
      CAPTURE(d, int(format.kind), format.key_bits, format.value_bits, format.group,
              format.residual, format.sinks, format.parameter_bits);
      std::mt19937 random(12);
      TestStore store({format, {2, 3, d}}, 3, 700, random);
      append(store, {{0, 1, KvMode::stage}, {1, 65}, {2, 3, KvMode::seal}}, random, false);
      require_same(store);
      append(store, {{0, 130, KvMode::stage}, {1, 1}, {2, 128}}, random, false);
      require_same(store);
      append(store, {{0, 64, KvMode::seal}, {1, 127}, {2, 200}}, random, true);
      require_same(store);
      append(store, {{0, 17}, {1, 300}, {2, 1}}, random, false);
      require_same(store);
    }
}

TEST_CASE("more chunks than a launch takes, with decodes among them, leave the CPU's bytes") {
  for (const KvFormat& format : {KvFormat{KvKind::kivi, 2, 2, 32, 32}, f16_format()}) {
    CAPTURE(int(format.kind));
    std::mt19937 random(15);
    constexpr int kSequences = 300;
    TestStore store({format, {1, 2, 64}}, kSequences, 160, random);
    std::vector<Chunk> first, second;
    for (int i = 0; i < kSequences; ++i) {
      first.push_back({i, 20 + i % 50, i % 7 == 3 ? KvMode::stage : KvMode::append});
      if (i % 7 == 3)
        second.push_back({i, 35, KvMode::seal});
      else
        second.push_back({i, i % 5 == 0 ? 1 : 35});
    }
    append(store, first, random, false);
    require_same(store);
    append(store, second, random, false);
    require_same(store);
  }
}

}  // namespace kivi::test
