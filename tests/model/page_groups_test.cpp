// SPDX-License-Identifier: Apache-2.0
// Which sequences of a step share pages.
#include "engine/model/page_groups.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <random>
#include <set>

namespace kivi::test {
namespace {

const KvFormat kKivi2{KvKind::kivi, 2, 2, 32, 32}, kSinks{KvKind::kivi, 2, 2, 32, 32, 64, 8, true};

// A step of sequences of one new token.
class Step {
 public:
  explicit Step(const KvFormat& format) : layout_{format, {1, 1, 64}} {}

  // `rest`: tokens besides those that fill `pages`, sinks and the residual.
  void add(const std::vector<int32_t>& pages, int rest = 0) {
    StepSequence s;
    s.row_begin = int32_t(sequences_.size());
    s.row_count = 1;
    s.past = int32_t(pages.size()) * layout_.page_tokens() + layout_.format.sinks +
             layout_.format.residual + rest;
    s.pages_begin = int32_t(table_.size());
    s.pages_count = int32_t(pages.size());
    table_.insert(table_.end(), pages.begin(), pages.end());
    sequences_.push_back(s);
  }
  StepSequence& last() { return sequences_.back(); }
  const StepSequence& sequence(int i) const { return sequences_[size_t(i)]; }
  int32_t page(int i, int at) const { return table_[size_t(sequence(i).pages_begin + at)]; }
  int count() const { return int(sequences_.size()); }

  const PageGroups& groups() {
    find_page_groups(sequences_, table_, layout_, found_);
    return found_;
  }
  GroupRests rests() const { return rests_of(found_, sequences_, layout_); }
  // Members of group `i`, in order of their indices.
  std::vector<int32_t> members(int i) const {
    const StepGroup& g = found_.groups[size_t(i)];
    std::vector<int32_t> all(found_.members.begin() + g.members_begin,
                             found_.members.begin() + g.members_begin + g.member_count);
    std::ranges::sort(all);
    return all;
  }
  const KvLayout& layout() const { return layout_; }

 private:
  KvLayout layout_;
  std::vector<StepSequence> sequences_;
  std::vector<int32_t> table_;
  PageGroups found_;
};

}  // namespace

TEST_CASE("samples of one prompt are a group that shares the prompt's pages") {
  for (const KvFormat& format : {kKivi2, kSinks, KvFormat{}}) {
    Step step(format);
    step.add({9, 8});
    step.add({3, 7, 5, 20});
    step.add({3, 7, 5, 21, 22});
    step.add({3, 7, 5, 23});
    const PageGroups& found = step.groups();
    REQUIRE(found.groups.size() == 1);
    CHECK(found.groups[0].pages == 3);
    CHECK(step.members(0) == std::vector<int32_t>{1, 2, 3});
    CHECK(step.page(1, 0) == 3);
  }
}

TEST_CASE("the rests of members are equally long, or nearly, or not") {
  for (const KvFormat& format : {kKivi2, kSinks, KvFormat{}}) {
    const int rest = 64 + format.residual + 9;
    Step step(format);
    step.add({3, 7, 5}, 9);
    step.add({3, 7, 6}, 9);
    step.add({8, 4, 1}, 9);
    step.add({8, 4, 2}, 9);
    step.groups();
    CHECK(step.rests().tokens == rest);
    CHECK(step.rests().pages == 4);
    // Prompt chunks do not count.
    step.add({1, 2});
    step.last().row_count = 5;
    // Nor does the length, but what is not shared.
    step.add({8, 4}, 64 + 9);
    step.groups();
    CHECK(step.rests().tokens == rest);
    Step longer = step, shorter = step, apart = step;
    longer.add({3, 7, 6}, 9 + 16);
    longer.groups();
    CHECK(longer.rests().tokens == rest + 16);
    shorter.add({3, 7, 6}, 9 - 16);
    shorter.add({3, 7, 6}, 9 + 1);
    shorter.groups();
    CHECK(shorter.rests().tokens == -1);
    apart.add({20, 21}, 64 + 9);
    apart.groups();
    CHECK(apart.rests().tokens == -1);
  }
}

TEST_CASE("a page whose values are partly in a member's residual is not shared") {
  Step step(kKivi2);
  step.add({3, 7, 5}, -1);
  step.add({3, 7, 5}, 0);
  REQUIRE(step.groups().groups.size() == 1);
  CHECK(step.groups().groups[0].pages == 2);
}

TEST_CASE("prompt chunks and padding are in no group") {
  Step step(kKivi2);
  step.add({3, 7});
  step.add({3, 7});
  step.last().row_count = 2;
  step.add({3, 7});
  step.last().row_count = 0;
  step.add({3, 7});
  step.last().mode = KvMode::stage;
  CHECK(step.groups().groups.empty());
}

TEST_CASE("the group that spares the most pages comes first, and the others form their own") {
  Step step(kKivi2);
  // Ten sequences with one page in common, of which four have ten more.
  for (int i = 0; i < 6; ++i) step.add({1, 100 + i});
  for (int i = 0; i < 4; ++i) step.add({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 200 + i});
  REQUIRE(step.groups().groups.size() == 2);
  const int deep = step.groups().groups[0].pages == 11 ? 0 : 1;
  CHECK(step.groups().groups[size_t(deep)].pages == 11);
  CHECK(step.members(deep) == std::vector<int32_t>{6, 7, 8, 9});
  CHECK(step.groups().groups[size_t(1 - deep)].pages == 1);
  CHECK(step.members(1 - deep) == std::vector<int32_t>{0, 1, 2, 3, 4, 5});
}

TEST_CASE("members of a group have its pages, and no sequence is in two groups") {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    Step step(round % 2 == 0 ? kKivi2 : KvFormat{});
    // Walks down a tree whose nodes are pages.
    const int count = 1 + int(random() % 40);
    for (int i = 0; i < count; ++i) {
      std::vector<int32_t> pages;
      int32_t node = 0;
      for (int depth = int(random() % 6); depth >= 0; --depth)
        pages.push_back(node = node * 3 + 1 + int32_t(random() % 3));
      step.add(pages, int(random() % 80) - 40);
    }
    const PageGroups& found = step.groups();
    std::set<int32_t> seen;
    size_t next = 0;
    for (const StepGroup& g : found.groups) {
      REQUIRE(g.member_count >= 2);
      REQUIRE(g.pages >= 1);
      REQUIRE(size_t(g.members_begin) == next);
      next += size_t(g.member_count);
      const int first = found.members[size_t(g.members_begin)];
      REQUIRE(g.pages_begin == step.sequence(first).pages_begin);
      for (int i = 0; i < g.member_count; ++i) {
        const int member = found.members[size_t(g.members_begin + i)];
        REQUIRE(seen.insert(member).second);
        const StepSequence& s = step.sequence(member);
        REQUIRE(g.pages <= s.pages_count);
        REQUIRE(g.pages * step.layout().page_tokens() <=
                values_paged(step.layout().format, s.past));
        for (int at = 0; at < g.pages; ++at) REQUIRE(step.page(member, at) == step.page(first, at));
      }
    }
    REQUIRE(next == found.members.size());
  }
}

}  // namespace kivi::test
