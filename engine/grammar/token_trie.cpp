// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar/token_trie.h"

#include <algorithm>

#include "base/utf8.h"
#include "base/verify.h"
#include "engine/grammar/pure_tokens.h"
#include "engine/grammar/token_bits.h"

namespace kivi::grammar {
namespace {

// Its characters; 0 if it is no plain token.
int plain_characters(const std::string& token) {
  if (token.empty() || !is_valid_utf8(token)) return 0;
  if (std::ranges::any_of(token, [](char c) {
        return c == '"' || c == '\\' || static_cast<unsigned char>(c) < 0x20;
      }))
    return 0;
  const int64_t length = utf8_length(token);
  return length <= TokenVocabulary::kPlainCharsMax ? int(length) : 0;
}

}  // namespace

TokenTrie::TokenTrie(std::vector<std::pair<std::string_view, int32_t>> tokens) {
  std::erase_if(tokens, [](const auto& token) { return token.first.empty(); });
  if (!std::ranges::is_sorted(tokens)) std::ranges::sort(tokens);
  nodes_.clear();
  std::vector<int32_t> path;  // the nodes of the last text
  std::string_view last;
  for (const auto& [text, id] : tokens) {
    KIVI_VERIFY(text.size() < 65536);
    size_t shared = 0;
    while (shared < std::min(last.size(), text.size()) && last[shared] == text[shared]) ++shared;
    for (size_t d = shared; d < path.size(); ++d)
      nodes_[size_t(path[d])].behind = int32_t(nodes_.size());
    path.resize(shared);
    for (size_t d = shared; d < text.size(); ++d) {
      path.push_back(int32_t(nodes_.size()));
      nodes_.push_back({.behind = 0,
                        .first_id = int32_t(ids_.size()),
                        .depth = uint16_t(d),
                        .height = 0,
                        .byte = uint8_t(text[d]),
                        .kinds_below = 0});
    }
    depth_max_ = std::max(depth_max_, int(text.size()));
    ids_.push_back(id);
    last = text;
  }
  for (const int32_t node : path) nodes_[size_t(node)].behind = int32_t(nodes_.size());
  note_below();
  Node end{};
  end.behind = int32_t(nodes_.size()) + 1;
  end.first_id = int32_t(ids_.size());
  nodes_.push_back(end);
}

// Fills heights and kinds.
void TokenTrie::note_below() {
  std::vector<int32_t> parents(nodes_.size()), path(size_t(depth_max_) + 1, -1);
  for (size_t i = 0; i < nodes_.size(); ++i) {
    parents[i] = path[nodes_[i].depth];
    path[size_t(nodes_[i].depth) + 1] = int32_t(i);
  }
  for (size_t i = nodes_.size(); i-- > 0;) {
    if (parents[i] < 0) continue;
    const Node& node = nodes_[i];
    Node& parent = nodes_[size_t(parents[i])];
    parent.height = std::max(parent.height, uint16_t(node.height + 1));
    parent.kinds_below |= uint8_t(node.kinds_below | 1u << byte_kind(node.byte));
  }
}

TokenVocabulary::TokenVocabulary(std::vector<std::string> tokens, int size)
    : tokens_(std::move(tokens)), size_(size) {
  KIVI_VERIFY(size_ >= 0 && tokens_.size() <= size_t(size_));
  tokens_.resize(size_t(size_));
  plain_masks_.resize(kPlainCharsMax + 1, std::vector<uint32_t>(size_t(words())));
  std::vector<std::pair<std::string_view, int32_t>> all, special;
  for (int32_t id = 0; id < size_; ++id) {
    const std::string& token = tokens_[size_t(id)];
    all.emplace_back(token, id);
    const int characters = plain_characters(token);
    if (characters == 0) special.emplace_back(token, id);
    for (int n = characters; n > 0 && n <= kPlainCharsMax; ++n)
      set_bit(plain_masks_[size_t(n)], id);
  }
  std::ranges::sort(all);
  for (const auto& [unused, id] : all) sorted_.push_back(id);
  all_ = TokenTrie(std::move(all));
  special_ = TokenTrie(std::move(special));
  // What formats and most patterns take. Made here, so that no first text pays for it.
  constexpr uint8_t kLetters = 1 << byte_kind('a') | 1 << byte_kind('A');
  pure(kLetters);
  pure(kLetters | 1 << byte_kind('0'));
}

TokenVocabulary::~TokenVocabulary() = default;

const PureTokens* TokenVocabulary::pure(uint8_t kinds) const {
  {
    const std::lock_guard lock(mutex_);
    if (const auto it = pure_.find(kinds); it != pure_.end()) return it->second.get();
    if (pure_.size() >= kPureKindsMax) return nullptr;
  }
  // Made without the lock: the engine's thread must not wait for one of low priority.
  auto made = std::make_unique<const PureTokens>(tokens_, sorted_, kinds, words());
  const std::lock_guard lock(mutex_);
  return pure_.try_emplace(kinds, std::move(made)).first->second.get();
}

bool TokenVocabulary::has_longer(std::string_view text) const {
  const auto view = [&](int32_t id) { return std::string_view(bytes(id)); };
  const auto behind = std::ranges::upper_bound(sorted_, text, {}, view);
  return behind != sorted_.end() && view(*behind).starts_with(text);
}

}  // namespace kivi::grammar
