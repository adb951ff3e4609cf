// SPDX-License-Identifier: Apache-2.0
#include "engine/model/files/safetensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <utility>

#include "base/json_file.h"
#include "engine/limits.h"

namespace kivi {

using nlohmann::json;

namespace {

struct FileDType {
  std::string_view name;
  size_t bytes;
  std::optional<DType> dtype;
};

// Every dtype of the format, so that a checkpoint may carry tensors that we do not need.
constexpr std::array kFileDTypes = {
    FileDType{"F32", 4, DType::f32},       FileDType{"F16", 2, DType::f16},
    FileDType{"BF16", 2, DType::bf16},     FileDType{"F64", 8, std::nullopt},
    FileDType{"I64", 8, std::nullopt},     FileDType{"I32", 4, std::nullopt},
    FileDType{"I16", 2, std::nullopt},     FileDType{"I8", 1, std::nullopt},
    FileDType{"U64", 8, std::nullopt},     FileDType{"U32", 4, std::nullopt},
    FileDType{"U16", 2, std::nullopt},     FileDType{"U8", 1, std::nullopt},
    FileDType{"BOOL", 1, std::nullopt},    FileDType{"F8_E4M3", 1, std::nullopt},
    FileDType{"F8_E5M2", 1, std::nullopt},
};

constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxRank = 8;

Error invalid(const std::string& file, const std::string& what) {
  return {ErrorCode::invalid, fmt::format("{}: {}", file, what)};
}

Error invalid_tensor(const std::string& file, const std::string& name, const std::string& what) {
  return invalid(file, fmt::format("tensor '{}': {}", name, what));
}

// A list of unsigned integers of at most kMaxRank entries, or nothing.
std::optional<std::vector<uint64_t>> unsigned_list(const json& entry, const char* key) {
  const auto found = entry.find(key);
  if (found == entry.end() || !found->is_array() || found->size() > kMaxRank) return std::nullopt;
  std::vector<uint64_t> list;
  for (const json& value : *found) {
    if (!value.is_number_unsigned()) return std::nullopt;
    list.push_back(value.get<uint64_t>());
  }
  return list;
}

Result<FileTensor> parse_tensor(const json& entry, const std::string& name, const std::string& file,
                                const std::byte* data, size_t data_bytes) {
  if (!entry.is_object()) return invalid_tensor(file, name, "its header entry is not an object");
  FileTensor tensor;
  tensor.file = file;

  const auto dtype = entry.find("dtype");
  if (dtype == entry.end() || !dtype->is_string())
    return invalid_tensor(file, name, "has no dtype");
  tensor.dtype_name = dtype->get<std::string>();
  size_t element_bytes = 0;
  for (const FileDType& known : kFileDTypes) {
    if (known.name != tensor.dtype_name) continue;
    element_bytes = known.bytes;
    tensor.dtype = known.dtype;
  }
  if (element_bytes == 0)
    return invalid_tensor(file, name, fmt::format("unknown dtype '{}'", tensor.dtype_name));

  const auto shape = unsigned_list(entry, "shape");
  if (!shape)
    return invalid_tensor(file, name,
                          fmt::format("shape must be a list of at most {} sizes", kMaxRank));
  uint64_t bytes = element_bytes;
  for (const uint64_t size : *shape) {
    if (size > uint64_t(INT64_MAX) || __builtin_mul_overflow(bytes, size, &bytes))
      return invalid_tensor(file, name,
                            fmt::format("shape [{}] is too large", fmt::join(*shape, ", ")));
    tensor.shape.push_back(int64_t(size));
  }

  const auto offsets = unsigned_list(entry, "data_offsets");
  if (!offsets || offsets->size() != 2)
    return invalid_tensor(file, name, "data_offsets must be [begin, end]");
  const uint64_t begin = (*offsets)[0], end = (*offsets)[1];
  if (begin > end || end > data_bytes)
    return invalid_tensor(
        file, name,
        fmt::format("data_offsets [{}, {}] lie outside of the file's {} data bytes", begin, end,
                    data_bytes));
  if (end - begin != bytes)
    return invalid_tensor(
        file, name,
        fmt::format("shape [{}] of {} is {} bytes, data_offsets [{}, {}] span {}",
                    fmt::join(*shape, ", "), tensor.dtype_name, bytes, begin, end, end - begin));
  tensor.data = data + begin;
  tensor.bytes = size_t(bytes);
  return tensor;
}

}  // namespace

Result<TensorMap> parse_safetensors(const std::byte* data, size_t bytes, const std::string& file) {
  if (bytes < kLengthBytes)
    return invalid(file, fmt::format("is {} bytes, too short for a safetensors file", bytes));
  uint64_t header_bytes = 0;
  for (size_t i = 0; i < kLengthBytes; ++i)
    header_bytes |= uint64_t(std::to_integer<uint8_t>(data[i])) << (8 * i);
  const uint64_t header_max =
      std::min<uint64_t>(uint64_t(kMaxSafetensorsHeaderBytes), bytes - kLengthBytes);
  if (header_bytes > header_max)
    return invalid(
        file, fmt::format("header length is {}, must be at most {}", header_bytes, header_max));

  const std::string_view header(reinterpret_cast<const char*>(data) + kLengthBytes,
                                size_t(header_bytes));
  KIVI_ASSIGN_OR_RETURN(const json document, parse_json(header, file + ": header"));
  if (!document.is_object()) return invalid(file, "header is not a JSON object");

  const std::byte* tensor_data = data + kLengthBytes + header_bytes;
  const size_t tensor_bytes = bytes - kLengthBytes - size_t(header_bytes);
  TensorMap tensors;
  for (const auto& [name, entry] : document.items()) {
    if (name == "__metadata__") continue;
    KIVI_ASSIGN_OR_RETURN(FileTensor tensor,
                          parse_tensor(entry, name, file, tensor_data, tensor_bytes));
    tensors.emplace(name, std::move(tensor));
  }
  return tensors;
}

namespace {

// The shard files of an index, each once. `weights` gets (tensor, shard).
Result<std::map<std::string, std::string>> read_index(const std::string& path) {
  KIVI_ASSIGN_OR_RETURN(const json document, read_json_file(path));
  const auto found = document.is_object() ? document.find("weight_map") : document.end();
  if (!document.is_object() || found == document.end() || !found->is_object())
    return invalid(path, "weight_map must be an object {tensor: file}");
  std::map<std::string, std::string> weights;
  for (const auto& [tensor, shard] : found->items()) {
    if (!shard.is_string()) return invalid_tensor(path, tensor, "its file must be a string");
    const std::string name = shard.get<std::string>();
    // A shard is a file of the folder, never a path out of it.
    if (name.empty() || name != std::filesystem::path(name).filename().string())
      return invalid_tensor(path, tensor, fmt::format("file '{}' must be a plain name", name));
    weights.emplace(tensor, name);
  }
  return weights;
}

}  // namespace

Result<Checkpoint> open_safetensors(const std::string& folder) {
  const std::string index = folder + "/model.safetensors.index.json";
  std::map<std::string, std::string> weights;
  std::set<std::string> shards = {"model.safetensors"};
  const bool sharded =
      !std::filesystem::exists(folder + "/model.safetensors") && std::filesystem::exists(index);
  if (sharded) {
    KIVI_ASSIGN_OR_RETURN(weights, read_index(index));
    shards.clear();
    for (const auto& [tensor, shard] : weights) shards.insert(shard);
  }
  std::vector<MappedFile> files;
  TensorMap all;
  for (const std::string& shard : shards) {
    const std::string path = fmt::format("{}/{}", folder, shard);
    KIVI_ASSIGN_OR_RETURN(MappedFile file, MappedFile::open(path));
    KIVI_ASSIGN_OR_RETURN(TensorMap tensors, parse_safetensors(file.data(), file.bytes(), path));
    for (auto& [name, tensor] : tensors) {
      const auto [at, is_new] = all.emplace(name, std::move(tensor));
      if (!is_new) return invalid_tensor(path, name, fmt::format("is also in {}", at->second.file));
    }
    files.push_back(std::move(file));
  }
  for (const auto& [tensor, shard] : weights) {
    const auto found = all.find(tensor);
    if (found == all.end() || found->second.file != fmt::format("{}/{}", folder, shard))
      return invalid_tensor(index, tensor, fmt::format("is not in {}", shard));
  }
  return Checkpoint(folder, std::move(files), std::move(all));
}

}  // namespace kivi
