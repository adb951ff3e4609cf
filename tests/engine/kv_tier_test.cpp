// SPDX-License-Identifier: Apache-2.0
// Pages of the prefix cache on the host, seen from outside: what comes back, who waits for it, and
// what it costs others.
#include <catch2/catch.hpp>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <random>
#include <set>
#include <tuple>
#include <unordered_set>

#include "engine/kv_disk.h"
#include "engine/scheduler.h"
#include "tests/engine/fake_runner.h"
#include "tests/engine/outcome.h"

using namespace kivi;
using namespace kivi::testing;

namespace {

// A store of 40 pages of 64 tokens, and 1,000 on the host. Blocks are 64 tokens.
FakeEngineOptions tier_options(KvFormat format = {KvKind::kivi, 2, 2, 32, 32}) {
  FakeEngineOptions options;
  options.format = format;
  options.pages = 40;
  options.host_pages = 1000;
  return options;
}

Request request_with(int first, int count, int max_tokens = 1) {
  Request r;
  r.id = "r";
  r.prompt.resize(static_cast<size_t>(count));
  std::iota(r.prompt.begin(), r.prompt.end(), first);
  for (int32_t& id : r.prompt) id = 3 + id % 900;
  r.sampling.max_tokens = max_tokens;
  r.sampling.ignore_eos = true;
  r.sampling.seed = 7;
  return r;
}

void evict(Engine& engine) {
  for (int i = 0; i < 4; ++i) run(engine, request_with(100 + 150 * i, 700));
}

}  // namespace

TEST_CASE("what the store has lost comes back from the host, whether copies take long or not") {
  FakeEngineOptions options =
      tier_options(GENERATE(KvFormat{}, KvFormat{KvKind::kivi, 2, 2, 32, 32},
                            KvFormat{KvKind::kivi, 2, 2, 32, 64, 32, 8}));
  options.runner.transfer_polls = GENERATE(0, 7);
  options.runner.asynchronous = GENERATE(false, true);
  const auto engine = make_fake_engine(options);
  CHECK(run(*engine, request_with(0, 500)).last.cached_tokens == 0);
  const int hit = run(*engine, request_with(0, 500)).last.cached_tokens;
  REQUIRE(hit >= 416);
  evict(*engine);
  const EngineStats before = engine->stats();
  CHECK(run(*engine, request_with(0, 500)).last.cached_tokens == hit);
  const EngineStats after = engine->stats();
  CHECK(after.tier.fetches == before.tier.fetches + 1);
  CHECK(after.tier.tokens_fetched - before.tier.tokens_fetched > 300);
  CHECK(after.prefix.hit - before.prefix.hit == uint64_t(hit));
  CHECK(after.step_tokens - before.step_tokens == uint64_t(500 - hit));
  CHECK(after.kv_pages_free == after.kv_pages_total);
  CHECK(after.tier.fetches_failed == 0);
  // With a salt, nothing comes back.
  evict(*engine);
  Request salted = request_with(0, 500);
  salted.cache_salt = "salt";
  CHECK(run(*engine, salted).last.cached_tokens == 0);
}

TEST_CASE("in mode stream whole chunks come back from the host, and no more is fetched") {
  FakeEngineOptions options = tier_options();
  options.config.kivi_prefill = PrefillMode::stream;
  options.config.prefill_chunk_tokens = 192;
  const auto engine = make_fake_engine(options);
  CHECK(run(*engine, request_with(0, 500)).last.cached_tokens == 0);
  evict(*engine);
  CHECK(run(*engine, request_with(0, 500)).last.cached_tokens == 384);
  CHECK(engine->stats().tier.tokens_fetched == 384);
}

