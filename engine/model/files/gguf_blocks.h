// SPDX-License-Identifier: Apache-2.0
// How GGUF stores the numbers of a tensor: plain, or in blocks of 32 or 256 that share scales
// (ggml's quantization types; github.com/ggml-org/ggml, ggml-quants.c has their meaning).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "engine/model/checkpoint.h"

namespace kivi {

struct GgufTensorType {
  uint32_t id;       // the format's number
  const char* name;  // "Q4_K"
  int64_t values;    // of a block; 1: plain
  int64_t bytes;     // of a block; 0: the engine does not read this type
  std::optional<DType> dtype;
  Dequantize dequantize;
  WeightKind kind;    // as a device may keep it; plain where `split` is null
  SplitBlocks split;  // gives what `dequantize` gives, as codes and records
};

// nullptr: no type has this number.
const GgufTensorType* find_gguf_tensor_type(uint32_t id);
// "F32, F16, ..."
std::string readable_gguf_tensor_types();

}  // namespace kivi
