// SPDX-License-Identifier: Apache-2.0
// Where a program may be: configurations of a state and a stack of return addresses. Several at
// once, because a text may be read in several ways.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "engine/grammar/program.h"

namespace kivi::grammar {

struct Configuration {
  int32_t state = 0, stack = 0;
  friend auto operator<=>(const Configuration&, const Configuration&) = default;
};

// Stacks as linked frames. Equal stacks have equal numbers. Stack 0 is the empty one.
class Stacks {
 public:
  struct Frame {
    int32_t next = -1, below = 0;  // the state to go on in; the stack below
  };

  int32_t push(int32_t next, int32_t below);
  const Frame& top(int32_t stack) const { return frames_[size_t(stack)]; }
  size_t size() const { return frames_.size(); }
  // Forgets the stacks that were made since size() was `size`.
  void shrink(size_t size);
  // Forgets all stacks but those of `set`, and numbers these anew.
  void keep(std::vector<Configuration>& set);

 private:
  static uint64_t key(int32_t next, int32_t below) {
    return uint64_t(uint32_t(next)) << 32 | uint32_t(below);
  }
  std::vector<Frame> frames_{1};
  std::unordered_map<uint64_t, int32_t> numbers_;
};

// The most configurations at once. A grammar that has more is refused while it runs.
inline constexpr size_t kMaxConfigurations = 256;

// Configurations that take a byte, and whether the text may end.
struct Configurations {
  std::vector<Configuration> list;  // unordered, each once
  bool may_end = false;             // the rule of the empty stack may end here

  bool dead() const { return list.empty() && !may_end; }
  void clear() {
    list.clear();
    may_end = false;
  }
};

// Follows calls and returns. What it does counts as work (work_limit.h). One owner at a time.
class Stepper {
 public:
  explicit Stepper(const Program& program) : program_(&program) {}

  // Adds what can be reached from (state, stack) without a byte. Throws Failure where there is too
  // much.
  void add(int32_t state, int32_t stack, Configurations& to);
  // Takes a byte. `to` is cleared first and is not `from`.
  void step(const Configurations& from, uint8_t byte, Configurations& to);

  Stacks& stacks() { return stacks_; }

 private:
  void visit(int32_t state, int32_t stack);

  const Program* program_;
  Stacks stacks_;
  std::vector<Configuration> visited_;  // of the set that is being made
  size_t done_ = 0;
  int64_t work_ = 0;  // of the current call
};

}  // namespace kivi::grammar
