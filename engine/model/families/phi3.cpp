// SPDX-License-Identifier: Apache-2.0
// Phi-3, Phi-3.5 and Phi-4 (mini and 14B): Llama with q|k|v and gate|up in one matrix each, often
// with longrope, and in Phi-4-mini with a part of each head that does not turn (Abdin et al. 2024;
// Transformers' modeling_phi3).
#include "engine/model/families/registry.h"

namespace kivi {

DecoderSpec read_phi3(JsonReader& config) {
  DecoderSpec spec = read_llama(config);
  spec.norm_eps = config.number_or("rms_norm_eps", 1e-5, 0, 1);
  spec.qkv_bias = spec.output_bias = spec.mlp_bias = false;
  if (config.has("sliding_window"))
    spec.sliding_window = config.integer("sliding_window", 1, 1 << 24);
  if (spec.rope.scaling != RopeScaling::none && spec.rope.scaling != RopeScaling::longrope)
    config.reject(config.has("rope_scaling") ? "rope_scaling" : "rope_parameters",
                  "of type longrope is the only scaling of Phi-3", ErrorCode::unsupported);
  return spec;
}

TensorNames phi3_names(const DecoderSpec& spec) {
  TensorNames names = llama_names(spec);
  names.qkv = {"self_attn.qkv_proj"};
  names.up = {"mlp.gate_up_proj"};
  return names;
}

}  // namespace kivi
