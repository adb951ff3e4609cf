// SPDX-License-Identifier: Apache-2.0
// Falcon 7B, 40B and Falcon 2: layer norms, attention and MLP in parallel, one or few KV heads, one
// fused q|k|v matrix, plain GELU (Almazrouei et al. 2023; Transformers' modeling_falcon).
#include "engine/model/families/registry.h"
#include "engine/model/model_config.h"
#include "engine/model/rope_scaling.h"

namespace kivi {

DecoderSpec read_falcon(JsonReader& config) {
  DecoderSpec spec;
  read_sizes(config, spec);
  spec.norm = NormKind::layer;
  spec.norm_eps = config.number_or("layer_norm_epsilon", 1e-5, 0, 1);
  if (config.boolean_or("alibi", false))
    config.reject("alibi", "only rotary embeddings are supported (alibi false)",
                  ErrorCode::unsupported);

  const bool newer = config.boolean_or("new_decoder_architecture", false);
  // num_kv_heads counts only in the newer architecture; before it, multi_query means one KV head.
  if (newer)
    spec.heads_kv = config.integer_or("num_kv_heads", spec.heads_q, 1, spec.heads_q);
  else
    spec.heads_kv = config.boolean_or("multi_query", true) ? 1 : spec.heads_q;
  if (spec.heads_q % spec.heads_kv != 0)
    config.reject("num_kv_heads", "must divide num_attention_heads");

  spec.parallel_attention = newer || config.boolean_or("parallel_attn", true);
  spec.norms_per_layer = 2;
  if (spec.parallel_attention)
    spec.norms_per_layer = config.integer_or("num_ln_in_parallel_attn", newer ? 2 : 1, 1, 2);
  if (spec.parallel_attention && !newer && spec.norms_per_layer == 2)
    config.reject("num_ln_in_parallel_attn", "must be 1 where new_decoder_architecture is false",
                  ErrorCode::unsupported);

  spec.tied_embeddings = config.boolean_or("tie_word_embeddings", true);
  spec.gated = false;
  spec.intermediate = config.integer_or("ffn_hidden_size", 4 * spec.hidden, 1, 1 << 20);
  spec.activation = read_activation(config, "activation", "gelu");
  const bool bias = config.boolean_or("bias", false);
  spec.qkv_bias = bias;
  spec.output_bias = bias;
  spec.mlp_bias = bias;
  read_rope(config, spec);
  return spec;
}

TensorNames falcon_names(const DecoderSpec& spec) {
  const bool two_parallel_norms = spec.parallel_attention && spec.norms_per_layer == 2;
  return {
      .embedding = "transformer.word_embeddings",
      .final_norm = "transformer.ln_f",
      .head = "lm_head",
      .layers = "transformer.h.",
      .attention_norm = two_parallel_norms ? "ln_attn" : "input_layernorm",
      .mlp_norm = two_parallel_norms ? "ln_mlp" : "post_attention_layernorm",
      .qkv = {"self_attention.query_key_value"},
      .qkv_order = QkvOrder::groups,
      .output = "self_attention.dense",
      .up = {"mlp.dense_h_to_4h"},
      .down = "mlp.dense_4h_to_h",
  };
}

}  // namespace kivi
