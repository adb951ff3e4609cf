// SPDX-License-Identifier: Apache-2.0
// Checkpoint: a model's tensors by name, as they lie in its files. `weights` reads them from here,
// whatever kind of file they come from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "base/result.h"
#include "kernels/tensor.h"
#include "kernels/weight.h"

namespace kivi {

// Writes `count` values, a multiple of the block's, that are stored at `blocks`.
using Dequantize = void (*)(const std::byte* blocks, int64_t count, float* out);

// Writes the codes of `count` values and the records of their scales, as WeightRow has them.
using SplitBlocks = void (*)(const std::byte* blocks, int64_t count, uint8_t* codes,
                             std::byte* records);

// Reads the rows of a matrix that no single array of a file holds.
class RowReader {
 public:
  virtual ~RowReader() = default;
  // Writes the numbers of a row. out [columns].
  virtual void read(int64_t row, std::span<float> out) const = 0;
  // Writes the codes and records of a row in FileTensor::format, the columns in order().
  virtual void split(int64_t row, std::span<uint8_t> codes, std::span<std::byte> records) const = 0;
  // Column i of what `split` writes is column order()[i] of the matrix. Empty = the same order.
  virtual std::span<const int32_t> order() const { return {}; }
};

// A tensor of a file. `data` lives as long as its file. Its values are `dtype`'s, in blocks that
// `dequantize` reads (a block never crosses a row), or read by `rows`; where all are absent the
// engine does not compute with them.
struct FileTensor {
  std::string file;            // for errors
  std::string dtype_name;      // "BF16", "Q4_K"
  std::optional<DType> dtype;  // what the bytes are an array of
  Dequantize dequantize = nullptr;
  WeightFormat format;                    // of its codes, where they are one that a device may keep
  SplitBlocks split = nullptr;            // of blocks whose `format` is not plain
  std::shared_ptr<const RowReader> rows;  // stands for `data`, which is null then
  std::vector<int64_t> shape;             // rows first
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
  TensorMap& tensors() { return tensors_; }
  const std::string& path() const { return path_; }  // for errors

 private:
  std::string path_;
  std::vector<MappedFile> files_;
  TensorMap tensors_;
};

}  // namespace kivi
