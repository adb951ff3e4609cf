// SPDX-License-Identifier: Apache-2.0
// Masks that are made ahead of their use.
#include "engine/grammar/mask_maker.h"

#include <fmt/format.h>
#include <malloc.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <chrono>
#include <functional>
#include <thread>

#include "engine/grammar/compiler.h"
#include "engine/grammar/grammar_text.h"
#include "engine/grammar/json_schema.h"

namespace kivi::grammar {
namespace {

// A grammar without a mask, for single bytes and a few words.
std::shared_ptr<const CompiledGrammar> any_object() {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, char(byte));
  for (const char* more : {"\":", "\",", "{\"", "true", "null", "12", "\\u00"})
    tokens.emplace_back(more);
  const int size = int(tokens.size());
  auto vocabulary = std::make_shared<const TokenVocabulary>(std::move(tokens), size);
  return std::make_shared<const CompiledGrammar>(grammar_of_any_object(), std::move(vocabulary), 0);
}

// Bytes, and all texts of three letters: a mask of many of them takes 75,000 bytes, because ids
// beyond the tokens make masks larger.
constexpr int kWideVocabulary = 600'000;
std::vector<std::string> wide_tokens() {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, char(byte));
  for (int i = 0; i < 25 * 25 * 25; ++i)
    tokens.push_back({char('a' + i % 25), char('a' + i / 25 % 25), char('a' + i / 625)});
  return tokens;
}

// What the program holds of malloc's memory.
size_t bytes_allocated() {
  const struct mallinfo2 info = ::mallinfo2();
  return info.uordblks + info.hblkhd;
}

bool eventually(const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace

TEST_CASE("masks of every state are made without a text") {
  const auto first = any_object(), second = any_object();
  REQUIRE(first->order().size() > 20);
  REQUIRE(std::ranges::none_of(first->order(), [&](int32_t s) { return first->has_mask(s); }));
  MaskMaker maker(2);
  maker.add(first);
  maker.add(second);
  for (const auto& grammar : {first, second})
    CHECK(eventually([&] {
      return std::ranges::all_of(grammar->order(), [&](int32_t s) { return grammar->has_mask(s); });
    }));
}

TEST_CASE("a grammar that nobody holds does not keep others from their masks") {
  MaskMaker maker(1);
  for (int i = 0; i < 10; ++i) maker.add(any_object());
  const auto held = any_object();
  maker.add(held);
  CHECK(eventually([&] { return held->has_mask(held->order().back()); }));
}

TEST_CASE("the maker can go while it has work") {
  for (int i = 0; i < 20; ++i) {
    const auto grammar = any_object();
    MaskMaker maker(2);
    maker.add(grammar);
  }
}

// The sanitized build, where mallinfo2() says nothing, reports the same as a leak.
TEST_CASE("a grammar that is too ambiguous behind its first state leaves no masks behind") {
  const auto vocabulary = std::make_shared<const TokenVocabulary>(wide_tokens(), kWideVocabulary);
  // The first state has a mask. The second one calls more rules than a text can be in.
  std::string text = "root ::= [a-y]* \"z\" \"0\" many\nmany ::= r0";
  for (int i = 1; i < 300; ++i) text += fmt::format(" | r{}", i);
  for (int i = 0; i < 300; ++i) text += fmt::format("\nr{} ::= \"b\" r{} \"c\" | \"d{}\"", i, i, i);
  const auto fails = [&] {
    CHECK_THROWS_AS(CompiledGrammar(parse_grammar(text), vocabulary, /*seconds=*/1000), Failure);
  };
  const auto only_first = std::make_shared<const CompiledGrammar>(
      parse_grammar("root ::= [a-y]* \"z\""), vocabulary, /*seconds=*/1000);
  REQUIRE(only_first->mask(only_first->program().start()).bytes() > 70'000);
  fails();
  const size_t before = bytes_allocated();
  for (int i = 0; i < 20; ++i) fails();
  CHECK(bytes_allocated() < before + 500'000);
}

TEST_CASE("grammars together take a bounded memory, and a text keeps the one that it follows") {
  // A grammar has at most 80 states, so two of them take less than this.
  constexpr int64_t kBytesMax = 16'000'000;
  Compiler compiler(wide_tokens(), kWideVocabulary, /*threads=*/0, kBytesMax);
  const auto compile = [&](int i) {
    return compiler.compile({SourceKind::regex, fmt::format("[a-y]{{20}}z{{{}}}", i), {}}).value();
  };
  std::vector<uint32_t> mask(size_t(compiler.mask_words()));
  const auto follow = [&](Guide& guide) {  // makes 20 masks of 75,000 bytes
    for (int i = 0; i < 20; ++i) {
      CHECK(guide.fill_mask(mask));
      CHECK(guide.accept('b'));
    }
  };
  const auto held = compile(1);
  int64_t most = 0;
  for (int i = 2; i < 50; ++i) {
    const auto grammar = compile(i);
    CHECK(compiler.grammar_bytes() <= kBytesMax);
    follow(*Compiler::guide(grammar));
    most = std::max(most, compiler.grammar_bytes());
  }
  CHECK(most > kBytesMax / 2);
  CHECK(compile(1) != held);  // it was forgotten
  follow(*Compiler::guide(held));
}

TEST_CASE("no mask is made ahead while all grammars take too much") {
  const auto vocabulary = std::make_shared<const TokenVocabulary>(wide_tokens(), kWideVocabulary);
  const auto grammar = std::make_shared<const CompiledGrammar>(
      parse_grammar("root ::= [a-y]{1,500} \"z\""), vocabulary, /*seconds=*/0);
  const int64_t limit = vocabulary->grammar_bytes() + 300'000;
  {
    MaskMaker maker(1, limit);
    maker.add(grammar);
    CHECK(eventually([&] { return vocabulary->grammar_bytes() > limit; }));
    maker.add(any_object());
  }  // waits for the mask that is being made
  CHECK(vocabulary->grammar_bytes() < limit + 200'000);
  CHECK_FALSE(grammar->has_mask(grammar->order().back()));
}

TEST_CASE("the bytes of a grammar are counted off when it goes") {
  const auto vocabulary = std::make_shared<const TokenVocabulary>(wide_tokens(), kWideVocabulary);
  CHECK(vocabulary->grammar_bytes() == 0);
  {
    const CompiledGrammar grammar(parse_grammar("root ::= [a-y]* \"z\""), vocabulary);
    CHECK(vocabulary->grammar_bytes() > 70'000);
  }
  CHECK(vocabulary->grammar_bytes() == 0);
}

TEST_CASE("states are in the order in which a text comes upon them") {
  const auto grammar = any_object();
  CHECK(grammar->order().front() == grammar->program().start());
}

}  // namespace kivi::grammar
