// SPDX-License-Identifier: Apache-2.0
// What requests share through the prefix cache, seen from outside: how many of their prompt tokens
// are reused, and what is kept.
#include <catch2/catch.hpp>
#include <numeric>

#include "tests/engine/fake_runner.h"
#include "tests/engine/outcome.h"

using namespace kivi;
using namespace kivi::testing;

namespace {

// kivi2 with R 128 and no sinks: blocks of 128 tokens. Prompts are one chunk of up to 512 tokens.
FakeEngineOptions options_of(KvFormat format = {KvKind::kivi, 2, 2, 32, 128}) {
  FakeEngineOptions options;
  options.format = format;
  return options;
}

std::vector<int32_t> tokens_from(int first, int count) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  for (int32_t& id : tokens) id = 3 + id % 900;
  return tokens;
}

Request request_with(std::vector<int32_t> prompt, int max_tokens = 1) {
  Request r;
  r.id = "r";
  r.prompt = std::move(prompt);
  r.sampling.max_tokens = max_tokens;
  r.sampling.ignore_eos = true;
  r.sampling.seed = 7;
  return r;
}

int cached(Engine& engine, std::vector<int32_t> prompt) {
  return run(engine, request_with(std::move(prompt))).last.cached_tokens;
}

std::vector<int32_t> operator+(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace

TEST_CASE("a prompt that was computed before is reused up to its last boundary") {
  const auto engine = make_fake_engine(options_of());
  const std::vector<int32_t> prompt = tokens_from(0, 300);
  CHECK(cached(*engine, prompt) == 0);
  CHECK(cached(*engine, prompt) == 256);
  // A whole number of blocks: the last token is computed again, to sample the next one. The
  // boundary before it has no checkpoint, until this prompt has left one.
  CHECK(cached(*engine, tokens_from(0, 256)) == 0);
  CHECK(cached(*engine, tokens_from(0, 256)) == 128);
  CHECK(cached(*engine, tokens_from(0, 257)) == 256);
  CHECK(cached(*engine, tokens_from(0, 128)) == 0);
  CHECK(cached(*engine, tokens_from(1, 300)) == 0);
  // The checkpoint of a whole number of blocks is before the last one, where the same prompt can
  // use it.
  const auto other = make_fake_engine(options_of());
  CHECK(cached(*other, tokens_from(0, 256)) == 0);
  CHECK(cached(*other, tokens_from(0, 256)) == 128);

  const EngineStats stats = engine->stats();
  CHECK(stats.prefix.queried == 300 + 300 + 256 + 256 + 257 + 128 + 300);
  CHECK(stats.prefix.hit == 256 + 128 + 256);
  CHECK(stats.prefix.reachable == 256 + 128 + 128 + 256);
  CHECK(stats.kv_pages_free == stats.kv_pages_total);  // what is kept counts as free
  CHECK(stats.prefix_pages > 0);
  CHECK(stats.prefix_checkpoints > 0);
  CHECK(stats.kv_bytes == KvBytes{});
}

TEST_CASE("sinks belong to the first block") {
  const auto engine = make_fake_engine(options_of({KvKind::kivi, 2, 2, 32, 64, /*sinks=*/32, 8}));
  CHECK(cached(*engine, tokens_from(0, 300)) == 0);
  CHECK(cached(*engine, tokens_from(0, 300)) == 32 + 4 * 64);
  CHECK(cached(*engine, tokens_from(0, 96)) == 0);
}

TEST_CASE("formats without a residual need no checkpoint: every block is reused") {
  const KvFormat format = GENERATE(KvFormat{}, KvFormat{KvKind::f8, 8, 8, 0, 0});
  const auto engine = make_fake_engine(options_of(format));
  CHECK(cached(*engine, tokens_from(0, 300)) == 0);
  CHECK(cached(*engine, tokens_from(0, 300)) == 256);
  CHECK(cached(*engine, tokens_from(0, 200) + tokens_from(500, 100)) == 192);
  CHECK(cached(*engine, tokens_from(0, 65)) == 64);
  CHECK(engine->stats().prefix_checkpoints == 0);
}

TEST_CASE("where prompts part, the second one leaves a checkpoint for the third") {
  const auto engine = make_fake_engine(options_of());
  const std::vector<int32_t> system = tokens_from(0, 270);
  CHECK(cached(*engine, system + tokens_from(300, 180)) == 0);
  CHECK(cached(*engine, system + tokens_from(400, 180)) == 0);
  CHECK(cached(*engine, system + tokens_from(500, 180)) == 256);
  CHECK(cached(*engine, system + tokens_from(600, 180)) == 256);
}

TEST_CASE("the same holds where the prompt is staged chunk by chunk") {
  FakeEngineOptions options = options_of();
  options.config.prefill_chunk_tokens = 100;
  const auto engine = make_fake_engine(options);
  const std::vector<int32_t> system = tokens_from(0, 600);
  CHECK(cached(*engine, system + tokens_from(300, 180)) == 0);
  CHECK(cached(*engine, system + tokens_from(400, 180)) == 0);
  CHECK(cached(*engine, system + tokens_from(500, 180)) == 512);
  CHECK(cached(*engine, system + tokens_from(400, 180)) == 768);
}

TEST_CASE("a conversation goes on after the last boundary of its last answer") {
  const auto engine = make_fake_engine(options_of());
  std::vector<int32_t> chat = tokens_from(0, 100);
  for (int turn = 0; turn < 6; ++turn) {
    INFO("turn " << turn);
    const Outcome out = run(*engine, request_with(chat, 200));
    // The last token that was sampled is not in the cache.
    const int before = turn == 0 ? 0 : (int(chat.size()) - 50 - 1) / 128 * 128;
    CHECK(out.last.cached_tokens == before);
    chat = chat + out.ids + tokens_from(turn * 31, 50);
  }
  // Each turn supersedes the checkpoints of the turns before.
  CHECK(engine->stats().prefix_checkpoints <= 3);
}

TEST_CASE("samples of one prompt wait for the first and share its pages") {
  const bool asynchronous = GENERATE(false, true);
  FakeEngineOptions options = options_of();
  options.runner.asynchronous = asynchronous;
  const auto engine = make_fake_engine(options);
  std::vector<Request> samples(32, request_with(tokens_from(0, 500), 300));
  const auto streams = engine->submit_all(samples, [](size_t) { return [] {}; });
  REQUIRE(streams.ok());
  submit(*engine, request_with(tokens_from(77, 40), 20));
  engine->step();
  // The first one, and the stranger that came after them.
  CHECK(engine->stats().running == 2);
  // Young samples hold one copy of what lies before the checkpoint at 384, and no page more: 116
  // tokens of the prompt are in their slabs. What they begin from counts until it is copied.
  const int slab = PrefixBlocks::of({options.format, {1, 1, 64}}).slab_pages;
  for (int step = 0; step < 20 && engine->stats().running < 33; ++step) engine->step();
  CHECK(engine->stats().running == 33);
  engine->step();
  CHECK(engine->stats().kv_pages_total - engine->stats().kv_pages_free <= 3 * 2 + slab);
  for (int step = 0; step < 150; ++step) engine->step();
  const EngineStats stats = engine->stats();
  CHECK(stats.running == 32);
  // 500 + 150 tokens are 5 whole blocks, of which 3 are the prompt's and shared. Each sample has
  // two of its own, and a checkpoint.
  const int64_t held = stats.kv_pages_total - stats.kv_pages_free;
  CHECK(held <= 3 * 2 + 32 * (2 * 2 + slab));
  engine->run_until_idle();
  int reused = 0;
  for (const auto& stream : *streams) {
    const Outcome out = outcome_of(*stream);
    CHECK(out.ids.size() == 300);
    reused += out.last.cached_tokens == 384;
  }
  CHECK(reused == 31);
}

TEST_CASE("samples wait for the first in formats without checkpoints too") {
  const auto engine = make_fake_engine(options_of(KvFormat{}));
  std::vector<Request> samples(8, request_with(tokens_from(0, 500), 100));
  const auto streams = engine->submit_all(samples, [](size_t) { return [] {}; });
  REQUIRE(streams.ok());
  engine->step();
  CHECK(engine->stats().running == 1);
  engine->run_until_idle();
  int reused = 0;
  for (const auto& stream : *streams) reused += outcome_of(*stream).last.cached_tokens == 448;
  CHECK(reused == 7);
}

TEST_CASE("two boundaries in one staged chunk: one of them gets a checkpoint") {
  FakeEngineOptions options = options_of();
  options.config.prefill_chunk_tokens = 500;
  const auto engine = make_fake_engine(options);
  const std::vector<int32_t> system = tokens_from(0, 270);
  CHECK(cached(*engine, system + tokens_from(300, 400)) == 0);
  CHECK(cached(*engine, system + tokens_from(400, 400)) == 0);  // parts at 256, ends at 640
  CHECK(cached(*engine, system + tokens_from(500, 400)) == 256);
  CHECK(cached(*engine, system + tokens_from(400, 240)) == 256);
}

TEST_CASE("a scored prompt waits for nobody's prefix") {
  const auto engine = make_fake_engine(options_of());
  submit(*engine, request_with(tokens_from(0, 300), 50));
  Request scored = request_with(tokens_from(0, 300), 50);
  scored.sampling.prompt_logprobs = 0;
  submit(*engine, std::move(scored));
  engine->step();
  CHECK(engine->stats().running == 2);
  engine->run_until_idle();
}

TEST_CASE("salts, keys and the request's wish keep tokens apart") {
  FakeEngineOptions options = options_of();
  const bool per_key = GENERATE(false, true);
  options.config.prefix_cache_per_key = per_key;
  const auto engine = make_fake_engine(options);
  const auto reused = [&](const char* tenant, const char* salt, bool cache) {
    Request r = request_with(tokens_from(0, 300));
    r.tenant = tenant;
    r.cache_salt = salt;
    r.cache = cache;
    return run(*engine, std::move(r)).last.cached_tokens;
  };
  CHECK(reused("a", "", false) == 0);
  CHECK(reused("a", "", true) == 0);  // the one before left nothing
  CHECK(reused("a", "", false) == 0);
  CHECK(reused("a", "", true) == 256);
  CHECK(reused("a", "x", true) == 0);
  CHECK(reused("a", "x", true) == 256);
  CHECK(reused("b", "", true) == (per_key ? 0 : 256));
  CHECK(reused("b", "x", true) == (per_key ? 0 : 256));
  CHECK(reused("ax", "", true) == (per_key ? 0 : 256));  // not the tenant a with the salt x
}

TEST_CASE("a prompt whose tokens are scored is computed whole") {
  const auto engine = make_fake_engine(options_of());
  Request r = request_with(tokens_from(0, 300));
  CHECK(run(*engine, r).last.cached_tokens == 0);
  r.sampling.prompt_logprobs = 1;
  const Outcome out = run(*engine, r);
  CHECK(out.last.cached_tokens == 0);
  CHECK(out.prompt_logprobs.size() == 299);
}

TEST_CASE("in mode stream whole chunks are reused, by prompts of several chunks") {
  FakeEngineOptions options = options_of({KvKind::kivi, 2, 2, 32, 128, /*sinks=*/32, 8});
  options.config.kivi_prefill = PrefillMode::stream;
  const auto engine = make_fake_engine(options);
  // The first chunk ends at 32 + 3 x 128 = 416, each other one 512 later.
  CHECK(cached(*engine, tokens_from(0, 1500)) == 0);
  CHECK(cached(*engine, tokens_from(0, 1500)) == 1440);
  CHECK(cached(*engine, tokens_from(0, 1440)) == 0);  // no checkpoint before 1440
  CHECK(cached(*engine, tokens_from(0, 1440)) == 928);
  CHECK(cached(*engine, tokens_from(0, 500)) == 0);  // one chunk
  CHECK(cached(*engine, tokens_from(0, 513)) == 416);
  CHECK(cached(*engine, tokens_from(0, 512)) == 0);  // one chunk
}

TEST_CASE(
    "kept pages give way, the oldest first, and the last tokens of a prompt before its first") {
  FakeEngineOptions options = options_of(KvFormat{});
  options.pages = 12;
  const auto engine = make_fake_engine(options);
  CHECK(cached(*engine, tokens_from(0, 300)) == 0);    // keeps 4 pages
  CHECK(cached(*engine, tokens_from(300, 300)) == 0);  // 4 more
  CHECK(engine->stats().prefix_pages == 8);
  CHECK(cached(*engine, tokens_from(600, 300)) == 0);  // 12
  CHECK(engine->stats().prefix_pages == 12 - 1);       // the fifth page of a prompt is not kept
  CHECK(cached(*engine, tokens_from(0, 300)) == 192);  // lost its last page
  CHECK(cached(*engine, tokens_from(600, 300)) == 256);
}

TEST_CASE("a step that fails leaves nothing to reuse") {
  FakeEngineOptions options = options_of();
  options.runner.fail_at_step = 2;
  const auto engine = make_fake_engine(options);
  CHECK(cached(*engine, tokens_from(0, 300)) == 0);
  CHECK(cached(*engine, tokens_from(0, 300)) == 256);
  CHECK(*run(*engine, request_with(tokens_from(0, 300))).last.finish == FinishReason::error);
  CHECK(engine->stats().prefix_pages == 0);
  CHECK(cached(*engine, tokens_from(0, 300)) == 0);
}

TEST_CASE("the time of a lookup of 32,768 tokens", "[.measure]") {
  const KvLayout layout{{KvKind::kivi, 2, 2, 32, 128}, {1, 1, 64}};
  PrefixCache cache(layout, 1024);
  const std::vector<int32_t> prompt = tokens_from(0, 32'768);
  SequenceKv kv;
  REQUIRE(cache.take(512, kv.pages));
  kv.tokens = kv.settled = 32'768;
  cache.remember(kv, prompt, "");
  SequenceKv other;
  const auto begin = Clock::now();
  cache.extend_chains(other, prompt, "");
  const auto hashed = Clock::now();
  const PrefixMatch match = cache.find(other, prompt, "", 32'767);
  const std::chrono::duration<double, std::micro> hash = hashed - begin,
                                                  find = Clock::now() - hashed;
  CHECK(match.matched > 32'000);
  WARN("hashing once: " << hash.count() << " us; finding: " << find.count() << " us");
}
