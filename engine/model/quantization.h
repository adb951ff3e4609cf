// SPDX-License-Identifier: Apache-2.0
// Quantized Hugging Face checkpoints: what `quantization_config` in config.json says, which modules
// are quantized, and how their tensors become one matrix. docs/weights.md lists what is read.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/model/checkpoint.h"
#include "engine/model/decoder_spec.h"
#include "engine/model/families/registry.h"
#include "engine/model/weight_list.h"

namespace kivi {

// How the matrices of quantized modules are stored.
//   gptq    int4: qweight [k/8, n], qzeros [groups, n/8], scales [groups, n], g_idx [k]
//   awq     int4: qweight [k, n/8], qzeros [groups, n/8], scales [groups, n], packed along n
//   packed  int4: weight_packed [n, k/8], weight_scale [n, groups], weight_zero_point, weight_g_idx
//   fp8     weight [n, k] F8_E4M3, weight_scale: one number, or one a row
enum class PackedKind { none, gptq, awq, packed, fp8 };

struct CheckpointQuantization {
  PackedKind kind = PackedKind::none;
  std::string method;      // "gptq", "compressed-tensors pack-quantized", for messages
  int group = 0;           // int4: columns that share a scale; 0 = a whole row
  bool symmetric = true;   // packed: no zero points
  bool reordered = false;  // columns of a group need not stand side by side (desc_act, actorder)
  // gptq: zero points are stored less one, as AutoGPTQ does. gptq_v2 stores them as they are.
  bool zeros_less_one = true;
  // Modules that are not quantized: names or parts of names, between dots. Those that begin with
  // "re:" are patterns of literals, "." and ".*" that match from the beginning of a name.
  std::vector<std::string> plain;
};

// Reads `quantization_config`. Errors name the key, and what is supported.
Result<CheckpointQuantization> read_quantization(const std::string& file,
                                                 const nlohmann::json& config);

// Is a module ("model.layers.0.mlp.up_proj") left plain by the list?
bool is_listed(const std::vector<std::string>& plain, const std::string& module);

// The formats of a checkpoint's quantized matrices, by the names of their tensors.
WeightFormats quantized_formats(const CheckpointQuantization& quantization, const DecoderSpec& spec,
                                const TensorNames& names);

// Opens the checkpoint of a model. Puts one tensor "<module>.weight" in place of those that a
// quantized module consists of, after their shapes and dtypes are checked. Errors name the file and
// the tensor.
Result<Checkpoint> open_checkpoint(const std::string& path,
                                   const CheckpointQuantization& quantization,
                                   const DecoderSpec& spec, const TensorNames& names);

}  // namespace kivi
