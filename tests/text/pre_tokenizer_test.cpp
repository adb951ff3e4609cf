// SPDX-License-Identifier: Apache-2.0
// Classes of pre-tokenizers' patterns against the tokenizers library (0.23: Oniguruma with Unicode
// 16), whose answers for every code point were compared when the ranges were written down.
#include "engine/text/pre_tokenizer.h"

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

namespace kivi {

namespace {

using nlohmann::json;

// The pieces of "a<character>a" where the pattern's matches are isolated: 3 if it matches.
size_t pieces_around(const std::string& pattern, const std::string& character) {
  const json split = {{"type", "Split"},
                      {"pattern", {{"Regex", pattern}}},
                      {"behavior", "Isolated"},
                      {"invert", false}};
  const auto loaded = PreTokenizer::load(split, Pieces::text);
  if (!loaded.ok()) FAIL(loaded.error().message);
  RegexScratch scratch;
  std::string mapped;
  std::vector<Span> pieces;
  loaded->split("a" + character + "a", true, scratch, mapped, pieces);
  return pieces.size();
}

bool matches(const std::string& pattern, const std::string& character) {
  const size_t pieces = pieces_around(pattern, character);
  CHECK((pieces == 3 || pieces == 1));
  return pieces == 3;
}

}  // namespace

TEST_CASE("Digits of Unicode 15 and 16 are digits, and U+180E is no white space") {
  // First and last of each range.
  const char* const digits[] = {"\U00010D40", "\U00010D49", "\U000116D0", "\U000116E3",
                                "\U00011BF0", "\U00011BF9", "\U00011F50", "\U00011F59",
                                "\U00016130", "\U00016139", "\U00016D70", "\U00016D79",
                                "\U0001CCF0", "\U0001CCF9", "\U0001E4F0", "\U0001E4F9",
                                "\U0001E5F1", "\U0001E5FA", "7",          "\u0663"};
  for (const char* digit : digits) {
    CAPTURE(digit);
    for (const char* pattern : {R"(\p{N})", R"(\p{Nd})", R"(\d)", R"([\p{N}])", R"([x\d])"})
      CHECK(matches(pattern, digit));
    for (const char* pattern : {R"(\P{N}(?<!a))", R"(\D(?<!a))", R"([^\p{N}a])"})
      CHECK_FALSE(matches(pattern, digit));
  }
  for (const char* number : {"\U0001D2C0", "\U0001D2D3", "\u00BD"}) {
    CHECK(matches(R"(\p{N})", number));
    CHECK_FALSE(matches(R"(\p{Nd})", number));
  }
  CHECK_FALSE(matches(R"(\p{N})", "\U0001E5F0"));
  const char* const spaces[] = {" ",      "\t",     "\n",     "\v",     "\f",     "\r",
                                "\u0085", "\u00A0", "\u1680", "\u2000", "\u200A", "\u2028",
                                "\u2029", "\u202F", "\u205F", "\u3000"};
  for (const char* space : spaces) {
    CAPTURE(space);
    CHECK(matches(R"(\s)", space));
    CHECK(matches(R"([\s])", space));
    CHECK_FALSE(matches(R"(\S(?<!a))", space));
    CHECK_FALSE(matches(R"([^\sa])", space));
  }
  for (const char* other : {"\u180E", "\u200B", "x"}) {
    CHECK_FALSE(matches(R"(\s)", other));
    CHECK_FALSE(matches(R"([\s])", other));
    CHECK(matches(R"(\S(?<!a))", other));
    CHECK(matches(R"([^\sa])", other));
  }
}

TEST_CASE("What looks like a class and is none stays as it is") {
  CHECK(matches(R"(\\)", "\\"));
  CHECK(matches(R"(\\s)", "\\s"));
  CHECK(matches(R"([\]\s])", "]"));
  CHECK(matches(R"([]\s])", "]"));
  CHECK(matches(R"([^]\sa])", "x"));
  CHECK_FALSE(matches(R"([^]\sa])", "]"));
  CHECK(matches(R"(\[\s)", "[ "));
  CHECK(matches(R"(\p{Nl})", "\u2160"));
}

}  // namespace kivi
