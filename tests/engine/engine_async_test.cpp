// SPDX-License-Identifier: Apache-2.0
// Asynchronous scheduling against the plain kind: a runner whose steps are collected one step late
// must give every request the same tokens, and leave nothing behind.
#include <algorithm>
#include <catch2/catch.hpp>
#include <random>

#include "tests/engine/fake_runner.h"

using namespace kivi;
using namespace kivi::testing;

namespace {

struct AsyncOutcome {
  std::vector<int32_t> ids;
  std::vector<int> finishes;
  friend bool operator==(const AsyncOutcome&, const AsyncOutcome&) = default;
};

// What may come next depends on all tokens before; the text is whole after some of them. A token
// that was sampled under an old mask does not fit. In every third state one token alone fits.
class Chain final : public TokenConstraint {
 public:
  static constexpr int32_t kEvery = 11;

  // `tells`: forced() names the only token that fits.
  explicit Chain(int vocab, bool tells = false) : mask_(size_t(vocab + 31) / 32), tells_(tells) {}

  std::span<const uint32_t> mask() override {
    std::ranges::fill(mask_, 0u);
    for (int32_t id = 0; id < int32_t(mask_.size() * 32); ++id)
      if (fits(id)) mask_[size_t(id) / 32] |= 1u << (id % 32);
    return mask_;
  }
  std::optional<int32_t> forced() override {
    if (!tells_ || state_ % 3 != 0) return std::nullopt;
    return only();
  }
  Verdict accept(int32_t id) override {
    if (!fits(id)) return Verdict::broken;
    state_ = uint32_t(FakeRunner::mix(state_ + uint64_t(id)));
    return state_ % 40 == 0 ? Verdict::complete : Verdict::going_on;
  }

 private:
  int32_t only() const { return kEvery + int32_t(state_ % kEvery); }
  bool fits(int32_t id) const {
    return state_ % 3 == 0 ? id == only() : id % kEvery == int32_t(state_ % kEvery);
  }
  std::vector<uint32_t> mask_;
  const bool tells_;
  uint32_t state_ = 1;
};

struct Asked {
  Request request;
  bool constrained = false;
  int cancel_after;  // steps; -1: never
};

std::vector<Asked> requests_of(std::mt19937& random, int count) {
  std::vector<Asked> all;
  for (int i = 0; i < count; ++i) {
    Asked a;
    a.request.prompt.assign(1 + random() % 200, int32_t(3 + random() % 50));
    SamplingParams& p = a.request.sampling;
    p.seed = random();
    p.max_tokens = int(random() % 60);
    if (i % 3 == 0) p.min_tokens = std::min(p.max_tokens, int(random() % 10));
    if (i % 4 == 1) p.presence_penalty = 0.5f;
    if (i % 5 == 2) p.prompt_logprobs = 1;
    for (int k = 0; k < 40; ++k) p.stop_token_ids.push_back(int32_t(3 + random() % 997));
    a.cancel_after = -1;
    all.push_back(std::move(a));
  }
  return all;
}

// Runs all to the end, arriving a few at a time; returns what each one got. `forced`: constraints
// tell which tokens they force; counts those that were not sampled.
std::vector<AsyncOutcome> run(const std::vector<Asked>& asked, FakeEngineOptions options,
                              bool asynchronous, bool& preempted, EngineStats* forced = nullptr) {
  options.runner.asynchronous = asynchronous;
  const auto engine = make_fake_engine(options);
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (size_t next = 0, steps = 0; next < asked.size() || engine->step(); ++steps) {
    if (next < asked.size() && steps % 2 == 0) {
      Request request = asked[next].request;
      if (asked[next].constrained)
        request.constraint = std::make_shared<Chain>(options.runner.vocab_size, forced != nullptr);
      auto stream = engine->submit(std::move(request), [] {});
      ++next;
      REQUIRE(stream.ok());
      streams.push_back(*stream);
    }
    if (next < asked.size()) engine->step();
    for (size_t i = 0; i < streams.size(); ++i)
      if (int(steps) == asked[i].cancel_after) streams[i]->cancel();
  }
  std::vector<AsyncOutcome> outcomes;
  for (const auto& stream : streams) {
    AsyncOutcome& o = outcomes.emplace_back();
    std::vector<TokenEvent> events;
    REQUIRE(stream->drain(events));
    for (const TokenEvent& e : events) {
      if (e.id >= 0) o.ids.push_back(e.id);
      if (e.finish) o.finishes.push_back(int(*e.finish));
    }
  }
  const EngineStats stats = engine->stats();
  preempted = preempted || stats.preemptions > 0;
  if (forced != nullptr) *forced = stats;
  REQUIRE((stats.running == 0 && stats.waiting == 0));
  REQUIRE(stats.kv_pages_free == stats.kv_pages_total);
  REQUIRE(stats.kv_slots_free == stats.kv_slots_total);
  REQUIRE(stats.kv_bytes == KvBytes{});
  return outcomes;
}

FakeEngineOptions small_engine(int pages) {
  FakeEngineOptions options;
  options.config.max_num_seqs = 6;
  options.config.prefill_chunk_tokens = 64;
  options.config.max_num_batched_tokens = 160;
  options.max_model_len = 512;
  options.format.residual = 32;
  options.pages = pages;
  return options;
}

}  // namespace

TEST_CASE("launching a step before the last one is collected changes no request's tokens") {
  bool preempted = false;
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    INFO("seed " << seed);
    std::mt19937 random(seed);
    const auto asked = requests_of(random, 25);
    const FakeEngineOptions options = small_engine(seed % 2 == 0 ? 9 : 200);
    const auto plain = run(asked, options, false, preempted);
    const auto ahead = run(asked, options, true, preempted);
    REQUIRE(plain == ahead);
    for (const AsyncOutcome& o : plain) REQUIRE(o.finishes.size() == 1);
  }
  REQUIRE(preempted);
}

