// SPDX-License-Identifier: Apache-2.0
// The interface of engine/grammar: a user's description of the output becomes a compiled grammar,
// and a guide says token by token what may come next. No exception leaves it.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"

namespace kivi::grammar {

class CompiledGrammar;
class MaskMaker;
class TokenVocabulary;

enum class SourceKind { json_object, json_schema, regex, choice, grammar };

// What the output must be.
struct Source {
  SourceKind kind = SourceKind::json_object;
  std::string text;                  // json_schema, regex, grammar
  std::vector<std::string> choices;  // choice
};

// A text that must come next. Which tokens spell its first `settled` bytes does not depend on what
// follows the text: no token begins there and goes on behind its end.
struct ForcedText {
  std::string text;
  size_t settled = 0;
};

// Follows the output of one request. One owner at a time.
class Guide {
 public:
  virtual ~Guide() = default;
  // Sets the bits of the tokens that may come next, bit id % 32 of word id / 32. False: the grammar
  // turned out to be too ambiguous, and the bits mean nothing.
  virtual bool fill_mask(std::span<uint32_t> words) = 0;
  // Takes a token that the mask allows. False: it does not fit.
  virtual bool accept(int32_t token) = 0;
  // Empty where there is a choice.
  virtual ForcedText forced_text() = 0;
  virtual bool may_end() const = 0;   // the text is whole
  virtual bool complete() const = 0;  // and nothing can follow
};

// Compiles for one vocabulary, and keeps the grammars that were used last. Any thread.
class Compiler {
 public:
  // Memory of all grammars. Beyond it no mask is made ahead of its use, and the grammars that were
  // used longest ago are no longer kept. A text that runs holds its grammar, and makes the masks
  // that it needs.
  static constexpr int64_t kBytesMax = 256 << 20;

  // `tokens[id]`: its bytes; empty for special tokens. `vocab_size`: of the logits. `threads` make
  // masks of new grammars ahead of their use; with 0, a mask is made when a text first needs it.
  Compiler(std::vector<std::string> tokens, int vocab_size, int threads = 0,
           int64_t bytes_max = kBytesMax);
  ~Compiler();

  // Error invalid, without a field: the description is wrong or beyond what is supported.
  Result<std::shared_ptr<const CompiledGrammar>> compile(const Source& source);
  static std::unique_ptr<Guide> guide(std::shared_ptr<const CompiledGrammar> grammar);
  int mask_words() const;
  int64_t grammar_bytes() const;  // of all grammars that live

 private:
  using Key = std::pair<SourceKind, std::string>;
  using Entry = std::pair<Key, std::shared_ptr<const CompiledGrammar>>;

  const std::shared_ptr<const TokenVocabulary> vocabulary_;
  const int64_t bytes_max_;
  std::mutex mutex_;          // guards what follows
  std::list<Entry> entries_;  // the last used one first
  std::map<Key, std::list<Entry>::iterator> places_;
  const std::unique_ptr<MaskMaker> mask_maker_;
};

// Returns the error that compile would return, without compiling for a vocabulary.
Status check(const Source& source);

}  // namespace kivi::grammar