TEST_CASE("two that wait for the same pages fetch them once") {
  FakeEngineOptions options = tier_options();
  options.runner.transfer_polls = 5;
  const auto engine = make_fake_engine(options);
  run(*engine, request_with(0, 500));
  evict(*engine);
  auto streams = engine->submit_all(std::vector<Request>(3, request_with(0, 500)),
                                    [](size_t) { return [] {}; });
  REQUIRE(streams.ok());
  engine->run_until_idle();
  for (const auto& stream : *streams) CHECK(outcome_of(*stream).last.cached_tokens >= 448);
  CHECK(engine->stats().tier.fetches == 1);
}

TEST_CASE("a request whose pages are on their way lets others pass, and may be cancelled") {
  FakeEngineOptions options = tier_options();
  options.runner.transfer_polls = 50;
  const auto engine = make_fake_engine(options);
  run(*engine, request_with(0, 500));
  evict(*engine);
  auto fetching = engine->submit(request_with(0, 500), [] {});
  auto other = engine->submit(request_with(7, 20, 10), [] {});
  REQUIRE((fetching.ok() && other.ok()));
  for (int step = 0; step < 20; ++step) engine->step();
  std::vector<TokenEvent> events;
  (*other)->drain(events);
  REQUIRE_FALSE(events.empty());
  CHECK(events.back().finish == FinishReason::length);
  const EngineStats stats = engine->stats();
  CHECK(stats.waiting == 1);
  CHECK(stats.kv_pages_free < stats.kv_pages_total);  // the fetch holds pages
  (*fetching)->cancel();
  engine->run_until_idle();
  CHECK(engine->stats().kv_pages_free == stats.kv_pages_total);
  CHECK(engine->stats().tier.fetches_failed == 1);
}

TEST_CASE("a sequence that needs pages gets those of a fetch before another is preempted") {
  FakeEngineOptions options = tier_options(KvFormat{});
  options.runner.transfer_polls = 10'000;
  const auto engine = make_fake_engine(options);
  run(*engine, request_with(0, 800));
  run(*engine, request_with(100, 1500));
  run(*engine, request_with(200, 1500));
  auto growing = engine->submit(request_with(300, 1000, 1000), [] {});
  REQUIRE(growing.ok());
  engine->step();
  auto fetching = engine->submit(request_with(0, 800), [] {});
  REQUIRE(fetching.ok());
  for (int step = 0; step < 1200; ++step) engine->step();
  CHECK(engine->stats().preemptions == 0);
  CHECK(engine->stats().tier.fetches_failed > 0);
  engine->run_until_idle();
  CHECK(outcome_of(**growing).ids.size() == 1000);
}

TEST_CASE("a preempted sequence fetches its tokens and computes few of them again") {
  const auto rows_of = [](int host_pages) {
    FakeEngineOptions options = tier_options();
    options.host_pages = host_pages;
    options.config.max_num_seqs = 2;
    const auto engine = make_fake_engine(options);
    std::vector<Request> requests;
    for (int i = 0; i < 2; ++i) requests.push_back(request_with(50 * i, 400, 1500));
    auto streams = engine->submit_all(requests, [](size_t) { return [] {}; });
    REQUIRE(streams.ok());
    engine->run_until_idle();
    const EngineStats stats = engine->stats();
    CHECK(stats.preemptions > 0);
    for (const auto& stream : *streams) CHECK(outcome_of(*stream).ids.size() == 1500);
    const uint64_t needed = 2 * (400 + 1500 - 1);
    return std::pair(stats.step_tokens - needed, stats.preemptions);
  };
  const auto [recomputed, preemptions] = rows_of(0);
  const auto [recomputed_with_host, preemptions_with_host] = rows_of(1000);
  INFO(recomputed << " tokens again in " << preemptions << " preemptions; with the host "
                  << recomputed_with_host << " in " << preemptions_with_host);
  CHECK(recomputed > 0);
  CHECK(4 * recomputed_with_host * preemptions < recomputed * preemptions_with_host);
}

