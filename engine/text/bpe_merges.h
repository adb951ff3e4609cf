// SPDX-License-Identifier: Apache-2.0
// BpeMerges: byte-pair encoding of one piece of a text. The pair of neighbors that was learned
// first is merged first (at equal rank the leftmost), until no pair is known.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace kivi {

// Immutable after filling.
class BpeMerges {
 public:
  // `left` and `right`, which are neighbors, become `merged`; pairs are added in the order of their
  // rank. A pair that is known already keeps its rank.
  void add(int32_t left, int32_t right, int32_t merged);
  size_t size() const { return count_; }

  // Memory of one thread, used again and again.
  struct Scratch {
    struct Symbol {
      int32_t id, previous, next;  // -1: none; id -1: merged into the one before it
    };
    struct Candidate {
      int32_t rank, position, merged;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
    std::vector<int32_t> ids;
    std::vector<Candidate> pairs;
  };

  // Appends the tokens of `symbols`. O(n log n).
  void merge(std::span<const int32_t> symbols, Scratch& scratch, std::vector<int32_t>& out) const;

 private:
  struct Merge {
    uint64_t key = kFree;
    int32_t rank = 0, merged = 0;
  };
  static constexpr uint64_t kFree = ~uint64_t(0);  // no pair: ids are not negative
  static uint64_t key(int32_t left, int32_t right) {
    return uint64_t(uint32_t(left)) << 32 | uint32_t(right);
  }
  // The slot of a pair: its own, or the free one where it would stand.
  size_t slot(uint64_t key) const {
    size_t at = size_t((key ^ key >> 29) * 0x9E3779B97F4A7C15u >> shift_);
    while (slots_[at].key != key && slots_[at].key != kFree) at = (at + 1) & (slots_.size() - 1);
    return at;
  }
  // Null: no such pair.
  const Merge* find(int32_t left, int32_t right) const {
    if (count_ == 0) return nullptr;
    const Merge& merge = slots_[slot(key(left, right))];
    return merge.key == kFree ? nullptr : &merge;
  }
  void grow();
  // A piece of few symbols: the best pair is looked for in all of them, again and again.
  void merge_few(std::span<const int32_t> symbols, Scratch& scratch,
                 std::vector<int32_t>& out) const;
  // The pair that begins at `position` joins the candidates, if it is known.
  void propose(Scratch& scratch, int32_t position) const;

  std::vector<Merge> slots_;  // open addressing, a power of two, at most half full
  int shift_ = 64;
  size_t count_ = 0;
};

}  // namespace kivi
