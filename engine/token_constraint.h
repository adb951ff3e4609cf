// SPDX-License-Identifier: Apache-2.0
// TokenConstraint says which tokens may come next in the output of one request (structured output).
// The engine asks, engine/serving answers.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace kivi {

// Any thread makes it. From the submit on, only the engine thread uses it.
class TokenConstraint {
 public:
  enum class Verdict {
    going_on,
    complete,  // the output is whole, and nothing can follow
    broken,    // the token does not fit, or the constraint cannot tell any more
  };

  virtual ~TokenConstraint() = default;
  // Returns the tokens that may come next: bit id % 32 of word id / 32. The words live until
  // accept(). Empty: it cannot tell.
  virtual std::span<const uint32_t> mask() = 0;
  // Returns the one token that mask() allows, if it is known without making the mask. Such a token
  // need not be sampled.
  virtual std::optional<int32_t> forced() { return std::nullopt; }
  // Takes the token that was sampled under mask(), or forced().
  virtual Verdict accept(int32_t id) = 0;
};

}  // namespace kivi
