// SPDX-License-Identifier: Apache-2.0
#include "engine/model/files/gguf_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <utility>

#include "engine/model/families/registry.h"

namespace kivi {

using nlohmann::json;

namespace {

// Llama 3.1's rotary scaling as factors of the frequencies [rotary_dim / 2].
constexpr const char* kRopeFactors = "rope_freqs.weight";
// Longrope's two lists of factors [rotary_dim / 2].
constexpr const char* kShortFactors = "rope_factors_short.weight";
constexpr const char* kLongFactors = "rope_factors_long.weight";

struct KeyPair {
  std::string_view gguf;  // behind the architecture and a dot
  const char* config;     // of config.json; nullptr: read elsewhere, or of no consequence
};

// What config.json calls it, for every architecture.
constexpr std::array kKeys = {
    KeyPair{"block_count", "num_hidden_layers"},
    KeyPair{"context_length", "max_position_embeddings"},
    KeyPair{"embedding_length", "hidden_size"},
    KeyPair{"feed_forward_length", "intermediate_size"},
    KeyPair{"attention.head_count", "num_attention_heads"},
    KeyPair{"attention.head_count_kv", "num_key_value_heads"},
    KeyPair{"attention.key_length", "head_dim"},
    KeyPair{"attention.layer_norm_rms_epsilon", "rms_norm_eps"},
    KeyPair{"attention.layer_norm_epsilon", "layer_norm_epsilon"},
    KeyPair{"attention.sliding_window", "sliding_window"},
    KeyPair{"rope.freq_base", "rope_theta"},
    KeyPair{"attention.value_length", nullptr},
    KeyPair{"rope.dimension_count", nullptr},
    KeyPair{"rope.scale_linear", nullptr},
    KeyPair{"rope.scaling.type", nullptr},
    KeyPair{"rope.scaling.factor", nullptr},
    KeyPair{"rope.scaling.original_context_length", nullptr},
    KeyPair{"rope.scaling.finetuned", nullptr},
    KeyPair{"rope.scaling.attn_factor", nullptr},
    KeyPair{"attention.causal", nullptr},
    KeyPair{"tensor_data_layout", nullptr},
    KeyPair{"vocab_size", nullptr},  // the embedding says it
};

json to_json(const GgufValue& value) {
  const GgufScalar scalar = scalar_of(value);
  if (scalar.integer) return *scalar.integer;
  if (scalar.number) return *scalar.number;
  if (scalar.boolean) return *scalar.boolean;
  return describe(value);  // of the wrong type wherever a number is wanted
}

// Translates one file.
class Translation {
 public:
  explicit Translation(const GgufHeader& header) : header_(header) {}

  Result<ModelConfig> run();

 private:
  std::string key(std::string_view name) const { return fmt::format("{}.{}", architecture_, name); }
  bool has_tensor(const std::string& name) const { return header_.tensors().contains(name); }

  Status check_whole() const;
  Status copy_keys();
  Status add_rope();
  Status add_scaling();
  Status add_longrope();
  Status add_token_ids();
  Status read_rope_factors(RopeSpec& rope) const;
  void make_llama();
  void make_qwen2();
  void make_qwen3();
  void make_phi3();
  void make_falcon();

  struct Maker {
    std::string_view architecture;
    void (Translation::*make)();
  };
  static const std::array<Maker, 5> kMakers;

