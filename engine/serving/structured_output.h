// SPDX-License-Identifier: Apache-2.0
// Structured output: what a request demands of its text, as a constraint of the engine's tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/text/tokenizer.h"
#include "engine/token_constraint.h"

namespace kivi {

namespace grammar {
class Compiler;
class CompiledGrammar;
}  // namespace grammar

// What the output must be. docs/structured-output.md says what each means.
struct OutputFormat {
  enum class Kind { json_object, json_schema, regex, choice, grammar };
  Kind kind = Kind::json_object;
  std::string text;                  // json_schema (JSON), regex, grammar
  std::vector<std::string> choices;  // choice
  std::string field;                 // of the request, for errors
};

// A format that has been compiled. Any thread.
class PreparedFormat {
 public:
  virtual ~PreparedFormat() = default;
  virtual std::shared_ptr<TokenConstraint> begin() const = 0;  // of one choice
};

// Compiles formats for a model's vocabulary, and keeps those that were used last. Any thread.
class StructuredOutput {
 public:
  // `vocab_size`: of the logits. `end_ids`: the model's EOS. `tokenizer` outlives this.
  StructuredOutput(const Tokenizer& tokenizer, int vocab_size, std::vector<int32_t> end_ids);
  ~StructuredOutput();

  // Takes milliseconds where the format is new. `more_end_ids` end the output too, where it is
  // whole. Error invalid, of the format's field.
  Result<std::shared_ptr<const PreparedFormat>> prepare(const OutputFormat& format,
                                                        const std::vector<int32_t>& more_end_ids);

 private:
  grammar::Compiler& compiler();

  const Tokenizer& tokenizer_;
  const int vocab_size_;
  const std::vector<int32_t> end_ids_;
  std::once_flag once_;  // the first use makes the compiler, which reads the whole vocabulary
  std::unique_ptr<grammar::Compiler> compiler_;
};

}  // namespace kivi
