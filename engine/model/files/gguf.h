// SPDX-License-Identifier: Apache-2.0
// GGUF files, versions 2 and 3, little-endian (github.com/ggml-org/ggml, docs/gguf.md): a header,
// metadata as (key, type, value), a table of tensors, then their bytes. Every count, length and
// offset is checked. Parsed values borrow the file's bytes, so a file of n bytes makes us allocate
// at most 16 n + 64 KiB.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "engine/model/checkpoint.h"

namespace kivi {

// The format's numbers.
enum class GgufType : uint32_t {
  u8 = 0,
  i8 = 1,
  u16 = 2,
  i16 = 3,
  u32 = 4,
  i32 = 5,
  f32 = 6,
  boolean = 7,
  string = 8,
  array = 9,
  u64 = 10,
  i64 = 11,
  f64 = 12,
};

// A value, or an array of values that are no arrays. Its bytes lie in the file and are checked to
// hold `count` values of `type`.
struct GgufValue {
  GgufType type = GgufType::u8;  // of an array: its elements'
  bool is_array = false;
  uint64_t count = 1;
  std::string_view bytes;
};

// The parts of a file that come before the tensors' bytes. Borrows the file's bytes.
class GgufHeader {
 public:
  // Errors name `file` and the key or tensor. Checks: magic and version; every count, length and
  // offset against what is left of the file; types, names and keys given twice, the alignment.
  static Result<GgufHeader> parse(const std::byte* data, size_t bytes, const std::string& file);

  const std::string& file() const { return file_; }
  const std::map<std::string_view, GgufValue>& metadata() const { return metadata_; }
  const TensorMap& tensors() const { return tensors_; }

  // nullptr: there is no such key.
  const GgufValue* find(std::string_view key) const;

  // The value under `key`, none where there is no such key; another type is an error, and so are
  // strings that are not UTF-8. Numbers: any integer type that holds the value.
  Result<std::optional<std::string>> string(std::string_view key) const;
  Result<std::optional<bool>> boolean(std::string_view key) const;
  Result<std::optional<int64_t>> integer(std::string_view key) const;
  Result<std::optional<std::vector<std::string>>> strings(std::string_view key) const;
  Result<std::optional<std::vector<int64_t>>> integers(std::string_view key) const;
  Result<std::optional<std::vector<float>>> floats(std::string_view key) const;

  // "<file>: <key> <what>", for what its readers find wrong.
  Error invalid(std::string_view key, const std::string& what) const;
  Error unsupported(std::string_view key, const std::string& what) const;

 private:
  std::string file_;
  std::map<std::string_view, GgufValue> metadata_;
  TensorMap tensors_;
};

// A scalar's value: exactly one of these is set. Integers of type u64 above INT64_MAX are none.
struct GgufScalar {
  std::optional<int64_t> integer;
  std::optional<double> number;
  std::optional<bool> boolean;
  std::optional<std::string_view> string;
};
GgufScalar scalar_of(const GgufValue& value);

// "an array of 30 i32", "a string", for errors.
std::string describe(const GgufValue& value);

// A file with its header.
struct GgufFile {
  MappedFile file;
  GgufHeader header;
  static Result<GgufFile> open(const std::string& path);
};

// Returns true if the path ends like that of a GGUF file. `open` finds out whether it is one.
bool is_gguf_path(const std::string& path);

// Returns the .gguf file that a model's path names: the path itself, or the only such file of a
// folder. Returns none if the path is neither. A folder with several such files is an error that
// lists them.
Result<std::optional<std::string>> find_gguf(const std::string& path);

}  // namespace kivi
