// SPDX-License-Identifier: Apache-2.0
// tests/data/gguf/tiny.gguf against what Transformers computes with it (tiny.json).
#pragma once

#include <cmath>

#include "tests/model/tales.h"

namespace kivi {

// golden: tiny.json. tolerance: of a logit.
inline void check_tiny_gguf(Engine& engine, const nlohmann::json& golden, float tolerance) {
  const auto prompt = golden["prompt"].get<std::vector<int32_t>>();
  const Output output = run_one(engine, greedy_request(prompt, 24, 20));
  CHECK(output.ids == golden["greedy"].get<std::vector<int32_t>>());
  // Log probabilities differ from logits by one constant.
  const auto logits = golden["logits"].get<std::vector<float>>();
  REQUIRE(output.first_top.size() == 20);
  const float constant = logits[size_t(output.first_top[0].id)] - output.first_top[0].logprob;
  for (const TokenLogprob& top : output.first_top)
    CHECK(std::abs(top.logprob + constant - logits[size_t(top.id)]) < tolerance);
}

}  // namespace kivi
