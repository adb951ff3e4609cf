// SPDX-License-Identifier: Apache-2.0
// Walks through the grammars of JSON Schemas, for tests/grammar/schemas_test.py.
//
//   grammar_walks VOCABULARY WALKS SEED < lines
//
// VOCABULARY is "bytes" or a model's folder. A line is {"schema": ..., "accept": [texts]}; for
// each, a line comes out: {"error": message} or {"texts": [...], "unfinished": n, "accepted":
// [bool], "compile_ms": x, "mask_us": [mean, largest], "tokens": n}. A walk takes a random token of
// those that the mask allows, until the text is whole; after 120 tokens it prefers those that
// close.
#include <fmt/format.h>

#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "engine/grammar/compiler.h"
#include "engine/grammar/matcher.h"
#include "engine/text/tokenizer.h"

namespace kivi {
namespace {

using nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;
using Texts = std::vector<std::string>;

Texts byte_vocabulary() {
  Texts tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, char(byte));
  for (const char* more :
       {"\"", "{\"", "\":", "\",\"", "\"}", "},{", "]}", "true", "false", "null", ", ", "\": \"",
        "\n  ", "00", "12", "abc", "\xC3\xA9t", "\\u00e9", "-1."})
    tokens.emplace_back(more);
  return tokens;
}

Texts model_vocabulary(const std::string& folder) {
  auto tokenizer = load_tokenizer(folder);
  if (!tokenizer.ok()) throw std::runtime_error(tokenizer.error().message);
  Texts tokens;
  for (int32_t id = 0; id < (*tokenizer)->vocab_size(); ++id)
    tokens.push_back((*tokenizer)->token_bytes(id, /*skip_special=*/true));
  return tokens;
}

double microseconds(Clock::time_point since) {
  return std::chrono::duration<double, std::micro>(Clock::now() - since).count();
}

struct Walker {
  const Texts& tokens;
  int words;
  std::mt19937_64 random;
  double mask_sum = 0, mask_largest = 0;
  int64_t masks = 0;

  // False: not whole after the last token.
  bool walk(const std::shared_ptr<const grammar::CompiledGrammar>& compiled, std::string& text) {
    constexpr int kCloseAfter = 120, kTokensMax = 3000;
    const auto guide = grammar::Compiler::guide(compiled);
    std::vector<uint32_t> mask(static_cast<size_t>(words));
    for (int n = 0; n < kTokensMax; ++n) {
      if (guide->complete() || (guide->may_end() && (n >= kCloseAfter || random() % 4 == 0)))
        return true;
      const auto begin = Clock::now();
      if (!guide->fill_mask(mask)) throw std::runtime_error("too ambiguous");
      const double took = microseconds(begin);
      mask_sum += took;
      mask_largest = std::max(mask_largest, took);
      ++masks;
      const int32_t token = pick(mask, n >= kCloseAfter);
      if (token < 0) throw std::runtime_error(fmt::format("a dead end behind {}", text));
      if (!guide->accept(token)) throw std::runtime_error("a token of the mask is refused");
      text += tokens[size_t(token)];
    }
    return guide->may_end();
  }

  int32_t pick(const std::vector<uint32_t>& mask, bool closing) {
    std::vector<int32_t> allowed;
    for (size_t id = 0; id < tokens.size(); ++id)
      if (mask[id / 32] >> (id % 32) & 1) allowed.push_back(int32_t(id));
    if (allowed.empty()) return -1;
    if (closing && random() % 64 != 0)
      for (const char* first : {"\"", "}", "]", "n", "null"})
        for (const int32_t id : allowed)
          if (tokens[size_t(id)] == first) return id;
    return allowed[random() % allowed.size()];
  }
};

ordered_json answer(const ordered_json& line, grammar::Compiler& compiler, const Texts& tokens,
                    int walks, uint64_t seed) {
  const auto begin = Clock::now();
  const auto compiled =
      compiler.compile({grammar::SourceKind::json_schema, line["schema"].dump(), {}});
  if (!compiled.ok()) return {{"error", compiled.error().message}};
  const double compile_ms = microseconds(begin) / 1000;
  Walker walker{tokens, compiler.mask_words(), std::mt19937_64(seed)};
  ordered_json out{
      {"texts", ordered_json::array()}, {"unfinished", 0}, {"accepted", ordered_json::array()}};
  for (int i = 0; i < walks; ++i) {
    std::string text;
    if (walker.walk(*compiled, text))
      out["texts"].push_back(text);
    else
      out["unfinished"] = out["unfinished"].get<int>() + 1;
  }
  for (const ordered_json& accept : line["accept"]) {
    grammar::Matcher matcher(*compiled);
    out["accepted"].push_back(matcher.accept(std::string_view(accept.get<std::string>())) &&
                              matcher.may_end());
  }
  out["compile_ms"] = compile_ms;
  out["mask_us"] = {walker.mask_sum / double(std::max<int64_t>(1, walker.masks)),
                    walker.mask_largest};
  out["tokens"] = walker.masks;
  return out;
}

int run(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: grammar_walks VOCABULARY WALKS SEED < lines\n";
    return 2;
  }
  const std::string vocabulary = argv[1];
  const Texts tokens = vocabulary == "bytes" ? byte_vocabulary() : model_vocabulary(vocabulary);
  grammar::Compiler compiler(tokens, int(tokens.size()));
  uint64_t seed = std::stoull(argv[3]);
  for (std::string line; std::getline(std::cin, line);)
    std::cout << answer(ordered_json::parse(line), compiler, tokens, std::stoi(argv[2]), seed++)
                     .dump(-1, ' ', false, ordered_json::error_handler_t::replace)
              << "\n";
  return 0;
}

}  // namespace
}  // namespace kivi

int main(int argc, char** argv) {
  try {
    return kivi::run(argc, argv);
  } catch (const std::exception& e) {
    std::cerr << "grammar_walks: " << e.what() << "\n";
    return 1;
  }
}
