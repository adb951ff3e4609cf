// SPDX-License-Identifier: Apache-2.0
// Times of compiling and of masks at a vocabulary of 128,000 tokens:
// build/tests/grammar_test "[.benchmark]". The vocabulary is made up in the shape of Llama 3's.
#include <fmt/format.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <random>
#include <string_view>
#include <unordered_map>

#include "engine/grammar/compiled_grammar.h"
#include "engine/grammar/compiler.h"
#include "tests/cpu_time.h"

namespace kivi::grammar {
namespace {

double now_us() { return cpu_seconds() * 1e6; }

double microseconds(double since) { return now_us() - since; }

std::vector<std::string> large_vocabulary(size_t size) {
  std::mt19937 random(1);
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, char(byte));
  for (int n = 0; n < 1000; ++n)
    for (int width = 1; width <= 3; ++width)
      if (const std::string text = fmt::format("{:0{}}", n, width); int(text.size()) == width)
        tokens.push_back(text);
  const std::string signs = "\"'{}[]():;,.\\/<>=+-_*&%$#@!?|~`^\n\t ";
  for (int n = 0; n < 6000; ++n) {  // "\":", "},\n", ...
    std::string token;
    for (size_t length = 2 + random() % 4; token.size() < length;)
      token += signs[random() % signs.size()];
    tokens.push_back(token);
  }
  for (int n = 2; n < 80; ++n) tokens.push_back(std::string(size_t(n), ' '));
  const std::vector<std::string> letters = {"e", "t", "a", "o", "i", "n",  "s",  "h",
                                            "r", "d", "l", "u", "c", "m",  "f",  "w",
                                            "E", "T", "é", "и", "о", "中", "人", "な"};
  while (tokens.size() < size) {
    std::string token = random() % 2 ? " " : "";
    for (size_t length = 1 + random() % 9; length > 0; --length)
      token += letters[std::min<size_t>(random() % letters.size(), random() % letters.size())];
    if (random() % 20 == 0) token += signs[random() % signs.size()];
    tokens.push_back(token);
  }
  return tokens;
}

// The longest token first.
std::vector<int32_t> encode(const std::vector<std::string>& tokens, std::string_view text) {
  std::unordered_map<std::string, int32_t> ids;
  for (size_t id = 0; id < tokens.size(); ++id) ids.emplace(tokens[id], int32_t(id));
  std::vector<int32_t> out;
  while (!text.empty()) {
    size_t length = std::min<size_t>(text.size(), 16);
    while (!ids.contains(std::string(text.substr(0, length)))) --length;
    out.push_back(ids.at(std::string(text.substr(0, length))));
    text.remove_prefix(length);
  }
  return out;
}

struct Job {
  const char* name;
  Source source;
  std::string text;
};

std::vector<Job> jobs() {
  const char* person =
      R"({"type":"object","properties":{"name":{"type":"string","maxLength":64},"age":{"type":"integer","minimum":0,"maximum":150},"email":{"type":"string","format":"email"},"tags":{"type":"array","items":{"type":"string"},"maxItems":8},"address":{"type":"object","properties":{"street":{"type":"string"},"city":{"type":"string"},"zip":{"type":"string","pattern":"^[0-9]{5}$"}},"required":["street","city"],"additionalProperties":false},"mood":{"enum":["glad","sad","calm"]},"born":{"type":"string","format":"date"}},"required":["name","age","tags","address","mood"],"additionalProperties":false})";
  const std::string text =
      R"({"name": "the tall son of a miller", "age": 41, "email": "mill.er@corn.example", "tags": ["tale", "a short one", "and no end"], "address": {"street": "the mill road on the hill 12", "city": "Oslo", "zip": "01234"}, "mood": "calm", "born": "1980-02-29"})";
  std::string list = "[";
  for (int i = 0; i < 10; ++i) list += (i ? ", " : "") + text;
  return {
      {"person", {SourceKind::json_schema, person, {}}, text},
      {"list of persons",
       {SourceKind::json_schema, R"({"type":"array","items":)" + std::string(person) + "}", {}},
       list + "]"},
      {"any object", {SourceKind::json_object, "", {}}, text},
      {"regex [a-z ]+", {SourceKind::regex, "[a-z ]+", {}}, "once there was a miller and his son"},
      {"GBNF sums",
       {SourceKind::grammar,
        "root ::= sum\nsum ::= sum \" + \" term | term\nterm ::= [0-9]+ | \"(\" sum \")\"",
        {}},
       "12 + (3 + 45) + 678 + ((9))"},
      // bench/structured_work.cpp
      {"lines in GBNF",
       {SourceKind::grammar,
        R"(root ::= line*
line ::= "{\"name\": \"" text "\", \"age\": " age ", \"mood\": \"" mood "\", \"glad\": " flag "}\n"
text ::= [^"\\\x00-\x1F]{0,64}
age ::= [1-9] [0-9]{0,2}
mood ::= "glad" | "sad" | "calm"
flag ::= "true" | "false"
)",
        {}},
       R"({"name": "the tall son of a miller", "age": 41, "mood": "calm", "glad": true})"
       "\n"}};
}

struct Times {
  double compile_ms = 0;
  // Of each mask of the text, sorted: the first text of the grammar, and the second.
  std::vector<double> masks_us[2];
  double accept_us[2] = {0, 0};  // in the mean

