// Safetensors files: an 8-byte little-endian header length, a JSON header {name: {dtype, shape,
// data_offsets}}, then the bytes (github.com/huggingface/safetensors, "Format"). Files are mapped,
// never read whole, and nothing in them is believed before it is checked: a file can be wrong, but
// it cannot make us read outside of it or allocate more than its own size calls for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/result.h"
#include "kernels/tensor.h"

namespace kivi {

// A tensor of a file. `data` lives as long as its file.
struct FileTensor {
  std::string file;            // for errors
  std::string dtype_name;      // "BF16"
  std::optional<DType> dtype;  // none: a dtype of the format that the engine does not compute with
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;
  size_t bytes = 0;  // product of shape x size of dtype; checked
};

// "[688, 256] BF16", for errors.
std::string describe(const FileTensor& tensor);

// A read-only mapping of a whole file. A file that shrinks while it is mapped kills the process
// (SIGBUS), as with every mapped file.
class MappedFile {
 public:
  static Result<MappedFile> open(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  const std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  MappedFile() = default;
  const std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

using TensorMap = std::map<std::string, FileTensor>;

// The tensors of a safetensors file's bytes. Errors name `file` and the tensor. Checks: the
// header's length, its JSON, each dtype, that each shape times its dtype is what the offsets span,
// and that the offsets lie inside the file.
Result<TensorMap> parse_safetensors(const std::byte* data, size_t bytes, const std::string& file);

// All tensors of a model folder: model.safetensors, or the shards named by
// model.safetensors.index.json. Owns the mappings.
class Checkpoint {
 public:
  static Result<Checkpoint> open(const std::string& folder);

  const TensorMap& tensors() const { return tensors_; }
  const std::string& folder() const { return folder_; }

 private:
  std::string folder_;
  std::vector<MappedFile> files_;
  TensorMap tensors_;
};

}  // namespace kivi
