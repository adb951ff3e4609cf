// SPDX-License-Identifier: Apache-2.0
#include "engine/model/page_groups.h"

#include <algorithm>
#include <limits>

namespace kivi {

namespace {

// Rests that differ by no more tokens count as equally long. This is a tile of decode attention.
constexpr int kAlike = 16;

struct Candidate {
  int32_t sequence;
  std::span<const int32_t> pages;  // those that the sequence may share
  int64_t common = 0;              // first pages that are the same as those of the next candidate
};

int64_t common_pages(std::span<const int32_t> a, std::span<const int32_t> b, int64_t known) {
  const auto from = a.subspan(size_t(known)), to = b.subspan(size_t(known));
  return known + (std::ranges::mismatch(from, to).in1 - from.begin());
}

// Candidates of one first page, in the order of their pages. Takes the neighbors that spare the
// most as a group, then goes on with those before and behind them.
void take_groups(std::span<const Candidate> candidates, PageGroups& found) {
  if (candidates.size() < 2) return;
  // Neighbors [begin, end) whose least `common` is the one at hand, for each: the largest rectangle
  // of a histogram.
  struct Open {
    size_t begin;
    int64_t pages;
  };
  std::vector<Open> open;
  size_t begin = 0, end = 0;
  int64_t most = 0, pages = 0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const int64_t common = i + 1 < candidates.size() ? candidates[i].common : 0;
    size_t from = i;
    while (!open.empty() && open.back().pages >= common) {
      from = open.back().begin;
      const int64_t spared = open.back().pages * int64_t(i - from);
      if (spared > most) most = spared, begin = from, end = i + 1, pages = open.back().pages;
      open.pop_back();
    }
    open.push_back({from, common});
  }
  if (most == 0) return;
  found.groups.push_back({.pages = int32_t(pages),
                          .members_begin = int32_t(found.members.size()),
                          .member_count = int32_t(end - begin)});
  for (size_t i = begin; i < end; ++i) found.members.push_back(candidates[i].sequence);
  take_groups(candidates.first(begin), found);
  take_groups(candidates.subspan(end), found);
}

}  // namespace

void find_page_groups(std::span<const StepSequence> sequences, std::span<const int32_t> page_table,
                      const KvLayout& layout, PageGroups& found) {
  found.groups.clear();
  found.members.clear();
  std::vector<Candidate> candidates;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const StepSequence& s = sequences[i];
    const int full =
        std::min(s.pages_count, values_paged(layout.format, s.past) / layout.page_tokens());
    if (!s.is_decode() || full == 0) continue;
    candidates.push_back({int32_t(i), page_table.subspan(size_t(s.pages_begin), size_t(full)), 0});
  }
  std::ranges::stable_sort(candidates, {}, [](const Candidate& c) { return c.pages[0]; });
  for (size_t begin = 0, end = 0; begin < candidates.size(); begin = end) {
    while (end < candidates.size() && candidates[end].pages[0] == candidates[begin].pages[0]) ++end;
    const std::span same(candidates.data() + begin, end - begin);
    if (same.size() < 2) continue;
    // What all of them have in common is compared once.
    int64_t known = int64_t(same[0].pages.size());
    for (const Candidate& c : same)
      known = std::min(known, common_pages(same[0].pages, c.pages, 0));
    std::ranges::stable_sort(same, [&](const Candidate& a, const Candidate& b) {
      return std::ranges::lexicographical_compare(a.pages.subspan(size_t(known)),
                                                  b.pages.subspan(size_t(known)));
    });
    for (size_t i = 0; i + 1 < same.size(); ++i)
      same[i].common = common_pages(same[i].pages, same[i + 1].pages, known);
    take_groups(same, found);
  }
  for (StepGroup& g : found.groups)
    g.pages_begin = sequences[size_t(found.members[size_t(g.members_begin)])].pages_begin;
}

GroupRests rests_of(const PageGroups& found, std::span<const StepSequence> sequences,
                    const KvLayout& layout) {
  GroupRests rests;
  int shortest = std::numeric_limits<int>::max();
  for (const StepGroup& g : found.groups)
    for (int i = 0; i < g.member_count; ++i) {
      const StepSequence& s = sequences[size_t(found.members[size_t(g.members_begin + i)])];
      const int tokens = s.past - layout.format.sinks - g.pages * layout.page_tokens();
      shortest = std::min(shortest, tokens);
      rests.tokens = std::max(rests.tokens, tokens);
      rests.pages += s.pages_count - g.pages;
    }
  const auto decodes = std::ranges::count_if(sequences, &StepSequence::is_decode);
  if (rests.tokens - shortest > kAlike || std::ssize(found.members) != decodes) rests.tokens = -1;
  return rests;
}

}  // namespace kivi
