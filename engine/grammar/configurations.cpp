// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar/configurations.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/grammar/work_limit.h"

namespace kivi::grammar {

int32_t Stacks::push(int32_t next, int32_t below) {
  const auto [it, fresh] = numbers_.try_emplace(key(next, below), int32_t(frames_.size()));
  if (fresh) frames_.push_back({next, below});
  return it->second;
}

void Stacks::shrink(size_t size) {
  while (frames_.size() > size) {
    numbers_.erase(key(frames_.back().next, frames_.back().below));
    frames_.pop_back();
  }
}

void Stacks::keep(std::vector<Configuration>& set) {
  std::vector<int32_t> number(frames_.size(), -1);
  number[0] = 0;
  for (const Configuration& c : set)
    for (int32_t s = c.stack; number[size_t(s)] < 0; s = frames_[size_t(s)].below)
      number[size_t(s)] = 0;  // kept; it gets its number below
  numbers_.clear();
  int32_t count = 1;
  for (size_t s = 1; s < frames_.size(); ++s) {  // what is below has a lower number
    if (number[s] < 0) continue;
    const Frame frame{frames_[s].next, number[size_t(frames_[s].below)]};
    number[s] = count;
    frames_[size_t(count)] = frame;
    numbers_.emplace(key(frame.next, frame.below), count++);
  }
  frames_.resize(size_t(count));
  for (Configuration& c : set) c.stack = number[size_t(c.stack)];
}

void Stepper::visit(int32_t state, int32_t stack) {
  const Configuration c{state, stack};
  work_ += 1 + int64_t(visited_.size() / 16);
  if (std::ranges::find(visited_, c) != visited_.end()) return;
  if (visited_.size() >= 4 * kMaxConfigurations)
    fail("it can read a text in too many ways at once: make it less ambiguous");
  visited_.push_back(c);
}

void Stepper::add(int32_t state, int32_t stack, Configurations& to) {
  if (to.list.empty() && !to.may_end) visited_.clear();
  done_ = visited_.size();
  visit(state, stack);
  for (; done_ < visited_.size(); ++done_) {
    const Configuration c = visited_[done_];
    if (program_->has_bytes(c.state)) {
      if (to.list.size() >= kMaxConfigurations)
        fail(fmt::format("it can read a text in more than {} ways at once: make it less ambiguous",
                         kMaxConfigurations));
      to.list.push_back(c);
    }
    if (program_->final(c.state)) {
      if (c.stack == 0) {
        to.may_end = true;
      } else {
        const Stacks::Frame frame = stacks_.top(c.stack);
        visit(frame.next, frame.below);
      }
    }
    for (const Program::Call& call : program_->calls(c.state)) {
      const bool returns = !program_->only_ends(call.next);
      work_ += returns ? 4 : 0;
      visit(call.start, returns ? stacks_.push(call.next, c.stack) : c.stack);
    }
  }
  spend(std::exchange(work_, 0));
}

void Stepper::step(const Configurations& from, uint8_t byte, Configurations& to) {
  to.clear();
  visited_.clear();
  spend(1 + int64_t(from.list.size() / 8));
  for (const Configuration& c : from.list) {
    const int32_t next = program_->step(c.state, byte);
    if (next >= 0) add(next, c.stack, to);
  }
}

}  // namespace kivi::grammar
