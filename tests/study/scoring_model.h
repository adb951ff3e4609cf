// SPDX-License-Identifier: Apache-2.0
// tales-llama as the tests of scores have it: every token's history is read from the store.
#pragma once

#include <memory>
#include <string>

#include "tests/model/tales.h"

namespace kivi {

// `chunk`: tokens of a prompt in a step; with 1 each token reads all others from the store.
inline std::unique_ptr<LoadedModel> scoring_model(const std::string& format, int chunk) {
  EngineConfig config;
  config.model = model_folder("tales-llama");
  config.device = "cpu";
  config.kv_cache_dtype = format;
  config.kivi_residual_length = 32;
  config.kivi_prefill = PrefillMode::stream;
  config.prefill_chunk_tokens = chunk;
  config.max_num_batched_tokens = 512;
  config.kv_cache_memory_bytes = 64 << 20;
  return load_or_fail(config);
}

}  // namespace kivi
