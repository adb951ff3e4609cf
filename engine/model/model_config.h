// SPDX-License-Identifier: Apache-2.0
// ModelConfig: what config.json and generation_config.json of a Hugging Face folder say, checked.
// Reads the files of Transformers 5 (rope_parameters, dtype) and older ones (rope_theta,
// rope_scaling, torch_dtype).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json_file.h"
#include "base/result.h"
#include "engine/model/decoder_spec.h"
#include "engine/model/families/registry.h"
#include "engine/model/quantization.h"
#include "engine/model/weight_list.h"

namespace kivi {

struct ModelConfig {
  const ModelFamily* family = nullptr;  // static
  DecoderSpec spec;
  TensorNames names;      // of its checkpoint
  WeightFormats formats;  // of its checkpoint's quantized matrices
  CheckpointQuantization quantization;
  DType dtype =
      DType::f32;  // of the checkpoint; f32 where config.json does not say (as Transformers)
  std::vector<int32_t> eos_token_ids;  // of both files, unique
  // generation_config.json: what a request without these gets.
  std::optional<float> temperature, top_p;
  std::optional<int> top_k;
};

// Of a model folder, or of a GGUF file (a path that ends so). Errors name the file, the key, its
// value and what was expected; an unknown architecture lists the supported ones.
Result<ModelConfig> read_model_config(const std::string& path);

// What a config.json with this content says. `file` stands for it in errors.
Result<ModelConfig> model_config_of(const std::string& file, const nlohmann::json& document);

// For the families: an activation by its Transformers name ("silu", "gelu", "gelu_new", ...).
Activation read_activation(JsonReader& config, const std::string& key, const std::string& fallback);

// For the families: the sizes and heads that Llama-like configs share (hidden_size,
// num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim, intermediate_size,
// vocab_size, max_position_embeddings, tie_word_embeddings).
void read_sizes(JsonReader& config, DecoderSpec& spec);

}  // namespace kivi
