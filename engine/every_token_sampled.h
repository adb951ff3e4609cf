// SPDX-License-Identifier: Apache-2.0
// A constraint that forces no token, so that the sampler also chooses the tokens that the inner
// constraint would force. Benchmarks use it to measure what forced tokens save.
#pragma once

#include <memory>
#include <span>
#include <utility>

#include "engine/token_constraint.h"

namespace kivi {

class EveryTokenSampled final : public TokenConstraint {
 public:
  explicit EveryTokenSampled(std::shared_ptr<TokenConstraint> inner) : inner_(std::move(inner)) {}
  std::span<const uint32_t> mask() override { return inner_->mask(); }
  Verdict accept(int32_t id) override { return inner_->accept(id); }

 private:
  std::shared_ptr<TokenConstraint> inner_;
};

}  // namespace kivi