TEST_CASE("the end of a fetch is the one that spares the most time, at the rates that are given") {
  const KvLayout layout{{KvKind::kivi, 2, 2, 32, 32}, {1, 1, 64}};
  PrefixCache cache(layout, 1024);
  std::vector<int32_t> tokens(2000);
  std::iota(tokens.begin(), tokens.end(), 0);
  // The first 20 blocks and some of the checkpoints are on the host, the others on disk.
  class Disk : public PieceStore {
   public:
    bool writes() const override { return false; }
    bool contains(const PieceKey& key) const override { return keys.contains(key); }
    uint64_t write(const PieceKey&, const std::vector<int32_t>&) override { return 0; }
    uint64_t read(const PieceKey&, const std::vector<int32_t>&) override { return 0; }
    void poll(std::vector<Done>&) override {}
    void erase(const PieceKey&) override {}
    PieceStoreStats stats() const override { return {}; }
    double pages_read_per_second() const override { return 0; }
    std::unordered_set<PieceKey, PieceKeyHash> keys;
  };
  auto disk = std::make_unique<Disk>();
  Disk& on_disk = *disk;
  KvTier tier(cache, {.host_pages = 1024, .secret = "s", .disk = std::move(disk)});
  const PrefixBlocks& blocks = cache.blocks();
  SequenceKv kv;
  cache.extend_chains(kv, tokens, "");
  tier.extend_names(kv, tokens, "");
  const int last = int(kv.names.size());
  REQUIRE(last > 25);
  {
    SequenceKv stored;
    REQUIRE(cache.take(20 * blocks.block_pages, stored.pages));
    stored.settled = blocks.end(19) + blocks.behind;
    for (const int k : {3, 12, 19}) {
      CapturedSlab slab{.tokens = blocks.end(k), .settled = true};
      REQUIRE(cache.take(blocks.slab_pages, slab.pages));
      stored.captured.push_back(slab);
    }
    tier.offer(stored, std::span(tokens).first(size_t(stored.settled)), "");
  }
  for (int k = 20; k < last; ++k) on_disk.keys.insert({kv.names[size_t(k)], PieceKind::block});
  for (const int k : {5, 22, 25}) on_disk.keys.insert({kv.names[size_t(k)], PieceKind::checkpoint});
  const std::set<int> ends = {3, 5, 12, 19, 22, 25};
  const double block_pages = blocks.block_pages,
               checkpoint_pages = blocks.block_pages + blocks.slab_pages;
  const auto reach = [&](const FetchRates& rates) {
    return tier.reach(kv, tokens, "", {}, 1999, 0, 0, rates);
  };
  CHECK(reach({}).end == blocks.end(25));
  CHECK(reach({1000, 0, 1}).end == blocks.end(25));
  CHECK(reach({0, 1, 1}).end == blocks.end(25));
  std::set<int> seen;
  std::mt19937 random(1);
  for (int i = 0; i < 300; ++i) {
    const auto draw = [&](double scale) {
      return scale * std::exp2(double(random() % 160) / 10 - 8);
    };
    const FetchRates rates{draw(1000), draw(20), random() % 3 ? draw(20) : 0};
    double best_gain = 0;
    int best = -1;
    for (const int end : ends) {
      double pages = 0, disk_pages = 0;
      for (int k = 0; k < end; ++k) {
        pages += block_pages;
        disk_pages += k >= 20 ? block_pages : 0;
      }
      pages += checkpoint_pages;
      disk_pages += end == 3 || end == 12 || end == 19 ? 0 : checkpoint_pages;
      const double fetch =
          pages / rates.pages + (rates.disk_pages > 0 ? disk_pages / rates.disk_pages : 0);
      const double gain = blocks.end(end) / rates.tokens - fetch;
      if (gain <= best_gain) continue;
      best_gain = gain;
      best = end;
    }
    seen.insert(best);
    const FetchReach chosen = reach(rates);
    CHECK(chosen.end == (best < 0 ? 0 : blocks.end(best)));
    CHECK(chosen.longest == blocks.end(25));
    if (best >= 0)
      CHECK(chosen.compute_seconds - chosen.fetch_seconds == Approx(best_gain));
    else
      CHECK(chosen.compute_seconds <= chosen.fetch_seconds);
  }
  CHECK(seen.size() >= 3);  // none, the last on the host, the last on disk
}

