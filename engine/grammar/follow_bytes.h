// SPDX-License-Identifier: Apache-2.0
// FollowBytes: which bytes can come behind the end of a rule, wherever it was called. A token that
// leads out of a rule by another byte need not be kept for the callers to look at. Immutable.
#pragma once

#include <bitset>
#include <cstdint>
#include <vector>

#include "engine/grammar/program.h"

namespace kivi::grammar {

using ByteSet = std::bitset<256>;

class FollowBytes {
 public:
  explicit FollowBytes(const Program& program);

  // The bytes that can come behind the rule of `rule`'s number. May hold bytes that cannot come.
  const ByteSet& behind(int rule) const { return follow_[size_t(rule)]; }

 private:
  std::vector<ByteSet> follow_;  // [rules]
};

}  // namespace kivi::grammar
