// SPDX-License-Identifier: Apache-2.0
// Every family and variant against Hugging Face Transformers, on small random models with awkward
// shapes (tests/golden/*.json, made by make_goldens.py), through the whole engine.
#include "tests/golden/golden_models.h"

#include <algorithm>
#include <cmath>

#include "tests/model/tales.h"

namespace kivi {

namespace {

using nlohmann::json;

// The golden arithmetic is float32 everywhere; keys and values are fp16 here, and these logits are
// spread over 15 to 40. With the oracle's keys and values rounded to fp16 the largest difference is
// 0.003.
constexpr float kLogprobTolerance = 2.5e-2f;  // largest seen: 0.0204

EngineConfig golden_config(const TemporaryFolder& folder, const json& golden) {
  EngineConfig config = test_config("", "fp16");
  config.model = folder.path();
  config.max_model_len = int(golden["prompt"].size() + golden["greedy"].size());
  config.max_logprobs = golden["config"]["vocab_size"].get<int>();
  return config;
}

// The engine's answers to the golden prompt.
Output run_golden(const EngineConfig& config, const json& golden) {
  const auto loaded = load_or_fail(config);
  const auto prompt = golden["prompt"].get<std::vector<int32_t>>();
  const int tokens = int(golden["greedy"].size());
  return run_one(*loaded->engine, greedy_request(prompt, tokens, config.max_logprobs));
}

float worst_difference(const Output& output, const json& golden) {
  float worst = 0;
  REQUIRE(output.first_top.size() == golden["first_logprobs"].size());
  for (const TokenLogprob& token : output.first_top)
    worst = std::max(
        worst, std::abs(token.logprob - golden["first_logprobs"][size_t(token.id)].get<float>()));
  for (size_t i = 0; i < output.logprobs.size(); ++i)
    worst =
        std::max(worst, std::abs(output.logprobs[i] - golden["greedy_logprobs"][i].get<float>()));
  return worst;
}

}  // namespace

TEST_CASE("Every golden model's greedy ids and log probabilities are Transformers'") {
  const std::vector<std::string> names = golden_names();
  REQUIRE(names.size() >= 20);
  float worst = 0;
  for (const std::string& name : names) {
    CAPTURE(name);
    const json golden = read_golden_model(name);
    const TemporaryFolder folder;
    write_golden_model(golden, folder);
    const Output output = run_golden(golden_config(folder, golden), golden);
    CHECK(json(output.ids) == golden["greedy"]);
    const float difference = worst_difference(output, golden);
    CHECK(difference < kLogprobTolerance);
    worst = std::max(worst, difference);
  }
  std::printf("golden models: %zu, largest difference of a log probability %.5f\n", names.size(),
              double(worst));
}

TEST_CASE("Chunks of a golden prompt, and the checkpoint's other dtypes, change nothing") {
  const std::string name =
      GENERATE("llama-dynamic-gqa4", "llama-dynamic-growing", "mistral-v0.1", "llama-yarn-gqa8",
               "qwen2", "qwen3", "ministral-mixed", "phi3-long", "falcon-11b");
  const std::string dtype = GENERATE("float32", "float16", "bfloat16");
  CAPTURE(name, dtype);
  const json golden = read_golden_model(name);
  const TemporaryFolder folder;
  write_golden_model(golden, folder, dtype);
  EngineConfig config = golden_config(folder, golden);
  config.prefill_chunk_tokens = 17;
  const Output output = run_golden(config, golden);
  CHECK(json(output.ids) == golden["greedy"]);
  CHECK(worst_difference(output, golden) < kLogprobTolerance);
}

TEST_CASE("Every cache format serves heads that are normed, and windows in some layers") {
  const std::string name = GENERATE("qwen3", "qwen3-mixed");
  CAPTURE(name);
  const json golden = read_golden_model(name);
  const TemporaryFolder folder;
  write_golden_model(golden, folder);
  EngineConfig config = golden_config(folder, golden);
  for (const char* format : {"fp16", "fp8", "kivi4", "kivi2"}) {
    CAPTURE(format);
    config.kv_cache_dtype = format;
    const Output output = run_golden(config, golden);
    REQUIRE(output.ids.size() == golden["greedy"].size());
    // The prompt attends to itself in fp16. Later tokens see what was quantized.
    CHECK(output.ids[0] == golden["greedy"][0].get<int32_t>());
    CHECK(std::abs(output.logprobs[0] - golden["greedy_logprobs"][0].get<float>()) <
          kLogprobTolerance);
    for (const float logprob : output.logprobs) CHECK(std::isfinite(logprob));
    if (std::string(format) == "fp16") CHECK(json(output.ids) == golden["greedy"]);
  }
}

TEST_CASE("A head size of 80 is served in fp16 and refused by name in the KIVI formats") {
  const json golden = read_golden_model("llama-biases");
  REQUIRE(golden["config"]["head_dim"] == 80);
  const TemporaryFolder folder;
  write_golden_model(golden, folder);
  EngineConfig config = golden_config(folder, golden);
  for (const char* format : {"kivi2", "kivi4"}) {
    config.kv_cache_dtype = format;
    const auto loaded = load_model(config, {});
    REQUIRE(!loaded.ok());
    CAPTURE(loaded.error().message);
    CHECK(loaded.error().message.find("head_dim") != std::string::npos);
    CHECK(loaded.error().message.find("80") != std::string::npos);
  }
}

TEST_CASE("longrope's factors follow the context that the engine is asked for") {
  const json golden = read_golden_model("phi3-short");  // trained for 128 tokens, reaches 256
  const TemporaryFolder folder;
  write_golden_model(golden, folder);
  EngineConfig config = golden_config(folder, golden);
  for (const int len : {128, 129, 0}) {
    CAPTURE(len);
    config.max_model_len = len;
    const float worst = worst_difference(run_golden(config, golden), golden);
    if (len == 128) CHECK(worst < kLogprobTolerance);
    if (len != 128) CHECK(worst > 10 * kLogprobTolerance);
  }
}

TEST_CASE("Contexts beyond the trained one are asked for by name, up to what the scaling reaches") {
  const json golden = read_golden_model("llama-linear-gqa3");  // 40 tokens, times four
  const TemporaryFolder folder;
  write_golden_model(golden, folder);
  EngineConfig config = golden_config(folder, golden);
  config.max_model_len = 0;
  CHECK(load_or_fail(config)->plan.max_model_len == 40);
  config.max_model_len = 160;
  CHECK(load_or_fail(config)->plan.max_model_len == 160);
  config.max_model_len = 161;
  const auto loaded = load_model(config, {});
  REQUIRE(!loaded.ok());
  CHECK(loaded.error().message.find("at most the model's 160") != std::string::npos);
}

}  // namespace kivi