TEST_CASE("what is measured to come back too slowly is computed, and is measured again at times") {
  FakeEngineOptions options = tier_options();
  options.config.kv_fetch = GENERATE(KvFetch::automatic, KvFetch::fetch, KvFetch::compute);
  options.runner.page_seconds = GENERATE(1e-12, 1e6);
  INFO(int(options.config.kv_fetch) << " " << options.runner.page_seconds);
  const auto engine = make_fake_engine(options);
  for (int i = 0; i < 10; ++i) {
    run(*engine, request_with(0, 500));
    evict(*engine);
  }
  const EngineStats stats = engine->stats();
  const bool slow = options.runner.page_seconds > 1;
  const bool fetches = options.config.kv_fetch != KvFetch::compute;
  CHECK(stats.tier.rates.pages == Approx(fetches ? 1 / options.runner.page_seconds : 0));
  CHECK(stats.tier.rates.tokens > 0);
  if (options.config.kv_fetch == KvFetch::fetch ||
      (options.config.kv_fetch == KvFetch::automatic && !slow)) {
    CHECK(stats.fetch.declined == 0);
    CHECK(stats.tier.fetches > 30);
  } else if (options.config.kv_fetch == KvFetch::compute) {
    CHECK(stats.fetch.declined > 30);
    CHECK(stats.tier.fetches == 0);
  } else {
    CHECK(stats.fetch.declined > 30);
    CHECK(stats.fetch.tokens_declined > 30 * 400);
    // The first one, of which nothing was known, and one of each 16.
    const uint64_t probes = stats.tier.fetches - 1;
    CHECK(probes == (stats.fetch.declined + probes) / 16);
  }
}

TEST_CASE("what is on a slow disk is measured again at times, also where the host has a part") {
  // Says of any piece that it has it, and then fails to read it.
  class SlowDisk : public PieceStore {
   public:
    bool writes() const override { return false; }
    bool contains(const PieceKey& key) const override { return keys.contains(key); }
    uint64_t write(const PieceKey&, const std::vector<int32_t>&) override { return 0; }
    uint64_t read(const PieceKey& key, const std::vector<int32_t>&) override {
      keys.erase(key);
      failed.push_back({++reads, false});
      return reads;
    }
    void poll(std::vector<Done>& done) override {
      done.insert(done.end(), failed.begin(), failed.end());
      failed.clear();
    }
    void erase(const PieceKey&) override {}
    PieceStoreStats stats() const override { return {}; }
    double pages_read_per_second() const override { return 1e-3; }
    std::unordered_set<PieceKey, PieceKeyHash> keys;
    std::vector<Done> failed;
    uint64_t reads = 0;
  };
  auto slow_disk = std::make_unique<SlowDisk>();
  SlowDisk& disk = *slow_disk;
  FakeEngineOptions options = tier_options();
  options.host_pages = 10'000;
  options.runner.page_seconds = 1e-12;
  const auto engine = make_fake_engine(options, std::move(slow_disk));
  run(*engine, request_with(0, 500));  // 7 blocks, which stay on the host
  const BlockNamer namer("secret", "");
  const int requests = 49;
  int measured = 0;
  for (int i = 0; i < requests; ++i) {
    evict(*engine);
    // Goes on in another way each time: up to 448 tokens are on the host, up to 960 on disk.
    Request request = request_with(0, 1000);
    for (size_t k = 448; k < 1000; ++k) request.prompt[k] = int32_t(3 + (k * size_t(i + 2)) % 911);
    BlockName name = namer.root("");
    for (size_t k = 0; k < 15; ++k) {
      name = namer.next(name, std::span(request.prompt).subspan(64 * k, 64));
      if (k >= 7) disk.keys.insert({name, PieceKind::block});
      if (k == 14) disk.keys.insert({name, PieceKind::checkpoint});
    }
    const uint64_t before = disk.reads;
    CHECK(run(*engine, request).last.cached_tokens == 448);
    measured += disk.reads > before ? 1 : 0;
    disk.keys.clear();
  }
  // The first one, of which nothing was known, and then one of each 16.
  CHECK(measured == 1 + (requests - 1) / 16);
  CHECK(engine->stats().fetch.declined == uint64_t(requests - measured));
}

