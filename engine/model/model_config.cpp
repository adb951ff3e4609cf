// SPDX-License-Identifier: Apache-2.0
#include "engine/model/model_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "engine/model/files/gguf.h"
#include "engine/model/files/gguf_model.h"
#include "engine/model/rope_scaling.h"

namespace kivi {

namespace {

// Larger sizes than any published model's; they keep every product of two sizes inside int64 and
// every row inside int.
constexpr int kMaxLayers = 1024;
constexpr int kMaxHidden = 1 << 17;
constexpr int kMaxHeads = 1024;
constexpr int kMaxHeadDim = 256;
constexpr int kMaxIntermediate = 1 << 20;
constexpr int kMaxVocab = 1 << 22;

DType read_dtype(JsonReader& config) {
  const std::string key = config.has("dtype") ? "dtype" : "torch_dtype";
  const std::string name = config.string_or(key, "float32");
  if (name == "float32") return DType::f32;
  if (name == "float16") return DType::f16;
  if (name == "bfloat16") return DType::bf16;
  config.reject(key, "must be float32, float16 or bfloat16");
  return DType::f32;
}

void add_unique(std::vector<int32_t>& ids, const std::vector<int32_t>& more) {
  for (const int32_t id : more)
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
}

Status read_generation_config(const std::string& path, ModelConfig& model) {
  if (!std::filesystem::exists(path)) return ok_status();
  KIVI_ASSIGN_OR_RETURN(const nlohmann::json document, read_json_file(path));
  JsonReader config(path, document);
  add_unique(model.eos_token_ids, config.ids("eos_token_id"));
  if (config.has("temperature")) model.temperature = float(config.number("temperature", 0, 100));
  if (config.has("top_p")) model.top_p = float(config.number("top_p", 1e-6, 1));
  if (config.has("top_k")) model.top_k = config.integer("top_k", 0, kMaxVocab);
  return config.status();
}

Status check_eos(const std::string& file, const ModelConfig& model) {
  for (const int32_t id : model.eos_token_ids)
    if (id >= model.spec.vocab)
      return Error{ErrorCode::invalid,
                   fmt::format("{}: eos_token_id {} is outside of the vocabulary of {}", file, id,
                               model.spec.vocab),
                   "eos_token_id"};
  return ok_status();
}

}  // namespace

Activation read_activation(JsonReader& config, const std::string& key,
                           const std::string& fallback) {
  const std::string name = config.string_or(key, fallback);
  if (name == "silu" || name == "swish") return Activation::silu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh" || name == "gelu_fast")
    return Activation::gelu_tanh;
  config.reject(key, "supported are silu, gelu, gelu_new and gelu_pytorch_tanh",
                ErrorCode::unsupported);
  return Activation::silu;
}

void read_sizes(JsonReader& config, DecoderSpec& spec) {
  spec.layers = config.integer("num_hidden_layers", 1, kMaxLayers);
  spec.hidden = config.integer("hidden_size", 1, kMaxHidden);
  spec.heads_q = config.integer("num_attention_heads", 1, kMaxHeads);
  spec.heads_kv = config.integer_or("num_key_value_heads", spec.heads_q, 1, kMaxHeads);
  if (spec.heads_q % spec.heads_kv != 0)
    config.reject("num_key_value_heads",
                  fmt::format("must divide num_attention_heads ({})", spec.heads_q));
  if (config.has("head_dim")) {
    spec.head_dim = config.integer("head_dim", 1, kMaxHeadDim);
  } else {
    spec.head_dim = spec.hidden / spec.heads_q;
    if (spec.hidden % spec.heads_q != 0 || spec.head_dim > kMaxHeadDim)
      config.reject("hidden_size",
                    fmt::format("must be num_attention_heads ({}) times a head size of at most {}",
                                spec.heads_q, kMaxHeadDim));
  }
  spec.intermediate = config.integer_or("intermediate_size", 4 * spec.hidden, 1, kMaxIntermediate);
  spec.vocab = config.integer("vocab_size", 1, kMaxVocab);
  spec.max_positions = config.integer_or("max_position_embeddings", 2048, 1, kMaxPositions);
  spec.max_positions_scaled = spec.max_positions;
  spec.tied_embeddings = config.boolean_or("tie_word_embeddings", false);
}

Result<ModelConfig> model_config_of(const std::string& file, const nlohmann::json& document) {
  JsonReader config(file, document);
  const std::vector<std::string> architectures = config.strings("architectures");
  KIVI_RETURN_IF_ERROR(config.status());

  ModelConfig model;
  model.family = architectures.empty() ? nullptr : find_model_family(architectures[0]);
  if (model.family == nullptr) {
    config.reject("architectures", "supported are " + supported_architectures(),
                  ErrorCode::unsupported);
    return config.status().error();
  }
  if (config.has("quantization_config")) {
    KIVI_ASSIGN_OR_RETURN(model.quantization,
                          read_quantization(file, document["quantization_config"]));
  }
  model.spec = model.family->read(config);
  model.dtype = read_dtype(config);
  model.eos_token_ids = config.ids("eos_token_id");
  KIVI_RETURN_IF_ERROR(config.status());
  model.names = model.family->names(model.spec);
  model.formats = quantized_formats(model.quantization, model.spec, model.names);
  KIVI_RETURN_IF_ERROR(check_eos(file, model));
  return model;
}

Result<ModelConfig> read_model_config(const std::string& path) {
  if (is_gguf_path(path)) {
    KIVI_ASSIGN_OR_RETURN(const GgufFile file, GgufFile::open(path));
    return read_gguf_config(file.header);
  }
  std::error_code ignored;
  if (!std::filesystem::is_directory(path, ignored))
    return Error{
        ErrorCode::not_found,
        fmt::format("model is {}, must be a folder with config.json or a .gguf file", path),
        "model"};
  const std::string config_path = path + "/config.json";
  KIVI_ASSIGN_OR_RETURN(const nlohmann::json document, read_json_file(config_path));
  KIVI_ASSIGN_OR_RETURN(ModelConfig model, model_config_of(config_path, document));
  const std::string generation_path = path + "/generation_config.json";
  KIVI_RETURN_IF_ERROR(read_generation_config(generation_path, model));
  KIVI_RETURN_IF_ERROR(check_eos(generation_path, model));
  return model;
}

}  // namespace kivi
