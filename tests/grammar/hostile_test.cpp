// SPDX-License-Identifier: Apache-2.0
// Descriptions that are short and ask for much: depth, time and memory.
#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <chrono>

#include "engine/grammar/compiler.h"
#include "engine/grammar/matcher.h"

namespace kivi::grammar {
namespace {

Compiler& bytes_compiler() {
  static Compiler made(
      [] {
        std::vector<std::string> tokens;
        for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, char(byte));
        return tokens;
      }(),
      256);
  return made;
}

// What the compiler says within five seconds; "" if it takes the description.
std::string answer(SourceKind kind, std::string text) {
  const auto begin = std::chrono::steady_clock::now();
  const auto made = bytes_compiler().compile({kind, std::move(text), {}});
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(5));
  return made.ok() ? "" : made.error().message;
}

std::string times(std::string_view text, int count) {
  std::string all;
  for (int i = 0; i < count; ++i) all += text;
  return all;
}

}  // namespace

TEST_CASE("an expression that is nested too deep is refused") {
  // Behind another mark, a ? of a regular expression makes no level of its own.
  for (const int bytes : {5'000, 60'000, 250'000}) {
    CAPTURE(bytes);
    for (const std::string mark : {"*", "?", "+?"}) {
      CAPTURE(mark);
      CHECK(answer(SourceKind::regex, "x" + times(mark, bytes / int(mark.size()))).find("deep") !=
            std::string::npos);
    }
    for (const char* mark : {"*", "?", "+"}) {
      CAPTURE(mark);
      CHECK(answer(SourceKind::grammar, "root ::= \"x\"" + times(mark, bytes)).find("deep") !=
            std::string::npos);
    }
  }
  const std::string pattern = R"({"type":"string","pattern":"x)" + times("*", 60'000) + "\"}";
  CHECK(answer(SourceKind::json_schema, pattern).find("deep") != std::string::npos);
  CHECK(answer(SourceKind::regex, "x" + times("*", 1'000)).empty());
}

TEST_CASE("rules that call each other in a long row need no deep stack") {
  // Each is small enough to be put where it is called.
  std::string rows = "root ::= r0\n";
  constexpr int kRules = 15'000;
  for (int i = 0; i < kRules; ++i) rows += fmt::format("r{} ::= r{}?\n", i, i + 1);
  rows += fmt::format("r{} ::= \"a\"\n", kRules);
  answer(SourceKind::grammar, rows);  // it may be taken or refused
  CHECK(answer(SourceKind::grammar, "root ::= a\na ::= b?\nb ::= c?\nc ::= \"x\"").empty());
}

TEST_CASE("repetitions of an empty text end soon") {
  CHECK(answer(SourceKind::regex, "(((){10000}){10000}){10000}").find("too long") !=
        std::string::npos);
  CHECK(
      answer(SourceKind::regex, "((" + times("()", 20'000) + "){10000}){10000}").find("too long") !=
      std::string::npos);
  CHECK(answer(SourceKind::regex, "(){10000}x").empty());
}

TEST_CASE("many rules that need each other are compiled in linear time") {
  std::string rules = "root ::= r0\n";
  constexpr int kRules = 6'000;
  for (int i = 0; i < kRules; ++i)
    rules += fmt::format("r{0} ::= \"x\" r{1} | \"y\" r{0}\n", i, i + 1);
  rules += fmt::format("r{} ::= \"z\"\n", kRules);
  CHECK(answer(SourceKind::grammar, rules).empty());
  // The same in the order that a walk through the rules likes less or more.
  std::string turned = "root ::= r0\n";
  turned += fmt::format("r{} ::= \"z\"\n", kRules);
  for (int i = kRules - 1; i >= 0; --i)
    turned += fmt::format("r{0} ::= \"x\" r{1} | \"y\" r{0}\n", i, i + 1);
  CHECK(answer(SourceKind::grammar, turned).empty());
}

TEST_CASE("a long text keeps no stacks that it does not need") {
  std::string many = "root ::= s0";
  for (int i = 1; i < 100; ++i) many += fmt::format(" | s{}", i);
  many += "\n";
  for (int i = 0; i < 100; ++i) many += fmt::format("s{0} ::= \"a\" s{0} \"b\" | \"c\"\n", i);
  const auto made = bytes_compiler().compile({SourceKind::grammar, many, {}});
  REQUIRE(made.ok());
  {  // Each level of these needs 100 frames, so the limit comes after some 10,000 levels.
    Matcher matcher(*made);
    const auto take = [&](int count) {
      for (int i = 0; i < count; ++i)
        if (!matcher.accept("a")) return false;
      return true;
    };
    CHECK(take(5'000));
    CHECK_THROWS_AS(take(30'000), Failure);
  }
  // Each level calls 20 rules in a row, and one frame of it stays.
  const auto levels = bytes_compiler().compile(
      {SourceKind::grammar,
       "root ::= \"a\"" + times(" t", 20) + " root \"b\" | \"c\"\nt ::= \"(\" t \")\" | \"x\"",
       {}});
  REQUIRE(levels.ok());
  Matcher matcher(*levels);
  constexpr int kLevels = 5'000;
  for (int i = 0; i < kLevels; ++i) {
    REQUIRE(matcher.accept("a" + times("x", 20)));
    REQUIRE(matcher.stacks() < 12'000);
  }
  REQUIRE(matcher.accept("c"));
  for (int i = 0; i < kLevels; ++i) {
    CHECK_FALSE(matcher.may_end());
    REQUIRE(matcher.accept("b"));
  }
  CHECK(matcher.complete());
}

}  // namespace kivi::grammar
