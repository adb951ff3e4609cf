// SPDX-License-Identifier: Apache-2.0
// Mistral: Llama with a sliding window (Jiang et al. 2023; Transformers' modeling_mistral). The
// window counts the token itself: a query at p attends (p - window, p]. v0.2 and later have none
// (null); a config that does not mention it has Transformers' default. Ministral may have the
// window in some layers only (Transformers' modeling_ministral).
#include <algorithm>

#include "engine/model/families/registry.h"

namespace kivi {

namespace {

int read_window(JsonReader& config) {
  if (config.has("sliding_window")) return config.integer("sliding_window", 1, 1 << 24);
  return config.is_null("sliding_window") ? 0 : 4096;
}

// Neither has biases, whatever attention_bias and mlp_bias say.
DecoderSpec read_without_biases(JsonReader& config) {
  DecoderSpec spec = read_llama(config);
  spec.qkv_bias = spec.output_bias = spec.mlp_bias = false;
  return spec;
}

}  // namespace

DecoderSpec read_mistral(JsonReader& config) {
  DecoderSpec spec = read_without_biases(config);
  spec.sliding_window = read_window(config);
  // Transformers' Mistral has the window in all layers and ignores layer_types, whose author meant
  // something else.
  const std::vector<std::string> types = config.strings("layer_types");
  const char* const kind = spec.sliding_window > 0 ? "sliding_attention" : "full_attention";
  if (std::ranges::any_of(types, [&](const std::string& type) { return type != kind; }))
    config.reject("layer_types",
                  "layers of a MistralForCausalLM are of one kind, those of a "
                  "MinistralForCausalLM may differ",
                  ErrorCode::unsupported);
  return spec;
}

DecoderSpec read_ministral(JsonReader& config) {
  DecoderSpec spec = read_without_biases(config);
  set_windows(config, read_window(config), 0, spec);
  return spec;
}

}  // namespace kivi
