// SPDX-License-Identifier: Apache-2.0
#include "engine/serving/structured_output.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/grammar/compiler.h"

namespace kivi {
namespace {

class GrammarConstraint final : public TokenConstraint {
 public:
  GrammarConstraint(std::unique_ptr<grammar::Guide> guide, int words,
                    std::shared_ptr<const std::vector<int32_t>> end_ids)
      : guide_(std::move(guide)), words_(size_t(words)), end_ids_(std::move(end_ids)) {}

  std::span<const uint32_t> mask() override {
    if (!guide_->fill_mask(words_)) return {};
    if (guide_->may_end())
      for (const int32_t id : *end_ids_) words_[size_t(id) / 32] |= 1u << (uint32_t(id) % 32);
    return words_;
  }

  Verdict accept(int32_t id) override {
    if (guide_->accept(id)) return guide_->complete() ? Verdict::complete : Verdict::going_on;
    const bool ends = guide_->may_end() && std::ranges::find(*end_ids_, id) != end_ids_->end();
    return ends ? Verdict::complete : Verdict::broken;
  }

 private:
  std::unique_ptr<grammar::Guide> guide_;
  std::vector<uint32_t> words_;
  std::shared_ptr<const std::vector<int32_t>> end_ids_;
};

class Prepared final : public PreparedFormat {
 public:
  Prepared(std::shared_ptr<const grammar::CompiledGrammar> grammar, int words,
           std::vector<int32_t> end_ids)
      : grammar_(std::move(grammar)),
        words_(words),
        end_ids_(std::make_shared<const std::vector<int32_t>>(std::move(end_ids))) {}

  std::shared_ptr<TokenConstraint> begin() const override {
    return std::make_shared<GrammarConstraint>(grammar::Compiler::guide(grammar_), words_,
                                               end_ids_);
  }

 private:
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
    compiler_ = std::make_unique<grammar::Compiler>(std::move(tokens), vocab_size_);
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
      std::move(*compiled), made.mask_words(), std::move(end_ids)));
}

}  // namespace kivi
