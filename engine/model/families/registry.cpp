// SPDX-License-Identifier: Apache-2.0
#include "engine/model/families/registry.h"

#include <array>

namespace kivi {

namespace {

constexpr std::array kFamilies = {
    ModelFamily{"LlamaForCausalLM", read_llama, llama_names},
    ModelFamily{"MistralForCausalLM", read_mistral, llama_names},
    ModelFamily{"Qwen2ForCausalLM", read_qwen2, llama_names},
    ModelFamily{"Qwen3ForCausalLM", read_qwen3, qwen3_names},
    ModelFamily{"FalconForCausalLM", read_falcon, falcon_names},
};

}  // namespace

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
