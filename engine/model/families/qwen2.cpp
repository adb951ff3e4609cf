// SPDX-License-Identifier: Apache-2.0
// Qwen2 and Qwen2.5: Llama with biases on q, k and v (Transformers' modeling_qwen2). The window,
// where use_sliding_window is true, holds from layer max_window_layers on, unless layer_types says
// which layers have it.
#include "engine/model/families/registry.h"

namespace kivi {

DecoderSpec read_qwen2(JsonReader& config) {
  DecoderSpec spec = read_llama(config);
  spec.qkv_bias = true;
  spec.output_bias = false;
  spec.mlp_bias = false;
  int window = 0;
  // null is no window, though one was asked for.
  if (config.boolean_or("use_sliding_window", false) && !config.is_null("sliding_window"))
    window = config.integer_or("sliding_window", 4096, 1, 1 << 24);
  const int first = config.integer_or("max_window_layers", 28, 0, 1 << 20);
  set_windows(config, window, first, spec);
  return spec;
}

}  // namespace kivi
