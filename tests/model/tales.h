// SPDX-License-Identifier: Apache-2.0
// Helpers of the model tests: load a demo model, run prompts through the whole engine, read golden
// data.
#pragma once

#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/serving/load.h"

namespace kivi {

inline std::string model_folder(const std::string& name) {
  return std::string(KIVI_SOURCE_DIR) + "/models/" + name;
}

// A small GGUF model.
inline std::string tiny_path() {
  return std::string(KIVI_SOURCE_DIR) + "/tests/data/gguf/tiny.gguf";
}

inline nlohmann::json read_json(const std::string& path) {
  std::ifstream file(path);
  return nlohmann::json::parse(file);
}

// The demo model for tests whose statement holds for any model. tales-mistral has a fifth of the
// arithmetic of tales-llama, which is most of a sanitized run's time; every line of code that the
// tests reach is the same.
inline std::string any_model() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return "tales-mistral";
#else
  return "tales-llama";
#endif
}

// golden.json of a demo model (written by models/train.py with Transformers): a prompt, its greedy
// continuation, and the ten largest logits after the prompt.
struct Golden {
  std::vector<int32_t> prompt;
  std::vector<int32_t> greedy;    // the continuation alone
  std::vector<TokenLogprob> top;  // ids and logits
};

inline Golden read_golden(const std::string& name) {
  const nlohmann::json document = read_json(model_folder(name) + "/golden.json");
  Golden golden;
  golden.prompt = document["prompt_ids"].get<std::vector<int32_t>>();
  const auto all = document["greedy_ids"].get<std::vector<int32_t>>();
  golden.greedy.assign(all.begin() + std::ptrdiff_t(golden.prompt.size()), all.end());
  for (const auto& entry : document["last_logits_top10"])
    golden.top.push_back({entry[0].get<int32_t>(), entry[1].get<float>()});
  return golden;
}

// A small configuration for tests: few rows, a store that a 2-core machine fills in no time.
inline EngineConfig test_config(const std::string& model, const std::string& format) {
  EngineConfig config;
  config.model = model_folder(model);
  config.device = "cpu";
  config.kv_cache_dtype = format;
  config.kivi_residual_length = 32;
  config.max_model_len = 1024;
  config.max_num_seqs = 32;
  config.max_num_batched_tokens = 512;
  config.prefill_chunk_tokens = 128;
  config.kv_cache_memory_bytes = 96 << 20;
  config.enable_prefix_caching = false;  // a prompt that comes again is computed again
  return config;
}

inline std::unique_ptr<LoadedModel> load_or_fail(const EngineConfig& config) {
  auto loaded = load_model(config, {});
  if (!loaded.ok()) FAIL(loaded.error().message);
  return std::move(loaded).value();
}

// What one request gave.
struct Output {
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
  std::vector<TokenLogprob> first_top;  // of the first token
  std::vector<SampledToken> prompt_logprobs;
  std::optional<FinishReason> finish;

  friend bool operator==(const Output& a, const Output& b) {
    return a.ids == b.ids && a.logprobs == b.logprobs;
  }
};

inline Request greedy_request(const std::vector<int32_t>& prompt, int max_tokens,
                              int logprobs = 0) {
  Request request;
  request.prompt = prompt;
  request.sampling.temperature = 0;
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  request.sampling.logprobs = logprobs;
  return request;
}

// Submits all requests at once and runs steps until all have ended.
inline std::vector<Output> run_all(Engine& engine, const std::vector<Request>& requests) {
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (const Request& request : requests) {
    auto stream = engine.submit(request, [] {});
    if (!stream.ok()) FAIL(stream.error().message);
    streams.push_back(*stream);
  }
  engine.run_until_idle();
  std::vector<Output> outputs;
  for (const auto& stream : streams) {
    std::vector<TokenEvent> events;
    REQUIRE(stream->drain(events));
    Output output;
    for (TokenEvent& event : events) {
      if (event.error) FAIL(event.error->message);
      if (!event.prompt_logprobs.empty()) output.prompt_logprobs = event.prompt_logprobs;
      if (event.finish) output.finish = event.finish;
      if (event.id < 0) continue;
      if (output.ids.empty()) output.first_top = event.top;
      output.ids.push_back(event.id);
      output.logprobs.push_back(event.logprob);
    }
    outputs.push_back(std::move(output));
  }
  return outputs;
}

inline Output run_one(Engine& engine, const Request& request) {
  return run_all(engine, {request})[0];
}

}  // namespace kivi