  const GgufHeader& header_;
  std::string architecture_;
  json config_ = json::object();
  TensorNames names_ = {
      .embedding = "token_embd",
      .final_norm = "output_norm",
      .head = "output",
      .layers = "blk.",
      .attention_norm = "attn_norm",
      .mlp_norm = "ffn_norm",
      .qkv = {"attn_q", "attn_k", "attn_v"},
      .output = "attn_output",
      .up = {"ffn_gate", "ffn_up"},
      .down = "ffn_down",
  };
};

// A part of several files is not the model.
Status Translation::check_whole() const {
  KIVI_ASSIGN_OR_RETURN(const std::optional<int64_t> parts, header_.integer("split.count"));
  if (parts.value_or(1) <= 1) return ok_status();
  return header_.unsupported("split.count", fmt::format("is {}: a model in several files is not "
                                                        "supported, merge them (gguf-split)",
                                                        *parts));
}

Status Translation::copy_keys() {
  const std::string prefix = key("");
  for (const auto& [name, value] : header_.metadata()) {
    if (!name.starts_with(prefix)) continue;
    const std::string_view rest = name.substr(prefix.size());
    const auto pair =
        std::find_if(kKeys.begin(), kKeys.end(), [&](const KeyPair& k) { return k.gguf == rest; });
    const json as_json = to_json(value);
    if (pair == kKeys.end()) {
      if (as_json == json(0) || as_json == json(false)) continue;
      return header_.unsupported(name,
                                 fmt::format("is {}, which is not supported", describe(value)));
    }
    if (pair->config != nullptr) config_[pair->config] = as_json;
  }
  return ok_status();
}

// Files with these tensors name no type.
Status Translation::add_longrope() {
  json scaling = {{"rope_type", "longrope"}};
  for (const auto& [name, key] :
       {std::pair(kShortFactors, "short_factor"), std::pair(kLongFactors, "long_factor")}) {
    const auto found = header_.tensors().find(name);
    if (found == header_.tensors().end()) return header_.invalid(name, "is missing");
    const FileTensor& tensor = found->second;
    if (tensor.dtype != DType::f32 || tensor.shape.size() != 1)
      return header_.invalid(name,
                             fmt::format("is {}, must be a vector of F32", kivi::describe(tensor)));
    std::vector<float> factors(size_t(tensor.shape[0]));
    std::memcpy(factors.data(), tensor.data, tensor.bytes);
    scaling[key] = factors;
  }
  if (const GgufValue* trained = header_.find(key("rope.scaling.original_context_length")))
    scaling["original_max_position_embeddings"] = to_json(*trained);
  if (const GgufValue* factor = header_.find(key("rope.scaling.attn_factor")))
    scaling["attention_factor"] = to_json(*factor);
  config_["rope_scaling"] = scaling;
  return ok_status();
}

Status Translation::add_scaling() {
  if (has_tensor(kShortFactors) || has_tensor(kLongFactors)) return add_longrope();
  KIVI_ASSIGN_OR_RETURN(const std::optional<std::string> type,
                        header_.string(key("rope.scaling.type")));
  const GgufValue* factor = header_.find(key("rope.scaling.factor"));
  const GgufValue* older = header_.find(key("rope.scale_linear"));
  if (!type) {  // llama.cpp: linear, by either key; a factor of 0 is none
    const GgufValue* given = factor != nullptr ? factor : older;
    if (given != nullptr && to_json(*given) != json(1.0) && to_json(*given) != json(0.0))
      config_["rope_scaling"] = {{"rope_type", "linear"}, {"factor", to_json(*given)}};
    return ok_status();
  }
  if (*type == "none") return ok_status();
  json scaling = {{"rope_type", *type}};
  if (factor != nullptr) scaling["factor"] = to_json(*factor);
  if (const GgufValue* trained = header_.find(key("rope.scaling.original_context_length")))
    scaling["original_max_position_embeddings"] = to_json(*trained);
  config_["rope_scaling"] = scaling;
  return ok_status();
}

Status Translation::add_rope() {
  KIVI_RETURN_IF_ERROR(add_scaling());
  KIVI_ASSIGN_OR_RETURN(const auto hidden, header_.integer(key("embedding_length")));
  KIVI_ASSIGN_OR_RETURN(const auto heads, header_.integer(key("attention.head_count")));
  KIVI_ASSIGN_OR_RETURN(const auto given, header_.integer(key("attention.key_length")));
  const int64_t size = given.value_or(hidden.value_or(0) / std::max<int64_t>(heads.value_or(1), 1));
  for (const char* name : {"attention.value_length", "rope.dimension_count"}) {
    KIVI_ASSIGN_OR_RETURN(const auto length, header_.integer(key(name)));
    const bool partial =
        architecture_ == "phi3" && name == std::string_view("rope.dimension_count");
    if (partial && length && *length > 0 && *length < size) {
      // So that the product with the size, rounded down, is the length.
      config_["partial_rotary_factor"] = (double(*length) + 0.5) / double(size);
      continue;
    }
    if (length && *length != size)
      return header_.unsupported(key(name),
                                 fmt::format("is {}, must be the head size, {}", *length, size));
  }
  return ok_status();
}

// All ids that end a turn.
Status Translation::add_token_ids() {
  json ids = json::array();
  for (const char* name : {"eos", "eot", "eom"}) {
    KIVI_ASSIGN_OR_RETURN(const auto id,
                          header_.integer(fmt::format("tokenizer.ggml.{}_token_id", name)));
    if (id && std::find(ids.begin(), ids.end(), json(*id)) == ids.end()) ids.push_back(*id);
  }
  if (!ids.empty()) config_["eos_token_id"] = ids;
  return ok_status();
}

void Translation::make_llama() {
  const bool window = config_.contains("sliding_window");
  config_["architectures"] = {window ? "MistralForCausalLM" : "LlamaForCausalLM"};
  config_["attention_bias"] = has_tensor("blk.0.attn_q.bias");
  config_["mlp_bias"] = has_tensor("blk.0.ffn_gate.bias");
  names_.rotary_pairs = true;
}

void Translation::make_qwen2() { config_["architectures"] = {"Qwen2ForCausalLM"}; }

void Translation::make_qwen3() {
  config_["architectures"] = {"Qwen3ForCausalLM"};
  config_["attention_bias"] = has_tensor("blk.0.attn_q.bias");
  names_.q_norm = "attn_q_norm";
  names_.k_norm = "attn_k_norm";
}

void Translation::make_phi3() {
  config_["architectures"] = {"Phi3ForCausalLM"};
  if (config_.value("sliding_window", json()) == json(0)) config_.erase("sliding_window");
  names_.qkv = {"attn_qkv"};
  names_.up = {"ffn_up"};
}

// Its converters put the q heads, then k, then v. Where there are two norms attn_norm is the MLP's.
void Translation::make_falcon() {
  const bool two_norms = has_tensor("blk.0.attn_norm_2.weight");
  config_["architectures"] = {"FalconForCausalLM"};
  config_["new_decoder_architecture"] = true;  // so that the number of KV heads counts
  config_["num_ln_in_parallel_attn"] = two_norms ? 2 : 1;
  if (config_.contains("num_key_value_heads"))
    config_["num_kv_heads"] = config_["num_key_value_heads"];
  if (config_.contains("intermediate_size"))
    config_["ffn_hidden_size"] = config_["intermediate_size"];
  config_["bias"] = has_tensor("blk.0.attn_qkv.bias");
  names_.attention_norm = two_norms ? "attn_norm_2" : "attn_norm";
  names_.mlp_norm = "attn_norm";
  names_.qkv = {"attn_qkv"};
  names_.up = {"ffn_up"};
}

Status Translation::read_rope_factors(RopeSpec& rope) const {
  const auto found = header_.tensors().find(kRopeFactors);
  if (found == header_.tensors().end()) return ok_status();
  const FileTensor& tensor = found->second;
  if (tensor.dtype != DType::f32 || tensor.shape != std::vector<int64_t>{rope.rotary_dim / 2})
    return header_.invalid(kRopeFactors, fmt::format("is {}, must be [{}] F32",
                                                     kivi::describe(tensor), rope.rotary_dim / 2));
  rope.divisors.resize(size_t(rope.rotary_dim / 2));
  std::memcpy(rope.divisors.data(), tensor.data, tensor.bytes);
  for (const float divisor : rope.divisors)
    if (!(divisor > 0 && divisor < 1e6f))
      return header_.invalid(kRopeFactors, fmt::format("holds {}, must be larger than 0", divisor));
  return ok_status();
}

const std::array<Translation::Maker, 5> Translation::kMakers = {
    Maker{"llama", &Translation::make_llama},   Maker{"qwen2", &Translation::make_qwen2},
    Maker{"qwen3", &Translation::make_qwen3},   Maker{"phi3", &Translation::make_phi3},
    Maker{"falcon", &Translation::make_falcon},
};

Result<ModelConfig> Translation::run() {
  KIVI_RETURN_IF_ERROR(check_whole());
  KIVI_ASSIGN_OR_RETURN(const std::optional<std::string> name,
                        header_.string("general.architecture"));
  architecture_ = name.value_or("");
  const auto maker = std::find_if(kMakers.begin(), kMakers.end(),
                                  [&](const Maker& m) { return m.architecture == architecture_; });
  if (maker == kMakers.end())
    return header_.unsupported(
        "general.architecture",
        fmt::format("is '{}', supported are llama, qwen2, qwen3, phi3 and falcon", architecture_));
  KIVI_RETURN_IF_ERROR(copy_keys());
  KIVI_RETURN_IF_ERROR(add_rope());
  KIVI_RETURN_IF_ERROR(add_token_ids());
  (this->*maker->make)();
  const auto embedding = header_.tensors().find(names_.embedding + ".weight");
  if (embedding == header_.tensors().end() || embedding->second.shape.size() != 2)
    return header_.invalid("token_embd.weight", "is missing, or no matrix");
  config_["vocab_size"] = embedding->second.shape[0];
  config_["tie_word_embeddings"] = !has_tensor(names_.head + ".weight");

  std::set<std::string_view> types;
  for (const auto& [tensor_name, tensor] : header_.tensors())
    if (tensor.shape.size() > 1) types.insert(tensor.dtype_name);
  config_["dtype"] = "float16";
  if (types == std::set<std::string_view>{"F32"}) config_["dtype"] = "float32";
  if (types == std::set<std::string_view>{"BF16"}) config_["dtype"] = "bfloat16";

  KIVI_ASSIGN_OR_RETURN(ModelConfig model,
                        model_config_of(header_.file() + ": metadata as config.json", config_));
  KIVI_RETURN_IF_ERROR(read_rope_factors(model.spec.rope));
  model.names = names_;
  for (const auto& [tensor_name, tensor] : header_.tensors())
    if (tensor.format.kind != WeightKind::plain && tensor.shape.size() == 2)
      model.formats[tensor_name] = tensor.format;
  return model;
}

}  // namespace

Result<ModelConfig> read_gguf_config(const GgufHeader& header) { return Translation(header).run(); }

Checkpoint checkpoint_of(GgufFile file) {
  TensorMap tensors = file.header.tensors();
  for (const char* name : {kRopeFactors, kShortFactors, kLongFactors}) tensors.erase(name);
  std::vector<MappedFile> files;
  files.push_back(std::move(file.file));
  return Checkpoint(file.header.file(), std::move(files), std::move(tensors));
}

}  // namespace kivi
