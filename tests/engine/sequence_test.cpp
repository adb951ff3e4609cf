// SPDX-License-Identifier: Apache-2.0
// Sequence: what the sampler needs of it is kept up to date token by token.
#include "engine/sequence.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <map>
#include <random>

using namespace kivi;

namespace {

std::unique_ptr<Sequence> sequence_of(std::vector<int32_t> prompt, const SamplingParams& sampling) {
  Request request;
  request.prompt = std::move(prompt);
  request.sampling = sampling;
  const int32_t eos[] = {2};
  return make_sequence(std::move(request), nullptr, 42, eos);
}

std::map<int32_t, float> bias_of(const Sequence& s) {
  std::map<int32_t, float> bias;
  for (const LogitBias& b : s.bias) CHECK(bias.emplace(b.id, b.bias).second);
  return bias;
}

// As a step does: place is made at launch, the id comes at collect.
std::optional<FinishReason> append(Sequence& s, int32_t id) {
  push_placeholder(s);
  return set_sampled(s, int(s.tokens.size()) - 1, id);
}

}  // namespace

TEST_CASE("penalties count every token as a map would") {
  std::mt19937 random(1);
  for (int round = 0; round < 30; ++round) {
    SamplingParams p;
    (round % 3 == 0   ? p.presence_penalty
     : round % 3 == 1 ? p.frequency_penalty
                      : p.repetition_penalty) = 0.5f;
    std::map<int32_t, std::pair<int, int>> expected;  // id -> (output count, in prompt)
    std::vector<int32_t> prompt(1 + random() % 50);
    for (int32_t& id : prompt) expected[id = int32_t(random() % 40)].second = 1;
    auto s = sequence_of(prompt, p);
    for (int i = 0; i < 100; ++i) {
      const auto id = int32_t(random() % 60);
      append(*s, id);
      ++expected[id].first;
    }
    REQUIRE(s->penalties.size() == expected.size());
    for (const PenaltyToken& t : s->penalties) {
      CHECK(t.output_count == expected[t.id].first);
      CHECK(t.in_prompt == expected[t.id].second);
    }
  }
}

TEST_CASE("without penalties no list of seen tokens is kept") {
  auto s = sequence_of({5, 6, 7}, {});
  append(*s, 8);
  CHECK(s->penalties.empty());
}

TEST_CASE("stop ids are forbidden until min_tokens are there, then only logit_bias is left") {
  SamplingParams p;
  p.min_tokens = 2;
  p.stop_token_ids = {9, 2, 9};
  p.logit_bias = {{9, 5}, {11, -3}};
  auto s = sequence_of({5}, p);
  for (int i = 0; i < 2; ++i) {
    const auto bias = bias_of(*s);
    REQUIRE(bias.size() == 3);  // each id once, the user's bias of 9 is overruled
    CHECK((std::isinf(bias.at(2)) && bias.at(2) < 0));
    CHECK((std::isinf(bias.at(9)) && bias.at(9) < 0));
    CHECK(bias.at(11) == -3);
    append(*s, 7);
  }
  CHECK(bias_of(*s) == std::map<int32_t, float>{{9, 5}, {11, -3}});
}

TEST_CASE("an ignored EOS is neither a stop nor forbidden") {
  SamplingParams p;
  p.ignore_eos = true;
  p.min_tokens = 3;
  auto s = sequence_of({5}, p);
  CHECK(s->bias.empty());
  CHECK_FALSE(append(*s, 2).has_value());
}

TEST_CASE("a constraint ends a sequence, with an error where the token does not fit") {
  class Fixed final : public TokenConstraint {
   public:
    explicit Fixed(Verdict verdict) : verdict_(verdict) {}
    std::span<const uint32_t> mask() override { return {}; }
    Verdict accept(int32_t) override { return verdict_; }

   private:
    Verdict verdict_;
  };
  using Verdict = TokenConstraint::Verdict;
  const std::pair<Verdict, std::optional<FinishReason>> cases[] = {
      {Verdict::going_on, std::nullopt},
      {Verdict::complete, FinishReason::stop},
      {Verdict::broken, FinishReason::error}};
  for (const auto& [verdict, reason] : cases) {
    auto s = sequence_of({5}, {});
    s->request.constraint = std::make_shared<Fixed>(verdict);
    CHECK(append(*s, 7) == reason);
  }
}

TEST_CASE("the seed of the request goes before the engine's") {
  SamplingParams p;
  CHECK(sequence_of({5}, p)->seed == 42);
  p.seed = 0;
  CHECK(sequence_of({5}, p)->seed == 0);
}
