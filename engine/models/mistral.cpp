// Mistral: Llama with a sliding window (Jiang et al. 2023; Transformers' modeling_mistral). The
// window counts the token itself: a query at p attends (p - window, p].
#include "engine/models/registry.h"

namespace kivi {

DecoderSpec read_mistral(JsonReader& config) {
  DecoderSpec spec = read_llama(config);
  spec.sliding_window = config.integer_or("sliding_window", 0, 1, 1 << 24);
  return spec;
}

}  // namespace kivi