  double mean_us(int round) const {
    double sum = 0;
    for (const double m : masks_us[round]) sum += m;
    return sum / double(masks_us[round].size());
  }
};

Times measure(Compiler& compiler, const std::vector<std::string>& tokens, const Job& job) {
  Times times;
  auto begin = now_us();
  const auto compiled = compiler.compile(job.source);
  times.compile_ms = microseconds(begin) / 1000;
  if (!compiled.ok()) FAIL(compiled.error().message);
  const std::vector<int32_t> ids = encode(tokens, job.text);
  std::vector<uint32_t> mask(size_t(compiler.mask_words()));
  for (int round = 0; round < 2; ++round) {
    const auto guide = Compiler::guide(*compiled);
    for (const int32_t id : ids) {
      begin = now_us();
      REQUIRE(guide->fill_mask(mask));
      times.masks_us[round].push_back(microseconds(begin));
      begin = now_us();
      REQUIRE(guide->accept(id));
      times.accept_us[round] += microseconds(begin) / double(ids.size());
    }
    REQUIRE(guide->may_end());
    std::ranges::sort(times.masks_us[round]);
  }
  return times;
}

TEST_CASE("Benchmark: compiling and masks at 128,000 tokens", "[.benchmark]") {
  const std::vector<std::string> tokens = large_vocabulary(128'000);
  const auto begin = now_us();
  Compiler compiler(tokens, 128'256);
  fmt::print("vocabulary of {} tokens: {:.1f} ms\n", tokens.size(), microseconds(begin) / 1000);
  for (const Job& job : jobs()) {
    const Times times = measure(compiler, tokens, job);
    for (const int round : {0, 1}) {
      const std::vector<double>& masks = times.masks_us[round];
      fmt::print(
          "{}: compile {:.1f} ms; {} text of {} tokens: mask mean {:.1f} us, p50 {:.1f}, p99 "
          "{:.1f}, largest {:.1f}; accept mean {:.2f} us\n",
          job.name, times.compile_ms, round == 0 ? "first" : "again", masks.size(),
          times.mean_us(round), masks[masks.size() / 2], masks[masks.size() * 99 / 100],
          masks.back(), times.accept_us[round]);
    }
  }
}

// A batch that begins with a new grammar: every text takes tokens that its mask allows, all at the
// same pace. The sum of a step's masks is what the engine's thread has to do for it.
TEST_CASE("Benchmark: masks of 256 texts that begin at once", "[.benchmark]") {
  const std::vector<std::string> tokens = large_vocabulary(128'000);
  constexpr int kTexts = 256, kSteps = 100;
  for (const Job& job : jobs()) {
    Compiler compiler(tokens, 128'256);
    const auto compiled = compiler.compile(job.source);
    if (!compiled.ok()) FAIL(compiled.error().message);
    std::vector<uint32_t> mask(size_t(compiler.mask_words()));
    for (const char* round : {"first", "again"}) {
      std::mt19937 random(1);
      std::vector<std::unique_ptr<Guide>> guides;
      for (int i = 0; i < kTexts; ++i) guides.push_back(Compiler::guide(*compiled));
      std::vector<double> steps_ms;
      for (int step = 0; step < kSteps; ++step) {
        double step_us = 0;
        for (std::unique_ptr<Guide>& guide : guides) {
          if (guide->complete()) guide = Compiler::guide(*compiled);
          const double begin = now_us();
          REQUIRE(guide->fill_mask(mask));
          step_us += microseconds(begin);
          int32_t id = 0;
          do {
            id = int32_t(random() % tokens.size());
            for (size_t word = size_t(id) / 32; mask[word] == 0; id = int32_t(word) * 32)
              word = (word + 1) % mask.size();
            while ((mask[size_t(id) / 32] >> (id % 32) & 1) == 0 && id % 32 != 31) ++id;
          } while ((mask[size_t(id) / 32] >> (id % 32) & 1) == 0);
          REQUIRE(guide->accept(id));
        }
        steps_ms.push_back(step_us / 1000);
      }
      std::vector<double> sorted = steps_ms;
      std::ranges::sort(sorted);
      double sum = 0;
      for (const double ms : steps_ms) sum += ms;
      fmt::print(
          "{}, {} round: masks of {} steps {:.1f} ms, p50 {:.2f}, largest {:.1f}; first ten:",
          job.name, round, kSteps, sum, sorted[sorted.size() / 2], sorted.back());
      for (int i = 0; i < 10; ++i) fmt::print(" {:.1f}", steps_ms[size_t(i)]);
      fmt::print("\n");
    }
  }
}

TEST_CASE("Benchmark: masks of all states", "[.benchmark]") {
  const std::vector<std::string> tokens = large_vocabulary(128'000);
  for (const Job& job : jobs()) {
    Compiler compiler(tokens, 128'256);
    const auto compiled = compiler.compile(job.source);
    if (!compiled.ok()) FAIL(compiled.error().message);
    const CompiledGrammar& grammar = **compiled;
    const auto made = std::ranges::count_if(grammar.order(),
                                            [&](int32_t state) { return grammar.has_mask(state); });
    double largest = 0;
    size_t bytes = 0;
    const double begin = now_us();
    for (const int32_t state : grammar.order()) {
      const double mask_begin = now_us();
      bytes += grammar.mask(state).bytes();
      largest = std::max(largest, microseconds(mask_begin));
    }
    fmt::print(
        "{}: {} of {} states when compiled; the others {:.1f} ms, largest {:.2f} ms; {} KiB\n",
        job.name, made, grammar.order().size(), microseconds(begin) / 1000, largest / 1000,
        bytes >> 10);
  }
}

// Some eight times what decision 027 measured: a busy machine passes, and a mask that walks the
// vocabulary again for each token does not.
TEST_CASE("a typical schema compiles within 150 ms, and a mask that is kept takes 25 us",
          "[long]") {
  const std::vector<std::string> tokens = large_vocabulary(128'000);
  Compiler compiler(tokens, 128'256);
  const Times times = measure(compiler, tokens, jobs().front());
  INFO("compile " << times.compile_ms << " ms, masks " << times.mean_us(0) << " us and "
                  << times.mean_us(1) << " us");
  CHECK(times.compile_ms < 150);
  CHECK(times.mean_us(0) < 1100);
  CHECK(times.mean_us(1) < 25);
}

}  // namespace
}  // namespace kivi::grammar
