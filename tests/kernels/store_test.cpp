// SPDX-License-Identifier: Apache-2.0
// kv_append against the literal transcription of docs/design/kv-format.md (kivi_reference.h).
#include "tests/kernels/store_harness.h"

using namespace kivi;
using namespace kivi::test;

namespace {

KvLayout layout_of(int key_bits, int value_bits, int group, int residual, int head_dim = 64,
                   int heads = 1, int layers = 1, int sinks = 0, int parameter_bits = 16) {
  return {{KvKind::kivi, key_bits, value_bits, group, residual, sinks, parameter_bits},
          {layers, heads, head_dim}};
}

KiviReference reference_of(const KvLayout& l, const TestSequence& s, int layer, int head) {
  const int d = l.shape.head_dim;
  KiviReference reference(l.format.key_bits, l.format.value_bits, l.format.group, l.format.residual,
                          d, l.format.sinks, l.format.parameter_bits);
  for (const std::vector<f16>& row : s.tokens[size_t(layer)]) {
    std::vector<double> key, value;
    for (int c = 0; c < d; ++c) {
      key.push_back(double(to_float(row[size_t(head * d + c)])));
      value.push_back(double(to_float(row[size_t((l.shape.heads + head) * d + c)])));
    }
    reference.append(key, value);
  }
  return reference;
}

// Counts what differs between the store and the reference after s.past tokens.
int differences(const StoreHarness& store, const TestSequence& s, int layer, int head,
                KiviReference& reference) {
  const KvLayout& l = store.layout();
  const int tokens = s.past, d = l.shape.head_dim, g = l.format.group;
  int wrong = keys_paged(l.format, tokens) != reference.keys_quantized(tokens);
  wrong += values_paged(l.format, tokens) != reference.values_quantized(tokens);
  for (int t = 0; t < tokens; ++t) {
    const int position = t - l.format.sinks;  // negative: a sink, which has no page
    const std::byte* block = nullptr;
    int row = 0;
    if (position >= 0) {
      block = store.view().page_block(layer, s.pages[size_t(position / l.page_tokens())], head);
      row = position % l.page_tokens();
    }
    for (int c = 0; c < d; ++c) {
      if (reference.key_is_quantized(t, tokens)) {
        const GroupParameters got = read_key_parameters(l, block, row, c);
        const ReferenceGroup& want = reference.key_group(t, c);
        wrong += read_key_code(l, block, row, c) != want.codes[size_t(position % g)];
        wrong += double(to_float(got.scale)) != want.scale;
        wrong += double(to_float(got.minimum)) != want.minimum;
      } else {
        wrong += double(to_float(store.row_of(s, layer, head, Side::key, t, c))) !=
                 reference.key(t)[size_t(c)];
      }
      if (reference.value_is_quantized(t, tokens)) {
        const GroupParameters got = read_value_parameters(l, block, row, c);
        const ReferenceGroup& want = reference.value_group(t, c);
        wrong += read_value_code(l, block, row, c) != want.codes[size_t(c % g)];
        wrong += double(to_float(got.scale)) != want.scale;
        wrong += double(to_float(got.minimum)) != want.minimum;
      } else {
        wrong += double(to_float(store.row_of(s, layer, head, Side::value, t, c))) !=
                 reference.value(t)[size_t(c)];
      }
    }
  }
  return wrong;
}

std::vector<KvLayout> all_layouts() {
  std::vector<KvLayout> all;
  for (const auto& [k, v] : {std::pair{2, 2}, {4, 4}, {4, 2}, {2, 4}})
    for (const int group : {32, 64})
      for (const int residual : {32, 64, 128})
        if (residual % group == 0) all.push_back(layout_of(k, v, group, residual));
  all.push_back(layout_of(2, 4, 32, 32, 96, 1));
  all.push_back(layout_of(4, 2, 128, 128, 128, 1));
  all.push_back(layout_of(2, 2, 32, 64, 128, 2, 2));
  // Sinks and parameters of 8 bits.
  all.push_back(layout_of(2, 2, 32, 32, 64, 1, 1, 32));
  all.push_back(layout_of(2, 2, 32, 64, 64, 2, 2, 32, 8));
  all.push_back(layout_of(4, 2, 32, 32, 96, 1, 1, 96, 8));
  all.push_back(layout_of(4, 4, 64, 64, 128, 1, 1, 64, 8));
  all.push_back(layout_of(2, 4, 128, 128, 128, 1, 1, 128, 8));
  all.push_back(layout_of(2, 2, 64, 128, 64, 1, 1, 0, 8));
  all.push_back(layout_of(4, 2, 32, 32, 256, 1, 1, 32, 8));
  return all;
}

}  // namespace

