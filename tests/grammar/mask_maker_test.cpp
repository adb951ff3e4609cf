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
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, char(byte));
  for (int i = 0; i < 25 * 25 * 25; ++i)
    tokens.push_back({char('a' + i % 25), char('a' + i / 25 % 25), char('a' + i / 625)});
  // Ids beyond the tokens only make the masks larger: 75,000 bytes.
  const auto vocabulary = std::make_shared<const TokenVocabulary>(std::move(tokens), 600'000);
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

TEST_CASE("states are in the order in which a text comes upon them") {
  const auto grammar = any_object();
  CHECK(grammar->order().front() == grammar->program().start());
}

}  // namespace kivi::grammar
