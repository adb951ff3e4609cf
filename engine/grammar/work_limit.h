// SPDX-License-Identifier: Apache-2.0
// WorkLimit bounds what a description may cost to compile, and what a mask or a token of it may
// cost. Descriptions come from strangers, and a short one can ask for much: an exponential number
// of references, a quadratic number of pairs, another set of 200 configurations behind every token.
#pragma once

#include <cstdint>

namespace kivi::grammar {

// While one lives, spend() counts on its thread. At most one a thread.
class WorkLimit {
 public:
  WorkLimit();
  ~WorkLimit();
  WorkLimit(const WorkLimit&) = delete;
  WorkLimit& operator=(const WorkLimit&) = delete;
};

// Counts work in units of about 20 ns: a state of an automaton that is looked at. Throws Failure
// beyond the limit of the thread's WorkLimit, which is reached after some 0.3 s.
void spend(int64_t work);

}  // namespace kivi::grammar
