// SPDX-License-Identifier: Apache-2.0
// Masks that are made ahead of their use.
#include "engine/grammar/mask_maker.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <chrono>
#include <functional>
#include <thread>

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

TEST_CASE("states are in the order in which a text comes upon them") {
  const auto grammar = any_object();
  CHECK(grammar->order().front() == grammar->program().start());
}

}  // namespace kivi::grammar
