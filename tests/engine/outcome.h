// SPDX-License-Identifier: Apache-2.0
// What a reader got from a TokenStream, short ways to make requests and to run them, and what an
// engine holds afterwards.
#pragma once

#include <catch2/catch.hpp>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"
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

inline std::shared_ptr<TokenStream> submit(Engine& engine, Request request) {
  auto stream = engine.submit(std::move(request), nullptr);
  REQUIRE(stream.ok());
  return *stream;
}

inline Outcome run(Engine& engine, Request request) {
  const auto stream = submit(engine, std::move(request));
  engine.run_until_idle();
  return outcome_of(*stream);
}

inline void check_nothing_held(const Engine& engine) {
  const EngineStats stats = engine.stats();
  CHECK(stats.running == 0);
  CHECK(stats.waiting == 0);
  CHECK(stats.waiting_tokens == 0);
  CHECK(stats.kv_pages_free == stats.kv_pages_total);
  CHECK(stats.kv_slots_free == stats.kv_slots_total);
  CHECK(stats.staging_pages_free == stats.staging_pages_total);
  CHECK(stats.kv_bytes == KvBytes{});
}

}  // namespace kivi::testing
