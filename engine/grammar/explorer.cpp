// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar/explorer.h"

#include <algorithm>
#include <utility>

#include "engine/grammar/work_limit.h"

namespace kivi::grammar {
namespace {

constexpr int32_t kUnknownStep = -2;

}  // namespace

KindSteps::KindSteps(const Program& program)
    : program_(program), steps_(size_t(program.states())) {}

// Of the states that whole kinds lead to, the one that most kinds lead to.
KindSteps::Step KindSteps::find(int32_t state) const {
  constexpr int32_t kNone = -1, kUnset = -2;
  std::array<int32_t, kByteKinds> to;
  to.fill(kUnset);
  for (int byte = 0; byte < 256; ++byte) {
    const int32_t next = program_.step(state, uint8_t(byte));
    int32_t& known = to[size_t(byte_kind(uint8_t(byte)))];
    const bool alone = next >= 0 && !program_.has_calls(next);
    known = alone && (known == kUnset || known == next) ? next : kNone;
  }
  Step best{0, kNone};
  std::ptrdiff_t most = 0;
  for (const int32_t next : to) {
    const auto count = std::ranges::count(to, next);
    if (next < 0 || count <= most) continue;
    most = count;
    best = {0, next};
    for (int kind = 0; kind < kByteKinds; ++kind)
      if (to[size_t(kind)] == next) best.kinds = uint8_t(best.kinds | 1u << kind);
  }
  steps_[size_t(state)].store(kKnown | uint64_t(best.kinds) << 32 | uint32_t(best.next),
                              std::memory_order_relaxed);
  return best;
}

int32_t Explorer::step_set(int32_t from, uint8_t byte) {
  int32_t& known = next_[size_t(from - states_)][byte];
  if (known != kUnknownStep) return known;
  Configurations to;
  stepper_.step(*sets_[size_t(from - states_)], byte, to);
  const int32_t id = add(std::move(to));
  return next_[size_t(from - states_)][byte] = id;
}

int32_t Explorer::entered(int32_t state) {
  const auto [it, fresh] = entered_.try_emplace(state, kDead);
  if (!fresh) return it->second;
  Configurations set;
  stepper_.add(state, 0, set);
  return it->second = add(std::move(set));
}

int32_t Explorer::add(Configurations set) {
  if (set.dead()) return kDead;
  if (set.list.size() == 1 && set.list[0].stack == 0) {
    const int32_t state = set.list[0].state;
    if (!program_.has_calls(state) && program_.final(state) == set.may_end) return state;
  }
  std::ranges::sort(set.list);
  std::vector<Configuration> key = set.list;
  if (set.may_end) key.push_back({-1, -1});
  const auto [it, fresh] = numbers_.try_emplace(std::move(key), states_ + int32_t(sets_.size()));
  if (fresh) {
    spend(100);  // it takes more than a kilobyte
    sets_.push_back(std::make_unique<Configurations>(std::move(set)));
    next_.emplace_back().fill(kUnknownStep);
  }
  return it->second;
}

}  // namespace kivi::grammar
