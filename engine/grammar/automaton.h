// SPDX-License-Identifier: Apache-2.0
// Automaton: a rule as a deterministic automaton. An edge takes a byte, or calls another rule and
// goes on where that rule ends.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "engine/grammar/expression.h"

namespace kivi::grammar {

struct Automaton {
  struct Call {
    int32_t rule, next;
  };
  // Bytes that every state treats alike share a class.
  std::array<uint8_t, 256> class_of{};
  int class_count = 1;
  std::vector<int32_t> next;             // [states][class_count]; -1: no edge
  std::vector<uint8_t> final;            // [states]: 1 = the rule may end here
  std::vector<std::vector<Call>> calls;  // [states]
  // State 0 is the start.

  int states() const { return int(final.size()); }
  int32_t step(int32_t state, uint8_t byte) const {
    return next[size_t(state) * size_t(class_count) + class_of[byte]];
  }
  bool has_bytes(int32_t state) const;  // true: an edge takes a byte
  // For automata without calls.
  bool accepts(std::string_view text) const;
};

// The most states, of one automaton before and after it is made deterministic, and of a grammar.
inline constexpr int kMaxStates = 200'000;

// `inlined(rule)`: the body that takes the place of a call; null: the call stays.
Automaton build_automaton(const Expr& expression,
                          const std::function<Expr(int rule)>& inlined = {});

// Texts that both accept; that `a` accepts and `b` does not. Neither has calls.
Automaton intersection(const Automaton& a, const Automaton& b);
Automaton difference(const Automaton& a, const Automaton& b);

// Removes the states from which no final state can be reached. `alive(rule)` says whether the rule
// can end. False: nothing is left.
bool trim(Automaton& automaton, const std::function<bool(int rule)>& alive);

}  // namespace kivi::grammar
