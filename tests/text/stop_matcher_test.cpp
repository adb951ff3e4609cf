// SPDX-License-Identifier: Apache-2.0
// Stop strings against the stupid version: look at every end, compare every string.
#include "engine/text/stop_matcher.h"

#include <catch2/catch.hpp>
#include <random>

using namespace kivi;

namespace {

struct Outcome {
  std::string text;
  int matched = -1;
};

// The match that ends first; at the same end the longest; of equal strings the first given.
Outcome reference(const std::string& text, const std::vector<std::string>& stop, bool include) {
  for (size_t end = 1; end <= text.size(); ++end) {
    const std::string_view so_far = std::string_view(text).substr(0, end);
    int best = -1;
    for (int i = 0; i < int(stop.size()); ++i) {
      if (so_far.ends_with(stop[size_t(i)]) &&
          (best < 0 || stop[size_t(i)].size() > stop[size_t(best)].size())) {
        best = i;
      }
    }
    if (best >= 0) {
      const size_t cut = include ? 0 : stop[size_t(best)].size();
      return {text.substr(0, end - cut), best};
    }
  }
  return {text, -1};
}

// Bytes at the end of `text` that a longer text could turn into (the start of) a stop string.
size_t must_hold(const std::string& text, const std::vector<std::string>& stop) {
  for (size_t n = std::min<size_t>(text.size(), 64); n > 0; --n) {
    for (const std::string& s : stop) {
      if (n < s.size() && s.starts_with(text.substr(text.size() - n))) return n;
    }
  }
  return 0;
}

std::shared_ptr<const StopStrings> make(std::vector<std::string> stop) {
  return std::make_shared<const StopStrings>(std::move(stop));
}

}  // namespace

TEST_CASE("stop strings: any text, any strings, any split give what the stupid search gives") {
  const unsigned seed = 7;
  std::mt19937 random(seed);
  const std::vector<std::vector<std::string>> alphabets = {
      {"a", "b"},
      {"a", "b", "c"},
      {"\u00E9", "\u4F60", "\u4F61", "\U0001F44D"},
      {"a", "\n", "###"}};
  for (int round = 0; round < 20000; ++round) {
    INFO("seed " << seed << ", round " << round);
    const auto& alphabet = alphabets[random() % alphabets.size()];
    const auto word = [&](size_t longest) {
      std::string s;
      for (size_t n = 1 + random() % longest; n > 0; --n) s += alphabet[random() % alphabet.size()];
      return s;
    };
    std::vector<std::string> stop;
    for (size_t n = random() % 5; n > 0; --n) stop.push_back(word(1 + random() % 6));
    const std::string text = word(30);
    const bool include = random() % 2;
    const Outcome expected = reference(text, stop, include);

    StopMatcher matcher(make(stop), include);
    std::string out;
    bool matched = false;
    for (size_t at = 0; at < text.size() && !matched;) {
      const size_t n = 1 + random() % 7;
      matched = matcher.push(std::string_view(text).substr(at, n), out);
      at = std::min(at + n, text.size());
      if (matched) break;
      // What is let out is final, and nothing is held back without need.
      REQUIRE(expected.text.starts_with(out));
      REQUIRE(out.size() == at - (include ? 0 : must_hold(text.substr(0, at), stop)));
    }
    REQUIRE(matched == (expected.matched >= 0));
    if (!matched) matcher.flush(out);
    REQUIRE(out == expected.text);
    REQUIRE(matcher.matched() == expected.matched);
    if (matched) {
      REQUIRE(matcher.push("more", out));  // changes nothing
      matcher.flush(out);
      REQUIRE(out == expected.text);
    }
  }
}

TEST_CASE("the match that ends first wins, then the longest") {
  const auto run = [](std::vector<std::string> stop, const std::string& text) {
    StopMatcher matcher(make(std::move(stop)), false);
    std::string out;
    CHECK(matcher.push(text, out));
    return out + "|" + matcher.matched_string();
  };
  CHECK(run({"abcd", "bc"}, "xabcd") == "xa|bc");
  CHECK(run({"bc", "abc"}, "xabcd") == "x|abc");
  CHECK(run({"aab"}, "aaab") == "a|aab");
}

TEST_CASE("64 strings of 1,024 bytes that nearly match a long text cost linear time and memory") {
  std::vector<std::string> stop;
  for (int i = 0; i < 64; ++i) {
    stop.push_back(std::string(size_t(1023 - i), 'a') + char('b' + i % 20) +
                   std::string(size_t(i), 'a'));
  }
  StopMatcher matcher(make(stop), false);
  std::string out;
  const std::string text(4'000'000, 'a');
  for (size_t at = 0; at < text.size(); at += 4) {
    REQUIRE(!matcher.push(std::string_view(text).substr(at, 4), out));
  }
  CHECK(out.size() == text.size() - 1023);
  matcher.flush(out);
  CHECK(out == text);
}
