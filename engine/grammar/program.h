// SPDX-License-Identifier: Apache-2.0
// Program: the automata of a grammar's rules in one table, which matchers run. Immutable.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/grammar/automaton.h"
#include "engine/grammar/expression.h"

namespace kivi::grammar {

struct Rule {
  std::string name;
  Expr body;
  // Small rules are put where they are called. A rule that many states call, and whose masks are
  // large, is better kept apart.
  bool keep_apart = false;
};

struct Grammar {
  std::vector<Rule> rules;
  int root = 0;
};

class Program {
 public:
  // Throws Failure where the grammar is too large, matches nothing, or has a rule that begins with
  // itself in a way that we do not resolve.
  explicit Program(Grammar grammar);

  struct Call {
    int32_t start, next;  // the first state of the called rule; where to go on behind it
  };

  int32_t start() const { return start_; }
  int states() const { return int(state_.size()); }
  // -1: no edge.
  int32_t step(int32_t state, uint8_t byte) const {
    const State& s = state_[size_t(state)];
    return next_[size_t(s.row) + classes_[size_t(s.classes)][byte]];
  }
  bool final(int32_t state) const { return state_[size_t(state)].final; }
  bool has_bytes(int32_t state) const { return state_[size_t(state)].has_bytes; }
  // The rule ends here and nothing else can follow: nobody has to come back to it.
  bool only_ends(int32_t state) const { return state_[size_t(state)].only_ends; }
  // Returns true if a rule may have called the state's rule. If none has, nothing follows its end.
  bool returns(int32_t state) const { return state_[size_t(state)].returns; }
  // The number of the state's rule, below rules().
  int rule(int32_t state) const { return state_[size_t(state)].rule; }
  int rules() const { return rules_; }
  const std::vector<Call>& calls(int32_t state) const { return calls_[size_t(state)]; }
  bool has_calls(int32_t state) const { return state_[size_t(state)].has_calls; }
  // Memory of the tables.
  size_t bytes() const {
    size_t bytes = state_.capacity() * sizeof state_[0] + next_.capacity() * sizeof next_[0] +
                   classes_.capacity() * sizeof classes_[0] + calls_.capacity() * sizeof calls_[0];
    for (const std::vector<Call>& calls : calls_) bytes += calls.capacity() * sizeof(Call);
    return bytes;
  }

 private:
  struct State {
    int32_t row = 0, classes = 0, rule = 0;
    bool final = false, has_bytes = false, only_ends = false, returns = true, has_calls = false;
  };
  void check_left_recursion(const Grammar& grammar, const std::vector<Automaton>& automata) const;

  int32_t start_ = 0;
  int rules_ = 0;
  std::vector<State> state_;
  std::vector<int32_t> next_;
  std::vector<std::array<uint8_t, 256>> classes_;
  std::vector<std::vector<Call>> calls_;
};

}  // namespace kivi::grammar
