// SPDX-License-Identifier: Apache-2.0
// What a GGUF file says of its model, put as a config.json would put it, so that one reader judges
// both: sizes from the metadata (llama.block_count, ...), switches from which tensors there are.
#pragma once

#include "base/result.h"
#include "engine/model/checkpoint.h"
#include "engine/model/files/gguf.h"
#include "engine/model/model_config.h"

namespace kivi {

// Architectures: llama (with Mistral, which GGUF counts to it), qwen2, falcon. Others, files that
// are one part of several, and metadata of the architecture that the engine does not know and that
// is neither 0 nor false are refused by name. `dtype` is f32, or bf16, where all matrices are, else
// f16.
Result<ModelConfig> read_gguf_config(const GgufHeader& header);

// The file's tensors; those that are settings (rope_freqs) are left to read_gguf_config.
Checkpoint checkpoint_of(GgufFile file);

}  // namespace kivi
