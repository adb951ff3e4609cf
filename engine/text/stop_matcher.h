// SPDX-License-Identifier: Apache-2.0
// Stop strings: text is let through until one of them is complete; what could be the beginning of
// one is held back. The outcome depends on the text alone, not on how it is split.
//
// Which match counts: the one that ends first. Of several that end at the same place, the longest
// (the one that begins first). So generation stops at the earliest moment at which it can be known.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace kivi {

// The strings as one automaton (Aho and Corasick, 1975): a byte costs the same for one string as
// for many. Immutable; shared by the choices of a request.
class StopStrings {
 public:
  // None of `strings` is empty.
  explicit StopStrings(std::vector<std::string> strings);

  bool empty() const { return strings_.empty(); }
  const std::string& string(int index) const { return strings_[size_t(index)]; }

  // A state is the longest suffix of the text that begins one of the strings; 0 is the empty one.
  // Amortized constant time over a text.
  int32_t next(int32_t state, unsigned char byte) const;
  // Length of that suffix, bytes.
  int depth(int32_t state) const { return nodes_[size_t(state)].depth; }
  // The longest string that is complete in `state`; -1: none.
  int match(int32_t state) const { return nodes_[size_t(state)].match; }

 private:
  // A trie; the children of a node are a linked list (a node rarely has more than one, and 64
  // strings of 1,024 bytes with a table each would need 64 MB).
  struct Node {
    int32_t first_child = -1;
    int32_t next_sibling = -1;
    int32_t suffix = 0;  // the longest proper suffix of this node that is a node
    int32_t depth = 0;
    int32_t match = -1;
    unsigned char byte = 0;
  };
  int32_t child(int32_t node, unsigned char byte) const;
  void add(int index);
  void link_suffixes();

  std::vector<std::string> strings_;
  std::vector<Node> nodes_;
};

// The state of one text. One owner at a time; copyable.
class StopMatcher {
 public:
  // With `include_match` the stop string is part of the text (and nothing is ever held back).
  StopMatcher(std::shared_ptr<const StopStrings> strings, bool include_match);

  // Appends to `out` what of the text is now certain. Returns true once a string has matched: the
  // text is then complete, and later calls change nothing.
  bool push(std::string_view text, std::string& out);

  // The end of the text without a match: gives out what is held back.
  void flush(std::string& out);

  // The string that matched; -1: none.
  int matched() const { return matched_; }
  const std::string& matched_string() const { return strings_->string(matched_); }

 private:
  std::shared_ptr<const StopStrings> strings_;
  bool include_match_;
  int32_t state_ = 0;
  int matched_ = -1;
  std::string held_;  // from held_begin_ on: the suffix that may begin a stop string
  size_t held_begin_ = 0;
};

}  // namespace kivi
