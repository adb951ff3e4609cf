// BpeMerges: byte-pair encoding of one piece of a text. The pair of neighbours that was learnt
// first is merged first (at equal rank the leftmost), until no pair is known.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace kivi {

// Immutable after filling.
class BpeMerges {
 public:
  // `left` and `right`, neighbours, become `merged`; pairs are added in the order of their rank.
  void add(int32_t left, int32_t right, int32_t merged);
  size_t size() const { return merges_.size(); }

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
  };

  // Appends the tokens of `symbols`. O(n log n).
  void merge(std::span<const int32_t> symbols, Scratch& scratch, std::vector<int32_t>& out) const;

 private:
  struct Merge {
    int32_t rank, merged;
  };
  static uint64_t key(int32_t left, int32_t right) {
    return uint64_t(uint32_t(left)) << 32 | uint32_t(right);
  }
  struct Hash {  // a multiply spreads the two ids over all bits
    size_t operator()(uint64_t k) const { return size_t((k ^ k >> 29) * 0x9E3779B97F4A7C15u); }
  };
  // The pair that begins at `position` joins the candidates, if it is known.
  void propose(Scratch& scratch, int32_t position) const;

  std::unordered_map<uint64_t, Merge, Hash> merges_;
};

}  // namespace kivi
