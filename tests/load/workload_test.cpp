// SPDX-License-Identifier: Apache-2.0
// The load generator's work: lengths, arrivals and prompts are what was asked for, and the same
// for the same seed.
#include "bench/client/workload.h"

#include <catch2/catch.hpp>
#include <limits>
#include <set>
#include <sstream>

#include "bench/client/arrivals.h"

namespace kivi::load {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::vector<double> gaps_of(const std::vector<double>& times) {
  std::vector<double> gaps;
  for (size_t i = 1; i < times.size(); ++i) gaps.push_back(times[i] - times[i - 1]);
  return gaps;
}

WorkloadOptions options_of(int count, Lengths prompt, Lengths output) {
  return {.count = count, .seed = 7, .prompt = prompt, .output = output, .vocab_size = 4096};
}

TEST_CASE("Log-normal lengths have the mean that was asked for, the cut included") {
  for (const double mean : {20.0, 161.0, 338.0, 900.0})
    for (const double sigma : {0.5, 1.0, 1.6}) {
      const auto lengths =
          parse_lengths("lognormal:" + std::to_string(mean) + ":" + std::to_string(sigma), 0, 2048);
      REQUIRE(lengths.ok());
      const LengthDrawer drawer(*lengths);
      Random random(1, 2);
      double sum = 0;
      constexpr int kDraws = 40000;
      for (int i = 0; i < kDraws; ++i) {
        const int length = drawer.draw(random);
        REQUIRE((length >= 1 && length <= 2048));
        sum += length;
      }
      CAPTURE(mean, sigma);
      CHECK(sum / kDraws == Approx(mean).epsilon(0.03));
    }
}

TEST_CASE("sharegpt lengths have ShareGPT's means, and a long tail") {
  const auto lengths = parse_lengths("sharegpt", kShareGptOutputMean, 4096);
  REQUIRE(lengths.ok());
  const LengthDrawer drawer(*lengths);
  Random random(3, 4);
  double sum = 0;
  int above_three_means = 0;
  for (int i = 0; i < 20000; ++i) {
    const int length = drawer.draw(random);
    sum += length;
    above_three_means += length > 3 * 338;
  }
  CHECK(sum / 20000 == Approx(338).epsilon(0.04));
  CHECK(above_three_means > 20000 / 50);
}

TEST_CASE("Uniform lengths fill their range and nothing else") {
  const LengthDrawer drawer(parse_lengths("5:8", 0, 2048).value());
  Random random(1, 1);
  std::set<int> seen;
  for (int i = 0; i < 500; ++i) seen.insert(drawer.draw(random));
  CHECK(seen == std::set<int>{5, 6, 7, 8});
}

TEST_CASE("Lengths that make no sense are refused with what was expected") {
  for (const char* text : {"", "0", "-3", "5:4", "x", "1:2:3", "lognormal", "lognormal:x",
                           "lognormal:1", "lognormal:100:0", "lognormal:1500", "1e3", "nan",
                           "lognormal:nan", "lognormal:100:nan", "9999999999"}) {
    CAPTURE(text);
    const auto lengths = parse_lengths(text, 161, 2048);
    REQUIRE_FALSE(lengths.ok());
    CHECK_FALSE(lengths.error().message.empty());
  }
}

TEST_CASE("Poisson arrivals have exponential gaps of mean 1 / rate") {
  const auto gaps = gaps_of(arrival_times(ArrivalKind::poisson, 50, 1, 20001, 9));
  double sum = 0, squares = 0;
  for (const double gap : gaps) {
    REQUIRE(gap >= 0);
    sum += gap;
    squares += gap * gap;
  }
  const double mean = sum / double(gaps.size());
  CHECK(mean == Approx(0.02).epsilon(0.03));
  // Its standard deviation is its mean.
  CHECK(squares / double(gaps.size()) - mean * mean == Approx(mean * mean).epsilon(0.08));
}

TEST_CASE("Constant and burst arrivals keep the rate; an infinite rate is all at once") {
  for (const double gap : gaps_of(arrival_times(ArrivalKind::constant, 8, 1, 100, 0)))
    CHECK(gap == Approx(0.125));
  const auto bursts = arrival_times(ArrivalKind::burst, 10, 5, 100, 0);
  for (size_t i = 0; i < bursts.size(); ++i) CHECK(bursts[i] == Approx(double(i / 5) * 0.5));
  for (const double time : arrival_times(ArrivalKind::poisson, kInfinity, 1, 10, 0))
    CHECK(time == 0);
}

TEST_CASE("A trace is read as it is, moved to begin at 0; mistakes name their line") {
  const auto times = parse_trace("# two a second\n10\n10.5\r\n\n12\n", "t");
  REQUIRE(times.ok());
  CHECK(*times == std::vector<double>{0, 0.5, 2});
  for (const char* text : {"1\nx\n", "2\n1\n", "1\nnan\n", "1\n1e300\n", "-1e308\n1e308\n"}) {
    const auto bad = parse_trace(text, "t");
    REQUIRE_FALSE(bad.ok());
    CHECK(bad.error().message.find("t:2: ") == 0);
  }
  CHECK_FALSE(parse_trace("# nothing\n", "t").ok());
}

TEST_CASE("The same seed asks the same; another seed, or another run, asks other tokens") {
  const WorkloadOptions options = options_of(50, {.min = 4, .max = 40}, {.min = 1, .max = 9});
  WorkloadOptions other = options;
  other.seed = 8;
  const auto a = make_workload(options, 0), b = make_workload(options, 0);
  const auto next = make_workload(options, 1), seed = make_workload(other, 0);
  int equal_lengths = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    CHECK(a[i].ids == b[i].ids);
    CHECK(a[i].max_tokens == b[i].max_tokens);
    CHECK(int(a[i].ids.size()) == a[i].prompt_tokens);
    // Of a sweep: the same lengths, other tokens.
    CHECK(next[i].max_tokens == a[i].max_tokens);
    CHECK(next[i].prompt_tokens == a[i].prompt_tokens);
    CHECK(next[i].ids != a[i].ids);
    equal_lengths += seed[i].prompt_tokens == a[i].prompt_tokens;
    for (const int32_t id : a[i].ids) CHECK((id >= 1024 && id < 3072));
  }
  CHECK(equal_lengths < 25);
}

