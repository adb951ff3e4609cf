// SPDX-License-Identifier: Apache-2.0
// Checkpoint: a model's tensors by name, as they lie in its files. `weights` reads them from here,
// whatever kind of file they come from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "base/result.h"
#include "kernels/tensor.h"

namespace kivi {

// Writes `count` values, a multiple of the block's, that are stored at `blocks`.
using Dequantize = void (*)(const std::byte* blocks, int64_t count, float* out);

// A tensor of a file. `data` lives as long as its file. Its values are `dtype`'s, or in blocks that
// `dequantize` reads (a block never crosses a row); where both are absent the engine does not
// compute with them.
struct FileTensor {
  std::string file;            // for errors
  std::string dtype_name;      // "BF16", "Q4_K"
  std::optional<DType> dtype;  // what the bytes are an array of
  Dequantize dequantize = nullptr;
  std::vector<int64_t> shape;  // rows first
  const std::byte* data = nullptr;
  size_t bytes = 0;  // what the shape takes; checked
};

// "[688, 256] BF16", for errors.
std::string describe(const FileTensor& tensor);

using TensorMap = std::map<std::string, FileTensor>;

// Owns the mappings.
class Checkpoint {
 public:
  // The tensors of a GGUF file (a path that ends so), or of a model folder (safetensors).
  static Result<Checkpoint> open(const std::string& path);

  Checkpoint(std::string path, std::vector<MappedFile> files, TensorMap tensors);

  const TensorMap& tensors() const { return tensors_; }
  const std::string& path() const { return path_; }  // for errors

 private:
  std::string path_;
  std::vector<MappedFile> files_;
  TensorMap tensors_;
};

}  // namespace kivi
