// SPDX-License-Identifier: Apache-2.0
#include "engine/model/families/registry.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace kivi {

namespace {

constexpr std::array kFamilies = {
    ModelFamily{"LlamaForCausalLM", read_llama, llama_names},
    ModelFamily{"MistralForCausalLM", read_mistral, llama_names},
    ModelFamily{"MinistralForCausalLM", read_ministral, llama_names},
    ModelFamily{"Qwen2ForCausalLM", read_qwen2, llama_names},
    ModelFamily{"Qwen3ForCausalLM", read_qwen3, qwen3_names},
    ModelFamily{"Phi3ForCausalLM", read_phi3, phi3_names},
    ModelFamily{"FalconForCausalLM", read_falcon, falcon_names},
};

}  // namespace

void set_windows(JsonReader& config, int window, int first, DecoderSpec& spec) {
  const std::vector<std::string> types = config.strings("layer_types");
  if (!types.empty() && types.size() != size_t(spec.layers))
    config.reject("layer_types", fmt::format("must have {} entries", spec.layers));
  for (const std::string& type : types)
    if (type != "full_attention" && type != "sliding_attention")
      config.reject("layer_types", "supported are full_attention and sliding_attention",
                    ErrorCode::unsupported);
  if (window == 0 || !config.status().ok()) return;
  std::vector<bool> windowed(size_t(spec.layers), false);
  for (size_t i = 0; i < windowed.size(); ++i)
    windowed[i] = types.empty() ? int(i) >= first : types[i] == "sliding_attention";
  const auto count = std::count(windowed.begin(), windowed.end(), true);
  if (count > 0) spec.sliding_window = window;
  if (count > 0 && count < spec.layers) spec.windowed = std::move(windowed);
}

const ModelFamily* find_model_family(std::string_view architecture) {
  for (const ModelFamily& family : kFamilies)
    if (family.architecture == architecture) return &family;
  return nullptr;
}

std::string supported_architectures() {
  std::string names;
  for (const ModelFamily& family : kFamilies)
    names += (names.empty() ? "" : ", ") + std::string(family.architecture);
  return names;
}

}  // namespace kivi
