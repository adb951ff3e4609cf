// SPDX-License-Identifier: Apache-2.0
// The golden models on the GPU: greedy ids and log probabilities of Hugging Face Transformers.
#include <cmath>

#include "tests/golden/golden_models.h"
#include "tests/model/tales.h"
#include "tests/model/tiny_gguf.h"

namespace kivi {
namespace {

using nlohmann::json;

// Activations are fp16 here and float32 in the golden files, for logits that are spread over 15 to
// 40: 2^-11 of the largest ones, through two layers.
constexpr float kLogprobTolerance = 0.1f;

EngineConfig config_of(const TemporaryFolder& folder, const json& golden) {
  EngineConfig config = test_config("", "fp16");
  config.model = folder.path();
  config.device = "cuda";
  config.max_model_len = int(golden["prompt"].size() + golden["greedy"].size());
  config.max_logprobs = 64;
  return config;
}

}  // namespace

TEST_CASE("Every golden model's greedy ids and log probabilities on the GPU are Transformers'") {
  const bool enforce_eager = GENERATE(false, true);
  const int prefill_chunk_tokens = GENERATE(128, 17);
  CAPTURE(enforce_eager, prefill_chunk_tokens);
  int served = 0;
  float worst = 0;
  for (const std::string& name : golden_names()) {
    const json golden = read_golden_model(name);
    const TemporaryFolder folder;
    write_golden_model(golden, folder, "float16");
    EngineConfig config = config_of(folder, golden);
    config.enforce_eager = enforce_eager;
    config.prefill_chunk_tokens = prefill_chunk_tokens;
    CAPTURE(name);
    const auto loaded = load_model(config, {});
    if (name == "falcon-7b") {
      REQUIRE(!loaded.ok());
      CHECK(loaded.error().code == ErrorCode::unsupported);
      CHECK(loaded.error().message.find("head_dim is 16, must be 64, 80, 96, 128 or 256") !=
            std::string::npos);
      continue;
    }
    if (!loaded.ok()) FAIL(loaded.error().message);
    const auto prompt = golden["prompt"].get<std::vector<int32_t>>();
    const auto tokens = int(golden["greedy"].size());
    const Output output = run_one(*(*loaded)->engine, greedy_request(prompt, tokens, 64));
    CHECK(json(output.ids) == golden["greedy"]);
    float largest = 0;
    for (const TokenLogprob& token : output.first_top)
      largest = std::max(
          largest,
          std::abs(token.logprob - golden["first_logprobs"][size_t(token.id)].get<float>()));
    for (size_t i = 0; i < output.logprobs.size(); ++i)
      largest = std::max(largest,
                         std::abs(output.logprobs[i] - golden["greedy_logprobs"][i].get<float>()));
    std::printf("%-24s largest difference of a log probability %.5f\n", name.c_str(),
                double(largest));
    CHECK(largest < kLogprobTolerance);
    worst = std::max(worst, largest);
    ++served;
  }
  CHECK(served >= 19);
  std::printf("golden models on the GPU: %d, largest difference %.5f\n", served, double(worst));
}

// Each matrix has another quantized type. Those that the GPU multiplies stay in their blocks.
TEST_CASE("A GGUF file of all quantized types gives Transformers' ids and logits on the GPU") {
  const std::string folder = golden_folder() + "../data/gguf/";
  const json golden = read_json(folder + "tiny.json");
  EngineConfig config = test_config("", "fp16");
  config.model = folder + "tiny.gguf";
  config.device = "cuda";
  config.max_model_len = 128;
  config.quantization = GENERATE("auto", "none");
  CAPTURE(config.quantization);
  const auto loaded = load_or_fail(config);
  check_tiny_gguf(*loaded->engine, golden, 4e-3f);
}

TEST_CASE("What the GPU has no kernel for is refused at load, by name") {
  json golden = read_golden_model("llama2-mha");
  golden["config"]["hidden_size"] = 132;
  const TemporaryFolder folder;
  write_golden_model(golden, folder);
  const auto loaded = load_model(config_of(folder, golden), {});
  REQUIRE(!loaded.ok());
  CAPTURE(loaded.error().message);
  CHECK(loaded.error().message.find("hidden_size is 132, must be a multiple of 8") !=
        std::string::npos);
}

}  // namespace kivi
