// SPDX-License-Identifier: Apache-2.0
// KvCache: all or nothing, exact accounting, for every format.
#include "engine/kv_cache.h"

#include <catch2/catch.hpp>

#include "kernels/kv_codec.h"

using namespace kivi;

namespace {

const KvFormat kFormats[] = {{KvKind::f16, 16, 16, 0, 0},
                             {KvKind::f8, 8, 8, 0, 0},
                             {KvKind::kivi, 2, 2, 32, 128},
                             {KvKind::kivi, 4, 4, 64, 64},
                             {KvKind::kivi, 4, 2, 128, 128}};

KvLayout layout_of(const KvFormat& format) { return {format, {3, 2, 128}}; }

KvBytes sum(const KvBytes& a, const KvBytes& b) {
  return {a.codes + b.codes, a.parameters + b.parameters, a.residual + b.residual};
}

}  // namespace

TEST_CASE("bytes held are what the format says, for every length and format") {
  for (const KvFormat& format : kFormats) {
    const KvLayout layout = layout_of(format);
    for (const int tokens : {1, 3, 17, 63, 64, 65, 127, 128, 129, 300}) {
      INFO("G " << format.group << ", bits " << format.key_bits << ", tokens " << tokens);
      KvCache cache(layout, {.pages = 16, .slots = 2, .staging_pages = 0});
      SequenceKv a, b;
      REQUIRE(cache.reserve(a, tokens, KvMode::append));
      cache.commit(a, tokens, KvMode::append);
      CHECK(cache.bytes_held() == kv_bytes(layout, tokens));
      REQUIRE(cache.reserve(b, 1, KvMode::append));
      CHECK(cache.bytes_held() == sum(kv_bytes(layout, tokens), kv_bytes(layout, 1)));
      cache.release(a);
      cache.release(b);
      CHECK(cache.bytes_held() == KvBytes{});
      CHECK(cache.pages_free() == 16);
    }
  }
}

TEST_CASE("token by token, a page is taken exactly when its first key is quantized") {
  for (const KvFormat& format : kFormats) {
    const KvLayout layout = layout_of(format);
    KvCache cache(layout, {.pages = 4, .slots = 1, .staging_pages = 0});
    SequenceKv kv;
    const int page = layout.page_tokens(), r = format.kind == KvKind::kivi ? format.residual : 1;
    // What is still in the residual at the end needs no page.
    for (int t = 0; t < 4 * page + r - 1; ++t) {
      REQUIRE(cache.reserve(kv, 1, KvMode::append));
      REQUIRE(int(kv.pages.size()) == ((t + 1) / r * r + page - 1) / page);
      cache.commit(kv, 1, KvMode::append);
    }
    CHECK_FALSE(cache.reserve(kv, 1, KvMode::append));
    CHECK(kv.tokens == layout.tokens_within(4));
    CHECK(kv.pages.size() == 4);
  }
}

TEST_CASE("a reservation that fails changes nothing, whichever region is short") {
  const KvLayout layout = layout_of(kFormats[2]);
  SECTION("pages") {
    KvCache cache(layout, {.pages = 2, .slots = 2, .staging_pages = 2});
    SequenceKv kv;
    CHECK_FALSE(cache.reserve(kv, 256, KvMode::append));
    CHECK((kv.pages.empty() && kv.slot == -1 && kv.tokens == 0));
    CHECK((cache.pages_free() == 2 && cache.slots_free() == 2));
  }
  SECTION("slots") {
    KvCache cache(layout, {.pages = 4, .slots = 1, .staging_pages = 2});
    SequenceKv first, second;
    REQUIRE(cache.reserve(first, 128, KvMode::append));
    CHECK_FALSE(cache.reserve(second, 128, KvMode::append));
    CHECK((second.pages.empty() && second.slot == -1));
    CHECK(cache.pages_free() == 2);
  }
  SECTION("staging pages") {
    KvCache cache(layout, {.pages = 4, .slots = 1, .staging_pages = 1});
    SequenceKv kv;
    CHECK_FALSE(cache.reserve(kv, 65, KvMode::stage));
    CHECK((kv.staging_pages.empty() && kv.slot == -1));
    CHECK((cache.staging_pages_free() == 1 && cache.slots_free() == 1));
  }
}

TEST_CASE("a staged prompt holds staging pages until its commit, and pages from then on") {
  const KvLayout layout = layout_of(kFormats[2]);
  KvCache cache(layout, {.pages = 4, .slots = 1, .staging_pages = 3});
  SequenceKv kv;
  for (int chunk = 0; chunk < 2; ++chunk) {
    REQUIRE(cache.reserve(kv, 96, KvMode::stage));
    cache.commit(kv, 96, KvMode::stage);
  }
  CHECK((kv.pages.empty() && kv.staging_pages.size() == 3));
  CHECK(cache.bytes_held() == KvBytes{0, 0, layout.slot_bytes()});

  REQUIRE(cache.reserve(kv, 10, KvMode::seal));
  CHECK((kv.pages.size() == 2 && kv.staging_pages.size() == 3));  // 128 keys; 74 in the residual
  cache.commit(kv, 10, KvMode::seal);
  CHECK((kv.tokens == 202 && kv.staging_pages.empty()));
  CHECK(cache.staging_pages_free() == 3);
  CHECK(cache.bytes_held() == kv_bytes(layout, 202));
}

TEST_CASE("release is safe on a sequence that holds nothing") {
  KvCache cache(layout_of(kFormats[0]), {.pages = 2, .slots = 1, .staging_pages = 1});
  SequenceKv kv;
  cache.release(kv);
  cache.release(kv);
  CHECK((cache.pages_free() == 2 && cache.slots_free() == 1 && cache.staging_pages_free() == 1));
}

TEST_CASE("fits_ever knows the last token that fits alone") {
  for (const KvFormat& format : kFormats) {
    const KvLayout layout = layout_of(format);
    const KvCache cache(layout, {.pages = 3, .slots = 1, .staging_pages = 0});
    CHECK(cache.fits_ever(int(layout.tokens_within(3))));
    CHECK_FALSE(cache.fits_ever(int(layout.tokens_within(3)) + 1));
  }
  CHECK_FALSE(KvCache(layout_of(kFormats[0]), {.pages = 3, .slots = 0}).fits_ever(1));
}
