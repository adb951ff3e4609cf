// SPDX-License-Identifier: Apache-2.0
// CompiledGrammar and Matcher: which tokens of a vocabulary may come next.
//
// A state of the program decides about most tokens by itself: those that stay within its rule or
// rules that it calls. Their mask is made once for each state, by a walk through the tree of the
// vocabulary. What is left are tokens that lead out of the rule. For these the state keeps a tree
// of their tails, and each step walks it from where the rule returns to.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/grammar/configurations.h"
#include "engine/grammar/program.h"
#include "engine/grammar/token_trie.h"

namespace kivi::grammar {

// What a state decides about tokens, if it takes their first byte.
struct StateMask {
  int plain = 0;  // takes the plain tokens of up to so many characters; the rest is listed
  std::vector<uint32_t> words;  // a bit a token; empty if `ids` has them
  std::vector<int32_t> ids;
  TokenTrie tails;  // behind the end of the state's rule
};

// A grammar for one vocabulary. Any thread may use it: masks are made when they are first needed.
class CompiledGrammar {
 public:
  // Makes the masks of states for at most `seconds`; those that are left are made on use.
  CompiledGrammar(Grammar grammar, std::shared_ptr<const TokenVocabulary> vocabulary,
                  double seconds = 0.01);
  ~CompiledGrammar();
  CompiledGrammar(const CompiledGrammar&) = delete;
  CompiledGrammar& operator=(const CompiledGrammar&) = delete;

  const Program& program() const { return program_; }
  const TokenVocabulary& vocabulary() const { return *vocabulary_; }
  // Throws Failure where the grammar turns out to be too ambiguous.
  const StateMask& mask(int32_t state) const;

 private:
  std::unique_ptr<StateMask> make_mask(int32_t state) const;
  // The state behind any one plain character; kNoPlain: none is taken; kSomePlain: they differ, or
  // the rule may end or call on the way.
  int32_t after_plain(int32_t state) const;
  // How many plain characters the state takes, if none of them is taken behind these, or
  // kPlainCharsMax; else 0.
  int plain_run(int32_t state) const;

  const Program program_;
  const std::shared_ptr<const TokenVocabulary> vocabulary_;
  mutable std::vector<std::atomic<const StateMask*>> masks_;  // [states], null: not made yet
  mutable std::vector<std::atomic<int32_t>> after_plain_;     // [states], as after_plain()
};

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
  // The text is whole and nothing can follow.
  bool complete() const { return now_.may_end && now_.list.empty(); }

 private:
  // The tokens of a state's tails that may follow what `stack` returns to.
  const std::vector<int32_t>& tail_tokens(const StateMask& mask, Configuration from);

  std::shared_ptr<const CompiledGrammar> grammar_;
  Stepper stepper_;
  Configurations now_, next_;
  std::vector<Configurations> levels_;                        // scratch, by depth of a tail
  std::unordered_map<uint64_t, std::vector<int32_t>> tails_;  // by configuration, the last ones
};

}  // namespace kivi::grammar
