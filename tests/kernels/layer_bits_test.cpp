// SPDX-License-Identifier: Apache-2.0
// A store whose layers have codes of different bits: each layer holds and reads what it would in a
// store whose layers are all like it.
#include "tests/kernels/store_harness.h"

using namespace kivi;
using namespace kivi::test;

namespace {

constexpr int kLayers = 5, kHeads = 2;

// Neighbors that differ and two that are alike.
KvLayerBits table() {
  KvLayerBits bits;
  bits.add(4, 4);
  bits.add(2, 2);
  bits.add(2, 2);
  bits.add(4, 2);
  bits.add(2, 4);
  return bits;
}

// The formats upon which the table is laid: both editions, and each G.
std::vector<KvLayout> mixed_layouts() {
  std::vector<KvLayout> all;
  for (const int d : {64, 96, 128, 256})
    for (const KvFormat& format :
         {KvFormat{KvKind::kivi, 2, 2, 32, 32}, KvFormat{KvKind::kivi, 4, 4, 32, 64, 32, 8, true},
          KvFormat{KvKind::kivi, 4, 2, 64, 64, 64, 8, true},
          KvFormat{KvKind::kivi, 4, 4, 128, 128, 0, 16}})
      if (d % format.group == 0) all.push_back({format, {kLayers, kHeads, d}, table()});
  return all;
}

// All layers' rows of a step, layer after layer, stored by one call.
void append_at_once(Backend& backend, StoreHarness& store, TestSequence& s, int count) {
  TestStep step(store, {{&s, count}});
  const int64_t columns = step.kv(0).shape[1];
  Guarded all(DType::f16, int64_t(kLayers) * count, columns);
  for (int layer = 0; layer < kLayers; ++layer)
    for (int row = 0; row < count; ++row)
      std::memcpy(all->row<f16>(int64_t(layer) * count + row), step.kv(layer).row<f16>(row),
                  size_t(columns) * 2);
  backend.kv_append(*all, store.view(), step.view(), 0, kLayers);
  REQUIRE(all.intact());
  s.past += count;
}

std::vector<float> attend(Backend& backend, const StoreHarness& store, TestSequence& s, int count,
                          int layer) {
  TestStep step(store, {{&s, count}});
  const int columns = 2 * kHeads * store.layout().shape.head_dim;  // two query heads a KV head
  Guarded q(DType::f32, count, columns), out(DType::f32, count, columns);
  std::mt19937 random(uint32_t(layer) + 7);
  q.fill(random);
  backend.begin_step(step.view(), store.view(), 2 * kHeads);
  backend.kv_attend(*q, step.kv(layer), store.view(), step.view(), layer, 0.125f, *out);
  std::vector<float> result;
  for (int row = 0; row < count; ++row)
    for (int c = 0; c < columns; ++c) result.push_back(out.get(row, c));
  return result;
}

}  // namespace

TEST_CASE("The layers of a page follow each other without gap or overlap, whatever their bits") {
  for (const KvLayout& l : mixed_layouts()) {
    INFO(text_of(l));
    int64_t begin = 0, parameters = 0;
    for (int layer = 0; layer < kLayers; ++layer) {
      const KvLayout one = l.of_layer(layer);
      CHECK(one.format.key_bits == table().key_bits(layer));
      CHECK(one.format.value_bits == table().value_bits(layer));
      CHECK(l.layer_offset(layer) == begin);
      begin += int64_t(one.block_bytes()) * kHeads;
      parameters += int64_t(one.key_parameters_bytes() + one.value_parameters_bytes()) * kHeads;
      CHECK(l.slab_bytes() == one.slab_bytes());
    }
    CHECK(l.page_bytes() == begin);
    CHECK(l.page_bytes() % 256 == 0);
    CHECK(l.page_parameters_bytes() == parameters);
    const int page = l.format.sinks + std::max(l.page_tokens(), l.format.residual);
    CHECK(kv_bytes(l, page).codes + kv_bytes(l, page).parameters ==
          l.pages_for(page) * l.page_bytes());
  }
}

TEST_CASE("A table whose layers are alike lays a page out as the plain format does") {
  for (const int keys : {2, 4})
    for (const int values : {2, 4})
      for (const int d : {64, 96, 128, 256}) {
        KvLayerBits bits;
        for (int layer = 0; layer < 40; ++layer) bits.add(keys, values);
        CHECK(bits.uniform());
        // The bits of the format that the table is laid upon do not matter.
        const KvLayout l{{KvKind::kivi, 6 - keys, 6 - values, 32, 32, 32, 8}, {40, 3, d}, bits};
        const KvLayout plain{{KvKind::kivi, keys, values, 32, 32, 32, 8}, {40, 3, d}};
        CHECK(l.page_bytes() == plain.page_bytes());
        for (const int layer : {0, 1, 31, 32, 39}) {
          CHECK(l.layer_offset(layer) == plain.layer_offset(layer));
          CHECK(l.of_layer(layer) == plain);
        }
      }
  CHECK_FALSE(table().uniform());
}

TEST_CASE("The last layer of the longest table is found") {
  KvLayerBits bits;
  for (int layer = 0; layer < KvLayerBits::kLayersMax; ++layer) bits.add(layer % 3 ? 2 : 4, 2);
  CHECK(bits.layers == 256);
  CHECK(bits.key_bits(255) == 4);
  CHECK(bits.key_bits(254) == 2);
  CHECK(bits.wide_keys_before(256) == 86);
  CHECK(bits.wide_values_before(256) == 0);
}

TEST_CASE("A layer of a mixed store holds and reads what a store of its format does") {
  const uint32_t seed = 5;
  CAPTURE(seed);
  const auto backend = make_cpu_backend(2);
  for (const KvLayout& l : mixed_layouts()) {
    INFO(text_of(l));
    const int tokens = l.format.sinks + 3 * l.format.residual + 70;
    StoreHarness mixed(*backend, l, 1, tokens + 40, seed);
    TestSequence s = mixed.sequence(tokens + 40);
    for (const int count : {l.format.sinks + l.format.residual + 17, 1, 1})
      append(*backend, mixed, {{&s, count}});
    while (s.past < tokens) append_at_once(*backend, mixed, s, std::min(29, tokens - s.past));
    for (int layer = 0; layer < kLayers; ++layer) {
      INFO("layer " << layer);
      StoreHarness plain(*backend, l.of_layer(layer), 1, tokens + 40, seed);
      TestSequence t = plain.twin(s);
      for (int left = tokens; left > 0; left -= 50)
        append(*backend, plain, {{&t, std::min(50, left)}});
      REQUIRE(mixed.content(s, layer) == plain.content(t, layer));
      for (const int count : {1, 40})  // a decode, and a chunk that reads codes
        REQUIRE(attend(*backend, mixed, s, count, layer) ==
                attend(*backend, plain, t, count, layer));
    }
  }
}

TEST_CASE("A prompt that is staged is quantized by the bits of each layer") {
  const uint32_t seed = 6;
  CAPTURE(seed);
  const auto backend = make_cpu_backend(2);
  const KvLayout l{{KvKind::kivi, 4, 4, 32, 32, 32, 8, true}, {kLayers, kHeads, 64}, table()};
  StoreHarness store(*backend, l, 2, 300, seed);
  TestSequence staged = store.sequence(300), grown = store.twin(staged);
  append(*backend, store, {{&staged, 100, KvMode::stage}});
  append(*backend, store, {{&staged, 200, KvMode::seal}});
  append(*backend, store, {{&grown, 300}});
  CHECK(store.content(staged) == store.content(grown));
}
