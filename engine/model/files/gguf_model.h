// SPDX-License-Identifier: Apache-2.0
// Translates the metadata of a GGUF file back into a config.json, and reuses its reader. Sizes come
// from the metadata (llama.block_count, ...), switches from the tensors that the file has.
#pragma once

#include "base/result.h"
#include "engine/model/checkpoint.h"
#include "engine/model/files/gguf.h"
#include "engine/model/model_config.h"

namespace kivi {

// Reads the architectures llama (GGUF's name for Mistral too), qwen2, qwen3, phi3 and falcon.
// Refuses by name: other architectures, files that are one part of several, and metadata of the
// architecture that the engine does not know, unless it is 0 or false. `dtype` is f32 or bf16 if
// all matrices are, and f16 otherwise.
Result<ModelConfig> read_gguf_config(const GgufHeader& header);

// The file's tensors; those that are settings (rope_freqs) are left to read_gguf_config.
Checkpoint checkpoint_of(GgufFile file);

}  // namespace kivi
