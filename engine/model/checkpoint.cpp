// SPDX-License-Identifier: Apache-2.0
#include "engine/model/checkpoint.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <utility>

#include "engine/model/files/gguf.h"
#include "engine/model/files/gguf_model.h"
#include "engine/model/files/safetensors.h"

namespace kivi {

std::string describe(const FileTensor& tensor) {
  return fmt::format("[{}] {}", fmt::join(tensor.shape, ", "), tensor.dtype_name);
}

Checkpoint::Checkpoint(std::string path, std::vector<MappedFile> files, TensorMap tensors)
    : path_(std::move(path)), files_(std::move(files)), tensors_(std::move(tensors)) {}

Result<Checkpoint> Checkpoint::open(const std::string& path) {
  if (!is_gguf_path(path)) return open_safetensors(path);
  KIVI_ASSIGN_OR_RETURN(GgufFile file, GgufFile::open(path));
  return checkpoint_of(std::move(file));
}

}  // namespace kivi
