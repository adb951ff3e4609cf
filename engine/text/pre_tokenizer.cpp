// SPDX-License-Identifier: Apache-2.0
#include "engine/text/pre_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/utf8.h"
#include "engine/text/text_normalizer.h"
#include "engine/text/tokenizer_json.h"

namespace kivi {
namespace {

using nlohmann::json;

// GPT-2's pattern, the one of ByteLevel with use_regex.
constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
// Rust's char::is_numeric; ASCII's punctuation (symbols too) and Unicode's.
constexpr const char* kDigit = R"(\p{N})";
constexpr const char* kPunctuation = R"([!-/:-@\[-`{-~]|\p{P})";

// Classes as the tokenizers library has them (its Oniguruma knows Unicode 16), for a PCRE2 that
// knows Unicode 14 (10.42): digits of 15 and 16 are missing there, and its \s has U+180E, which has
// been no white space since Unicode 6.3. Ranges of decimal digits, then of \p{N} alone; without
// brackets.
constexpr const char* kNewDigits =
    R"(\x{10D40}-\x{10D49}\x{116D0}-\x{116E3}\x{11BF0}-\x{11BF9}\x{11F50}-\x{11F59})"
    R"(\x{16130}-\x{16139}\x{16D70}-\x{16D79}\x{1CCF0}-\x{1CCF9}\x{1E4F0}-\x{1E4F9})"
    R"(\x{1E5F1}-\x{1E5FA})";
constexpr const char* kNewNumbers = R"(\x{1D2C0}-\x{1D2D3})";
constexpr const char* kSpaces = R"(\p{Z}\t-\r\x{85})";

// What stands for one class of a pattern, inside brackets or not. Negated classes inside brackets
// stay PCRE2's own.
std::string class_of(std::string_view name, bool in_brackets) {
  std::string inside;
  const bool negated = name == "\\S" || name == "\\D" || name.starts_with("\\P");
  if (negated && in_brackets) return std::string(name);
  if (name == "\\s" || name == "\\S") inside = kSpaces;
  if (name == "\\d" || name == "\\D" || name == "\\p{Nd}" || name == "\\P{Nd}")
    inside = std::string("\\p{Nd}") + kNewDigits;
  if (name == "\\p{N}" || name == "\\P{N}")
    inside = std::string("\\p{N}") + kNewDigits + kNewNumbers;
  return in_brackets ? inside : (negated ? "[^" : "[") + inside + "]";
}

// The pattern with such classes in place of \s, \d, \p{N} and \p{Nd}.
std::string with_current_classes(std::string_view pattern) {
  std::string made;
  bool in_brackets = false;
  while (!pattern.empty()) {
    size_t length = 1;
    bool replaced = false;
    if (pattern[0] == '\\') {
      for (const std::string_view name :
           {"\\p{Nd}", "\\P{Nd}", "\\p{N}", "\\P{N}", "\\s", "\\S", "\\d", "\\D"}) {
        if (!pattern.starts_with(name)) continue;
        made += class_of(name, in_brackets);
        length = name.size();
        replaced = true;
        break;
      }
      if (!replaced) length = std::min<size_t>(2, pattern.size());
    } else if (!in_brackets && pattern[0] == '[') {
      in_brackets = true;
      if (pattern.starts_with("[^")) length = 2;
      if (pattern.substr(length).starts_with(']')) ++length;  // a bracket as a letter
    } else if (in_brackets && pattern[0] == ']') {
      in_brackets = false;
    }
    if (!replaced) made += pattern.substr(0, length);
    pattern.remove_prefix(length);
  }
  return made;
}

Error unsupported_pre_tokenizer(const std::string& what) {
  return Error{ErrorCode::unsupported, fmt::format("pre_tokenizer {} is not supported", what),
               "tokenizer"};
}

std::optional<SplitBehavior> behavior_of(const std::string& name) {
  if (name == "Removed") return SplitBehavior::removed;
  if (name == "Isolated") return SplitBehavior::isolated;
  if (name == "Contiguous") return SplitBehavior::contiguous;
  if (name == "MergedWithPrevious") return SplitBehavior::merged_with_previous;
  if (name == "MergedWithNext") return SplitBehavior::merged_with_next;
  return std::nullopt;
}

// A stretch of a piece: a match, or what lies between two.
struct Stretch {
  Span span;
  bool matches;
};

std::vector<Stretch> stretches_of(Span piece, const std::vector<Span>& matches, bool invert) {
  std::vector<Stretch> all;
  uint32_t at = piece.begin;
  for (const Span& match : matches) {
    const Span found{piece.begin + match.begin, piece.begin + match.end};
    if (found.begin > at) all.push_back({{at, found.begin}, invert});
    all.push_back({found, !invert});
    at = found.end;
  }
  if (at < piece.end) all.push_back({{at, piece.end}, invert});
  return all;
}

void join(const std::vector<Stretch>& stretches, SplitBehavior behavior, std::vector<Span>& out) {
  const size_t first = out.size();
  for (size_t i = 0; i < stretches.size(); ++i) {
    const Stretch& s = stretches[i];
    const bool after_match = i > 0 && stretches[i - 1].matches;
    bool extends = false;
    switch (behavior) {
      case SplitBehavior::removed:
        if (s.matches) continue;
        break;
      case SplitBehavior::isolated:
        break;
      case SplitBehavior::contiguous:
        extends = i > 0 && after_match == s.matches;
        break;
      case SplitBehavior::merged_with_previous:
        extends = s.matches && !after_match;
        break;
      case SplitBehavior::merged_with_next:
        extends = !s.matches && after_match;
        break;
    }
    if (extends && out.size() > first) {
      out.back().end = s.span.end;
    } else {
      out.push_back(s.span);
    }
  }
}

// Rewrites every piece: write(piece, its beginning, out) appends what becomes of it.
template <class Write>
void rewrite(std::string& text, std::vector<Span>& pieces, const Write& write) {
  std::string out;
  out.reserve(text.size() + text.size() / 2);
  for (Span& piece : pieces) {
    const auto begin = uint32_t(out.size());
    write(std::string_view(text).substr(piece.begin, piece.end - piece.begin), piece.begin, out);
    piece = {begin, uint32_t(out.size())};
  }
  text = std::move(out);
}

}  // namespace

ByteAlphabet::ByteAlphabet() {
  bytes_.fill(-1);
  uint32_t next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool visible = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    const uint32_t c = visible ? uint32_t(byte) : next++;
    bytes_[c] = int16_t(byte);
    append_utf8(characters_[size_t(byte)], c);
  }
  KIVI_VERIFY(next == kCharacters);
}