// Time is what a client can measure. It is made of steps, of their rows, and of waiting for pages.
TEST_CASE("with keys kept apart, another key's text takes the steps that unknown text takes") {
  const bool lost = GENERATE(false, true);  // by the store: it lies on the host
  const auto cost_of = [&](bool per_key, int first) {
    FakeEngineOptions options = tier_options();
    options.runner.transfer_polls = 3;
    options.config.prefix_cache_per_key = per_key;
    const auto engine = make_fake_engine(options);
    Request secret = request_with(0, 500);
    secret.tenant = "alice";
    run(*engine, secret);
    if (lost) evict(*engine);
    const EngineStats before = engine->stats();
    Request probe = request_with(first, 500);
    probe.tenant = "bob";
    const int cached = run(*engine, probe).last.cached_tokens;
    const EngineStats after = engine->stats();
    return std::tuple(cached, after.step_tokens - before.step_tokens, after.steps - before.steps,
                      after.tier.fetches - before.tier.fetches);
  };
  CHECK(cost_of(true, 0) == cost_of(true, 450));
  CHECK(cost_of(false, 0) != cost_of(false, 450));
}

TEST_CASE("a step that fails leaves nothing on the host") {
  FakeEngineOptions options = tier_options();
  options.runner.fail_at_step = 1;
  const auto engine = make_fake_engine(options);
  run(*engine, request_with(0, 500));
  CHECK(engine->stats().tier.host_pages_used > 0);
  CHECK(*run(*engine, request_with(0, 500)).last.finish == FinishReason::error);
  CHECK(engine->stats().tier.host_pages_used == 0);
  CHECK(run(*engine, request_with(0, 500)).last.cached_tokens == 0);
}

TEST_CASE("the host holds no more than its pages, and drops the oldest pieces") {
  FakeEngineOptions options = tier_options(KvFormat{});
  options.pages = 12;
  options.host_pages = 20;
  options.max_model_len = 700;
  const auto engine = make_fake_engine(options);
  run(*engine, request_with(0, 600));  // 9 blocks each
  run(*engine, request_with(100, 600));
  run(*engine, request_with(200, 600));
  CHECK(engine->stats().tier.host_pages_used <= 20);
  CHECK(engine->stats().tier.host_pages_used >= 18);
  CHECK(run(*engine, request_with(100, 600)).last.cached_tokens == 576);
  CHECK(run(*engine, request_with(200, 600)).last.cached_tokens == 576);
}

