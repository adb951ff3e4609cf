#include "engine/bpe_merges.h"

#include <algorithm>

namespace kivi {
namespace {

// std's heaps keep the largest on top: the first pair must be the largest.
bool later(const BpeMerges::Scratch::Candidate& a, const BpeMerges::Scratch::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
}

}  // namespace

void BpeMerges::add(int32_t left, int32_t right, int32_t merged) {
  merges_.try_emplace(key(left, right), Merge{int32_t(merges_.size()), merged});
}

void BpeMerges::propose(Scratch& scratch, int32_t position) const {
  const auto& symbol = scratch.symbols[size_t(position)];
  if (symbol.next < 0) return;
  const auto it = merges_.find(key(symbol.id, scratch.symbols[size_t(symbol.next)].id));
  if (it == merges_.end()) return;
  scratch.heap.push_back({it->second.rank, position, it->second.merged});
  std::push_heap(scratch.heap.begin(), scratch.heap.end(), later);
}

void BpeMerges::merge(std::span<const int32_t> input, Scratch& scratch,
                      std::vector<int32_t>& out) const {
  auto& symbols = scratch.symbols;
  symbols.clear();
  scratch.heap.clear();
  const auto count = int32_t(input.size());
  for (int32_t i = 0; i < count; ++i) {
    symbols.push_back({input[size_t(i)], i - 1, i + 1 < count ? i + 1 : -1});
  }
  for (int32_t i = 0; i + 1 < count; ++i) propose(scratch, i);

  while (!scratch.heap.empty()) {
    std::pop_heap(scratch.heap.begin(), scratch.heap.end(), later);
    const Scratch::Candidate best = scratch.heap.back();
    scratch.heap.pop_back();
    auto& left = symbols[size_t(best.position)];
    if (left.id < 0 || left.next < 0) continue;
    auto& right = symbols[size_t(left.next)];
    // The neighbours may have changed since the pair was proposed.
    const auto it = merges_.find(key(left.id, right.id));
    if (it == merges_.end() || it->second.merged != best.merged) continue;
    left.id = best.merged;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[size_t(left.next)].previous = best.position;
    if (left.previous >= 0) propose(scratch, left.previous);
    propose(scratch, best.position);
  }
  for (int32_t i = 0; i >= 0 && i < count; i = symbols[size_t(i)].next) {
    out.push_back(symbols[size_t(i)].id);
  }
}

}  // namespace kivi
