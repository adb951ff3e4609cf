// SPDX-License-Identifier: Apache-2.0
// Explorer: the configurations that a state of a program leads to within its rule, as a
// deterministic automaton that is made while it is used.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "engine/grammar/configurations.h"
#include "engine/grammar/program.h"
#include "engine/grammar/token_trie.h"

namespace kivi::grammar {

// Where the bytes of whole kinds (byte_kind) lead from the states of a program. Any thread.
class KindSteps {
 public:
  struct Step {
    uint8_t kinds;  // all bytes of these kinds lead to `next`, which calls no rule
    int32_t next;   // -1: there is no such kind
  };

  // `program` must outlive this.
  explicit KindSteps(const Program& program);
  Step of(int32_t state) const {
    const uint64_t known = steps_[size_t(state)].load(std::memory_order_relaxed);
    return known == kUnknown ? find(state) : unpacked(known);
  }

 private:
  static constexpr uint64_t kUnknown = 0, kKnown = uint64_t(1) << 63;
  static Step unpacked(uint64_t known) { return {uint8_t(known >> 32), int32_t(uint32_t(known))}; }
  Step find(int32_t state) const;

  const Program& program_;
  mutable std::vector<std::atomic<uint64_t>> steps_;  // [states]
};

// A set of configurations that is one state of the rule, without a call, has that state's number:
// most walks meet no other, and need nothing but the program's table. Other sets are numbered
// behind the program's states. One owner at a time.
class Explorer {
 public:
  static constexpr int32_t kDead = -1;

  Explorer(const Program& program, const KindSteps& kinds)
      : program_(program), kinds_(kinds), states_(program.states()), stepper_(program) {}

  // From a state, its own bytes are taken. What it calls are configurations of their own.
  int32_t step(int32_t from, uint8_t byte) {
    if (from >= states_) return step_set(from, byte);
    const int32_t next = program_.step(from, byte);
    if (next < 0) return kDead;
    return program_.has_calls(next) ? entered(next) : next;
  }
  // Returns true if all texts of at most `length` bytes of these kinds stay within the rule. False
  // also where this is not easy to see.
  bool takes_all(int32_t set, uint8_t kinds, int length) const {
    for (; length > 0; --length) {
      if (set >= states_) return false;
      const KindSteps::Step step = kinds_.of(set);
      if ((kinds & ~step.kinds) != 0) return false;
      if (step.next == set) return true;
      set = step.next;
    }
    return true;
  }
  // Returns true if the rule may have ended here.
  bool ends(int32_t set) const {
    return set < states_ ? program_.final(set) : sets_[size_t(set - states_)]->may_end;
  }

 private:
  int32_t step_set(int32_t from, uint8_t byte);
  // The set of a state and of all that it calls.
  int32_t entered(int32_t state);
  int32_t add(Configurations set);

  const Program& program_;
  const KindSteps& kinds_;
  const int32_t states_;
  Stepper stepper_;
  std::unordered_map<int32_t, int32_t> entered_;
  std::vector<std::unique_ptr<Configurations>> sets_;
  std::vector<std::array<int32_t, 256>> next_;  // [sets]
  std::map<std::vector<Configuration>, int32_t> numbers_;
};

}  // namespace kivi::grammar
