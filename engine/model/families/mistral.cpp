// SPDX-License-Identifier: Apache-2.0
// Mistral: Llama with a sliding window (Jiang et al. 2023; Transformers' modeling_mistral). The
// window counts the token itself: a query at p attends (p - window, p]. v0.2 and later have none
// (null); a config that does not mention it has Transformers' default.
#include "engine/model/families/registry.h"

namespace kivi {

DecoderSpec read_mistral(JsonReader& config) {
  DecoderSpec spec = read_llama(config);
  // Transformers' Mistral has no biases, whatever attention_bias and mlp_bias say.
  spec.qkv_bias = spec.output_bias = spec.mlp_bias = false;
  if (config.has("sliding_window"))
    spec.sliding_window = config.integer("sliding_window", 1, 1 << 24);
  else if (!config.is_null("sliding_window"))
    spec.sliding_window = 4096;
  return spec;
}

}  // namespace kivi
