#include "engine/pre_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace kivi {
namespace {

using nlohmann::json;

// GPT-2's pattern, the one of ByteLevel with use_regex.
constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
// Rust's char::is_numeric; ASCII's punctuation (symbols too) and Unicode's.
constexpr const char* kDigit = R"(\p{N})";
constexpr const char* kPunctuation = R"([!-/:-@\[-`{-~]|\p{P})";

Error unsupported(const std::string& what) {
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

bool flag(const json& description, const char* key, bool otherwise) {
  const auto it = description.find(key);
  return it != description.end() && it->is_boolean() ? it->get<bool>() : otherwise;
}

std::string text(const json& description, const char* key) {
  const auto it = description.find(key);
  return it != description.end() && it->is_string() ? it->get<std::string>() : "";
}

// Every character that means something in a pattern, taken literally.
std::string escape(const std::string& literal) {
  std::string pattern;
  for (char c : literal) {
    if (std::string_view("\\^$.[]|()?*+{}#").find(c) != std::string_view::npos) pattern += '\\';
    pattern += c;
  }
  return pattern;
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

}  // namespace

ByteAlphabet::ByteAlphabet() {
  bytes_.fill(-1);
  uint32_t next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool visible = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    const uint32_t c = visible ? uint32_t(byte) : next++;
    bytes_[c] = int16_t(byte);
    std::string& s = characters_[size_t(byte)];
    if (c < 0x80) {
      s = char(c);
    } else {
      s = {char(0xC0 | c >> 6), char(0x80 | (c & 0x3F))};
    }
  }
  VERIFY(next == kCharacters);
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

Result<PreTokenizer> PreTokenizer::load(const json& description) {
  PreTokenizer loaded;
  RETURN_IF_ERROR(loaded.add(description));
  const auto maps = [](const Step& step) { return !step.regex; };
  const auto count = std::count_if(loaded.steps_.begin(), loaded.steps_.end(), maps);
  if (count != 1) return unsupported(fmt::format("with {} times ByteLevel (not once)", count));
  return loaded;
}

Status PreTokenizer::add(const json& description) {
  const std::string type = description.is_object() ? text(description, "type") : "null";
  if (type == "Sequence") {
    const auto parts = description.find("pretokenizers");
    if (parts == description.end() || !parts->is_array()) {
      return unsupported("Sequence without pretokenizers");
    }
    for (const json& part : *parts) RETURN_IF_ERROR(add(part));
    return ok_status();
  }
  if (type == "ByteLevel") {
    if (flag(description, "add_prefix_space", true)) {
      return unsupported("ByteLevel with add_prefix_space");
    }
    if (flag(description, "use_regex", true)) {
      RETURN_IF_ERROR(add_pattern(kGpt2Pattern, SplitBehavior::isolated, false));
    }
    steps_.emplace_back();
    return ok_status();
  }
  if (type == "Digits") {
    const bool single = flag(description, "individual_digits", false);
    return add_pattern(kDigit, single ? SplitBehavior::isolated : SplitBehavior::contiguous, false);
  }
  if (type == "Punctuation") {
    const std::string name = text(description, "behavior");
    const auto behavior = behavior_of(name.empty() ? "Isolated" : name);
    if (!behavior) return unsupported("Punctuation with behavior " + name);
    return add_pattern(kPunctuation, *behavior, false);
  }
  if (type == "Split") return add_split(description);
  return unsupported(type);
}

Status PreTokenizer::add_split(const json& description) {
  const auto behavior = behavior_of(text(description, "behavior"));
  if (!behavior) return unsupported("Split with behavior " + text(description, "behavior"));
  const auto pattern = description.find("pattern");
  if (pattern == description.end() || !pattern->is_object()) {
    return unsupported("Split without a pattern");
  }
  std::string regex = text(*pattern, "Regex");
  // Oniguruma, the engine of the files' authors, means hexadecimal digits by \h, PCRE2 spaces.
  if (regex.find("\\h") != std::string::npos || regex.find("\\H") != std::string::npos) {
    return unsupported("Split with \\h in " + regex);
  }
  if (regex.empty()) regex = escape(text(*pattern, "String"));
  if (regex.empty()) return unsupported("Split without a Regex or String");
  return add_pattern(regex, *behavior, flag(description, "invert", false));
}

Status PreTokenizer::add_pattern(const std::string& pattern, SplitBehavior behavior, bool invert) {
  ASSIGN_OR_RETURN(Regex regex, Regex::compile(pattern));
  steps_.push_back({std::move(regex), behavior, invert});
  return ok_status();
}

void PreTokenizer::split(std::string_view text, RegexScratch& scratch, std::string& mapped,
                         std::vector<Span>& pieces) const {
  mapped = text;
  pieces.clear();
  if (text.empty()) return;
  pieces.push_back({0, uint32_t(text.size())});
  std::vector<Span> next, matches;
  for (const Step& step : steps_) {
    if (!step.regex) {
      map_to_alphabet(mapped, pieces);
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

void PreTokenizer::map_to_alphabet(std::string& text, std::vector<Span>& pieces) const {
  std::string mapped;
  mapped.reserve(text.size() + text.size() / 2);
  for (Span& piece : pieces) {
    const auto begin = uint32_t(mapped.size());
    for (uint32_t i = piece.begin; i < piece.end; ++i) {
      mapped += alphabet_.character(static_cast<unsigned char>(text[i]));
    }
    piece = {begin, uint32_t(mapped.size())};
  }
  text = std::move(mapped);
}

}  // namespace kivi