std::optional<std::string> ByteAlphabet::decode(std::string_view text) const {
  std::string decoded;
  for (size_t i = 0; i < text.size();) {
    uint32_t c = static_cast<unsigned char>(text[i++]);
    if (c >= 0x80) {
      if ((c & 0xE0) != 0xC0 || i == text.size()) return std::nullopt;
      c = (c & 0x1F) << 6 | (static_cast<unsigned char>(text[i++]) & 0x3F);
    }
    if (byte(c) < 0) return std::nullopt;
    decoded += char(byte(c));
  }
  return decoded;
}

Result<PreTokenizer> PreTokenizer::load(const json& description, Pieces pieces) {
  PreTokenizer loaded;
  if (!description.is_null()) KIVI_RETURN_IF_ERROR(loaded.add(description));
  const auto maps = [](const Step& step) { return step.kind == Step::Kind::byte_level; };
  const auto count = std::count_if(loaded.steps_.begin(), loaded.steps_.end(), maps);
  if (pieces == Pieces::text && count > 0)
    return unsupported_pre_tokenizer("ByteLevel with a decoder that is not");
  if (pieces == Pieces::byte_alphabet && count != 1)
    return unsupported_pre_tokenizer(fmt::format("{} with {} times ByteLevel (not once)",
                                                 TokenizerPart("", description).type(), count));
  return loaded;
}

Status PreTokenizer::add(const json& description) {
  const TokenizerPart part("pre_tokenizer", description);
  if (part.type() == "Sequence") {
    KIVI_RETURN_IF_ERROR(part.allow({"pretokenizers"}));
    KIVI_ASSIGN_OR_RETURN(const json* parts, part.list("pretokenizers"));
    for (const json& each : *parts) KIVI_RETURN_IF_ERROR(add(each));
    return ok_status();
  }
  if (part.type() == "ByteLevel") {
    KIVI_RETURN_IF_ERROR(part.allow({"add_prefix_space", "trim_offsets", "use_regex"}));
    if (part.flag("add_prefix_space", true)) steps_.push_back(prefix_step(" ", Prefix::always));
    if (part.flag("use_regex", true)) {
      KIVI_RETURN_IF_ERROR(add_pattern(kGpt2Pattern, SplitBehavior::isolated, false));
    }
    steps_.emplace_back();
    steps_.back().kind = Step::Kind::byte_level;
    return ok_status();
  }
  if (part.type() == "Metaspace") return add_metaspace(part);
  if (part.type() == "Digits") {
    KIVI_RETURN_IF_ERROR(part.allow({"individual_digits"}));
    const bool single = part.flag("individual_digits", false);
    return add_pattern(kDigit, single ? SplitBehavior::isolated : SplitBehavior::contiguous, false);
  }
  if (part.type() == "Punctuation") {
    KIVI_RETURN_IF_ERROR(part.allow({"behavior"}));
    const std::string name = part.text("behavior");
    const auto behavior = behavior_of(name.empty() ? "Isolated" : name);
    if (!behavior) return part.unsupported("with behavior " + name);
    return add_pattern(kPunctuation, *behavior, false);
  }
  if (part.type() == "Split") return add_split(part);
  return part.unsupported("");
}

