// Engine with a runner that invents tokens: finish rules, limits, failures, the life of a request.
#include "engine/engine.h"

#include <catch2/catch.hpp>

#include "tests/engine/fake_runner.h"

using namespace kivi;
using namespace kivi::testing;

namespace {

Request request_of(int prompt_tokens, int max_tokens) {
  Request r;
  r.id = std::string("r");
  for (int i = 0; i < prompt_tokens; ++i) r.prompt.push_back(3 + i % 500);
  r.sampling.max_tokens = max_tokens;
  r.sampling.seed = 7;
  return r;
}

struct Outcome {
  std::vector<int32_t> ids;
  TokenEvent last;
  int finals = 0;
  std::vector<SampledToken> prompt_logprobs;
};

Outcome read_all(TokenStream& stream) {
  std::vector<TokenEvent> events;
  REQUIRE(stream.drain(events));
  Outcome out;
  for (TokenEvent& e : events) {
    if (e.id >= 0) out.ids.push_back(e.id);
    if (!e.prompt_logprobs.empty()) out.prompt_logprobs = e.prompt_logprobs;
    if (e.finish) ++out.finals;
    out.last = e;
  }
  return out;
}

}  // namespace

TEST_CASE("a request gets max_tokens tokens and then finish length") {
  auto engine = make_fake_engine({});
  auto stream = engine->submit(request_of(10, 5), nullptr);
  REQUIRE(stream.ok());
  engine->run_until_idle();
  const Outcome out = read_all(**stream);
  CHECK(out.ids.size() == 5);
  CHECK(out.finals == 1);
  CHECK(out.last.finish == FinishReason::length);
  CHECK(engine->stats().kv_pages_free == engine->stats().kv_pages_total);
}
