// SPDX-License-Identifier: Apache-2.0
// A constraint that forces no token: the sampler chooses those too that the inner one would force.
// What forced tokens save is measured against it.
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
