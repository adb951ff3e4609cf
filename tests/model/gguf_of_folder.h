// SPDX-License-Identifier: Apache-2.0
// A Hugging Face folder as a GGUF file, as llama.cpp's converter writes it: tensors renamed, rows
// reordered, sizes and the tokenizer as metadata.
#pragma once

#include <cstdint>
#include <string>

#include "tests/model/gguf_writer.h"

namespace kivi {

// `type` is that of the matrices: 0 F32, 1 F16, 30 BF16.
GgufWriter gguf_of(const std::string& folder, uint32_t type);

}  // namespace kivi
