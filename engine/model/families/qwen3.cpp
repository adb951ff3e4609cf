// SPDX-License-Identifier: Apache-2.0
// Qwen3 (dense): Qwen2 whose heads of q and k are normed before they turn. It has no biases unless
// attention_bias asks for them, and its head_dim is a size of its own (Transformers'
// modeling_qwen3).
#include "engine/model/families/registry.h"

namespace kivi {

DecoderSpec read_qwen3(JsonReader& config) {
  DecoderSpec spec = read_qwen2(config);
  // Transformers takes 128 if it is absent, and not hidden_size / num_attention_heads.
  if (!config.has("head_dim")) config.reject("head_dim", "must be given for Qwen3");
  spec.qkv_bias = spec.output_bias = config.boolean_or("attention_bias", false);
  spec.qk_norm = true;
  return spec;
}

TensorNames qwen3_names(const DecoderSpec& spec) {
  TensorNames names = llama_names(spec);
  names.q_norm = "self_attn.q_norm";
  names.k_norm = "self_attn.k_norm";
  return names;
}

}  // namespace kivi
