// SPDX-License-Identifier: Apache-2.0
// Where every byte of the store lies: no two codes or parameters share a place, none is outside.
#include <catch2/catch.hpp>
#include <set>
#include <vector>

#include "kernels/kv_codec.h"
#include "kernels/kv_page.h"
#include "tests/kernels/support.h"

using namespace kivi;
using kivi::test::text_of;

namespace {

std::vector<KvLayout> layouts() {
  std::vector<KvLayout> all;
  for (const int d : {64, 96, 128, 256})
    for (const int group : {32, 64, 128})
      for (const int key_bits : {2, 4})
        for (const int value_bits : {2, 4}) {
          const KvLayout layout{{KvKind::kivi, key_bits, value_bits, group, 128}, {1, 1, d}};
          if (check_kv_format(layout.format, layout.shape).ok()) all.push_back(layout);
        }
  for (const int d : {16, 32, 64, 80, 96, 128, 160, 192, 256}) {
    all.push_back({{KvKind::f16, 16, 16, 0, 0}, {1, 1, d}});
    all.push_back({{KvKind::f8, 8, 8, 0, 0}, {1, 1, d}});
  }
  return all;
}

}  // namespace

TEST_CASE("No two codes of a block share a bit and none lies outside its region") {
  for (const KvLayout& layout : layouts()) {
    if (layout.format.kind == KvKind::f16) continue;
    INFO(text_of(layout));
    for (const bool keys : {true, false}) {
      const int bits = keys ? layout.format.key_bits : layout.format.value_bits;
      const int bytes = keys ? layout.key_codes_bytes() : layout.value_codes_bytes();
      std::vector<bool> taken(size_t(bytes) * 8);
      bool unique = true, inside = true;
      for (int token = 0; token < layout.page_tokens(); ++token)
        for (int c = 0; c < layout.shape.head_dim; ++c) {
          const CodePosition p = keys ? layout.key_code(token, c) : layout.value_code(token, c);
          for (int b = 0; b < bits; ++b) {
            const int64_t place = int64_t(p.word) * 32 + p.bit + b;
            inside = inside && p.bit >= 0 && p.bit + bits <= 32 && place >= 0 &&
                     place < int64_t(bytes) * 8;
            if (!inside) break;
            unique = unique && !taken[size_t(place)];
            taken[size_t(place)] = true;
          }
        }
      CHECK(inside);
      CHECK(unique);
    }
  }
}

TEST_CASE("Scales and minima have places of their own inside their region") {
  for (const KvLayout& layout : layouts()) {
    if (layout.format.kind != KvKind::kivi) continue;
    INFO(text_of(layout));
    const int g = layout.format.group, d = layout.shape.head_dim;
    std::set<int> keys, values;
    for (int token = 0; token < layout.page_tokens(); token += g)
      for (int c = 0; c < d; ++c) {
        CHECK(keys.insert(layout.key_scale(token, c)).second);
        CHECK(keys.insert(layout.key_minimum(token, c)).second);
        CHECK(layout.key_scale(token + g - 1, c) == layout.key_scale(token, c));
      }
    for (int token = 0; token < layout.page_tokens(); ++token)
      for (int c = 0; c < d; c += g) {
        CHECK(values.insert(layout.value_scale(token, c)).second);
        CHECK(values.insert(layout.value_minimum(token, c)).second);
        CHECK(layout.value_scale(token, c + g - 1) == layout.value_scale(token, c));
      }
    CHECK(*keys.begin() == 0);
    CHECK((*keys.rbegin() + 1) * 2 == layout.key_parameters_bytes());
    CHECK(*values.begin() == 0);
    CHECK((*values.rbegin() + 1) * 2 == layout.value_parameters_bytes());
  }
}

TEST_CASE("The channels of a swizzled row are a permutation of the row") {
  for (const int d : {16, 32, 64, 80, 96, 128, 160, 192, 256})
    for (int row = 0; row < 16; ++row) {
      std::set<int> places;
      for (int c = 0; c < d; ++c) places.insert(swizzled_channel(row, c, d));
      CHECK(places.size() == size_t(d));
      CHECK(*places.begin() == 0);
      CHECK(*places.rbegin() == d - 1);
    }
}

TEST_CASE("The example of the format's page is where the layout puts it") {
  // docs/design/kv-format.md, section 4.
  const KvLayout layout{{KvKind::kivi, 2, 2, 32, 128}, {1, 1, 128}};
  const CodePosition p = layout.key_code(/*token=*/5, /*channel=*/19);
  CHECK(p.word == 84);
  CHECK(p.bit == 20);
}

TEST_CASE("Block sizes are bits per element times elements, regions start on 16 bytes") {
  // b + 32 / G bits an element (docs/design/kv-format.md, section 6).
  const auto bytes = [](int bits, int group, int d) {
    return KvLayout{{KvKind::kivi, bits, bits, group, 128}, {1, 1, d}}.block_bytes();
  };
  CHECK(bytes(2, 32, 128) == 64 * 128 * 2 * 3 / 8);
  CHECK(bytes(4, 32, 128) == 64 * 128 * 2 * 5 / 8);
  CHECK(bytes(2, 64, 128) == 64 * 128 * 2 * 5 / 2 / 8);
  CHECK(bytes(4, 128, 128) == 128 * 128 * 2 * 17 / 4 / 8);
  CHECK(bytes(2, 32, 64) == 64 * 64 * 2 * 3 / 8);
  for (const KvLayout& layout : layouts()) {
    INFO(text_of(layout));
    CHECK(layout.key_parameters_offset() % 16 == 0);
    CHECK(layout.value_codes_offset() % 16 == 0);
    CHECK(layout.value_parameters_offset() % 16 == 0);
    CHECK(layout.block_bytes() % 16 == 0);
  }
}

TEST_CASE("Bytes of a sequence count whole pages and its residual slot") {
  const KvLayout layout{{KvKind::kivi, 4, 2, 32, 64}, {3, 2, 64}};
  CHECK(kv_bytes(layout, 0) == KvBytes{});
  CHECK(kv_bytes(layout, 1) == KvBytes{0, 0, layout.slot_bytes()});
  CHECK(kv_bytes(layout, 63).codes == 0);  // all keys are in the residual
  const KvBytes one = kv_bytes(layout, 64);
  CHECK(one.codes == 6 * (64 * 64 / 2 + 64 * 64 / 4));
  CHECK(one.parameters == 6 * (64 * 64 * 2 / 32 * 4));
  CHECK(one.residual == 6 * 2 * 64 * 64 * 2);
  CHECK(kv_bytes(layout, 127) == one);
  CHECK(kv_bytes(layout, 128).codes == 2 * one.codes);
  CHECK(one.codes + one.parameters == layout.page_bytes());
  const KvLayout plain{{KvKind::f16, 16, 16, 0, 0}, {3, 2, 64}};
  CHECK(kv_bytes(plain, 65) == KvBytes{2 * plain.page_bytes(), 0, 0});
}
