// SPDX-License-Identifier: Apache-2.0
#include "engine/serving/structured_output.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "engine/grammar/compiler.h"
#include "engine/grammar/token_bits.h"

namespace kivi {
namespace {

// A quarter of the processors, because the CPU backend uses all of them.
int mask_threads() { return std::clamp(int(std::thread::hardware_concurrency()) / 4, 1, 4); }

class GrammarConstraint final : public TokenConstraint {
 public:
  GrammarConstraint(const Tokenizer& tokenizer, std::unique_ptr<grammar::Guide> guide, int words,
                    std::shared_ptr<const std::vector<int32_t>> end_ids)
      : tokenizer_(tokenizer),
        guide_(std::move(guide)),
        words_(size_t(words)),
        end_ids_(std::move(end_ids)) {}

  std::span<const uint32_t> mask() override {
    if (const auto id = forced()) {
      std::ranges::fill(words_, 0u);
      grammar::set_bit(words_, *id);
      return words_;
    }
    if (!guide_->fill_mask(words_)) return {};
    if (guide_->may_end())
      for (const int32_t id : *end_ids_) grammar::set_bit(words_, id);
    return words_;
  }

  // Where a text is forced, the tokens are those that the tokenizer makes of it: a mask alone would
  // let the model spell it in any pieces.
  std::optional<int32_t> forced() override {
    if (!known_) find_forced();
    if (next_ == forced_.size()) return std::nullopt;
    return forced_[next_];
  }

  Verdict accept(int32_t id) override {
    if (next_ < forced_.size() && forced_[next_] == id)
      ++next_;
    else
      forced_.clear(), next_ = 0;
    known_ = next_ < forced_.size();
    if (guide_->accept(id)) return guide_->complete() ? Verdict::complete : Verdict::going_on;
    const bool ends = guide_->may_end() && std::ranges::find(*end_ids_, id) != end_ids_->end();
    return ends ? Verdict::complete : Verdict::broken;
  }

 private:
  void find_forced() {
    known_ = true;
    forced_.clear();
    next_ = 0;
    const grammar::ForcedText forced = guide_->forced_text();
    if (forced.settled == 0) return;
    size_t end = 0;
    for (const int32_t id : tokenizer_.encode_after_special(forced.text)) {
      const std::string& bytes = tokenizer_.token_bytes(id, /*skip_special=*/true);
      if (bytes.empty() || end + bytes.size() > forced.settled || size_t(id) / 32 >= words_.size())
        return;
      if (forced.text.compare(end, bytes.size(), bytes) != 0) return;
      end += bytes.size();
      forced_.push_back(id);
    }
  }

  const Tokenizer& tokenizer_;
  std::unique_ptr<grammar::Guide> guide_;
  std::vector<uint32_t> words_;
  bool known_ = false;           // forced_ says what is forced now
  std::vector<int32_t> forced_;  // tokens that must come, one after another
  size_t next_ = 0;              // in forced_
  std::shared_ptr<const std::vector<int32_t>> end_ids_;
};

class Prepared final : public PreparedFormat {
 public:
  Prepared(const Tokenizer& tokenizer, std::shared_ptr<const grammar::CompiledGrammar> grammar,
           int words, std::vector<int32_t> end_ids)
      : tokenizer_(tokenizer),
        grammar_(std::move(grammar)),
        words_(words),
        end_ids_(std::make_shared<const std::vector<int32_t>>(std::move(end_ids))) {}

  std::shared_ptr<TokenConstraint> begin() const override {
    return std::make_shared<GrammarConstraint>(tokenizer_, grammar::Compiler::guide(grammar_),
                                               words_, end_ids_);
  }

 private:
  const Tokenizer& tokenizer_;
  std::shared_ptr<const grammar::CompiledGrammar> grammar_;
  int words_;
  std::shared_ptr<const std::vector<int32_t>> end_ids_;
};

grammar::SourceKind kind_of(OutputFormat::Kind kind) {
  switch (kind) {
    case OutputFormat::Kind::json_object:
      return grammar::SourceKind::json_object;
    case OutputFormat::Kind::json_schema:
      return grammar::SourceKind::json_schema;
    case OutputFormat::Kind::regex:
      return grammar::SourceKind::regex;
    case OutputFormat::Kind::choice:
      return grammar::SourceKind::choice;
    case OutputFormat::Kind::grammar:
      break;
  }
  return grammar::SourceKind::grammar;
}

}  // namespace

StructuredOutput::StructuredOutput(const Tokenizer& tokenizer, int vocab_size,
                                   std::vector<int32_t> end_ids)
    : tokenizer_(tokenizer), vocab_size_(vocab_size), end_ids_(std::move(end_ids)) {}

StructuredOutput::~StructuredOutput() = default;

grammar::Compiler& StructuredOutput::compiler() {
  std::call_once(once_, [&] {
    std::vector<std::string> tokens;
    for (int32_t id = 0; id < std::min(vocab_size_, tokenizer_.vocab_size()); ++id)
      tokens.push_back(tokenizer_.token_bytes(id, /*skip_special=*/true));
    compiler_ = std::make_unique<grammar::Compiler>(std::move(tokens), vocab_size_, mask_threads());
  });
  return *compiler_;
}

Result<std::shared_ptr<const PreparedFormat>> StructuredOutput::prepare(
    const OutputFormat& format, const std::vector<int32_t>& more_end_ids) {
  grammar::Compiler& made = compiler();
  auto compiled = made.compile({kind_of(format.kind), format.text, format.choices});
  if (!compiled.ok())
    return Error{compiled.error().code,
                 fmt::format("{}: {}", format.field, compiled.error().message), format.field};
  std::vector<int32_t> end_ids = end_ids_;
  end_ids.insert(end_ids.end(), more_end_ids.begin(), more_end_ids.end());
  std::erase_if(end_ids, [&](int32_t id) { return id < 0 || id >= vocab_size_; });
  return std::shared_ptr<const PreparedFormat>(std::make_shared<const Prepared>(
      tokenizer_, std::move(*compiled), made.mask_words(), std::move(end_ids)));
}

}  // namespace kivi
