// SPDX-License-Identifier: Apache-2.0
// What a reader got from a TokenStream, and short ways to make requests.
#pragma once

#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "engine/token_stream.h"

namespace kivi::testing {

inline Request request_of(int prompt_tokens, int max_tokens) {
  Request r;
  r.id = std::string("r");
  for (int i = 0; i < prompt_tokens; ++i) r.prompt.push_back(3 + i % 500);
  r.sampling.max_tokens = max_tokens;
  r.sampling.seed = 7;
  return r;
}

struct Outcome {
  std::vector<int32_t> ids;
  std::vector<SampledToken> prompt_logprobs;
  TokenEvent last;
};

// Of all events of a stream. Fails where the final event is not the last and only one.
inline Outcome outcome_of(const std::vector<TokenEvent>& events) {
  REQUIRE_FALSE(events.empty());
  Outcome out;
  for (const TokenEvent& event : events) {
    if (event.id >= 0) out.ids.push_back(event.id);
    if (!event.prompt_logprobs.empty()) {
      REQUIRE(out.ids.empty());
      REQUIRE(out.prompt_logprobs.empty());
      out.prompt_logprobs = event.prompt_logprobs;
    }
    REQUIRE(event.finish.has_value() == (&event == &events.back()));
  }
  out.last = events.back();
  return out;
}

inline Outcome outcome_of(TokenStream& stream) {
  std::vector<TokenEvent> events;
  REQUIRE(stream.drain(events));
  return outcome_of(events);
}

}  // namespace kivi::testing
