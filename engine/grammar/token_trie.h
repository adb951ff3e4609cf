// SPDX-License-Identifier: Apache-2.0
// TokenTrie: the bytes of a vocabulary's tokens as a tree, laid out so that a walk is one loop.
// Immutable.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kivi::grammar {

// Kinds of bytes, so that a walk can judge all that lies below a node at once. A set of them is a
// byte, a bit a kind.
inline constexpr int kByteKinds = 8;
constexpr int byte_kind(uint8_t byte) {
  if (byte >= 0x80) return 7;
  if (byte >= 'a' && byte <= 'z') return 0;
  if (byte >= 'A' && byte <= 'Z') return 1;
  if (byte >= '0' && byte <= '9') return 2;
  if (byte == ' ') return 3;
  if (byte == '"' || byte == '\\') return 4;
  return byte < 0x20 ? 5 : 6;
}

class TokenTrie {
 public:
  struct Node {
    int32_t behind;    // the first node that is not below this one
    int32_t first_id;  // its tokens: ids()[first_id, first_id of the next node); with those below
                       // it: up to first_id of the node at `behind`
    uint16_t depth;    // bytes before its own
    uint16_t height;   // the most bytes behind its own
    uint8_t byte;
    uint8_t kinds_below;  // of the bytes behind its own
  };

  TokenTrie() = default;
  // Texts with their tokens; texts may be equal. Empty ones are left out.
  // Sorted ones take less time.
  explicit TokenTrie(std::vector<std::pair<std::string_view, int32_t>> tokens);

  // In the order of a walk, with one node more at the end.
  std::span<const Node> nodes() const { return nodes_; }
  int size() const { return int(nodes_.size()) - 1; }
  std::span<const int32_t> ids(int node) const {
    const auto i = size_t(node);
    return std::span(ids_).subspan(size_t(nodes_[i].first_id),
                                   size_t(nodes_[i + 1].first_id - nodes_[i].first_id));
  }
  // The tokens in the order of their nodes.
  std::span<const int32_t> ids() const { return ids_; }
  int depth_max() const { return depth_max_; }
  size_t bytes() const {
    return nodes_.capacity() * sizeof nodes_[0] + ids_.capacity() * sizeof ids_[0];
  }

 private:
  void note_below();

  std::vector<Node> nodes_{Node{}};
  std::vector<int32_t> ids_;
  int depth_max_ = 0;
};

class PureTokens;

// The tokens of a model as grammars see them. Any thread may use it.
class TokenVocabulary {
 public:
  // `tokens[id]`: the bytes that a token stands for; empty: no grammar allows it (special tokens).
  // `size`: of the model's logits, at least as many as there are tokens.
  TokenVocabulary(std::vector<std::string> tokens, int size);
  ~TokenVocabulary();

  int size() const { return size_; }
  int words() const { return (size_ + 31) / 32; }
  const std::string& bytes(int32_t id) const { return tokens_[size_t(id)]; }
  // Returns true if a token begins with `text` and is longer.
  bool has_longer(std::string_view text) const;

  // Tokens of whole characters that a JSON string may hold as they are (no quote, no backslash, no
  // control character), apart from the others: most states take all of them or none.
  static constexpr int kPlainCharsMax = 24;
  const TokenTrie& all() const { return all_; }
  // All but the plain ones of at most kPlainCharsMax characters.
  const TokenTrie& special() const { return special_; }
  // The plain tokens of at most `chars` characters. 0 <= chars <= kPlainCharsMax.
  const std::vector<uint32_t>& plain_mask(int chars) const { return plain_masks_[size_t(chars)]; }
  // The tokens of these kinds of bytes apart from the others. Made at the first use, which takes
  // some 10 ms. Null once there are kPureKindsMax of them, so that their memory is bounded.
  const PureTokens* pure(uint8_t kinds) const;

  // Bytes of all grammars that were compiled for this vocabulary and live, masks included. Any
  // thread.
  int64_t grammar_bytes() const { return grammar_bytes_.load(std::memory_order_relaxed); }
  void add_grammar_bytes(int64_t more) const {
    grammar_bytes_.fetch_add(more, std::memory_order_relaxed);
  }

 private:
  std::vector<std::string> tokens_;
  int size_;
  std::vector<int32_t> sorted_;  // all tokens, by their bytes
  TokenTrie all_, special_;
  std::vector<std::vector<uint32_t>> plain_masks_;
  mutable std::atomic<int64_t> grammar_bytes_ = 0;

  static constexpr size_t kPureKindsMax = 6;
  mutable std::mutex mutex_;  // guards what follows
  mutable std::map<uint8_t, std::unique_ptr<const PureTokens>> pure_;
};

}  // namespace kivi::grammar