PreTokenizer::Step PreTokenizer::prefix_step(std::string text, Prefix prefix) {
  Step step;
  step.kind = Step::Kind::prefix;
  step.text = std::move(text);
  step.prefix = prefix;
  return step;
}

Status PreTokenizer::add_metaspace(const TokenizerPart& part) {
  KIVI_RETURN_IF_ERROR(part.allow({"replacement", "add_prefix_space", "prepend_scheme", "split"}));
  Step spaces;
  spaces.kind = Step::Kind::replace_spaces;
  spaces.text = part.text("replacement");
  if (utf8_length(spaces.text) != 1) return part.unsupported("with replacement " + spaces.text);
  // Files of before prepend_scheme say add_prefix_space.
  std::string scheme = part.text("prepend_scheme");
  if (scheme.empty()) scheme = part.flag("add_prefix_space", true) ? "always" : "never";
  if (scheme != "always" && scheme != "first" && scheme != "never")
    return part.unsupported("with prepend_scheme " + scheme);
  const std::string replacement = spaces.text;
  steps_.push_back(std::move(spaces));
  if (scheme != "never")
    steps_.push_back(
        prefix_step(replacement, scheme == "first" ? Prefix::at_text_start : Prefix::always));
  if (part.flag("split", true))
    return add_pattern(regex_literal(replacement), SplitBehavior::merged_with_next, false);
  return ok_status();
}

Status PreTokenizer::add_split(const TokenizerPart& part) {
  KIVI_RETURN_IF_ERROR(part.allow({"pattern", "behavior", "invert"}));
  const auto behavior = behavior_of(part.text("behavior"));
  if (!behavior) return part.unsupported("with behavior " + part.text("behavior"));
  const json& pattern = part.at("pattern");
  std::string regex = pattern.is_object() ? TokenizerPart("", pattern).text("Regex") : "";
  // Oniguruma, the engine of the files' authors, means hexadecimal digits by \h, PCRE2 spaces.
  if (regex.find("\\h") != std::string::npos || regex.find("\\H") != std::string::npos) {
    return part.unsupported("with \\h in " + regex);
  }
  if (regex.empty()) regex = regex_literal(part.pattern_string());
  if (regex.empty()) return part.unsupported("without a Regex or String");
  return add_pattern(regex, *behavior, part.flag("invert", false));
}

Status PreTokenizer::add_pattern(const std::string& pattern, SplitBehavior behavior, bool invert) {
  KIVI_ASSIGN_OR_RETURN(Regex regex, Regex::compile(with_current_classes(pattern)));
  Step step;
  step.kind = Step::Kind::split;
  step.regex = std::move(regex);
  step.behavior = behavior;
  step.invert = invert;
  steps_.push_back(std::move(step));
  return ok_status();
}

bool PreTokenizer::removes_text() const {
  return std::any_of(steps_.begin(), steps_.end(), [](const Step& step) {
    return step.kind == Step::Kind::split && step.behavior == SplitBehavior::removed;
  });
}

void PreTokenizer::split(std::string_view text, bool at_text_start, RegexScratch& scratch,
                         std::string& mapped, std::vector<Span>& pieces) const {
  mapped = text;
  pieces.clear();
  if (text.empty()) return;
  pieces.push_back({0, uint32_t(text.size())});
  std::vector<Span> next, matches;
  for (const Step& step : steps_) {
    if (step.kind == Step::Kind::byte_level) {
      rewrite(mapped, pieces, [&](std::string_view piece, uint32_t, std::string& out) {
        for (const char c : piece) out += alphabet_.character(static_cast<unsigned char>(c));
      });
      continue;
    }
    if (step.kind == Step::Kind::replace_spaces) {
      rewrite(mapped, pieces, [&](std::string_view piece, uint32_t, std::string& out) {
        out += replace_all(piece, " ", step.text);
      });
      continue;
    }
    if (step.kind == Step::Kind::prefix) {
      rewrite(mapped, pieces, [&](std::string_view piece, uint32_t begin, std::string& out) {
        const bool wanted = step.prefix == Prefix::always || (at_text_start && begin == 0);
        if (wanted && !piece.starts_with(step.text)) out += step.text;
        out += piece;
      });
      continue;
    }
    next.clear();
    for (const Span& piece : pieces) {
      matches.clear();
      step.regex->find_all(std::string_view(mapped).substr(piece.begin, piece.end - piece.begin),
                           scratch, matches);
      if (matches.empty() && !step.invert) {
        next.push_back(piece);
      } else {
        join(stretches_of(piece, matches, step.invert), step.behavior, next);
      }
    }
    pieces.swap(next);
  }
}

}  // namespace kivi