TEST_CASE("More requests begin with the same ones") {
  const auto few = make_workload(options_of(10, {.min = 4, .max = 40}, {.min = 1, .max = 9}), 0);
  const auto many = make_workload(options_of(90, {.min = 4, .max = 40}, {.min = 1, .max = 9}), 0);
  for (size_t i = 0; i < few.size(); ++i) CHECK(few[i].ids == many[i].ids);
}

TEST_CASE("Prompts share their beginnings, as many as asked for, and nothing more") {
  WorkloadOptions options = options_of(60, {.min = 20, .max = 20}, {.min = 1, .max = 1});
  options.prefix_tokens = 12;
  options.prefix_count = 3;
  std::set<std::vector<int32_t>> prefixes, rests;
  for (const int run : {0, 1})
    for (const LoadRequest& request : make_workload(options, run)) {
      REQUIRE(request.ids.size() == 20);
      prefixes.emplace(request.ids.begin(), request.ids.begin() + 12);
      rests.emplace(request.ids.begin() + 12, request.ids.end());
    }
  CHECK(prefixes.size() == 3);
  CHECK(rests.size() == 120);
}

TEST_CASE("Texts have as many words as tokens were asked for, prefix included") {
  WorkloadOptions options = options_of(20, {.min = 1, .max = 30}, {.min = 1, .max = 1});
  options.format = PromptFormat::text;
  options.prefix_tokens = 6;
  for (const LoadRequest& request : make_workload(options, 0)) {
    std::istringstream words(request.text);
    int count = 0;
    for (std::string word; words >> word;) ++count;
    CHECK(count == request.prompt_tokens);
    CHECK(request.ids.empty());
    CHECK(request.text.find("  ") == std::string::npos);
  }
}

TEST_CASE("About the share of requests that was asked for is cut short") {
  WorkloadOptions options = options_of(4000, {.min = 2, .max = 2}, {.min = 9, .max = 9});
  options.cancel_share = 0.25;
  options.cancel_after = 4;
  int cut = 0;
  for (const LoadRequest& request : make_workload(options, 0)) {
    CHECK((request.cancel_after == 0 || request.cancel_after == 4));
    cut += request.cancel_after > 0;
  }
  CHECK((cut > 900 && cut < 1100));
}

TEST_CASE("A ShareGPT file gives its first two turns; too short and odd entries are left out") {
  const std::string json = R"([
    {"conversations": [{"from": "human", "value": "What is a king, in a few words?"},
                       {"from": "gpt", "value": "A man who rules a land by birth."}]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hi"}]},
    {"conversations": [{"from": "human", "value": "Only one turn, which is not enough"}]},
    {"conversations": "none"}, 17, {"conversations": [1, 2]}])";
  const auto all = parse_sharegpt(json, "f.json", 1000, 1000, {});
  REQUIRE(all.ok());
  REQUIRE(all->size() == 1);
  CHECK(all->front().prompt == "What is a king, in a few words?");
  CHECK(all->front().prompt_tokens == 7);
  CHECK(all->front().output_tokens == 8);
  for (const LoadRequest& request :
       make_workload(options_of(5, {.min = 1, .max = 1}, {.min = 1, .max = 1}), *all, 0)) {
    CHECK(request.text == all->front().prompt);
    CHECK(request.max_tokens == 8);
  }
  const auto encoded = parse_sharegpt(json, "f.json", 1000, 1000, [](const std::string& text) {
    return std::vector<int32_t>(text.begin(), text.end());
  });
  REQUIRE(encoded.ok());
  CHECK(encoded->front().prompt_ids.size() == encoded->front().prompt.size());
  for (const char* text : {"", "{}", "[", "[]", "[1]"}) {
    const auto bad = parse_sharegpt(text, "f.json", 1000, 1000, {});
    REQUIRE_FALSE(bad.ok());
    CHECK(bad.error().message.find("f.json") == 0);
  }
}

TEST_CASE("Conversations are the same in every run, and none comes twice before all came once") {
  std::vector<Conversation> all;
  for (int i = 0; i < 40; ++i)
    all.push_back({.prompt = std::to_string(i), .prompt_tokens = 5, .output_tokens = i + 1});
  const auto prompts = [&](uint64_t seed, int count, int run) {
    WorkloadOptions options = options_of(count, {}, {});
    options.seed = seed;
    std::vector<std::string> texts;
    for (const LoadRequest& request : make_workload(options, all, run))
      texts.push_back(request.text);
    return texts;
  };
  const std::vector<std::string> first = prompts(1, 60, 0);
  CHECK(prompts(1, 60, 1) == first);
  CHECK(prompts(2, 60, 0) != first);
  CHECK(std::set<std::string>(first.begin(), first.begin() + 40).size() == 40);
  for (size_t i = 40; i < first.size(); ++i) CHECK(first[i] == first[i - 40]);
  // What warms a server up is not what the first run asks.
  const std::vector<std::string> warm = prompts(1, 2, kWarmUpRun);
  CHECK(warm == std::vector<std::string>{first[39], first[38]});
}

}  // namespace
}  // namespace kivi::load
