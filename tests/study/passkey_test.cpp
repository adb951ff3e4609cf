// SPDX-License-Identifier: Apache-2.0
// Pass key prompts: the key stands where it was asked for, and the scores are what they say.
#include "study/passkey.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <set>

#include "tests/study/scoring_model.h"

namespace kivi {

namespace {

std::vector<std::string> filler() {
  std::vector<std::string> sentences;
  for (int i = 0; i < 40; ++i) sentences.push_back("The fox number " + std::to_string(i) + " ran.");
  return sentences;
}

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

}  // namespace

TEST_CASE("Sentences end at a full stop before white space, on one line") {
  CHECK(sentences_of("One two.  Three\n four! 3.5 is?\n\nNo end") ==
        std::vector<std::string>{"One two.", "Three four!", "3.5 is?"});
  CHECK(sentences_of("").empty());
}

TEST_CASE("A pass key prompt holds the key at the asked depth, within the asked length") {
  const auto loaded = load_tokenizer(std::string(KIVI_SOURCE_DIR) + "/models/tales-llama");
  REQUIRE(loaded.ok());
  const Tokenizer& tokenizer = **loaded;
  const PasskeyOptions options;
  std::set<std::string> keys;
  for (const int length : {128, 257, 1000}) {
    for (const double depth : {0.0, 0.1, 0.5, 0.9, 1.0}) {
      for (const int trial : {0, 1}) {
        const auto prompt = passkey_prompt(filler(), tokenizer, length, depth, options, trial);
        REQUIRE(prompt.ok());
        CAPTURE(length, depth, trial, prompt->text);
        CHECK(prompt->tokens == 1 + int(tokenizer.encode(prompt->text, false).size()));
        CHECK(prompt->tokens <= length);
        CHECK(prompt->tokens > length - 30);  // a sentence more would not fit
        CHECK(prompt->key.size() == 5);
        CHECK(count(prompt->text, prompt->key) == 2);
        CHECK(prompt->text.ends_with("What is the pass key? The pass key is"));
        CHECK(prompt->distractors.size() == 7);
        for (const std::string& other : prompt->distractors)
          CHECK(prompt->text.find(other) == std::string::npos);
        // Where the key stands, in tokens of the text that is neither its sentence nor the
        // question.
        const size_t key = prompt->text.find("The pass key is " + prompt->key);
        const auto tokens = [&](const std::string& text) {
          return double(tokenizer.encode(text, false).size());
        };
        const double rest =
            double(prompt->tokens) -
            tokens("The pass key is " + prompt->key + ". Remember it. " + prompt->key +
                   " is the pass key. What is the pass key? The pass key is");
        const double before = key == 0 ? 0 : tokens(prompt->text.substr(0, key - 1));
        CHECK(before / rest == Approx(depth).margin(12 / rest));  // a sentence has up to 11
        CHECK(passkey_prompt(filler(), tokenizer, length, depth, options, trial)->text ==
              prompt->text);
        keys.insert(prompt->key);
      }
    }
  }
  CHECK(keys.size() == 30);  // another length, depth or trial has another key
  CHECK_FALSE(passkey_prompt(filler(), tokenizer, 20, 0.5, options, 0).ok());
  CHECK_FALSE(passkey_prompt({}, tokenizer, 200, 0.5, options, 0).ok());
}

TEST_CASE("A key's rank is among its distractors, and counts are of all trials", "[long]") {
  const auto model = scoring_model("kivi4", 256);
  PasskeyOptions options;
  options.lengths = {96, 128};
  options.depths = {0.5};
  options.trials = 2;
  options.distractors = 3;
  const auto set = passkey_set(filler(), *model->tokenizer, options, 2048);
  REQUIRE(set.ok());
  const auto scores = measure_passkey(*model->engine, *model->tokenizer, *set, options);
  REQUIRE(scores.ok());
  REQUIRE(scores->size() == 2);
  for (size_t i = 0; i < 2; ++i) {
    const PasskeyScore& score = (*scores)[i];
    CHECK(score.length == options.lengths[i]);
    CHECK(score.trials == 2);
    // The same, prompt by prompt.
    int likeliest = 0;
    double ranks = 0;
    for (int trial = 0; trial < 2; ++trial) {
      const auto prompt =
          passkey_prompt(filler(), *model->tokenizer, score.length, 0.5, options, trial);
      REQUIRE(prompt.ok());
      std::vector<double> sums;
      for (int c = -1; c < 3; ++c) {
        const std::string& key = c < 0 ? prompt->key : prompt->distractors[size_t(c)];
        const auto one = score_continuations(
            *model->engine, {*continuation_of(*model->tokenizer, prompt->text, " " + key)});
        REQUIRE(one.ok());
        sums.push_back((*one)[0]);
      }
      const auto better = std::count_if(sums.begin() + 1, sums.end(),
                                        [&](double other) { return other >= sums[0]; });
      likeliest += better == 0 ? 1 : 0;
      ranks += double(better) + 1;
    }
    CHECK(score.likeliest == likeliest);
    CHECK(score.rank_mean == Approx(ranks / 2));
    CHECK(score.found <= 2);
  }
}

TEST_CASE("Without distractors keys are only asked for, not ranked") {
  const auto model = scoring_model("kivi4", 256);
  PasskeyOptions options;
  options.lengths = {64};
  options.depths = {0.5};
  options.distractors = 0;
  const uint64_t before = model->engine->stats().prompt_tokens;
  const auto set = passkey_set(filler(), *model->tokenizer, options, 2048);
  REQUIRE(set.ok());
  const auto scores = measure_passkey(*model->engine, *model->tokenizer, *set, options);
  REQUIRE(scores.ok());
  CHECK((*scores)[0].rank_mean == 0);
  CHECK((*scores)[0].likeliest == 0);
  CHECK(model->engine->stats().prompt_tokens - before <= 64);  // one prompt
}

}  // namespace kivi
