// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <random>

#include "base/utf8.h"
#include "base/verify.h"
#include "engine/grammar/automaton.h"
#include "engine/grammar/compiled_grammar.h"
#include "engine/grammar/compiler.h"
#include "engine/grammar/matcher.h"
#include "engine/grammar/work_limit.h"
#include "tests/fuzz/targets.h"

namespace kivi::fuzz {
namespace {

using grammar::Failure;
using grammar::Matcher;
using grammar::Source;
using grammar::SourceKind;
using grammar::WorkLimit;

constexpr int kTokensMax = 24;

// Every byte, and tokens that lead out of rules, over the ends of strings and into characters.
std::vector<std::string> vocabulary() {
  std::vector<std::string> tokens = {""};  // a special token
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, char(byte));
  for (const char* text :
       {"{\"", "\":", "\",\"", "\"}", "}}",       "]}",       ", ", "true", "ab",   "abc",
        "12",  "-1",  ".5",    "\\u", "\xc3\xa9", "\xe4\xb8", "  ", "\n  ", "name", "xx"})
    tokens.emplace_back(text);
  return tokens;
}

// Walks through a text that the grammar allows. What the masks say of a token must be what the
// matcher says of its bytes.
void walk(const std::shared_ptr<const grammar::CompiledGrammar>& compiled, std::mt19937& random) {
  Matcher matcher(compiled);
  const auto& tokens = compiled->vocabulary();
  std::vector<uint32_t> mask(size_t(tokens.words()));
  const auto allowed = [&](int32_t id) {
    return (mask[size_t(id) / 32] >> (uint32_t(id) % 32) & 1) != 0;
  };
  std::string text;
  for (int taken = 0; taken < kTokensMax; ++taken) {
    const WorkLimit limit;
    matcher.fill_mask(mask);
    std::vector<int32_t> choices, others;
    for (int32_t id = 0; id < tokens.size(); ++id) (allowed(id) ? choices : others).push_back(id);
    KIVI_VERIFY(!allowed(0));  // no grammar allows a special token
    KIVI_VERIFY(choices.empty() == matcher.complete() || matcher.may_end());
    const std::string forced = matcher.forced_text(8);
    if (choices.empty()) return;
    const int32_t other = others[random() % others.size()];
    KIVI_VERIFY(other == 0 || !matcher.accept(other));
    const int32_t id = choices[random() % choices.size()];
    const std::string& bytes = tokens.bytes(id);
    const size_t common = std::min(bytes.size(), forced.size());
    KIVI_VERIFY(bytes.compare(0, common, forced, 0, common) == 0);
    const bool accepted = matcher.accept(id);
    KIVI_VERIFY(accepted);
    text += bytes;
  }
  KIVI_VERIFY(!matcher.may_end() || is_valid_utf8(text));
}

}  // namespace

bool read_grammar(std::string_view bytes) {
  static constexpr SourceKind kKinds[] = {SourceKind::json_schema, SourceKind::regex,
                                          SourceKind::grammar};
  if (bytes.empty()) return false;
  const auto kind = static_cast<unsigned char>(bytes[0]);
  const Source source{kKinds[kind % std::size(kKinds)], std::string(bytes.substr(1)), {}};
  static const auto kTokens = vocabulary();
  grammar::Compiler compiler(kTokens, int(kTokens.size()));
  const auto compiled = compiler.compile(source);
  if (!compiled.ok()) {
    KIVI_VERIFY(compiled.error().code == ErrorCode::invalid && !compiled.error().message.empty());
    KIVI_VERIFY(is_valid_utf8(compiled.error().message));
    return false;
  }
  std::mt19937 random(uint32_t(std::hash<std::string_view>{}(bytes)));
  try {
    walk(*compiled, random);
  } catch (const Failure&) {  // too ambiguous, or too much work: the engine ends the request
  }
  return true;
}

}  // namespace kivi::fuzz
