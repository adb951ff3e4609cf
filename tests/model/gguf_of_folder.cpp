// SPDX-License-Identifier: Apache-2.0
#include "tests/model/gguf_of_folder.h"

#include <bit>
#include <cstring>
#include <filesystem>

#include "engine/model/weights.h"
#include "kernels/half.h"
#include "tests/model/tales.h"

namespace kivi {

namespace {

using nlohmann::json;

// The elements of a tensor as `type` (0: F32, 1: F16, 30: BF16), rows in the order of `rows`.
std::string converted(const FileTensor& tensor, uint32_t type, const std::vector<size_t>& rows) {
  const size_t element = size_of(*tensor.dtype);
  const size_t row_size = tensor.bytes / element / rows.size();
  std::string out;
  for (const size_t row : rows)
    for (size_t i = 0; i < row_size; ++i) {
      uint32_t bits = 0;
      std::memcpy(&bits, tensor.data + (row * row_size + i) * element, element);
      const float x = tensor.dtype == DType::f32   ? std::bit_cast<float>(bits)
                      : tensor.dtype == DType::f16 ? to_float(f16{uint16_t(bits)})
                                                   : to_float(bf16{uint16_t(bits)});
      if (type == 0) out += GgufWriter::raw(x);
      if (type == 1) out += GgufWriter::raw(to_f16(x).bits);
      if (type == 30) out += GgufWriter::raw(to_bf16(x).bits);
    }
  return out;
}

// How a tensor's rows are reordered.
enum class Order { kept, q, k, falcon };

bool is_falcon(const json& config) { return config["model_type"] == "falcon"; }
size_t heads_of(const json& config) { return config["num_attention_heads"]; }
size_t kv_heads_of(const json& config) {
  if (!is_falcon(config)) return config.value("num_key_value_heads", heads_of(config));
  if (config["new_decoder_architecture"]) return config["num_kv_heads"];
  return config["multi_query"] ? size_t(1) : heads_of(config);
}

// q and k of llama: of each head (i, i + d / 2) for every i. Falcon's q|k|v: its groups (of each KV
// head its q heads, k, v) become all q, all k, all v.
std::vector<size_t> row_order(size_t rows, Order order, const json& config) {
  std::vector<size_t> from;
  const size_t heads = heads_of(config), kv = kv_heads_of(config), per_kv = heads / kv;
  if (order == Order::falcon) {
    const size_t d = rows / (heads + 2 * kv);
    const auto head = [&](size_t group, size_t place) {
      for (size_t i = 0; i < d; ++i) from.push_back((group * (per_kv + 2) + place) * d + i);
    };
    for (size_t i = 0; i < heads; ++i) head(i / per_kv, i % per_kv);
    for (size_t place : {per_kv, per_kv + 1})
      for (size_t group = 0; group < kv; ++group) head(group, place);
  } else if (order != Order::kept &&
             (config["model_type"] == "llama" || config["model_type"] == "mistral")) {
    const size_t count = order == Order::q ? heads : kv, d = rows / count;
    for (size_t head = 0; head < count; ++head)
      for (size_t i = 0; i < d / 2; ++i)
        for (const size_t half : {0, 1}) from.push_back(head * d + half * (d / 2) + i);
  } else {
    for (size_t row = 0; row < rows; ++row) from.push_back(row);
  }
  return from;
}

// Names of a layer's tensors in the folder and in GGUF.
struct Renamed {
  const char* folder;
  const char* gguf;
  Order order = Order::kept;
};
constexpr Renamed kLlamaTensors[] = {
    {"input_layernorm", "attn_norm"},
    {"self_attn.q_proj", "attn_q", Order::q},
    {"self_attn.k_proj", "attn_k", Order::k},
    {"self_attn.v_proj", "attn_v"},
    {"self_attn.qkv_proj", "attn_qkv"},
    {"self_attn.q_norm", "attn_q_norm"},
    {"self_attn.k_norm", "attn_k_norm"},
    {"self_attn.o_proj", "attn_output"},
    {"post_attention_layernorm", "ffn_norm"},
    {"mlp.gate_proj", "ffn_gate"},
    {"mlp.up_proj", "ffn_up"},
    {"mlp.gate_up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},
};
constexpr Renamed kFalconTensors[] = {
    {"input_layernorm", "attn_norm"},
    {"ln_attn", "attn_norm_2"},
    {"ln_mlp", "attn_norm"},
    {"self_attention.query_key_value", "attn_qkv", Order::falcon},
    {"self_attention.dense", "attn_output"},
    {"mlp.dense_h_to_4h", "ffn_up"},
    {"mlp.dense_4h_to_h", "ffn_down"},
};

void add_tensors(GgufWriter& writer, const std::string& folder, const json& config, uint32_t type) {
  const auto from = Checkpoint::open(folder);
  REQUIRE(from.ok());
  const bool falcon = is_falcon(config);
  const auto rename = [&](const std::string& old_name, const std::string& name, Order order) {
    for (const char* suffix : {".weight", ".bias"}) {
      const auto found = from->tensors().find(old_name + suffix);
      if (found == from->tensors().end()) continue;
      const FileTensor& tensor = found->second;
      const std::vector<uint64_t> shape(tensor.shape.begin(), tensor.shape.end());
      const uint32_t own = shape.size() == 1 ? 0 : type;  // vectors stay F32
      writer.tensor(name + suffix, own, shape,
                    converted(tensor, own, row_order(shape[0], order, config)));
    }
  };
  rename(falcon ? "transformer.word_embeddings" : "model.embed_tokens", "token_embd", Order::kept);
  rename(falcon ? "transformer.ln_f" : "model.norm", "output_norm", Order::kept);
  rename("lm_head", "output", Order::kept);
  for (int i = 0; i < config["num_hidden_layers"]; ++i) {
    const auto in_layer = [&](const Renamed& t) {
      rename(fmt::format("{}.{}.{}", falcon ? "transformer.h" : "model.layers", i, t.folder),
             fmt::format("blk.{}.{}", i, t.gguf), t.order);
    };
    if (falcon) std::for_each(std::begin(kFalconTensors), std::end(kFalconTensors), in_layer);
    if (!falcon) std::for_each(std::begin(kLlamaTensors), std::end(kLlamaTensors), in_layer);
  }
}

// As Phi-3's files have it: 0 for no window, longrope's factors in tensors.
void add_phi3(GgufWriter& writer, const json& config, const json& rope) {
  const json window = config.value("sliding_window", json());
  writer.u32("phi3.attention.sliding_window", window.is_null() ? 0 : window.get<uint32_t>());
  const json& scaling = config.contains("rope_scaling") ? config["rope_scaling"] : rope;
  writer.u32("phi3.rope.scaling.original_context_length",
             config["original_max_position_embeddings"].get<uint32_t>());
  const double size = config["hidden_size"].get<double>() / double(heads_of(config));
  writer.u32("phi3.rope.dimension_count",
             uint32_t(size * rope.value("partial_rotary_factor", 1.0)));
  for (const char* kind : {"short", "long"}) {
    const auto factors = scaling[std::string(kind) + "_factor"].get<std::vector<float>>();
    std::string bytes;
    for (const float factor : factors) bytes += GgufWriter::raw(factor);
    writer.tensor(std::string("rope_factors_") + kind + ".weight", 0, {factors.size()}, bytes);
  }
}

void add_sizes(GgufWriter& writer, const json& config) {
  const bool falcon = is_falcon(config);
  const std::string name =
      config["model_type"] == "mistral" ? "llama" : config["model_type"].get<std::string>();
  const auto u32 = [&](const char* key, const char* from) {
    if (config.contains(from) && !config[from].is_null())
      writer.u32(name + "." + key, config[from].get<uint32_t>());
  };
  writer.string("general.architecture", name);
  u32("block_count", "num_hidden_layers");
  u32("context_length", "max_position_embeddings");
  u32("embedding_length", "hidden_size");
  u32("feed_forward_length", falcon ? "ffn_hidden_size" : "intermediate_size");
  u32("vocab_size", "vocab_size");
  writer.u32(name + ".attention.head_count", uint32_t(heads_of(config)));
  writer.u32(name + ".attention.head_count_kv", uint32_t(kv_heads_of(config)));
  if (falcon) {
    writer.string(name + ".tensor_data_layout", "jploski");
    writer.f32(name + ".attention.layer_norm_epsilon", config["layer_norm_epsilon"].get<float>());
  } else {
    writer.f32(name + ".attention.layer_norm_rms_epsilon", config["rms_norm_eps"].get<float>());
    u32("rope.dimension_count", "head_dim");
    u32("attention.key_length", "head_dim");
    u32("attention.value_length", "head_dim");
  }
  if (config["model_type"] == "mistral") u32("attention.sliding_window", "sliding_window");
  const json& rope = config.contains("rope_parameters") ? config["rope_parameters"] : config;
  writer.f32(name + ".rope.freq_base", rope.value("rope_theta", 10000.f));
  if (config["model_type"] == "phi3") add_phi3(writer, config, rope);
}

// The pieces of a tokenizer.model (a protobuf message; field 1 is a piece: 1 name, 2 score, 3
// type).
void add_sentencepiece(GgufWriter& writer, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string model(std::istreambuf_iterator<char>(file), {});
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<int32_t> types;
  size_t at = 0;
  const auto varint = [&] {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<unsigned char>(model.at(at++));
      value |= uint64_t(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < model.size() && model[at] == 0x0A) {
    ++at;
    const size_t end = varint() + at;
    tokens.emplace_back();
    scores.push_back(0);
    types.push_back(1);
    while (at < end) {
      const uint64_t tag = varint();
      if (tag == 10) {
        const size_t length = varint();
        tokens.back() = model.substr(at, length);
        at += length;
      } else if (tag == 21) {
        std::memcpy(&scores.back(), model.data() + at, 4);
        at += 4;
      } else {
        REQUIRE(tag == 24);
        types.back() = int32_t(varint());
      }
    }
  }
  writer.string("tokenizer.ggml.model", "llama");
  writer.string("tokenizer.ggml.pre", "default");
  writer.strings("tokenizer.ggml.tokens", tokens);
  writer.f32s("tokenizer.ggml.scores", scores);
  writer.i32s("tokenizer.ggml.token_type", types);
  writer.u32("tokenizer.ggml.bos_token_id", 1);
  writer.u32("tokenizer.ggml.eos_token_id", 2);
  writer.u32("tokenizer.ggml.unknown_token_id", 0);
}

void add_bpe(GgufWriter& writer, const json& tokenizer) {
  const json& vocab = tokenizer["model"]["vocab"];
  std::vector<std::string> tokens(vocab.size()), merges;
  std::vector<int32_t> types(vocab.size(), 1);
  for (const auto& [token, id] : vocab.items()) tokens.at(id.get<size_t>()) = token;
  for (const json& token : tokenizer.value("added_tokens", json::array()))
    types.at(token["id"].get<size_t>()) = 3;
  for (const json& merge : tokenizer["model"]["merges"])
    merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  writer.string("tokenizer.ggml.model", "gpt2");
  writer.string("tokenizer.ggml.pre", "falcon");
  writer.strings("tokenizer.ggml.tokens", tokens);
  writer.i32s("tokenizer.ggml.token_type", types);
  writer.strings("tokenizer.ggml.merges", merges);
  writer.u32("tokenizer.ggml.eos_token_id", 0);
}

}  // namespace

GgufWriter gguf_of(const std::string& folder, uint32_t type) {
  const json config = read_json(folder + "/config.json");
  GgufWriter writer;
  add_sizes(writer, config);
  if (std::filesystem::exists(folder + "/tokenizer.model"))
    add_sentencepiece(writer, folder + "/tokenizer.model");
  else
    add_bpe(writer, read_json(folder + "/tokenizer.json"));
  add_tensors(writer, folder, config, type);
  return writer;
}

}  // namespace kivi
