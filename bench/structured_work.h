// SPDX-License-Identifier: Apache-2.0
// StructuredWork makes the constraints of `kivi bench throughput --structured`: every output is
// lines of JSON objects without end, so that every row of every step has a mask.
#pragma once

#include <memory>
#include <vector>

#include "base/result.h"
#include "engine/serving/structured_output.h"

namespace kivi {

class StructuredWork {
 public:
  // A model with random weights (load format dummy) may come without a tokenizer, and then has one
  // of bytes. Its other ids get made-up words, so that masks cost what they cost at a real
  // vocabulary of this size. `tokenizer` outlives this.
  static Result<std::unique_ptr<StructuredWork>> make(const Tokenizer& tokenizer, int vocab_size);
  ~StructuredWork();

  // Returns the constraint of one request. No token ends the output. Tokens that the grammar forces
  // are sampled too, so that the number of steps is that of free outputs.
  std::shared_ptr<TokenConstraint> begin() const;

 private:
  StructuredWork() = default;

  std::unique_ptr<Tokenizer> words_;
  std::unique_ptr<StructuredOutput> structured_;
  std::shared_ptr<const PreparedFormat> format_;
};

}  // namespace kivi
