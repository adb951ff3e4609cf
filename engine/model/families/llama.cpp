// SPDX-License-Identifier: Apache-2.0
// Llama 1-3 and models of its shape: RMS norm, rotary embedding, grouped queries, gated SiLU
// (Touvron et al. 2023; Transformers' modeling_llama).
#include "engine/model/families/registry.h"
#include "engine/model/model_config.h"
#include "engine/model/rope_scaling.h"

namespace kivi {

DecoderSpec read_llama(JsonReader& config) {
  DecoderSpec spec;
  read_sizes(config, spec);
  spec.norm = NormKind::rms;
  spec.norm_eps = config.number_or("rms_norm_eps", 1e-6, 0, 1);
  spec.activation = read_activation(config, "hidden_act", "silu");
  const bool attention_bias = config.boolean_or("attention_bias", false);
  spec.qkv_bias = attention_bias;
  spec.output_bias = attention_bias;
  spec.mlp_bias = config.boolean_or("mlp_bias", false);
  read_rope(config, spec);
  return spec;
}

TensorNames llama_names(const DecoderSpec&) {
  return {
      .embedding = "model.embed_tokens",
      .final_norm = "model.norm",
      .head = "lm_head",
      .layers = "model.layers.",
      .attention_norm = "input_layernorm",
      .mlp_norm = "post_attention_layernorm",
      .qkv = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
      .output = "self_attn.o_proj",
      .up = {"mlp.gate_proj", "mlp.up_proj"},
      .down = "mlp.down_proj",
  };
}

}  // namespace kivi
