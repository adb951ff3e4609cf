// SPDX-License-Identifier: Apache-2.0
// A store whose layers have codes of different bits: the GPU's bytes and its attention equal the
// CPU's in every layer of a step.
#include "tests/cuda/store.h"

namespace kivi::test {
namespace {

KvLayerBits table() {
  KvLayerBits bits;
  bits.add(4, 4);
  bits.add(2, 2);
  bits.add(2, 2);
  bits.add(4, 2);
  bits.add(2, 4);
  return bits;
}
constexpr int kLayers = 5;

struct Setup {
  KvFormat format;
  int head_dim, heads_q, heads_kv;
  int sequences = 4;  // that decode at once
};

// Both editions, long pages, and enough query heads a KV head for each kernel of decode attention.
std::vector<Setup> setups() {
  return {{{KvKind::kivi, 2, 2, 32, 32}, 128, 2, 2},
          {{KvKind::kivi, 4, 4, 32, 64, 32, 8, true}, 128, 8, 2},
          {{KvKind::kivi, 4, 4, 32, 32, 32, 8, true}, 64, 9, 3},
          {{KvKind::kivi, 4, 2, 128, 128, 0, 16}, 128, 16, 1},
          {{KvKind::kivi, 4, 4, 64, 64, 64, 8, true}, 64, 71, 1, 34}};
}

// Stores a step in all layers of both stores; the GPU in one call.
void append(TestStore& store, const std::vector<Chunk>& chunks, std::mt19937& random) {
  const StepView& step = store.plan(chunks);
  Pair kv(int64_t(kLayers) * step.rows, store.kv_columns(), DType::f16, DType::f16);
  kv.randomize(random);
  cpu().kv_append(kv.on_cpu(), store.host(), step, 0, kLayers);
  gpu().kv_append(kv.on_gpu(), store.device(), step, 0, kLayers);
  store.commit(chunks);
}

// Attends in every layer of one step, as a model does, and compares each.
void attend(TestStore& store, const std::vector<Chunk>& chunks, int heads_q, std::mt19937& random,
            const RowTolerance& tolerance) {
  const KvShape shape = store.layout().shape;
  const StepView& step = store.plan(chunks);
  cpu().begin_step(step, store.host(), heads_q);
  gpu().begin_step(step, store.device(), heads_q);
  for (int layer = 0; layer < kLayers; ++layer) {
    CAPTURE(layer);
    Pair q(step.rows, int64_t(heads_q) * shape.head_dim, DType::f16);
    Pair kv(step.rows, store.kv_columns(), DType::f16, DType::f16);
    Pair out(step.rows, q.columns(), DType::f16);
    q.randomize(random);
    kv.randomize(random);
    const float scale = 1 / std::sqrt(float(shape.head_dim));
    cpu().kv_attend(q.on_cpu(), kv.on_cpu(), store.host(), step, layer, scale, out.on_cpu());
    gpu().kv_attend(q.on_gpu(), kv.on_gpu(), store.device(), step, layer, scale, out.on_gpu());
    REQUIRE(out.agrees(tolerance, shape.head_dim));
  }
}

}  // namespace

TEST_CASE("every layer of mixed bits has the CPU's bytes, after chunks and after decodes") {
  for (const Setup& s : setups()) {
    CAPTURE(s.head_dim, s.format.group, s.format.residual, s.format.sinks);
    std::mt19937 random(31);
    const int r = s.format.residual, sinks = s.format.sinks;
    TestStore store({s.format, {kLayers, s.heads_kv, s.head_dim}, table()}, 3, 4 * r + 300, random);
    append(store, {{1, sinks + r + 3}, {2, 2 * r - 1}}, random);
    for (int token = 0; token < r + 5; ++token) append(store, {{0}, {1}, {2}}, random);
    append(store, {{0, 70}, {1}, {2, 3}}, random);
    append(store, {{0}, {1}, {2}}, random);
    for (int region = 0; region < 3; ++region) REQUIRE(store.same_bytes(region));
  }
}

TEST_CASE("every layer of mixed bits attends as the CPU does, with plans of its own in one step") {
  for (const Setup& s : setups()) {
    CAPTURE(s.head_dim, s.heads_q, s.format.group, s.format.residual, s.format.sinks);
    std::mt19937 random(32);
    // Long beside short: what is planned with the weights of another format would be cut elsewhere.
    const int longest = s.sequences > 4 ? 700 : 2700;
    TestStore store({s.format, {kLayers, s.heads_kv, s.head_dim}, table()}, s.sequences,
                    longest + 100, random);
    std::vector<Chunk> prompts, tokens;
    for (int i = 0; i < s.sequences; ++i) {
      prompts.push_back({i, i == 0 ? longest : 40 + int(random() % 400)});
      tokens.push_back({i});
    }
    append(store, prompts, random);
    append(store, tokens, random);
    for (int step = 0; step < 3; ++step) {
      attend(store, tokens, s.heads_q, random, attention_tolerance(DType::f16));
      append(store, tokens, random);
    }
  }
}

}  // namespace kivi::test
