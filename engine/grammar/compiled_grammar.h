// SPDX-License-Identifier: Apache-2.0
// CompiledGrammar: a program with the masks of its states for one vocabulary.
//
// A state of the program decides about most tokens by itself: those that stay within its rule or
// rules that it calls. Their mask is made once for each state, by a walk through the tree of the
// vocabulary. What is left are tokens that lead out of the rule. For these the state keeps a tree
// of their tails, and each step walks it from where the rule returns to. Tails that begin with a
// byte that can come behind the rule nowhere are left out.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/grammar/explorer.h"
#include "engine/grammar/follow_bytes.h"
#include "engine/grammar/program.h"
#include "engine/grammar/token_trie.h"

namespace kivi::grammar {

// What a state decides about tokens, if it takes their first byte.
struct StateMask {
  int plain = 0;  // takes the plain tokens of up to this many characters; others are listed
  const std::vector<uint32_t>* pure = nullptr;  // takes these too; the vocabulary's
  std::vector<uint32_t> words;                  // a bit a token; empty if `ids` has them
  std::vector<int32_t> ids;
  TokenTrie tails;  // behind the end of the state's rule

  size_t bytes() const;
};

// A grammar for one vocabulary. Any thread may use it: masks are made when they are first needed.
class CompiledGrammar {
 public:
  // Makes the masks of states for at most `seconds`, in order(). Those that are left are made on
  // use.
  CompiledGrammar(Grammar grammar, std::shared_ptr<const TokenVocabulary> vocabulary,
                  double seconds = 0.01);
  CompiledGrammar(const CompiledGrammar&) = delete;
  CompiledGrammar& operator=(const CompiledGrammar&) = delete;

  const Program& program() const { return program_; }
  const TokenVocabulary& vocabulary() const { return *vocabulary_; }
  // The states that have masks, those first that a text comes upon first.
  const std::vector<int32_t>& order() const { return order_; }
  // Throws Failure where the grammar turns out to be too ambiguous.
  const StateMask& mask(int32_t state) const;
  bool has_mask(int32_t state) const;  // true: it has been made

 private:
  // Counts the bytes of this grammar among those of its vocabulary. A member of its own, so that
  // they are counted off too where the constructor throws.
  struct CountedBytes {
    const TokenVocabulary& vocabulary;
    std::atomic<int64_t> bytes = 0;
    void add(int64_t more) {
      bytes.fetch_add(more, std::memory_order_relaxed);
      vocabulary.add_grammar_bytes(more);
    }
    ~CountedBytes() { vocabulary.add_grammar_bytes(-bytes.load(std::memory_order_relaxed)); }
  };
  // Owns the mask of a state, once it is made. A member of its own, so that masks are freed too
  // where the constructor throws.
  struct Place {
    std::atomic<const StateMask*> mask = nullptr;
    ~Place() { delete mask.load(); }
  };

  std::unique_ptr<StateMask> make_mask(int32_t state) const;
  // The state behind any one plain character; kNoPlain: none is taken; kSomePlain: they differ, or
  // the rule may end or call on the way.
  int32_t after_plain(int32_t state) const;
  // How many plain characters the state takes, if none of them is taken behind these, or
  // kPlainCharsMax; else 0.
  int plain_run(int32_t state) const;
  // The same for bytes of whole kinds, letters among them, and PureTokens::kBytesMax; 0 bytes where
  // that cannot be said.
  struct KindRun {
    uint8_t kinds = 0;
    int bytes = 0;
  };
  KindRun kind_run(int32_t state) const;

  const Program program_;
  const std::shared_ptr<const TokenVocabulary> vocabulary_;
  mutable CountedBytes bytes_;
  const FollowBytes follow_;
  const std::vector<int32_t> order_;
  mutable std::vector<Place> masks_;                       // [states]
  mutable std::vector<std::atomic<int32_t>> after_plain_;  // [states], as after_plain()
  mutable KindSteps kind_steps_;
};

}  // namespace kivi::grammar
