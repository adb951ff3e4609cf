#include "engine/model_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "engine/models/registry.h"

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
constexpr int kMaxPositions = 1 << 24;

DType read_dtype(JsonReader& config) {
  const std::string key = config.has("dtype") ? "dtype" : "torch_dtype";
  const std::string name = config.string_or(key, "float32");
  if (name == "float32") return DType::f32;
  if (name == "float16") return DType::f16;
  if (name == "bfloat16") return DType::bf16;
  config.reject(key, "must be float32, float16 or bfloat16");
  return DType::f32;
}

void read_llama3_scaling(JsonReader& scaling, RopeSpec& rope) {
  rope.scaling = RopeScaling::llama3;
  rope.factor = scaling.number("factor", 1, 1e6);
  rope.low_freq_factor = scaling.number("low_freq_factor", 1e-3, 1e6);
  rope.high_freq_factor = scaling.number("high_freq_factor", 1e-3, 1e6);
  rope.original_max_position_embeddings =
      scaling.integer("original_max_position_embeddings", 1, kMaxPositions);
  if (rope.high_freq_factor <= rope.low_freq_factor)
    scaling.reject("high_freq_factor", "must be larger than low_freq_factor");
}

void read_scaling(JsonReader& scaling, RopeSpec& rope) {
  const std::string key = scaling.has("rope_type") ? "rope_type" : "type";
  const std::string type = scaling.string_or(key, "default");
  if (type == "default") return;
  if (type == "linear") {
    rope.scaling = RopeScaling::linear;
    rope.factor = scaling.number("factor", 1, 1e6);
  } else if (type == "llama3") {
    read_llama3_scaling(scaling, rope);
  } else {
    scaling.reject(key, "supported are default, linear and llama3", ErrorCode::unsupported);
  }
}

void add_unique(std::vector<int32_t>& ids, const std::vector<int32_t>& more) {
  for (const int32_t id : more)
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
}

Status read_generation_config(const std::string& path, ModelConfig& model) {
  if (!std::filesystem::exists(path)) return ok_status();
  ASSIGN_OR_RETURN(const nlohmann::json document, read_json_file(path));
  JsonReader config(path, document);
  add_unique(model.eos_token_ids, config.ids("eos_token_id"));
  if (config.has("temperature")) model.temperature = float(config.number("temperature", 0, 100));
  if (config.has("top_p")) model.top_p = float(config.number("top_p", 1e-6, 1));
  if (config.has("top_k")) model.top_k = config.integer("top_k", 0, kMaxVocab);
  return config.status();
}

}  // namespace

RopeSpec read_rope(JsonReader& config, const DecoderSpec& spec) {
  RopeSpec rope;
  double part = config.number_or("partial_rotary_factor", 1, 0.01, 1);
  rope.theta = config.number_or("rope_theta", 10000, 1, 1e12);
  if (config.has("rope_parameters")) {  // Transformers 5
    JsonReader parameters = config.object("rope_parameters");
    rope.theta = parameters.number_or("rope_theta", rope.theta, 1, 1e12);
    part = parameters.number_or("partial_rotary_factor", part, 0.01, 1);
    read_scaling(parameters, rope);
  } else if (config.has("rope_scaling")) {
    JsonReader scaling = config.object("rope_scaling");
    read_scaling(scaling, rope);
  }
  rope.rotary_dim = int(spec.head_dim * part);
  if (rope.rotary_dim < 2 || rope.rotary_dim % 2 != 0)
    config.reject(
        "partial_rotary_factor",
        fmt::format("must leave an even number of the {} channels of a head", spec.head_dim));
  return rope;
}

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
  spec.tied_embeddings = config.boolean_or("tie_word_embeddings", false);
}

Result<ModelConfig> read_model_config(const std::string& folder) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(folder, ignored))
    return Error{ErrorCode::not_found,
                 fmt::format("model is {}, must be a folder with config.json", folder), "model"};
  const std::string path = folder + "/config.json";
  ASSIGN_OR_RETURN(const nlohmann::json document, read_json_file(path));
  JsonReader config(path, document);
  const std::vector<std::string> architectures = config.strings("architectures");
  RETURN_IF_ERROR(config.status());

  ModelConfig model;
  model.family = architectures.empty() ? nullptr : find_model_family(architectures[0]);
  if (model.family == nullptr) {
    config.reject("architectures", "supported are " + supported_architectures(),
                  ErrorCode::unsupported);
    return config.status().error();
  }
  model.spec = model.family->read(config);
  model.dtype = read_dtype(config);
  model.eos_token_ids = config.ids("eos_token_id");
  RETURN_IF_ERROR(config.status());
  RETURN_IF_ERROR(read_generation_config(folder + "/generation_config.json", model));
  for (const int32_t id : model.eos_token_ids)
    if (id >= model.spec.vocab)
      return Error{ErrorCode::invalid,
                   fmt::format("{}: eos_token_id {} is outside of the vocabulary of {}", path, id,
                               model.spec.vocab),
                   "eos_token_id"};
  return model;
}

}  // namespace kivi
