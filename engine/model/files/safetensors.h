// SPDX-License-Identifier: Apache-2.0
// Safetensors files: an 8-byte little-endian header length, a JSON header {name: {dtype, shape,
// data_offsets}}, then the bytes (github.com/huggingface/safetensors, "Format"). Files are mapped,
// not read into memory. Everything in them is checked: a wrong file cannot make us read outside of
// it, or allocate more than its size calls for.
#pragma once

#include <cstddef>
#include <string>

#include "base/result.h"
#include "engine/model/checkpoint.h"

namespace kivi {

// The tensors of a safetensors file's bytes. Errors name `file` and the tensor. Checks: the
// header's length, its JSON, each dtype, that each shape times its dtype is what the offsets span,
// and that the offsets lie inside the file.
Result<TensorMap> parse_safetensors(const std::byte* data, size_t bytes, const std::string& file);

// All tensors of a model folder: model.safetensors, or the shards named by
// model.safetensors.index.json.
Result<Checkpoint> open_safetensors(const std::string& folder);

}  // namespace kivi