TEST_CASE("Grown token by token, the store equals the page for every T from 0 to 3R + 5") {
  const uint32_t seed = 1;
  CAPTURE(seed);
  const auto backend = make_cpu_backend(1);
  for (const KvLayout& l : all_layouts()) {
    INFO(text_of(l));
    const int tokens = l.format.sinks + 3 * l.format.residual + 5;
    StoreHarness store(*backend, l, 1, tokens, seed);
    TestSequence s = store.sequence(tokens);
    std::vector<KiviReference> references;
    for (int layer = 0; layer < l.shape.layers; ++layer)
      for (int head = 0; head < l.shape.heads; ++head)
        references.push_back(reference_of(l, s, layer, head));
    for (int t = 1; t <= tokens; ++t) {
      append(*backend, store, {{&s, 1}});
      REQUIRE(s.past == t);
      INFO("T " << t);
      for (size_t i = 0; i < references.size(); ++i)
        REQUIRE(differences(store, s, int(i) / l.shape.heads, int(i) % l.shape.heads,
                            references[i]) == 0);
    }
  }
}

TEST_CASE("Grown by chunks of any sizes, the store equals the page") {
  const uint32_t seed = 2;
  CAPTURE(seed);
  const auto backend = make_cpu_backend(2);
  for (const KvLayout& l : all_layouts()) {
    INFO(text_of(l));
    const int tokens = l.format.sinks + 3 * l.format.residual + 5;
    std::mt19937 random(seed);
    StoreHarness store(*backend, l, 8, tokens, seed);
    // Sizes of the chunks, over and over; 0: random ones.
    for (const std::vector<int>& sizes :
         {std::vector<int>{17}, {1, 64, 3}, {l.format.residual}, {65, 1, 1}, {1000}, {0}}) {
      TestSequence s = store.sequence(tokens);
      KiviReference reference = reference_of(l, s, l.shape.layers - 1, l.shape.heads - 1);
      for (size_t i = 0; s.past < tokens; ++i) {
        int size = sizes[i % sizes.size()];
        if (size == 0) size = 1 + int(random() % 90);
        append(*backend, store, {{&s, std::min(size, tokens - s.past)}});
        INFO("T " << s.past);
        REQUIRE(differences(store, s, l.shape.layers - 1, l.shape.heads - 1, reference) == 0);
      }
    }
  }
}

TEST_CASE("A prompt that goes through the staging area leaves the same store") {
  const uint32_t seed = 3;
  CAPTURE(seed);
  const auto backend = make_cpu_backend(2);
  for (const KvLayout& l : all_layouts()) {
    INFO(text_of(l));
    const int tokens = l.format.sinks + 3 * l.format.residual + 5;
    StoreHarness store(*backend, l, 4, tokens, seed);
    for (const int chunk : {17, 64, 100}) {
      TestSequence s = store.sequence(tokens);
      while (tokens - s.past > chunk + 2) append(*backend, store, {{&s, chunk, KvMode::stage}});
      append(*backend, store, {{&s, tokens - s.past - 2, KvMode::seal}});
      append(*backend, store, {{&s, 1}});  // and goes on
      append(*backend, store, {{&s, 1}});
      for (int layer = 0; layer < l.shape.layers; ++layer)
        for (int head = 0; head < l.shape.heads; ++head) {
          KiviReference reference = reference_of(l, s, layer, head);
          REQUIRE(differences(store, s, layer, head, reference) == 0);
        }
    }
  }
}

// What a checkpoint and the sequences that go on from it do (docs/design/prefix-cache.md).
TEST_CASE(
    "values that are written early are those that would be written later, and stay as they are") {
  const uint32_t seed = 5;
  CAPTURE(seed);
  const auto backend = make_cpu_backend(2);
  for (const KvLayout& l : all_layouts()) {
    INFO(text_of(l));
    const int r = l.format.residual, d = l.shape.head_dim, page = l.page_tokens();
    const int boundary = l.format.sinks + std::lcm(page, r), stored = boundary - l.format.sinks;
    const int tokens = boundary + r + 3;
    StoreHarness store(*backend, l, 4, tokens, seed);
    for (const bool seals : {false, true}) {
      TestSequence plain = store.sequence(tokens), early = store.twin(plain);
      const int first = boundary - 2, second = 7;
      const KvMode mode = seals ? KvMode::stage : KvMode::append;
      append(*backend, store, {{&plain, first}, {&early, first, mode}});
      append(*backend, store,
             {{&plain, second}, {&early, second, seals ? KvMode::seal : mode, 0, stored}});
      REQUIRE(store.content(plain) == store.content(early));
      const auto codes = [&](const TestSequence& s) {
        std::vector<uint16_t> out;
        for (int position = 0; position < stored; ++position)
          for (int c = 0; c < d; ++c) {
            const std::byte* block =
                store.view().page_block(0, s.pages[size_t(position / page)], 0);
            out.push_back(read_value_code(l, block, position % page, c));
            const GroupParameters g = read_value_parameters(l, block, position % page, c);
            out.insert(out.end(), {g.scale.bits, g.minimum.bits});
          }
        return out;
      };
      const std::vector<uint16_t> written = codes(early);
      // The keys of the page are there too, so no byte of it changes any more.
      std::vector<std::vector<std::byte>> before;
      for (int i = 0; i < stored / page; ++i) {
        const std::byte* block = store.view().page_block(0, early.pages[size_t(i)], 0);
        before.emplace_back(block, block + l.block_bytes());
      }
      while (plain.past + 1 < tokens) {
        const int count = plain.past % 5 == 0 ? std::min(4, tokens - 1 - plain.past) : 1;
        append(*backend, store, {{&plain, count}, {&early, count, KvMode::append, stored}});
        REQUIRE(store.content(plain) == store.content(early));
      }
      CHECK(codes(plain) == written);
      for (int i = 0; i < stored / page; ++i) {
        const std::byte* block = store.view().page_block(0, early.pages[size_t(i)], 0);
        CHECK(std::equal(before[size_t(i)].begin(), before[size_t(i)].end(), block));
      }
    }
  }
}

