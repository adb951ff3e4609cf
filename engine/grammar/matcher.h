// SPDX-License-Identifier: Apache-2.0
// Matcher: which tokens of a vocabulary may come next in one text.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/grammar/compiled_grammar.h"
#include "engine/grammar/configurations.h"

namespace kivi::grammar {

// Follows one text through a grammar. One owner at a time.
class Matcher {
 public:
  explicit Matcher(std::shared_ptr<const CompiledGrammar> grammar);

  // Sets the bits of the tokens that may come next and clears the others. words: [vocabulary's
  // words()]. Throws Failure.
  void fill_mask(std::span<uint32_t> words);
  // False if the token may not come next; then nothing changes. Throws Failure.
  bool accept(int32_t token);
  bool accept(std::string_view bytes);

  // The text that must come next, at most `bytes_max` of it; "" where there is a choice, or the
  // text may end. Throws Failure.
  std::string forced_text(size_t bytes_max);

  bool may_end() const { return now_.may_end; }
  // The number of frames of stacks that are in memory.
  size_t stacks() { return stepper_.stacks().size(); }
  // The text is whole and nothing can follow.
  bool complete() const { return now_.may_end && now_.list.empty(); }

 private:
  // The text leaves stacks behind that nothing needs any more. sweep() throws them away. It runs
  // when there are kSweepMin stacks, and twice as many as after the last sweep.
  static constexpr size_t kSweepMin = 4096;
  // The most stacks that may be needed at once, some 60 MB. Beyond it the text fails.
  static constexpr size_t kStacksMax = 1 << 20;
  void sweep();

  // The tokens of a state's tails that may follow what `stack` returns to.
  const std::vector<int32_t>& tail_tokens(const StateMask& mask, Configuration from);

  std::shared_ptr<const CompiledGrammar> grammar_;
  Stepper stepper_;
  Configurations now_, next_;
  size_t sweep_at_ = kSweepMin;                               // stacks
  std::vector<Configurations> levels_;                        // scratch, by depth of a tail
  std::unordered_map<uint64_t, std::vector<int32_t>> tails_;  // by configuration, the last ones
};

}  // namespace kivi::grammar
