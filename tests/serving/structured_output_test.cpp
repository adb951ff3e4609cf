// SPDX-License-Identifier: Apache-2.0
// Structured output over a real vocabulary: forced tokens and masks agree, and the text is valid.
#include "engine/serving/structured_output.h"

#include <bit>
#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <random>

#include "tests/serving/tales_tokenizer.h"

using namespace kivi;
using Verdict = TokenConstraint::Verdict;

namespace {

constexpr int kVocabulary = 4096;

}  // namespace

TEST_CASE("forced tokens are those that the mask allows alone, in the tokenizer's own pieces") {
  StructuredOutput structured(tales_tokenizer(), kVocabulary, {2});
  OutputFormat format;
  format.kind = OutputFormat::Kind::json_schema;
  format.text =
      R"({"type":"object","properties":{"description":{"enum":["a king","a miller"]},)"
      R"("children":{"type":"integer","minimum":0,"maximum":99},"glad":{"type":"boolean"}},)"
      R"("required":["description","children","glad"],"additionalProperties":false})";
  format.field = "response_format";
  const auto prepared = structured.prepare(format, {});
  REQUIRE(prepared.ok());
  const uint32_t seed = 9;
  CAPTURE(seed);
  std::mt19937 random(seed);
  int forced = 0, all = 0;
  for (int walk = 0; walk < 50; ++walk) {
    // The second one is asked for masks alone, and the third for nothing before a token.
    const auto told = (*prepared)->begin(), masked = (*prepared)->begin(),
               blind = (*prepared)->begin();
    std::string text;
    for (Verdict verdict = Verdict::going_on; verdict == Verdict::going_on; ++all) {
      const auto only = told->forced();
      const std::span<const uint32_t> mask = masked->mask();
      int allowed = 0;
      for (const uint32_t word : mask) allowed += std::popcount(word);
      REQUIRE(allowed > 0);
      int32_t id = int32_t(random() % kVocabulary);
      while ((mask[size_t(id) / 32] >> (id % 32) & 1) == 0) id = (id + 1) % kVocabulary;
      if (only) {
        REQUIRE(allowed == 1);
        REQUIRE(*only == id);
        ++forced;
      }
      text += tales_tokenizer().token_bytes(id, true);
      verdict = told->accept(id);
      REQUIRE(masked->accept(id) == verdict);
      REQUIRE(blind->accept(id) == verdict);
      REQUIRE(verdict != Verdict::broken);
    }
    INFO(text);
    const auto value = nlohmann::json::parse(text);
    CHECK(value.size() == 3);
    CHECK(value["glad"].is_boolean());
  }
  CHECK(forced > 50 * 3);
  CHECK(forced < all);
}

TEST_CASE("a text without a choice is spelled as the tokenizer spells it, but for its open end") {
  StructuredOutput structured(tales_tokenizer(), kVocabulary, {2});
  OutputFormat format;
  format.kind = OutputFormat::Kind::choice;
  const std::string text = "Once upon a time there was a king who had three sons";
  format.choices = {text + " and", text + " but"};
  format.field = "structured_outputs";
  const auto prepared = structured.prepare(format, {});
  REQUIRE(prepared.ok());
  const auto constraint = (*prepared)->begin();
  const std::vector<int32_t> expected = tales_tokenizer().encode_after_special(text + " ");
  size_t count = 0;
  while (const auto id = constraint->forced()) {
    REQUIRE(count < expected.size());
    CHECK(*id == expected[count++]);
    REQUIRE(constraint->accept(*id) == Verdict::going_on);
  }
  CHECK(count + 3 > expected.size());
  CHECK(count > 5);
}
