// SPDX-License-Identifier: Apache-2.0
// Greedy text and logits of the demo models against Hugging Face Transformers (golden.json), alone
// and in company, for every way in which the engine can split the work.
#include <algorithm>
#include <cmath>
#include <random>

#include "tests/model/tales.h"

namespace kivi {

namespace {

// Prompts of awkward lengths, made of the golden text so that they look like text.
std::vector<Request> mixed_requests(const Golden& golden, int count, int max_tokens) {
  std::vector<int32_t> text = golden.prompt;
  text.insert(text.end(), golden.greedy.begin(), golden.greedy.end());
  constexpr int kLengths[] = {1, 2, 3, 5, 17, 31, 32, 33, 63, 64, 65, 130, 200};
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) {
    std::vector<int32_t> prompt;
    for (int j = 0; j < kLengths[size_t(i) % std::size(kLengths)]; ++j)
      prompt.push_back(text[size_t(i * 7 + j * (1 + i % 3)) % text.size()]);
    requests.push_back(greedy_request(prompt, max_tokens));
  }
  return requests;
}

}  // namespace

TEST_CASE("Greedy text equals Transformers', token by token") {
  const std::string name = GENERATE("tales-llama", "tales-mistral", "tales-falcon");
  CAPTURE(name);
  const Golden golden = read_golden(name);
  const auto loaded = load_or_fail(test_config(name, "fp16"));
  const Output output = run_one(*loaded->engine, greedy_request(golden.prompt, 64));
  CHECK(output.ids == golden.greedy);
  CHECK(output.finish == FinishReason::length);
}

TEST_CASE("The ten largest logits after the prompt are Transformers'") {
  const std::string name = GENERATE("tales-llama", "tales-mistral", "tales-falcon");
  CAPTURE(name);
  const Golden golden = read_golden(name);
  const auto loaded = load_or_fail(test_config(name, "fp16"));
  const Output output = run_one(*loaded->engine, greedy_request(golden.prompt, 1, 10));
  REQUIRE(output.first_top.size() == 10);
  // Log probabilities differ from logits by one constant, which is taken from the largest.
  const float constant = golden.top[0].logprob - output.first_top[0].logprob;
  for (size_t i = 0; i < 10; ++i) {
    CAPTURE(i);
    CHECK(output.first_top[i].id == golden.top[i].id);
    CHECK(std::abs(output.first_top[i].logprob + constant - golden.top[i].logprob) < 2e-2f);
  }
}

TEST_CASE("Chunks of any length give the golden text, in both prefill modes", "[long]") {
  const std::string name = GENERATE("tales-llama", "tales-mistral", "tales-falcon");
  const int chunk = GENERATE(1, 5, 64);
  const PrefillMode mode = GENERATE(PrefillMode::exact, PrefillMode::stream);
  CAPTURE(name, chunk, int(mode));
  const Golden golden = read_golden(name);
  EngineConfig config = test_config(name, "fp16");
  config.prefill_chunk_tokens = chunk;
  config.kivi_prefill = mode;
  const auto loaded = load_or_fail(config);
  // The prompt alone, and the prompt with half of its continuation, so that chunks are many.
  std::vector<int32_t> longer = golden.prompt;
  longer.insert(longer.end(), golden.greedy.begin(), golden.greedy.begin() + 32);
  const auto outputs =
      run_all(*loaded->engine, {greedy_request(golden.prompt, 64), greedy_request(longer, 32)});
  CHECK(outputs[0].ids == golden.greedy);
  CHECK(outputs[1].ids == std::vector(golden.greedy.begin() + 32, golden.greedy.end()));
}

TEST_CASE("Beyond its window of 256 tokens tales-mistral's text is Transformers'") {
  const int chunk = GENERATE(19, 128);  // windows within a chunk and across chunks
  std::ifstream file(std::string(KIVI_SOURCE_DIR) + "/tests/data/tales_mistral_window.json");
  const auto golden = nlohmann::json::parse(file);
  const auto prompt = golden["prompt"].get<std::vector<int32_t>>();
  REQUIRE(prompt.size() > 256);
  EngineConfig config = test_config("tales-mistral", "fp16");
  config.prefill_chunk_tokens = chunk;
  const auto loaded = load_or_fail(config);
  CHECK(nlohmann::json(run_one(*loaded->engine, greedy_request(prompt, 64)).ids) ==
        golden["greedy"]);
}

TEST_CASE("The golden text comes out of a full batch, and every row equals its run alone") {
  const Golden golden = read_golden(any_model());
  const auto loaded = load_or_fail(test_config(any_model(), "fp16"));
  std::vector<Request> requests = mixed_requests(golden, 31, 8);
  requests.insert(requests.begin() + 11, greedy_request(golden.prompt, 64));
  const std::vector<Output> together = run_all(*loaded->engine, requests);
  CHECK(together[11].ids == golden.greedy);
  for (size_t i = 0; i < requests.size(); ++i) {
    CAPTURE(i, requests[i].prompt.size());
    CHECK(together[i] == run_one(*loaded->engine, requests[i]));
  }
}

TEST_CASE("Preemption does not change the text") {
  const Golden golden = read_golden("tales-llama");
  EngineConfig config = test_config("tales-llama", "fp16");
  config.max_num_seqs = 8;
  config.max_model_len = 256;
  // A page of 64 tokens in fp16 is 256 KiB: six pages for eight sequences of two pages each.
  config.kv_cache_memory_bytes = 6 * (256 << 10);
  const auto loaded = load_or_fail(config);
  REQUIRE(loaded->plan.capacity.pages == 6);
  const std::vector<Request> requests(8, greedy_request(golden.prompt, 64));
  for (const Output& output : run_all(*loaded->engine, requests))
    CHECK(output.ids == golden.greedy);
  CHECK(loaded->engine->stats().preemptions > 0);
  CHECK(loaded->engine->stats().kv_bytes == KvBytes{});
}

TEST_CASE("Weights converted to other types give the golden text", "[long]") {
  const std::string dtype = GENERATE("float32", "float16");
  CAPTURE(dtype);
  const Golden golden = read_golden("tales-llama");
  EngineConfig config = test_config("tales-llama", "fp16");
  config.dtype = dtype;
  const auto loaded = load_or_fail(config);
  CHECK(run_one(*loaded->engine, greedy_request(golden.prompt, 64)).ids == golden.greedy);
}

}  // namespace kivi