TEST_CASE("fp16 and fp8 pages hold every token at once, by every way of growing") {
  const auto backend = make_cpu_backend(2);
  for (const int d : {64, 80, 128})
    for (const KvKind kind : {KvKind::f16, KvKind::f8}) {
      const int bits = kind == KvKind::f16 ? 16 : 8;
      const KvLayout l{{kind, bits, bits, 0, 0}, {2, 2, d}};
      StoreHarness store(*backend, l, 3, 200, 9);
      TestSequence one = store.sequence(200), chunks = store.twin(one), staged = store.twin(one);
      for (int t = 0; t < 200; ++t) append(*backend, store, {{&one, 1}});
      for (const int n : {3, 64, 65, 1, 67}) append(*backend, store, {{&chunks, n}});
      append(*backend, store, {{&staged, 150, KvMode::stage}});
      append(*backend, store, {{&staged, 50, KvMode::seal}});
      CHECK(store.content(one) == store.content(chunks));
      CHECK(store.content(one) == store.content(staged));
      int wrong = 0;
      for (int t = 0; t < 200; ++t)
        for (int c = 0; c < d; ++c) {
          const std::byte* block = store.view().page_block(1, one.pages[size_t(t / 64)], 1);
          const float key = to_float(one.tokens[1][size_t(t)][size_t(d + c)]);
          const float value = to_float(one.tokens[1][size_t(t)][size_t(3 * d + c)]);
          const bool exact = kind == KvKind::f16;
          wrong += read_key(l, block, t % 64, c) != (exact ? key : from_e4m3(to_e4m3(key)));
          wrong += read_value(l, block, t % 64, c) != (exact ? value : from_e4m3(to_e4m3(value)));
        }
      CHECK(wrong == 0);
    }
}

TEST_CASE("A sequence's bits are the same alone and between poisoned neighbors") {
  const uint32_t seed = 4;
  CAPTURE(seed);
  const auto backend = make_cpu_backend(2);
  for (const KvLayout& l :
       {layout_of(2, 2, 32, 32), layout_of(4, 2, 64, 64, 64, 2), layout_of(4, 4, 128, 128, 128)}) {
    INFO(text_of(l));
    const int tokens = 2 * l.format.residual + 9;
    StoreHarness store(*backend, l, 5, tokens, seed);
    TestSequence alone = store.sequence(tokens), company = store.twin(alone);
    TestSequence before = store.twin(alone), behind = store.twin(alone);
    // NaN, both infinities, the largest numbers.
    const uint16_t poison[] = {0x7e00, 0x7c00, 0xfc00, 0x7bff, 0xfbff, 0xffff};
    size_t i = 0;
    for (TestSequence* s : {&before, &behind})
      for (auto& row : s->tokens[0])
        for (f16& x : row) x.bits = poison[i++ % 6];
    for (const int n : {40, 1, 1, tokens - 45, 1, 1, 1}) {
      append(*backend, store, {{&alone, n}});
      append(*backend, store, {{&before, n}, {&company, n}, {&behind, n}});
    }
    REQUIRE(alone.past == tokens);
    CHECK(store.content(alone) == store.content(company));
    // The poisoned ones hold finite numbers in their pages.
    int bad = 0;
    for (int t = 0; t < keys_paged(l.format, tokens); ++t)
      for (int c = 0; c < l.shape.head_dim; ++c) {
        const int p = l.page_tokens();
        const std::byte* block = store.view().page_block(0, before.pages[size_t(t / p)], 0);
        bad += !std::isfinite(read_key(l, block, t % p, c));
        bad += t < tokens - l.format.residual && !std::isfinite(read_value(l, block, t % p, c));
      }
    CHECK(bad == 0);
  }
}

