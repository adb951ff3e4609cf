// SPDX-License-Identifier: Apache-2.0
// What the prefix cache announces is what it keeps.
#include "engine/prefix_events.h"

#include <catch2/catch.hpp>

#include "tests/engine/prefix_walk.h"

using namespace kivi;
using namespace kivi::testing;

namespace {

const KvFormat kEventFormats[] = {
    {}, {KvKind::kivi, 2, 2, 32, 128}, {KvKind::kivi, 2, 2, 32, 64, /*sinks=*/32, 8}};

// Drops events for a while, as a full queue does.
class Forgetful : public PrefixMirror {
 public:
  void stored(const StoredBlock& block) override {
    if (!losing) PrefixMirror::stored(block);
  }
  void removed(uint64_t id, int tokens, int unit, PrefixMedium medium) override {
    if (!losing) PrefixMirror::removed(id, tokens, unit, medium);
  }
  void cleared() override {
    if (!losing) PrefixMirror::cleared();
  }
  bool needs_all() override {
    if (!losing || !room) return false;
    ++recoveries;
    losing = false;
    return true;
  }

  bool losing = false, room = true;
  int recoveries = 0;
};

}  // namespace

TEST_CASE("after every operation an observer knows exactly the blocks that are kept", "[long]") {
  const uint64_t seed = GENERATE(1, 2, 3);
  for (const KvFormat& format : kEventFormats) {
    INFO("seed " << seed << ", sinks " << format.sinks << ", residual " << format.residual);
    PrefixWalk walk({format, {1, 1, 64}}, 60, seed);
    PrefixMirror mirror;
    walk.cache().prefixes().observe(&mirror);
    size_t most = 0;
    for (int i = 0; i < 1500; ++i) {
      walk.step();
      const std::set<TokenPath> paths = mirror.paths();
      REQUIRE(paths == kept_paths(walk.cache().prefixes()));
      most = std::max(most, paths.size());
    }
    CHECK(most > 5);
    for (const TokenPath& path : mirror.paths()) CHECK(walk.matched(path) == int(path.size()));
  }
}

TEST_CASE("a block that nobody announced is not found either") {
  PrefixWalk walk({{}, {1, 1, 64}}, 40, 5);
  PrefixMirror mirror;
  walk.cache().prefixes().observe(&mirror);
  std::set<TokenPath> ever;
  for (int i = 0; i < 2000; ++i) {
    walk.step();
    for (const TokenPath& path : mirror.paths()) ever.insert(path);
  }
  const std::set<TokenPath> now = mirror.paths();
  int gone = 0;
  for (const TokenPath& path : ever) {
    if (now.contains(path)) continue;
    ++gone;
    CHECK(walk.matched(path) < int(path.size()));
  }
  CHECK(gone > 20);
}

TEST_CASE("an observer knows the blocks on the host that have all blocks before them there") {
  const uint64_t seed = GENERATE(1, 2, 3);
  for (const KvFormat& format : kEventFormats) {
    INFO("seed " << seed << ", sinks " << format.sinks << ", residual " << format.residual);
    const int host_pages = format.kind == KvKind::kivi ? 50 : 30;
    PrefixWalk walk({format, {1, 1, 64}}, 40, seed, host_pages);
    PrefixMirror mirror;
    walk.cache().prefixes().observe(&mirror);
    size_t most = 0, elsewhere = 0;
    for (int i = 0; i < 1500; ++i) {
      walk.step();
      if (i % 20 != 0) continue;  // to ask the tier for each block takes long
      const std::set<TokenPath> paths = mirror.paths(PrefixMedium::host);
      const std::set<TokenPath> kept = kept_paths(walk.cache().prefixes());
      REQUIRE(paths == walk.on_host());
      REQUIRE(mirror.paths() == kept);
      most = std::max(most, paths.size());
      for (const TokenPath& path : paths) elsewhere += kept.contains(path) ? 0 : 1;
    }
    CHECK(most > 5);
    CHECK(elsewhere > 100);
  }
}

TEST_CASE("an observer that lost events is told everything anew") {
  const int host_pages = GENERATE(0, 50);
  for (const KvFormat& format : kEventFormats) {
    PrefixWalk walk({format, {1, 1, 64}}, 60, 11, host_pages);
    Forgetful observer;
    walk.cache().prefixes().observe(&observer);
    for (int round = 0; round < 40; ++round) {
      observer.losing = true;
      observer.room = false;
      for (int i = 0; i < 30; ++i) walk.step();
      observer.room = true;
      for (int i = 0; i < 200 && observer.losing; ++i) walk.step();
      REQUIRE_FALSE(observer.losing);
      REQUIRE(observer.paths() == kept_paths(walk.cache().prefixes()));
      REQUIRE(observer.paths(PrefixMedium::host) == walk.on_host());
    }
    CHECK(observer.recoveries == 40);
  }
}

TEST_CASE("blocks of salted requests are announced to nobody") {
  KvCache cache({{}, {1, 1, 64}}, {.pages = 20, .slots = 2, .staging_pages = 0},
                {.host_pages = 20, .secret = "secret"});
  PrefixMirror mirror;
  cache.prefixes().observe(&mirror);
  const TokenPath tokens(200, 7);
  const auto keep = [&](const std::string& salt) {
    SequenceKv kv;
    REQUIRE(cache.reserve(kv, 200, KvMode::append));
    cache.commit(kv, 200, KvMode::append);
    kv.settled = 200;
    cache.tier().offer(kv, tokens, salt);
    cache.prefixes().remember(kv, tokens, salt);
    cache.release(kv);
  };
  keep("secret");
  CHECK(cache.prefixes().evictable() == 3);
  CHECK(cache.tier().stats().host_pages_used == 3);
  CHECK(mirror.paths().empty());
  CHECK(mirror.paths(PrefixMedium::host).empty());
  keep("");
  CHECK(mirror.paths().size() == 3);
  CHECK(mirror.paths(PrefixMedium::host).size() == 3);
  cache.prefixes().forget_all();
  CHECK(mirror.paths(PrefixMedium::host).size() == 3);
  cache.tier().forget_all();
  CHECK(mirror.paths(PrefixMedium::host).empty());
  CHECK(mirror.paths().empty());
}
