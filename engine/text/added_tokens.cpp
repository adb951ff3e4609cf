// SPDX-License-Identifier: Apache-2.0
#include "engine/text/added_tokens.h"

#include <algorithm>

namespace kivi {
namespace {

// What \w is to Rust's regex crate (Unicode's UTS 18: alphabetic, marks, digits, connectors,
// joiners).
constexpr const char* kWordCharacter =
    R"([\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{200C}\x{200D}\x{24B6}-\x{24E9}])";

// The last and the first character of valid UTF-8; empty for an empty text.
std::string_view last_character(std::string_view text) {
  size_t at = text.size();
  while (at > 0 && (static_cast<unsigned char>(text[--at]) & 0xC0) == 0x80) {
  }
  return text.substr(at);
}
std::string_view first_character(std::string_view text) {
  size_t end = text.empty() ? 0 : 1;
  while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) ++end;
  return text.substr(0, end);
}

}  // namespace

Result<AddedTokens> AddedTokens::load(const std::vector<AddedTokenRule>& rules) {
  AddedTokens loaded;
  if (rules.empty()) return loaded;
  std::vector<std::string> contents;
  for (const AddedTokenRule& rule : rules) {
    if (loaded.rules_.insert_or_assign(rule.content, rule).second) contents.push_back(rule.content);
  }
  // Of alternatives that begin at the same place the first is taken: the longest.
  std::stable_sort(contents.begin(), contents.end(),
                   [](const auto& a, const auto& b) { return a.size() > b.size(); });
  std::string pattern;
  for (const std::string& content : contents) {
    pattern += (pattern.empty() ? "" : "|") + regex_literal(content);
  }
  KIVI_ASSIGN_OR_RETURN(loaded.pattern_, Regex::compile(pattern));
  KIVI_ASSIGN_OR_RETURN(loaded.word_, Regex::compile(kWordCharacter));
  KIVI_ASSIGN_OR_RETURN(loaded.space_, Regex::compile(R"(\p{Xps}|\x{85})"));
  return loaded;
}

void AddedTokens::split(std::string_view text, SpecialText special, RegexScratch& scratch,
                        std::vector<Part>& parts) const {
  std::vector<Span> matches, found;
  if (pattern_) pattern_->find_all(text, scratch, matches);
  const auto is = [&](const Regex& kind, std::string_view character) {
    found.clear();
    if (!character.empty()) kind.find_all(character, scratch, found);
    return !found.empty();
  };
  uint32_t done = 0;
  for (const Span& at : matches) {
    Span token = at;
    const AddedTokenRule& rule =
        rules_.find(std::string(text.substr(at.begin, at.end - at.begin)))->second;
    if (rule.special && special == SpecialText::stays_text) continue;
    if (token.begin < done) continue;  // its beginning went with the spaces of the token before it
    if (rule.single_word && (is(*word_, last_character(text.substr(0, token.begin))) ||
                             is(*word_, first_character(text.substr(token.end))))) {
      continue;
    }
    while (rule.lstrip && token.begin > done) {
      const auto before = last_character(text.substr(0, token.begin));
      if (!is(*space_, before)) break;
      token.begin -= uint32_t(before.size());
    }
    while (rule.rstrip && token.end < text.size()) {
      const auto after = first_character(text.substr(token.end));
      if (!is(*space_, after)) break;
      token.end += uint32_t(after.size());
    }
    if (done < token.begin) parts.push_back({std::nullopt, {done, token.begin}});
    parts.push_back({rule.id, token});
    done = token.end;
  }
  if (done < text.size()) parts.push_back({std::nullopt, {done, uint32_t(text.size())}});
}

}  // namespace kivi
