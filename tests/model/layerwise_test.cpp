// SPDX-License-Identifier: Apache-2.0
// Prompts that are computed layer by layer: they have the numbers of prompts that are staged as a
// whole, and other sequences go on beside them.
#include <catch2/catch.hpp>

#include "tests/model/prompted_run.h"

using namespace kivi;

namespace {

Output output_of(const std::vector<TokenEvent>& events) {
  Output output;
  for (const TokenEvent& e : events) {
    if (e.id < 0) continue;
    output.ids.push_back(e.id);
    output.logprobs.push_back(e.logprob);
  }
  return output;
}

// Prompts beyond one chunk are staged, or computed layer by layer.
EngineConfig config_of(const std::string& model, const std::string& format, bool layerwise) {
  EngineConfig config = test_config(model, format);
  config.prefill_chunk_tokens = 64;
  config.max_num_seqs = 4;
  config.max_num_batched_tokens = 100;
  config.prefill_staging_tokens = layerwise ? 0 : 1024;
  return config;
}

}  // namespace

TEST_CASE("A prompt that is computed layer by layer has the numbers of a staged one, bit by bit",
          "[long]") {
  const auto [model, format] =
      GENERATE(table<std::string, std::string>({{"tales-llama", "kivi2"},
                                                {"tales-llama", "kivi2.5"},
                                                {"tales-mistral", "kivi4"},
                                                {"tales-falcon", "kivi3.5"}}));
  CAPTURE(model, format);
  const auto staged = load_or_fail(config_of(model, format, false));
  const auto layerwise = load_or_fail(config_of(model, format, true));
  CHECK(staged->plan.capacity.layerwise_tokens == 0);
  CHECK(layerwise->plan.capacity.layerwise_tokens == layerwise->plan.max_model_len);
  for (const int length : {65, 200, 201, 463}) {
    CAPTURE(length);
    const std::vector<int32_t> prompt = prompt_of(*staged, length);
    CHECK(run(*layerwise, greedy_request(prompt, 40)).output ==
          run(*staged, greedy_request(prompt, 40)).output);
  }
  CHECK(layerwise->engine->stats().kv_pages_free == layerwise->engine->stats().kv_pages_total);
}

TEST_CASE("A prompt that is computed layer by layer is scored as a staged one") {
  const auto staged = load_or_fail(config_of("tales-llama", "kivi2", false));
  const auto layerwise = load_or_fail(config_of("tales-llama", "kivi2", true));
  const auto score = [](LoadedModel& loaded) {
    Request request = greedy_request(prompt_of(loaded, 333), 2);
    request.sampling.prompt_logprobs = 1;
    const std::vector<SampledToken> scored = run_all(*loaded.engine, {request})[0].prompt_logprobs;
    REQUIRE(scored.size() == 332);
    std::vector<float> logprobs;
    for (const SampledToken& token : scored) logprobs.push_back(token.logprob);
    return logprobs;
  };
  CHECK(score(*layerwise) == score(*staged));
}

TEST_CASE("Other sequences go on while a prompt is computed layer by layer, and a second one waits",
          "[long]") {
  const auto loaded = load_or_fail(config_of("tales-llama", "kivi2", true));
  const Request decoding = greedy_request(prompt_of(*loaded, 20), 150);
  const Request first = greedy_request(prompt_of(*loaded, 700, 1), 10);
  const Request second = greedy_request(prompt_of(*loaded, 600, 2), 10);
  std::vector<Output> alone;
  for (const Request& request : {decoding, first, second})
    alone.push_back(run(*loaded, request).output);

  auto stream = loaded->engine->submit(decoding, [] {}).value();
  std::vector<TokenEvent> events;
  while (events.size() < 3) {
    loaded->engine->step();
    stream->drain(events);
  }
  auto first_stream = loaded->engine->submit(first, [] {}).value();
  auto second_stream = loaded->engine->submit(second, [] {}).value();
  std::vector<TokenEvent> of_first, of_second;
  const size_t before = events.size();
  int steps = 0;
  for (; of_first.empty(); ++steps) {
    loaded->engine->step();
    stream->drain(events);
    first_stream->drain(of_first);
  }
  // Every other step is the other sequence's.
  CHECK(int(events.size() - before) >= steps / 2 - 1);
  CHECK(steps > 10);
  second_stream->drain(of_second);
  CHECK(of_second.empty());
  loaded->engine->run_until_idle();
  stream->drain(events);
  first_stream->drain(of_first);
  second_stream->drain(of_second);
  CHECK(output_of(events) == alone[0]);
  CHECK(output_of(of_first) == alone[1]);
  CHECK(output_of(of_second) == alone[2]);
}

TEST_CASE("Prompts that part share what they have in common, though computed layer by layer") {
  EngineConfig config = config_of("tales-llama", "kivi2", true);
  config.enable_prefix_caching = true;
  const auto loaded = load_or_fail(config);
  const std::vector<int32_t> system = prompt_of(*loaded, 400);
  std::vector<int> cached;
  for (uint32_t i = 0; i < 4; ++i) {
    std::vector<int32_t> prompt = system;
    const std::vector<int32_t> own = prompt_of(*loaded, 200, 10 + i);
    prompt.insert(prompt.end(), own.begin(), own.end());
    cached.push_back(run(*loaded, greedy_request(prompt, 4)).cached_tokens);
  }
  // The second prompt shows where they part, and leaves a checkpoint there.
  CHECK(cached == std::vector<int>{0, 0, 384, 384});
}

TEST_CASE("A prompt that was computed layer by layer is reused") {
  EngineConfig config = config_of("tales-llama", "kivi2", true);
  config.enable_prefix_caching = true;
  const auto loaded = load_or_fail(config);
  const std::vector<int32_t> prompt = prompt_of(*loaded, 500);
  const Run miss = run(*loaded, greedy_request(prompt, 60));
  CHECK(miss.cached_tokens == 0);
  // Continued at the prompt's last boundary: the tokens after it are read from the store there, so
  // only what was decoded from the same state can be compared.
  const Run hit = run(*loaded, greedy_request(prompt, 60));
  CHECK(hit.cached_tokens >= 448);
  const Run again = run(*loaded, greedy_request(prompt, 60));
  CHECK(again.cached_tokens == hit.cached_tokens);
  CHECK(again.output == hit.output);

  config.prefill_staging_tokens = 1024;
  const auto staged = load_or_fail(config);
  CHECK(run(*staged, greedy_request(prompt, 60)).output == miss.output);
  CHECK(run(*staged, greedy_request(prompt, 60)).output == hit.output);
}
