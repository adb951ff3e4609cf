// SPDX-License-Identifier: Apache-2.0
#include "engine/text/bpe_merges.h"

#include <algorithm>
#include <bit>

namespace kivi {
namespace {

// std's heaps keep the largest on top: the first pair must be the largest.
bool later(const BpeMerges::Scratch::Candidate& a, const BpeMerges::Scratch::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
}

}  // namespace

void BpeMerges::grow() {
  std::vector<Merge> old(std::max<size_t>(64, slots_.size() * 2));
  old.swap(slots_);
  shift_ = 64 - std::countr_zero(slots_.size());
  for (const Merge& merge : old)
    if (merge.key != kFree) slots_[slot(merge.key)] = merge;
}

void BpeMerges::add(int32_t left, int32_t right, int32_t merged) {
  if (count_ * 2 >= slots_.size()) grow();
  Merge& merge = slots_[slot(key(left, right))];
  if (merge.key == kFree) merge = {key(left, right), int32_t(count_++), merged};
}

void BpeMerges::merge_few(std::span<const int32_t> symbols, Scratch& scratch,
                          std::vector<int32_t>& out) const {
  auto& ids = scratch.ids;
  auto& pairs = scratch.pairs;  // pairs[i] is that of ids[i] and ids[i + 1]
  const auto pair_at = [&](size_t i) {
    const Merge* merge = i + 1 < ids.size() ? find(ids[i], ids[i + 1]) : nullptr;
    return merge == nullptr ? Scratch::Candidate{INT32_MAX, 0, 0}
                            : Scratch::Candidate{merge->rank, 0, merge->merged};
  };
  ids.assign(symbols.begin(), symbols.end());
  pairs.resize(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) pairs[i] = pair_at(i);
  while (ids.size() > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < ids.size(); ++i)
      if (pairs[i].rank < pairs[best].rank) best = i;
    if (pairs[best].rank == INT32_MAX) break;
    ids[best] = pairs[best].merged;
    ids.erase(ids.begin() + std::ptrdiff_t(best) + 1);
    pairs.erase(pairs.begin() + std::ptrdiff_t(best) + 1);
    pairs[best] = pair_at(best);
    if (best > 0) pairs[best - 1] = pair_at(best - 1);
  }
  out.insert(out.end(), ids.begin(), ids.end());
}

void BpeMerges::propose(Scratch& scratch, int32_t position) const {
  const auto& symbol = scratch.symbols[size_t(position)];
  if (symbol.next < 0) return;
  const Merge* merge = find(symbol.id, scratch.symbols[size_t(symbol.next)].id);
  if (merge == nullptr) return;
  scratch.heap.push_back({merge->rank, position, merge->merged});
  std::push_heap(scratch.heap.begin(), scratch.heap.end(), later);
}

void BpeMerges::merge(std::span<const int32_t> input, Scratch& scratch,
                      std::vector<int32_t>& out) const {
  constexpr size_t kFew = 32;
  if (input.size() <= kFew) return merge_few(input, scratch, out);
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
    // The neighbors may have changed since the pair was proposed.
    const Merge* merge = find(left.id, right.id);
    if (merge == nullptr || merge->merged != best.merged) continue;
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
