// SPDX-License-Identifier: Apache-2.0
// One prompt through the whole engine, and how much of it was reused. For the tests of the prefix
// cache, of its tiers and of long prompts.
#pragma once

#include "tests/model/tales.h"

namespace kivi {

struct Run {
  Output output;
  int cached_tokens = 0;
};

inline Run run(LoadedModel& loaded, Request request) {
  auto stream = loaded.engine->submit(std::move(request), [] {});
  REQUIRE(stream.ok());
  loaded.engine->run_until_idle();
  std::vector<TokenEvent> events;
  REQUIRE((*stream)->drain(events));
  Run run;
  for (const TokenEvent& e : events) {
    if (e.id < 0) continue;
    run.output.ids.push_back(e.id);
    run.output.logprobs.push_back(e.logprob);
  }
  run.cached_tokens = events.back().cached_tokens;
  return run;
}

// A prompt that the model has not seen, of `length` tokens.
inline std::vector<int32_t> prompt_of(const LoadedModel& loaded, int length, int salt = 0) {
  std::vector<int32_t> prompt;
  uint32_t state = 12345u + uint32_t(salt);
  const int vocab = loaded.engine->model().vocab_size;
  for (int i = 0; i < length; ++i) {
    state = state * 1664525u + 1013904223u;
    prompt.push_back(3 + int(state >> 8) % (vocab - 3));
  }
  return prompt;
}

}  // namespace kivi
