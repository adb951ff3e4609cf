// SPDX-License-Identifier: Apache-2.0
#include "bench/structured_work.h"

#include <algorithm>
#include <random>
#include <string>
#include <utility>

#include "engine/every_token_sampled.h"

namespace kivi {
namespace {

constexpr const char* kLines = R"(root ::= line*
line ::= "{\"name\": \"" text "\", \"age\": " age ", \"mood\": \"" mood "\", \"glad\": " flag "}\n"
text ::= [^"\\\x00-\x1F]{0,64}
age ::= [1-9] [0-9]{0,2}
mood ::= "glad" | "sad" | "calm"
flag ::= "true" | "false"
)";

// A tokenizer's tokens, and made-up words for the ids beyond them: letters of about their frequency
// in English, every second word with a space before it, a few with signs as JSON has them.
class Words final : public Tokenizer {
 public:
  Words(const Tokenizer& real, int known, int vocab_size)
      : real_(real), known_(known), vocab_size_(vocab_size) {
    std::mt19937 random(1);
    const std::string letters = "etaoinshrdlucmfwypvbgkjqxz", signs = "\":,{}[]\n ";
    for (int id = known; id < vocab_size; ++id) {
      std::string word = random() % 2 != 0 ? " " : "";
      for (size_t length = 1 + random() % 9; length > 0; --length)
        word += letters[std::min<size_t>(random() % letters.size(), random() % letters.size())];
      if (random() % 20 == 0)
        for (size_t length = 1 + random() % 3; length > 0; --length)
          word += signs[random() % signs.size()];
      words_.push_back(std::move(word));
    }
  }

  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const override {
    return real_.encode(text, add_special_tokens);
  }
  const std::string& token_bytes(int32_t id, bool skip_special) const override {
    return id < known_ ? real_.token_bytes(id, skip_special) : words_.at(size_t(id - known_));
  }
  std::string token_name(int32_t id) const override { return token_bytes(id, false); }
  std::optional<int32_t> token_id(std::string_view name) const override {
    return real_.token_id(name);
  }
  bool strips_leading_space() const override { return real_.strips_leading_space(); }
  int vocab_size() const override { return vocab_size_; }
  std::optional<int32_t> bos_id() const override { return real_.bos_id(); }
  std::optional<int32_t> eos_id() const override { return real_.eos_id(); }
  std::string kind() const override { return real_.kind(); }

 private:
  const Tokenizer& real_;
  const int known_;  // the first so many ids are the tokenizer's
  const int vocab_size_;
  std::vector<std::string> words_;
};

}  // namespace

std::shared_ptr<TokenConstraint> StructuredWork::begin() const {
  return std::make_shared<EveryTokenSampled>(format_->begin());
}

StructuredWork::~StructuredWork() = default;

Result<std::unique_ptr<StructuredWork>> StructuredWork::make(const Tokenizer& tokenizer,
                                                             int vocab_size) {
  std::unique_ptr<StructuredWork> work(new StructuredWork);
  const int known = tokenizer.kind().starts_with("bytes") ? 256 : tokenizer.vocab_size();
  work->words_ = std::make_unique<Words>(tokenizer, std::min(known, vocab_size), vocab_size);
  work->structured_ =
      std::make_unique<StructuredOutput>(*work->words_, vocab_size, std::vector<int32_t>());
  OutputFormat format;
  format.kind = OutputFormat::Kind::grammar;
  format.text = kLines;
  format.field = "structured";
  KIVI_ASSIGN_OR_RETURN(work->format_, work->structured_->prepare(format, {}));
  return work;
}

}  // namespace kivi
