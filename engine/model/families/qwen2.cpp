// SPDX-License-Identifier: Apache-2.0
// Qwen2 and Qwen2.5: Llama with biases on q, k and v (Transformers' modeling_qwen2).
#include <fmt/format.h>

#include <algorithm>

#include "engine/model/families/registry.h"

namespace kivi {

namespace {

// The window, where use_sliding_window is true, holds from layer max_window_layers on, unless
// layer_types says which layers have it.
int read_window(JsonReader& config, int layers) {
  if (!config.boolean_or("use_sliding_window", false)) return 0;
  if (config.is_null("sliding_window")) return 0;  // no window, though one was asked for
  const int window = config.integer_or("sliding_window", 4096, 1, 1 << 24);
  const auto types = config.strings("layer_types");
  const int sliding =
      types.empty()
          ? layers - std::min(layers, config.integer_or("max_window_layers", 28, 0, 1 << 20))
          : int(std::count(types.begin(), types.end(), "sliding_attention"));
  if (sliding == 0) return 0;
  if (sliding != layers)
    config.reject("use_sliding_window",
                  fmt::format("but the window must hold in all {} layers or in none (here {})",
                              layers, sliding),
                  ErrorCode::unsupported);
  return window;
}

}  // namespace

DecoderSpec read_qwen2(JsonReader& config) {
  DecoderSpec spec = read_llama(config);
  spec.qkv_bias = true;
  spec.output_bias = false;
  spec.mlp_bias = false;
  spec.sliding_window = read_window(config, spec.layers);
  return spec;
}

}  // namespace kivi
