// SPDX-License-Identifier: Apache-2.0
// The quantized formats through the whole engine: what must not depend on company, chunks or mode.
#include <cmath>
#include <set>

#include "tests/model/tales.h"

namespace kivi {

namespace {

std::vector<int32_t> long_prompt(const Golden& golden, int tokens) {
  std::vector<int32_t> prompt = golden.prompt;
  while (int(prompt.size()) < tokens)
    prompt.insert(prompt.end(), golden.greedy.begin(), golden.greedy.end());
  prompt.resize(size_t(tokens));
  return prompt;
}

Request sampled_request(const std::vector<int32_t>& prompt, uint64_t seed) {
  Request request = greedy_request(prompt, 12, 3);
  request.sampling.temperature = 0.9f;
  request.sampling.top_p = 0.95f;
  request.sampling.top_k = 50;
  request.sampling.seed = seed;
  return request;
}

}  // namespace

TEST_CASE("Every format writes plausible text", "[long]") {
  const std::string format = GENERATE("fp8", "kivi4", "kivi2", "kivi-k4v2", "kivi-k2v4");
  CAPTURE(format);
  const Golden golden = read_golden("tales-llama");
  const auto loaded = load_or_fail(test_config("tales-llama", format));
  const Output output = run_one(*loaded->engine, greedy_request(golden.prompt, 100));
  REQUIRE(output.ids.size() == 100);
  double sum = 0;
  for (const float logprob : output.logprobs) {
    REQUIRE(std::isfinite(logprob));
    sum += logprob;
  }
  // Its own greedy text is likely to a working model (fp16: about -1.2 a token), and a random one
  // would be at -8.3.
  CHECK(sum / 100 > -3);
  CHECK(std::set<int32_t>(output.ids.begin(), output.ids.end()).size() > 10);
}

TEST_CASE("Up to R tokens a quantized format is as exact as fp16", "[long]") {
  const std::string format = GENERATE("kivi4", "kivi2", "kivi-k4v2");
  CAPTURE(format);
  const Golden golden = read_golden("tales-llama");
  EngineConfig config = test_config("tales-llama", format);
  config.kivi_residual_length = 128;  // the golden run has 79 tokens
  const auto loaded = load_or_fail(config);
  CHECK(run_one(*loaded->engine, greedy_request(golden.prompt, 64)).ids == golden.greedy);
}

TEST_CASE("Modes exact and stream agree where the prompt is one chunk") {
  const std::string format = GENERATE("kivi4", "kivi2");
  const int tokens = GENERATE(1, 17, 63, 64, 65, 128);
  CAPTURE(format, tokens);
  const Request request = greedy_request(long_prompt(read_golden(any_model()), tokens), 40);
  EngineConfig config = test_config(any_model(), format);
  const auto exact = load_or_fail(config);
  config.kivi_prefill = PrefillMode::stream;
  const auto stream = load_or_fail(config);
  CHECK(run_one(*exact->engine, request) == run_one(*stream->engine, request));
}

TEST_CASE("Mode exact gives the same first token with and without chunks", "[long]") {
  // Attention over a prompt reads full precision whatever the chunks are.
  const std::string format = GENERATE("kivi4", "kivi2");
  CAPTURE(format);
  const Request request = greedy_request(long_prompt(read_golden("tales-llama"), 200), 24, 5);
  EngineConfig config = test_config("tales-llama", format);
  config.prefill_chunk_tokens = 256;
  const auto whole = load_or_fail(config);
  config.prefill_chunk_tokens = 48;
  const auto chunked = load_or_fail(config);
  REQUIRE(chunked->plan.capacity.staging_pages > 0);
  const Output a = run_one(*whole->engine, request), b = run_one(*chunked->engine, request);
  REQUIRE(a.first_top.size() == b.first_top.size());
  for (size_t i = 0; i < a.first_top.size(); ++i)
    CHECK(std::abs(a.first_top[i].logprob - b.first_top[i].logprob) < 2e-3f);
  CHECK(a.ids == b.ids);
}

TEST_CASE("A request gives the same tokens and logprobs, bit for bit, alone and in company") {
  const std::string format = GENERATE("fp16", "fp8", "kivi4", "kivi2");
  CAPTURE(format);
  const Golden golden = read_golden(any_model());
  const auto loaded = load_or_fail(test_config(any_model(), format));
  std::vector<Request> requests;
  int i = 0;
  for (const int tokens : {1, 3, 17, 63, 64, 65, 127, 128, 129, 300})
    requests.push_back(sampled_request(long_prompt(golden, tokens), uint64_t(100 + i++)));
  const std::vector<Output> together = run_all(*loaded->engine, requests);
  for (size_t r = 0; r < requests.size(); ++r) {
    CAPTURE(requests[r].prompt.size());
    CHECK(together[r] == run_one(*loaded->engine, requests[r]));
  }
}

TEST_CASE("The seed decides the text, and a request without one takes the engine's") {
  const Golden golden = read_golden("tales-llama");
  const EngineConfig config = test_config("tales-llama", "kivi4");
  const auto loaded = load_or_fail(config);
  const Output one = run_one(*loaded->engine, sampled_request(golden.prompt, 1));
  CHECK(one == run_one(*loaded->engine, sampled_request(golden.prompt, 1)));
  CHECK(one.ids != run_one(*loaded->engine, sampled_request(golden.prompt, 2)).ids);

  Request unseeded = sampled_request(golden.prompt, 0);
  unseeded.sampling.seed.reset();
  const auto again = load_or_fail(config);
  const auto first = run_all(*load_or_fail(config)->engine, {unseeded, unseeded});
  CHECK(first == run_all(*again->engine, {unseeded, unseeded}));
  CHECK(first[0].ids != first[1].ids);
}

TEST_CASE("Prompt logprobs do not depend on chunks, and scoring needs no sampling") {
  const Golden golden = read_golden("tales-llama");
  Request request = greedy_request(long_prompt(golden, 150), 0);
  request.sampling.prompt_logprobs = 2;
  std::vector<SampledToken> expected;
  for (const int chunk : {256, 64, 7}) {
    CAPTURE(chunk);
    EngineConfig config = test_config("tales-llama", "fp16");
    config.prefill_chunk_tokens = chunk;
    config.max_num_seqs = 4;  // blocks of 64 rows of logits
    const auto loaded = load_or_fail(config);
    const Output output = run_one(*loaded->engine, request);
    CHECK(output.ids.empty());
    REQUIRE(output.prompt_logprobs.size() == 149);
    if (expected.empty()) expected = output.prompt_logprobs;
    for (size_t i = 0; i < 149; ++i) {
      const SampledToken& token = output.prompt_logprobs[i];
      CHECK(token.id == request.prompt[i + 1]);
      REQUIRE(token.top.size() == 2);
      CHECK(token.top[0].logprob >= token.logprob);
      CHECK(std::abs(token.logprob - expected[i].logprob) < 5e-3f);
    }
  }
}

namespace {

KvLayerBits table_of(const std::vector<std::pair<int, int>>& rows) {
  KvLayerBits bits;
  for (const auto& [keys, values] : rows) bits.add(keys, values);
  return bits;
}

}  // namespace

TEST_CASE("A table of equal layers writes the plain format's tokens, bit for bit") {
  const Request request = greedy_request(long_prompt(read_golden(any_model()), 200), 60);
  const auto plain = load_or_fail(test_config(any_model(), "kivi3.5"));
  EngineConfig config = test_config(any_model(), "kivi2.5");
  for (int layer = 0; layer < plain->summary.layers; ++layer) config.kv_layer_table.add(4, 2);
  const auto table = load_or_fail(config);
  CHECK(table->plan.text() == plain->plan.text());
  CHECK(run_one(*table->engine, request) == run_one(*plain->engine, request));
}

TEST_CASE("Layers of mixed bits write the same tokens in chunks, in company and layer by layer") {
  EngineConfig config = test_config(any_model(), "kivi4.5");
  const int layers = load_or_fail(config)->summary.layers;
  std::vector<std::pair<int, int>> rows;
  for (int layer = 0; layer < layers; ++layer)
    rows.emplace_back(layer % 3 == 1 ? 2 : 4, layer % 2 == 1 ? 2 : 4);
  config.kv_layer_table = table_of(rows);
  const std::vector<int32_t> prompt = long_prompt(read_golden(any_model()), 300);
  const auto loaded = load_or_fail(config);
  CHECK_FALSE(loaded->served.kv_layer_bits.empty());
  const Output alone = run_one(*loaded->engine, greedy_request(prompt, 40));

  std::vector<Request> requests;
  for (int i = 0; i < 5; ++i) requests.push_back(greedy_request(prompt, 40 - i));
  for (const Output& output : run_all(*loaded->engine, requests))
    CHECK(std::equal(output.ids.begin(), output.ids.end(), alone.ids.begin()));

  config.prefill_chunk_tokens = 48;
  config.prefill_staging_tokens = 0;  // layer by layer
  const auto layerwise = load_or_fail(config);
  REQUIRE(layerwise->plan.capacity.layerwise_tokens >= 300);
  CHECK(run_one(*layerwise->engine, greedy_request(prompt, 40)).ids == alone.ids);

  // Another table is another store, and has another fingerprint.
  rows[0] = {2, 2};
  config.kv_layer_table = table_of(rows);
  CHECK(load_or_fail(config)->served.fingerprint != layerwise->served.fingerprint);
}

}  // namespace kivi
