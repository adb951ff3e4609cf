// SPDX-License-Identifier: Apache-2.0
// The model families: one row of a table each. To add one, write engine/model/families/<family>.cpp
// (spec from config.json, tensor names), declare its two functions here and add its row in
// registry.cpp.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/json_file.h"
#include "engine/model/decoder_spec.h"

namespace kivi {

// How the rows of a fused q|k|v matrix are ordered in the checkpoint.
//   heads:  all q heads, all k heads, all v heads (what the kernels take)
//   groups: for each KV head its hq / hk q heads, its k head, its v head (Falcon's newer models)
enum class QkvOrder { heads, groups };

// Where a checkpoint keeps what. Names are without ".weight" and ".bias"; those of a layer follow
// `layers` + index + ".". Several names are stacked by rows into one matrix.
struct TensorNames {
  std::string embedding;
  std::string final_norm;
  std::string head;    // absent from the checkpoint where embeddings are tied
  std::string layers;  // "model.layers."
  std::string attention_norm;
  std::string mlp_norm;  // unused where a layer has one norm
  std::vector<std::string> qkv;
  QkvOrder qkv_order = QkvOrder::heads;
  // The channels of each head of q and k stand as the pairs that turn together, (0, d/2), (1, d/2 +
  // 1), ...: GGUF files of Llama. Needs three matrices in `qkv`.
  bool rotary_pairs = false;
  std::string q_norm, k_norm;  // unused where heads are not normed
  std::string output;
  std::vector<std::string> up;  // gate, up; or up alone; or one that holds both, gate first
  std::string down;
};

struct ModelFamily {
  std::string_view architecture;  // config.json's architectures[0]
  // Mistakes are recorded in the reader.
  DecoderSpec (*read)(JsonReader& config);
  TensorNames (*names)(const DecoderSpec& spec);
};

// nullptr where there is none.
const ModelFamily* find_model_family(std::string_view architecture);
// "LlamaForCausalLM, MistralForCausalLM, ..."
std::string supported_architectures();

// For families whose layers may differ in their window (Qwen2, Qwen3, Ministral): the layers that
// layer_types calls sliding_attention have `window`, or, if it is absent, those from `first` on. A
// window of 0 is none.
void set_windows(JsonReader& config, int window, int first, DecoderSpec& spec);

DecoderSpec read_llama(JsonReader& config);
TensorNames llama_names(const DecoderSpec& spec);
DecoderSpec read_mistral(JsonReader& config);  // its tensors are called as Llama's
DecoderSpec read_ministral(JsonReader& config);
DecoderSpec read_qwen2(JsonReader& config);  // and so are these
DecoderSpec read_qwen3(JsonReader& config);
TensorNames qwen3_names(const DecoderSpec& spec);
DecoderSpec read_phi3(JsonReader& config);
TensorNames phi3_names(const DecoderSpec& spec);
DecoderSpec read_falcon(JsonReader& config);
TensorNames falcon_names(const DecoderSpec& spec);

}  // namespace kivi