TEST_CASE("hashes and names are those of the prompt and the salt, copied or not") {
  const KvLayout layout{{KvKind::kivi, 2, 2, 32, 32}, {1, 1, 64}};
  KvCache cache(layout, {.pages = 40, .slots = 4},
                {.host_pages = 10, .secret = "secret", .fingerprint = "fingerprint"});
  const Scheduler scheduler(EngineConfig{}, cache);
  const auto sequence_of = [](Request request) {
    return make_sequence(std::move(request), nullptr, 1, {});
  };
  const auto named = [&](Request request, const Sequence* like) {
    auto s = sequence_of(std::move(request));
    scheduler.name_blocks(*s, like);
    return s;
  };
  Request salted = request_with(0, 500), uncached = request_with(0, 500);
  salted.cache_salt = "salt";
  uncached.cache = false;
  const auto first = named(request_with(0, 500), nullptr);
  REQUIRE(first->kv.chains.size() == 7);
  REQUIRE(first->kv.names.size() == 7);
  SequenceKv expected;
  cache.prefixes().extend_chains(expected, first->tokens, "");
  cache.tier().extend_names(expected, first->tokens, "");
  CHECK(first->kv.chains == expected.chains);
  CHECK(first->kv.names == expected.names);
  for (const auto& like : {request_with(0, 500), request_with(1, 500), salted}) {
    const auto other = named(like, nullptr);
    const auto copied = named(request_with(0, 500), other.get());
    CHECK(copied->kv.chains == expected.chains);
    CHECK(copied->kv.names == expected.names);
  }
  CHECK(named(salted, first.get())->kv.names[0] != expected.names[0]);
  CHECK(named(salted, first.get())->kv.chains[0] != expected.chains[0]);
  CHECK(named(uncached, first.get())->kv.names.empty());
  CHECK(named(request_with(0, 500), named(uncached, nullptr).get())->kv.names == expected.names);
}

TEST_CASE("the time of names, and of files", "[.measure]") {
  BlockNamer namer("secret", "fingerprint");
  std::vector<int32_t> tokens(32'768);
  std::iota(tokens.begin(), tokens.end(), 0);
  const auto begin = Clock::now();
  BlockName name = namer.root("");
  for (size_t i = 0; i < tokens.size(); i += 128)
    name = namer.next(name, std::span(tokens).subspan(i, 128));
  const std::chrono::duration<double, std::micro> took = Clock::now() - begin;
  WARN("names of 32,768 tokens in blocks of 128: " << took.count() << " us");

  // What is left for the engine thread: to look where the blocks are.
  const KvLayout layout{{KvKind::kivi, 2, 2, 32, 128}, {1, 1, 64}};
  PrefixCache cache(layout, 1024);
  KvTier tier(cache, {.host_pages = 1024, .secret = "secret", .fingerprint = "fingerprint"});
  SequenceKv kv;
  REQUIRE(cache.take(512, kv.pages));
  kv.tokens = kv.settled = int(tokens.size());
  CapturedSlab captured{.tokens = 32'640, .settled = true};
  REQUIRE(cache.take(cache.blocks().slab_pages, captured.pages));
  kv.captured.push_back(captured);
  tier.offer(kv, tokens, "");
  for (const bool on_device : {false, true}) {
    if (on_device) cache.remember(kv, tokens, "");
    SequenceKv other;
    cache.extend_chains(other, tokens, "");
    tier.extend_names(other, tokens, "");
    const auto start = Clock::now();
    const PrefixMatch match = cache.find(other, tokens, "", 32'767);
    const int end = tier.reach(other, tokens, "", match, 32'767, 0, 0, {}).end;
    const std::chrono::duration<double, std::micro> looked = Clock::now() - start;
    CHECK(std::max(match.tokens, end) == 32'640);
    WARN("looking for them " << (on_device ? "on the device: " : "on the host: ") << looked.count()
                             << " us");
  }

  const std::string path = "/tmp/kivi_measure";
  std::vector<std::byte> page(size_t(16) << 20, std::byte{1});
  std::vector<std::byte*> pages(4, page.data());
  for (const bool encrypts : {false, true}) {
    const PageFileKeys keys = PageFileKeys::of("secret", encrypts);
    const PageFileContent content{{name, PieceKind::block}, name, page.size(), pages};
    const auto start = Clock::now();
    REQUIRE(write_page_file(path, content, keys).ok());
    const auto written = Clock::now();
    REQUIRE(read_page_file(path, content, keys).ok());
    const std::chrono::duration<double> write = written - start, read = Clock::now() - written;
    const double bytes = double(page.size() * pages.size()) / 1e9;
    WARN((encrypts ? "encrypted" : "plain")
         << ": written at " << bytes / write.count() << " GB/s, read at " << bytes / read.count()
         << " GB/s (page cache)");
  }
  std::remove(path.c_str());
}
