// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar/compiler.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/utf8.h"
#include "engine/grammar/automaton.h"
#include "engine/grammar/grammar_text.h"
#include "engine/grammar/json_schema.h"
#include "engine/grammar/mask_maker.h"
#include "engine/grammar/matcher.h"
#include "engine/grammar/regular.h"
#include "engine/grammar/work_limit.h"

namespace kivi::grammar {
namespace {

constexpr size_t kEntriesMax = 64;
constexpr size_t kTextBytesMax = 256 << 10;
constexpr size_t kChoicesMax = 4096;
constexpr int kJsonDepthMax = 64;
constexpr size_t kJsonFieldsMax = 1024;  // of one object

// Before the text is parsed: a DOM is destroyed by recursion.
void check_depth(const std::string& json) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kJsonDepthMax)
        fail(fmt::format("the schema nests more than {} deep", kJsonDepthMax));
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
}

// Before an object is kept in its order: it looks its members up one by one.
void check_fields(const nlohmann::json& value) {
  if (value.is_object() && value.size() > kJsonFieldsMax)
    fail(fmt::format("an object of the schema has {} fields, must have at most {}", value.size(),
                     kJsonFieldsMax));
  if (value.is_structured())
    for (const nlohmann::json& item : value) check_fields(item);
}

Grammar of_schema(const std::string& text) {
  check_depth(text);
  const auto sorted = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (sorted.is_discarded()) fail("the schema is not JSON");
  check_fields(sorted);
  const auto schema = nlohmann::ordered_json::parse(text);
  if (!schema.is_object() && !schema.is_boolean())
    fail("the schema must be an object or a boolean");
  return grammar_of_schema(schema);
}

Grammar single(Expr body) {
  Grammar grammar;
  grammar.rules.push_back({"root", std::move(body), true});
  return grammar;
}

Grammar of_choices(const std::vector<std::string>& choices) {
  if (choices.empty()) fail("the list of choices is empty");
  if (choices.size() > kChoicesMax)
    fail(fmt::format("there are {} choices, must be at most {}", choices.size(), kChoicesMax));
  std::vector<Expr> parts;
  for (const std::string& c : choices) {
    if (c.empty()) fail("a choice is empty");
    parts.push_back(text(c));
  }
  return single(choice(std::move(parts)));
}

Grammar grammar_of(const Source& source) {
  size_t bytes = source.text.size();
  for (const std::string& c : source.choices) bytes += c.size();
  if (bytes > kTextBytesMax)
    fail(fmt::format("it has {} bytes, must have at most {}", bytes, kTextBytesMax));
  if (!is_valid_utf8(source.text)) fail("it is not UTF-8");
  switch (source.kind) {
    case SourceKind::json_object:
      return grammar_of_any_object();
    case SourceKind::json_schema:
      return of_schema(source.text);
    case SourceKind::regex:
      return single(parse_regex(source.text, RegexAnchors::whole, utf8));
    case SourceKind::choice:
      return of_choices(source.choices);
    case SourceKind::grammar:
      break;
  }
  return parse_grammar(source.text);
}

// Turns what is thrown inside into a result.
template <class Work>
auto guarded(Work work) -> Result<decltype(work())> {
  try {
    return work();
  } catch (const Failure& failure) {
    return Error{ErrorCode::invalid, failure.message};
  }
}

class MatcherGuide final : public Guide {
 public:
  explicit MatcherGuide(std::shared_ptr<const CompiledGrammar> grammar)
      : vocabulary_(grammar->vocabulary()), matcher_(std::move(grammar)) {}

  bool fill_mask(std::span<uint32_t> words) override {
    const WorkLimit limit;
    try {
      matcher_.fill_mask(words);
      return true;
    } catch (const Failure&) {
      return false;
    }
  }
  bool accept(int32_t token) override {
    const WorkLimit limit;
    try {
      return matcher_.accept(token);
    } catch (const Failure&) {
      return false;
    }
  }
  ForcedText forced_text() override {
    const WorkLimit limit;
    try {
      ForcedText forced{matcher_.forced_text(kForcedBytesMax)};
      const std::string_view text = forced.text;
      const size_t longest = size_t(vocabulary_.all().depth_max());
      forced.settled = text.size() < longest ? 0 : text.size() - longest + 1;
      while (forced.settled < text.size() && !vocabulary_.has_longer(text.substr(forced.settled)))
        ++forced.settled;
      return forced;
    } catch (const Failure&) {
      return {};
    }
  }
  bool may_end() const override { return matcher_.may_end(); }
  bool complete() const override { return matcher_.complete(); }

 private:
  static constexpr size_t kForcedBytesMax = 256;

  const TokenVocabulary& vocabulary_;  // the matcher's
  Matcher matcher_;
};

}  // namespace

Compiler::Compiler(std::vector<std::string> tokens, int vocab_size, int threads, int64_t bytes_max)
    : vocabulary_(std::make_shared<const TokenVocabulary>(std::move(tokens), vocab_size)),
      bytes_max_(bytes_max),
      mask_maker_(std::make_unique<MaskMaker>(threads, bytes_max)) {}

Compiler::~Compiler() = default;

int Compiler::mask_words() const { return vocabulary_->words(); }

int64_t Compiler::grammar_bytes() const { return vocabulary_->grammar_bytes(); }

Result<std::shared_ptr<const CompiledGrammar>> Compiler::compile(const Source& source) {
  Key key{source.kind, source.text};
  for (const std::string& c : source.choices) key.second += fmt::format("{}:{}", c.size(), c);
  {
    const std::lock_guard lock(mutex_);
    if (const auto known = places_.find(key); known != places_.end()) {
      entries_.splice(entries_.begin(), entries_, known->second);
      return known->second->second;
    }
  }
  KIVI_ASSIGN_OR_RETURN(std::shared_ptr<const CompiledGrammar> compiled, guarded([&] {
                          const WorkLimit limit;
                          auto made = std::make_shared<const CompiledGrammar>(grammar_of(source),
                                                                              vocabulary_);
                          Matcher first(made);  // fails if it is too ambiguous at its beginning
                          return std::shared_ptr<const CompiledGrammar>(std::move(made));
                        }));
  const std::lock_guard lock(mutex_);
  if (places_.contains(key)) return compiled;
  entries_.emplace_front(key, compiled);
  places_[std::move(key)] = entries_.begin();
  mask_maker_->add(compiled);
  while (entries_.size() > kEntriesMax ||
         (entries_.size() > 1 && vocabulary_->grammar_bytes() > bytes_max_)) {
    places_.erase(entries_.back().first);
    entries_.pop_back();
  }
  return compiled;
}

std::unique_ptr<Guide> Compiler::guide(std::shared_ptr<const CompiledGrammar> grammar) {
  return std::make_unique<MatcherGuide>(std::move(grammar));
}

Status check(const Source& source) {
  const auto made = guarded([&] {
    const WorkLimit limit;
    return Program(grammar_of(source)).states();
  });
  if (!made.ok()) return made.error();
  return ok_status();
}

}  // namespace kivi::grammar
