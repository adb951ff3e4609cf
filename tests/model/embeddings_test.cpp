// SPDX-License-Identifier: Apache-2.0
// Embeddings of a real model, through the whole engine, against those that Transformers computes
// (tests/golden/make_embeddings.py).
#include <cmath>

#include "engine/serving/completion.h"
#include "tests/model/tales.h"

using namespace kivi;

namespace {

std::vector<float> embed(LoadedModel& model, const std::vector<int32_t>& ids, Pooling pooling) {
  CompletionRequest request;
  request.id = "e";
  request.prompts.emplace_back(ids);
  request.pooling = pooling;
  request.sampling.max_tokens = 0;
  auto completion = Completion::start(model.served, request, [] {});
  if (!completion.ok()) FAIL(completion.error().message);
  model.engine->run_until_idle();
  std::vector<TextChunk> chunks;
  REQUIRE((*completion)->poll(chunks));
  REQUIRE(chunks.size() == 1);
  CHECK((*completion)->usage().prompt_tokens == int(ids.size()));
  CHECK((*completion)->usage().completion_tokens == 0);
  return chunks[0].embedding;
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(double(a[i] - b[i])));
  return largest;
}

}  // namespace

TEST_CASE("embeddings of tales-llama equal those of Transformers", "[long]") {
  const nlohmann::json golden =
      read_json(std::string(KIVI_SOURCE_DIR) + "/tests/data/tales_llama_embeddings.json");
  // A component is 0.06 on average. The prompt of 300 tokens is computed in chunks of 128, or layer
  // by layer; beside it, keys and values in 16 bits are all that differs.
  constexpr double kTolerance = 2e-3;
  for (const char* format : {"fp16", "kivi2"})
    for (const bool layerwise : {false, true}) {
      EngineConfig config = test_config("tales-llama", format);
      if (layerwise) config.prefill_staging_tokens = 0;
      const auto model = load_or_fail(config);
      REQUIRE(golden["embeddings"].size() == 3);
      for (const nlohmann::json& entry : golden["embeddings"]) {
        const auto ids = entry["ids"].get<std::vector<int32_t>>();
        INFO(format << (layerwise ? " layer by layer, " : ", ") << ids.size() << " tokens");
        CHECK(largest_difference(embed(*model, ids, Pooling::last),
                                 entry["last"].get<std::vector<float>>()) < kTolerance);
        CHECK(largest_difference(embed(*model, ids, Pooling::mean),
                                 entry["mean"].get<std::vector<float>>()) < kTolerance);
      }
    }
}

TEST_CASE("an embedding does not depend on its company, nor on a prefix that is reused") {
  EngineConfig config = test_config("tales-llama", "fp16");
  config.enable_prefix_caching = true;
  const auto model = load_or_fail(config);
  const Golden golden = read_golden("tales-llama");
  std::vector<int32_t> ids;
  while (ids.size() < 200) ids.insert(ids.end(), golden.prompt.begin(), golden.prompt.end());
  const std::vector<float> alone = embed(*model, ids, Pooling::mean);
  std::vector<Request> others;
  for (int i = 0; i < 3; ++i) others.push_back(greedy_request(golden.prompt, 20));
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (Request& request : others) {
    auto stream = model->engine->submit(request, [] {});
    REQUIRE(stream.ok());
    streams.push_back(*stream);
  }
  for (int i = 0; i < 5; ++i) model->engine->step();  // they decode now
  CHECK(embed(*model, ids, Pooling::mean) == alone);
  const std::vector<float> first = embed(*model, ids, Pooling::last);
  CHECK(largest_difference(embed(*model, ids, Pooling::last), first) < 1e-3);
  CHECK(model->engine->stats().prefix.hit > 0);
}