TEST_CASE("Keys that are quantized while decoding are lossy") {
  const auto backend = make_cpu_backend(1);
  for (const int bits : {2, 4}) {
    const KvLayout l = layout_of(bits, bits, 32, 32);
    StoreHarness store(*backend, l, 1, 64, 6);
    TestSequence s = store.sequence(64);
    for (int t = 0; t < 64; ++t) append(*backend, store, {{&s, 1}});
    int exact = 0;
    double error = 0;
    for (int t = 0; t < 64; ++t)
      for (int c = 0; c < 64; ++c) {
        const std::byte* block = store.view().page_block(0, s.pages[0], 0);
        const double e = std::abs(double(read_key(l, block, t, c)) -
                                  double(to_float(s.tokens[0][size_t(t)][size_t(c)])));
        exact += e == 0;
        error += e;
      }
    // Were each token a group of its own, minimum and maximum would coincide and all be exact. Of
    // 32 elements the minimum is exact, the others are not.
    CHECK(exact < 64 * 64 / 8);
    CHECK(error / (64 * 64) > (bits == 2 ? 0.2 : 0.04));
  }
}

TEST_CASE("The store has the codec's bits for numbers of every kind") {
  const uint32_t seed = 7;
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto backend = make_cpu_backend(1);
  for (const KvLayout& l :
       {layout_of(2, 4, 32, 32, 96), layout_of(4, 2, 64, 64, 128), layout_of(2, 2, 32, 64),
        layout_of(2, 4, 32, 32, 256), layout_of(4, 4, 128, 128, 128),
        layout_of(2, 4, 32, 32, 64, 1, 1, 0, 8), layout_of(4, 2, 64, 64, 128, 1, 1, 0, 8)}) {
    INFO(text_of(l));
    const int r = l.format.residual, g = l.format.group, d = l.shape.head_dim, p = l.page_tokens();
    StoreHarness store(*backend, l, 1, 2 * r, seed);
    TestSequence s = store.sequence(2 * r);
    // Any 16 bits at all; then rows and channels of small, of equal and of zero numbers.
    for (std::vector<f16>& row : s.tokens[0])
      for (size_t c = 0; c < row.size(); ++c) {
        row[c].bits = uint16_t(random());
        if (c % 8 == 3) row[c].bits &= 0x87ff;          // mostly subnormal
        if (c % 8 == 4) row[c].bits = 0x3c01;           // equal
        if (c % 8 == 5) row[c].bits &= 0x8000;          // zeros of both signs
        if (c % 8 == 6) row[c].bits = row[c].bits % 2;  // 0 or the smallest subnormal
        if (c % 8 == 7) row[c].bits = 0x7bff - (row[c].bits & 0x83ff);  // the largest
      }
    for (size_t t = 0; t < s.tokens[0].size(); t += 5)
      for (f16& x : s.tokens[0][t]) x.bits &= 0x8000;
    append(*backend, store, {{&s, 2 * r}});
    int wrong = 0;
    std::vector<uint8_t> codes(static_cast<size_t>(g));
    for (int t = 0; t < 2 * r; t += g)
      for (int c = 0; c < d; ++c) {
        std::vector<f16> x;
        for (int i = 0; i < g; ++i) x.push_back(s.tokens[0][size_t(t + i)][size_t(c)]);
        const GroupParameters want =
            quantize_group(x, l.format.key_bits, l.format.parameter_bits, codes);
        const std::byte* block = store.view().page_block(0, s.pages[size_t(t / p)], 0);
        const GroupParameters got = read_key_parameters(l, block, t % p, c);
        wrong += got.scale.bits != want.scale.bits || got.minimum.bits != want.minimum.bits;
        for (int i = 0; i < g; ++i)
          wrong += read_key_code(l, block, t % p + i, c) != codes[size_t(i)];
      }
    CHECK(wrong == 0);
    for (int t = 0; t < r; ++t)
      for (int c = 0; c < d; c += g) {
        const auto begin = s.tokens[0][size_t(t)].begin() + d + c;
        const GroupParameters want =
            quantize_group({begin, begin + g}, l.format.value_bits, l.format.parameter_bits, codes);
        const std::byte* block = store.view().page_block(0, s.pages[size_t(t / p)], 0);
        const GroupParameters got = read_value_parameters(l, block, t % p, c);
        wrong += got.scale.bits != want.scale.bits || got.minimum.bits != want.minimum.bits;
        for (int i = 0; i < g; ++i)
          wrong += read_value_code(l, block, t % p, c + i) != codes[size_t(i)];
      }
    CHECK(wrong == 0);
  }
}
