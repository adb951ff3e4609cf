// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar/matcher.h"

#include <algorithm>
#include <utility>

#include "engine/grammar/token_bits.h"

namespace kivi::grammar {

Matcher::Matcher(std::shared_ptr<const CompiledGrammar> grammar)
    : grammar_(std::move(grammar)), stepper_(grammar_->program()) {
  stepper_.add(grammar_->program().start(), 0, now_);
}

void Matcher::fill_mask(std::span<uint32_t> words) {
  std::ranges::fill(words, 0u);
  const auto add_words = [&](const std::vector<uint32_t>& more) {
    for (size_t i = 0; i < more.size(); ++i) words[i] |= more[i];
  };
  int plain = 0;
  for (const Configuration& c : now_.list) {
    const StateMask& mask = grammar_->mask(c.state);
    if (mask.plain > plain) add_words(grammar_->vocabulary().plain_mask(plain = mask.plain));
    if (mask.pure != nullptr) add_words(*mask.pure);
    add_words(mask.words);
    for (const int32_t id : mask.ids) set_bit(words, id);
    if (c.stack == 0 || mask.tails.size() == 0) continue;
    for (const int32_t id : tail_tokens(mask, c)) set_bit(words, id);
  }
}

const std::vector<int32_t>& Matcher::tail_tokens(const StateMask& mask, Configuration from) {
  constexpr size_t kKept = 64;
  const uint64_t key = uint64_t(uint32_t(from.state)) << 32 | uint32_t(from.stack);
  if (tails_.size() >= kKept && !tails_.contains(key)) tails_.clear();
  const auto [place, fresh] = tails_.try_emplace(key);
  std::vector<int32_t>& found = place->second;
  if (!fresh) return found;
  const TokenTrie& trie = mask.tails;
  const size_t stacks_before = stepper_.stacks().size();
  levels_.resize(std::max(levels_.size(), size_t(trie.depth_max()) + 1));
  levels_[0].clear();
  const Stacks::Frame frame = stepper_.stacks().top(from.stack);
  stepper_.add(frame.next, frame.below, levels_[0]);
  const std::span<const TokenTrie::Node> nodes = trie.nodes();
  for (int i = 0; i < trie.size();) {
    const TokenTrie::Node& node = nodes[size_t(i)];
    Configurations& to = levels_[size_t(node.depth) + 1];
    stepper_.step(levels_[node.depth], node.byte, to);
    if (to.dead()) {
      i = node.behind;
      continue;
    }
    const std::span<const int32_t> ids = trie.ids(i);
    found.insert(found.end(), ids.begin(), ids.end());
    i = to.list.empty() ? node.behind : i + 1;
  }
  stepper_.stacks().shrink(stacks_before);
  return found;
}

bool Matcher::accept(int32_t token) {
  if (token < 0 || token >= grammar_->vocabulary().size()) return false;
  const std::string& bytes = grammar_->vocabulary().bytes(token);
  return !bytes.empty() && accept(std::string_view(bytes));
}

bool Matcher::accept(std::string_view bytes) {
  Configurations before = now_;
  for (size_t i = 0; i < bytes.size(); ++i) {
    stepper_.step(now_, uint8_t(bytes[i]), next_);
    std::swap(now_, next_);
    if (!now_.list.empty() || (now_.may_end && i + 1 == bytes.size())) continue;
    now_ = std::move(before);
    return false;
  }
  if (stepper_.stacks().size() >= sweep_at_) sweep();
  return true;
}

void Matcher::sweep() {
  stepper_.stacks().keep(now_.list);
  tails_.clear();  // by the numbers of stacks
  const size_t kept = stepper_.stacks().size();
  if (kept > kStacksMax) fail("a text is nested too deep in too many ways: make it less ambiguous");
  sweep_at_ = std::max(kSweepMin, 2 * kept);
}

std::string Matcher::forced_text(size_t bytes_max) {
  const Program& program = grammar_->program();
  // The one byte that a set takes; -1: it takes several, or the text may end.
  const auto only_byte = [&](const Configurations& set) {
    int only = -1;
    if (set.may_end) return only;
    for (const Configuration& c : set.list)
      for (int byte = 0; byte < 256; ++byte)
        if (byte != only && program.step(c.state, uint8_t(byte)) >= 0) {
          if (only >= 0) return -1;
          only = byte;
        }
    return only;
  };
  std::string text;
  int byte = only_byte(now_);
  if (byte < 0) return text;
  const size_t stacks_before = stepper_.stacks().size();
  Configurations at = now_;
  while (byte >= 0 && text.size() < bytes_max) {
    text += char(uint8_t(byte));
    stepper_.step(at, uint8_t(byte), next_);
    std::swap(at, next_);
    byte = only_byte(at);
  }
  stepper_.stacks().shrink(stacks_before);
  return text;
}

}  // namespace kivi::grammar
