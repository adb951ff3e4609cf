// SPDX-License-Identifier: Apache-2.0
// Reads the rows of a matrix that a quantized module of a Hugging Face checkpoint stores in several
// tensors (PackedKind).
#pragma once

#include <string>

#include "base/result.h"
#include "engine/model/checkpoint.h"
#include "engine/model/quantization.h"

namespace kivi {

// Takes the tensors of a module out of `tensors` and returns the matrix [rows, columns] that they
// are. Errors name the file and the tensor: a missing one, a wrong shape or dtype, a group index
// out of range. `path` names the checkpoint. What the tensors point to must outlive the result.
Result<FileTensor> take_packed(TensorMap& tensors, const std::string& path,
                               const std::string& module, int64_t rows, int64_t columns,
                               const CheckpointQuantization& quantization);

}  // namespace kivi
