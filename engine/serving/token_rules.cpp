// SPDX-License-Identifier: Apache-2.0
#include "engine/serving/token_rules.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/grammar/token_bits.h"

namespace kivi {
namespace {

using Words = std::vector<uint32_t>;  // bit id % 32 of word id / 32

bool allows_something(const Words& mask) {
  return std::ranges::any_of(mask, [](uint32_t word) { return word != 0; });
}

class RuleConstraint final : public TokenConstraint {
 public:
  RuleConstraint(std::shared_ptr<const TokenRules> rules, std::shared_ptr<TokenConstraint> format)
      : rules_(std::move(rules)), format_(std::move(format)) {
    const auto vocab = size_t(rules_->vocab_size);
    all_ = rules_->allowed;
    if (all_.empty()) all_.resize((vocab + 31) / 32, ~0u);
    if (vocab % 32 != 0) all_.back() &= (1u << (vocab % 32)) - 1;  // no bits of no token
    for (const auto& sequence : rules_->banned) longest_ = std::max(longest_, sequence.size());
  }

  std::span<const uint32_t> mask() override {
    mask_ = all_;
    if (format_ != nullptr) {
      const std::span<const uint32_t> wanted = format_->mask();
      if (wanted.empty()) return {};
      std::ranges::copy(wanted, mask_.begin());
      apply([&](Words& mask) {
        for (size_t i = 0; i < mask.size(); ++i) mask[i] &= all_[i];
      });
    }
    if (count_ < rules_->min_tokens)
      apply([&](Words& mask) {
        for (const int32_t id : rules_->ends) grammar::clear_bit(mask, id);
      });
    if (!rules_->banned.empty())
      apply([&](Words& mask) {
        for (const auto& sequence : rules_->banned)
          if (has_come(sequence)) grammar::clear_bit(mask, sequence.back());
      });
    return mask_;
  }

  std::optional<int32_t> forced() override {
    if (format_ == nullptr || !rules_->allowed.empty() || !rules_->banned.empty())
      return std::nullopt;
    const auto id = format_->forced();
    const bool ends = id && std::ranges::find(rules_->ends, *id) != rules_->ends.end();
    return ends && count_ < rules_->min_tokens ? std::nullopt : id;
  }

  Verdict accept(int32_t id) override {
    ++count_;
    if (longest_ > 1) {
      last_.push_back(id);
      if (last_.size() >= longest_) last_.erase(last_.begin());
    }
    return format_ != nullptr ? format_->accept(id) : Verdict::going_on;
  }

 private:
  // Changes the mask, unless nothing is left then.
  template <class Change>
  void apply(const Change& change) {
    kept_ = mask_;
    change(mask_);
    if (!allows_something(mask_)) mask_.swap(kept_);
  }

  // All of the sequence but its last token has come.
  bool has_come(const std::vector<int32_t>& sequence) const {
    const size_t before = sequence.size() - 1;
    return before <= last_.size() &&
           std::equal(sequence.begin(), sequence.end() - 1, last_.end() - int64_t(before));
  }

  const std::shared_ptr<const TokenRules> rules_;
  const std::shared_ptr<TokenConstraint> format_;
  Words all_, mask_, kept_;
  size_t longest_ = 0;         // tokens of a banned sequence
  std::vector<int32_t> last_;  // tokens, at most longest_ - 1
  int count_ = 0;              // tokens so far
};

}  // namespace

std::vector<uint32_t> mask_of_tokens(const std::vector<int32_t>& ids, int vocab_size) {
  Words mask(ids.empty() ? 0 : (size_t(vocab_size) + 31) / 32);
  for (const int32_t id : ids) grammar::set_bit(mask, id);
  return mask;
}

Result<std::vector<std::vector<int32_t>>> tokens_of_words(const std::vector<std::string>& words,
                                                          const Tokenizer& tokenizer) {
  std::vector<std::vector<int32_t>> sequences;
  for (const std::string& word : words) {
    const size_t begin = word.find_first_not_of(' ');
    const std::string bare = begin == std::string::npos ? "" : word.substr(begin);
    if (bare.empty())
      return Error{ErrorCode::invalid, "bad_words has an empty word, must have none", "bad_words"};
    for (auto& ids : {tokenizer.encode(bare, false), tokenizer.encode_after_special(bare),
                      tokenizer.encode(" " + bare, false)})
      if (!ids.empty() && std::ranges::find(sequences, ids) == sequences.end())
        sequences.push_back(ids);
  }
  return sequences;
}

std::shared_ptr<TokenConstraint> constrain(std::shared_ptr<const TokenRules> rules,
                                           std::shared_ptr<TokenConstraint> format) {
  return std::make_shared<RuleConstraint>(std::move(rules), std::move(format));
}

}  // namespace kivi
