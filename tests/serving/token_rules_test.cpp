// SPDX-License-Identifier: Apache-2.0
// TokenRules against a plain rule: may this token follow these?
#include "engine/serving/token_rules.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <random>
#include <set>

namespace kivi {
namespace {

using Verdict = TokenConstraint::Verdict;

std::set<int32_t> allowed_by(TokenConstraint& constraint, int vocab) {
  std::set<int32_t> ids;
  const auto mask = constraint.mask();
  REQUIRE(mask.size() == size_t(vocab + 31) / 32);
  for (int32_t id = 0; id < int32_t(mask.size() * 32); ++id)
    if (mask[size_t(id) / 32] >> (id % 32) & 1) ids.insert(id);
  return ids;
}

std::shared_ptr<TokenConstraint> made(TokenRules rules,
                                      std::shared_ptr<TokenConstraint> format = nullptr) {
  return constrain(std::make_shared<const TokenRules>(std::move(rules)), std::move(format));
}

// A format that allows the tokens of one list after another, and then is complete.
class Script final : public TokenConstraint {
 public:
  explicit Script(std::vector<std::vector<int32_t>> steps) : steps_(std::move(steps)) {}
  std::span<const uint32_t> mask() override {
    words_.assign(3, 0);
    for (const int32_t id : steps_[at_]) words_[size_t(id) / 32] |= 1u << (id % 32);
    return words_;
  }
  Verdict accept(int32_t id) override {
    if (std::ranges::find(steps_[at_], id) == steps_[at_].end()) return Verdict::broken;
    return ++at_ == steps_.size() ? Verdict::complete : Verdict::going_on;
  }

 private:
  std::vector<std::vector<int32_t>> steps_;
  std::vector<uint32_t> words_;
  size_t at_ = 0;
};

TEST_CASE("a banned sequence never comes whole, and nothing else is forbidden") {
  std::mt19937 random(3);
  for (int trial = 0; trial < 200; ++trial) {
    const int vocab = 4 + int(random() % 40);
    TokenRules rules;
    rules.vocab_size = vocab;
    for (int i = 0; i < 4; ++i) {
      std::vector<int32_t> sequence(1 + random() % 3);
      for (int32_t& id : sequence) id = int32_t(random() % 4);
      rules.banned.push_back(sequence);
    }
    const auto banned = rules.banned;
    const auto constraint = made(std::move(rules));
    std::vector<int32_t> text;
    for (int step = 0; step < 40; ++step) {
      std::set<int32_t> expected;
      for (int32_t id = 0; id < vocab; ++id) {
        std::vector<int32_t> next = text;
        next.push_back(id);
        const bool ends_banned = std::ranges::any_of(banned, [&](const auto& s) {
          return s.size() <= next.size() && std::equal(s.rbegin(), s.rend(), next.rbegin());
        });
        if (!ends_banned) expected.insert(id);
      }
      // Ids from 4 on are in no sequence, except if the vocabulary has none of them.
      if (expected.empty())
        for (int32_t id = 0; id < vocab; ++id) expected.insert(id);
      REQUIRE(allowed_by(*constraint, vocab) == expected);
      // Of those that may begin a sequence, so that many are met.
      const int32_t id = int32_t(random() % uint32_t(std::min(vocab, 5)));
      text.push_back(id);
      REQUIRE(constraint->accept(id) == Verdict::going_on);
    }
  }
}

TEST_CASE("allowed tokens are all that is allowed, in a vocabulary of any size") {
  for (const int vocab : {1, 31, 32, 33, 70}) {
    CAPTURE(vocab);
    CHECK(allowed_by(*made({.vocab_size = vocab}), vocab).size() == size_t(vocab));
    const int32_t last = vocab - 1;
    CHECK(allowed_by(*made({.vocab_size = vocab, .allowed = mask_of_tokens({last, 0, 0}, vocab)}),
                     vocab) == std::set<int32_t>{0, last});
  }
}

TEST_CASE("an end does not come before min_tokens, unless nothing else may come") {
  const TokenRules rules{.vocab_size = 70, .min_tokens = 2, .ends = {2, 3}};
  const auto free = made(rules);
  CHECK_FALSE(allowed_by(*free, 70).contains(2));
  free->accept(5);
  CHECK_FALSE(allowed_by(*free, 70).contains(3));
  free->accept(5);
  CHECK(allowed_by(*free, 70).size() == 70);

  const auto bound =
      made(rules, std::make_shared<Script>(std::vector<std::vector<int32_t>>{{2, 5}, {3}, {2, 7}}));
  CHECK(allowed_by(*bound, 70) == std::set<int32_t>{5});
  CHECK(bound->accept(5) == Verdict::going_on);
  CHECK(allowed_by(*bound, 70) == std::set<int32_t>{3});  // the format demands it
  CHECK(bound->accept(3) == Verdict::going_on);
  CHECK(allowed_by(*bound, 70) == std::set<int32_t>{2, 7});
  CHECK(bound->accept(7) == Verdict::complete);
}

TEST_CASE("a word is banned at the beginning of a text, inside of it and behind a space") {
  const auto tokenizer = load_tokenizer(KIVI_SOURCE_DIR "/models/tales-llama");
  REQUIRE(tokenizer.ok());
  const auto sequences = tokens_of_words({"king", " queen", "the king's"}, **tokenizer);
  REQUIRE(sequences.ok());
  for (const char* text : {"king", " king", "queen", "the king's"}) {
    CAPTURE(text);
    CHECK(std::ranges::find(*sequences, (*tokenizer)->encode(text, false)) != sequences->end());
  }
  CHECK(std::ranges::find(*sequences, (*tokenizer)->encode_after_special("king")) !=
        sequences->end());
  const auto none = tokens_of_words({"  "}, **tokenizer);
  REQUIRE_FALSE(none.ok());
  CHECK(none.error().field == "bad_words");
}

}  // namespace
}  // namespace kivi