TEST_CASE("a constraint knows the last token when it is asked for the next one") {
  bool preempted = false;
  int completed = 0;
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    INFO("seed " << seed);
    std::mt19937 random(seed);
    auto asked = requests_of(random, 25);
    for (size_t i = 0; i < asked.size(); ++i) asked[i].constrained = i % (seed % 3 + 2) == 1;
    const FakeEngineOptions options = small_engine(seed % 2 == 0 ? 9 : 200);
    const auto plain = run(asked, options, false, preempted);
    const auto ahead = run(asked, options, true, preempted);
    REQUIRE(plain == ahead);
    for (size_t i = 0; i < plain.size(); ++i) {
      REQUIRE(plain[i].finishes.size() == 1);
      REQUIRE(plain[i].finishes[0] != int(FinishReason::error));
      if (!asked[i].constrained) continue;
      // The tokens are those of the chain, and the text ends where the chain does.
      Chain chain(options.runner.vocab_size);
      bool complete = false;
      for (const int32_t id : plain[i].ids) {
        const auto& stops = asked[i].request.sampling.stop_token_ids;
        if (std::ranges::find(stops, id) != stops.end()) break;
        REQUIRE_FALSE(complete);
        const auto verdict = chain.accept(id);
        REQUIRE(verdict != TokenConstraint::Verdict::broken);
        complete = verdict == TokenConstraint::Verdict::complete;
      }
      if (complete) REQUIRE(plain[i].finishes[0] == int(FinishReason::stop));
      completed += complete;
    }
  }
  REQUIRE(preempted);
  REQUIRE(completed > 20);
}

TEST_CASE("forced tokens are computed without being sampled, and no request's tokens change") {
  bool preempted = false;
  uint64_t forced = 0;
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    INFO("seed " << seed);
    std::mt19937 random(seed);
    auto asked = requests_of(random, 25);
    for (size_t i = 0; i < asked.size(); ++i) {
      asked[i].constrained = i % (seed % 3 + 1) == 0;
      if (i % 7 == 3) asked[i].request.sampling.logprobs = 1;
    }
    FakeEngineOptions options = small_engine(seed % 2 == 0 ? 9 : 200);
    // From one row a sequence, which is no room to jump, to more than any run of forced tokens.
    options.config.max_num_batched_tokens = 70 + int(seed % 4) * 16;
    const auto sampled = run(asked, options, false, preempted);
    for (const bool asynchronous : {false, true}) {
      EngineStats stats;
      REQUIRE(run(asked, options, asynchronous, preempted, &stats) == sampled);
      forced += stats.forced_tokens;
    }
  }
  REQUIRE(preempted);
  REQUIRE(forced > 1000);
}

TEST_CASE("a run of forced tokens takes one step") {
  // One token fits in each state; all but the first are forced.
  struct Run final : TokenConstraint {
    explicit Run(bool names_it) : tells(names_it) {}
    std::span<const uint32_t> mask() override {
      std::ranges::fill(words, 0u);
      words[size_t(next) / 32] |= 1u << (next % 32);
      return words;
    }
    std::optional<int32_t> forced() override {
      if (!tells || next == 100) return std::nullopt;
      return next;
    }
    Verdict accept(int32_t id) override {
      if (id != next) return Verdict::broken;
      return next++ == 130 ? Verdict::complete : Verdict::going_on;
    }
    const bool tells;
    int32_t next = 100;
    std::vector<uint32_t> words = std::vector<uint32_t>(32);
  };
  for (const bool logprobs : {false, true})
    for (const bool tells : {false, true}) {
      INFO("logprobs " << logprobs << " tells " << tells);
      FakeEngineOptions options;
      const auto engine = make_fake_engine(options);
      Request request;
      request.prompt = {5, 6, 7};
      request.sampling.max_tokens = 100;
      request.sampling.logprobs = logprobs ? 0 : -1;
      request.constraint = std::make_shared<Run>(tells);
      const auto stream = engine->submit(std::move(request), [] {});
      REQUIRE(stream.ok());
      engine->run_until_idle();
      std::vector<TokenEvent> events;
      REQUIRE((*stream)->drain(events));
      REQUIRE(events.size() == 31);
      for (int i = 0; i < 31; ++i) CHECK(events[size_t(i)].id == 100 + i);
      CHECK(events.back().finish == FinishReason::stop);
      const bool jumps = tells && !logprobs;
      CHECK(engine->stats().forced_tokens == (jumps ? 30u : 0u));
      CHECK(engine->stats().steps == (jumps ? 1u : 31u));
    }
}

TEST_CASE("cancels and failed steps leave nothing behind while a step is under way") {
  bool preempted = false;
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    INFO("seed " << seed);
    std::mt19937 random(seed);
    auto asked = requests_of(random, 25);
    for (Asked& a : asked)
      if (random() % 2 == 0) a.cancel_after = int(random() % 80);
    for (Asked& a : asked) a.constrained = random() % 3 == 0;
    FakeEngineOptions options = small_engine(seed % 2 == 0 ? 9 : 200);
    if (seed % 3 == 0) options.runner.fail_at_step = int(random() % 30);
    const auto outcomes = run(asked, options, true, preempted);
    REQUIRE(outcomes.size() == asked.size());
    for (const AsyncOutcome& o : outcomes) REQUIRE(o.finishes.size() == 1);
  }
}
