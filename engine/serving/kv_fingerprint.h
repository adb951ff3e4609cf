// SPDX-License-Identifier: Apache-2.0
// What the bytes of a page depend on, besides tokens: pages on disk outlive the process, and must
// never meet another model, another format or another way to compute.
#pragma once

#include <string>

#include "base/result.h"
#include "engine/config.h"
#include "kernels/backend.h"
#include "kernels/kv_page.h"

namespace kivi {

// Reads every file of the model that holds weights or settings (a folder's .safetensors and .json
// files, or a GGUF file), on all cores. `computed` says what else
// the plan decides: the types of the weights, and which prompts attend in 16 bits.
// Errors: those of reading.
Result<std::string> kv_fingerprint(const EngineConfig& config, const std::string& model_place,
                                   const DeviceInfo& device, const KvLayout& layout,
                                   const std::string& computed);

}  // namespace kivi
