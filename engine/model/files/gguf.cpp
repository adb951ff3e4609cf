// SPDX-License-Identifier: Apache-2.0
#include "engine/model/files/gguf.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/utf8.h"
#include "engine/model/files/gguf_blocks.h"

namespace kivi {

namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = 1 << 20;
constexpr uint32_t kMaxDimensions = 4;
constexpr size_t kMaxNameBytes = 65535;
constexpr std::string_view kExtension = ".gguf";

// Names and keys of a broken file, fit to be shown.
std::string shown(std::string_view name) {
  constexpr size_t kShownMax = 80;
  std::string text;
  for (const char c : name.substr(0, kShownMax)) text += c >= 0x20 && c < 0x7F ? c : '?';
  return name.size() > kShownMax ? text + "..." : text;
}

const char* name_of(GgufType type) {
  constexpr const char* kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                    "bool", "string", "array", "u64", "i64", "f64"};
  return kNames[size_t(type)];
}

// Bytes of a value; 0: a string or an array.
size_t size_of(GgufType type) {
  constexpr size_t kSizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return kSizes[size_t(type)];
}

template <class T>
T load(std::string_view bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof(value));
  return value;
}

// Reads forward through bytes; what does not fit is an error that says where.
class Cursor {
 public:
  Cursor(std::string_view bytes, std::string file) : bytes_(bytes), file_(std::move(file)) {}

  size_t at() const { return at_; }
  size_t left() const { return bytes_.size() - at_; }

  Error error(const std::string& what) const {
    return {ErrorCode::invalid, fmt::format("{}: {}, at byte {}", file_, what, at_)};
  }

  Result<std::string_view> take(uint64_t count, std::string_view what) {
    if (count > left())
      return error(fmt::format("{} of {} bytes does not fit into the {} that are left", what, count,
                               left()));
    at_ += size_t(count);
    return bytes_.substr(at_ - size_t(count), size_t(count));
  }

  template <class T>
  Result<T> number(std::string_view what) {
    KIVI_ASSIGN_OR_RETURN(const std::string_view bytes, take(sizeof(T), what));
    return load<T>(bytes);
  }

  // A length, then as many bytes.
  Result<std::string_view> string(std::string_view what) {
    KIVI_ASSIGN_OR_RETURN(const uint64_t length, number<uint64_t>(what));
    return take(length, what);
  }

  Result<std::string_view> name(std::string_view what) {
    KIVI_ASSIGN_OR_RETURN(const std::string_view name, string(what));
    if (name.empty() || name.size() > kMaxNameBytes)
      return error(
          fmt::format("{} is {} bytes long, must be 1 to {}", what, name.size(), kMaxNameBytes));
    return name;
  }

  // `count` entries of at least `bytes_min` bytes each.
  Result<uint64_t> count(std::string_view what, size_t bytes_min) {
    KIVI_ASSIGN_OR_RETURN(const uint64_t count, number<uint64_t>(what));
    if (count > left() / bytes_min)
      return error(fmt::format("{} is {}, more than fit into the {} bytes that are left", what,
                               count, left()));
    return count;
  }

 private:
  std::string_view bytes_;
  std::string file_;
  size_t at_ = 0;
};

Result<GgufType> read_type(Cursor& cursor) {
  KIVI_ASSIGN_OR_RETURN(const uint32_t type, cursor.number<uint32_t>("a value's type"));
  if (type > uint32_t(GgufType::f64))
    return cursor.error(fmt::format("a value's type is {}, must be at most 12", type));
  return GgufType(type);
}

Result<GgufValue> read_value(Cursor& cursor) {
  GgufValue value;
  KIVI_ASSIGN_OR_RETURN(value.type, read_type(cursor));
  if (value.type == GgufType::array) {
    value.is_array = true;
    KIVI_ASSIGN_OR_RETURN(value.type, read_type(cursor));
    if (value.type == GgufType::array)
      return cursor.error("an array of arrays, which is not supported");
    const size_t bytes_min = value.type == GgufType::string ? 8 : size_of(value.type);
    KIVI_ASSIGN_OR_RETURN(value.count, cursor.count("an array's length", bytes_min));
  }
  if (value.type != GgufType::string) {
    // count() has checked that this product fits.
    KIVI_ASSIGN_OR_RETURN(value.bytes, cursor.take(value.count * size_of(value.type), "a value"));
    const auto is_flag = [](char c) { return c == 0 || c == 1; };
    if (value.type == GgufType::boolean &&
        !std::all_of(value.bytes.begin(), value.bytes.end(), is_flag))
      return cursor.error("a bool is neither 0 nor 1");
    return value;
  }
  std::string_view first, last;
  for (uint64_t i = 0; i < value.count; ++i) {
    KIVI_ASSIGN_OR_RETURN(last, cursor.string("a string"));
    if (i == 0) first = last;
  }
  // Strings lie one after another, each behind its length.
  if (value.count > 0)
    value.bytes = {first.data() - 8, size_t(last.data() + last.size() - first.data()) + 8};
  return value;
}

// `offset` is where the tensor begins in the bytes behind the table.
struct TableEntry {
  std::string_view name;
  FileTensor tensor;
  uint64_t offset;
};

Result<TableEntry> read_entry(Cursor& cursor, const std::string& file) {
  TableEntry entry;
  KIVI_ASSIGN_OR_RETURN(entry.name, cursor.name("a tensor's name"));
  const auto wrong = [&](const std::string& what) {
    return Error{ErrorCode::invalid,
                 fmt::format("{}: tensor '{}': {}", file, shown(entry.name), what)};
  };
  KIVI_ASSIGN_OR_RETURN(const uint32_t dimensions,
                        cursor.number<uint32_t>("a number of dimensions"));
  if (dimensions < 1 || dimensions > kMaxDimensions)
    return wrong(fmt::format("has {} dimensions, must be 1 to {}", dimensions, kMaxDimensions));
  uint64_t values = 1;
  for (uint32_t i = 0; i < dimensions; ++i) {
    KIVI_ASSIGN_OR_RETURN(const uint64_t size, cursor.number<uint64_t>("a dimension"));
    entry.tensor.shape.push_back(int64_t(size));
    if (size < 1 || size > uint64_t(INT64_MAX) || __builtin_mul_overflow(values, size, &values))
      return wrong(fmt::format("dimension {} is {}: out of range", i, size));
  }
  const auto row_values = uint64_t(entry.tensor.shape[0]);  // the format begins with columns
  std::reverse(entry.tensor.shape.begin(), entry.tensor.shape.end());

  KIVI_ASSIGN_OR_RETURN(const uint32_t id, cursor.number<uint32_t>("a tensor's type"));
  const GgufTensorType* type = find_gguf_tensor_type(id);
  if (type == nullptr || type->bytes == 0) {
    Error error = wrong(fmt::format("its type is {}, supported are {}",
                                    type != nullptr ? type->name : std::to_string(id),
                                    readable_gguf_tensor_types()));
    error.code = ErrorCode::unsupported;
    return error;
  }
  uint64_t bytes = 0;
  if (row_values % uint64_t(type->values) != 0 ||
      __builtin_mul_overflow(values / uint64_t(type->values), uint64_t(type->bytes), &bytes))
    return wrong(fmt::format("rows of {} {} are not whole blocks of {}", row_values, type->name,
                             type->values));
  entry.tensor.file = file;
  entry.tensor.dtype_name = type->name;
  entry.tensor.dtype = type->dtype;
  entry.tensor.dequantize = type->dequantize;
  entry.tensor.format.kind = type->kind;
  entry.tensor.split = type->split;
  entry.tensor.bytes = size_t(bytes);
  KIVI_ASSIGN_OR_RETURN(entry.offset, cursor.number<uint64_t>("a tensor's offset"));
  return entry;
}

template <class T>
std::optional<int64_t> as_integer(std::string_view bytes) {
  const T value = load<T>(bytes);
  if (std::is_same_v<T, uint64_t> && uint64_t(value) > uint64_t(INT64_MAX)) return std::nullopt;
  return int64_t(value);
}

// One value of an integer type; none: another type, or too large.
std::optional<int64_t> integer_at(GgufType type, std::string_view bytes) {
  switch (type) {
    case GgufType::u8:
      return as_integer<uint8_t>(bytes);
    case GgufType::i8:
      return as_integer<int8_t>(bytes);
    case GgufType::u16:
      return as_integer<uint16_t>(bytes);
    case GgufType::i16:
      return as_integer<int16_t>(bytes);
    case GgufType::u32:
      return as_integer<uint32_t>(bytes);
    case GgufType::i32:
      return as_integer<int32_t>(bytes);
    case GgufType::u64:
      return as_integer<uint64_t>(bytes);
    case GgufType::i64:
      return as_integer<int64_t>(bytes);
    default:
      return std::nullopt;
  }
}

}  // namespace

Result<GgufHeader> GgufHeader::parse(const std::byte* data, size_t bytes, const std::string& file) {
  GgufHeader header;
  header.file_ = file;
  Cursor cursor({reinterpret_cast<const char*>(data), bytes}, file);
  KIVI_ASSIGN_OR_RETURN(const uint32_t magic, cursor.number<uint32_t>("the magic"));
  if (magic != kMagic) return cursor.error("is no GGUF file: it does not begin with \"GGUF\"");
  KIVI_ASSIGN_OR_RETURN(const uint32_t version, cursor.number<uint32_t>("the version"));
  if (version != 2 && version != 3)
    return Error{ErrorCode::unsupported,
                 fmt::format("{}: GGUF version is {}, supported are 2 and 3{}", file, version,
                             version << 16 == 0 ? " (this looks big-endian)" : "")};
  constexpr size_t kEntryBytesMin = 8 + 1 + 4 + 8 + 4 + 8, kPairBytesMin = 8 + 1 + 4 + 1;
  KIVI_ASSIGN_OR_RETURN(const uint64_t tensors,
                        cursor.count("the number of tensors", kEntryBytesMin));
  KIVI_ASSIGN_OR_RETURN(const uint64_t pairs,
                        cursor.count("the number of metadata keys", kPairBytesMin));
  for (uint64_t i = 0; i < pairs; ++i) {
    KIVI_ASSIGN_OR_RETURN(const std::string_view key, cursor.name("a key"));
    KIVI_ASSIGN_OR_RETURN(const GgufValue value, read_value(cursor));
    if (!header.metadata_.emplace(key, value).second)
      return header.invalid(key, "stands twice in the metadata");
  }
  KIVI_ASSIGN_OR_RETURN(const std::optional<int64_t> given, header.integer("general.alignment"));
  const auto alignment = uint64_t(given.value_or(kDefaultAlignment));
  if (alignment < 8 || alignment > kMaxAlignment || (alignment & (alignment - 1)) != 0)
    return header.invalid("general.alignment",
                          fmt::format("is {}, must be a power of two from 8 to {}",
                                      int64_t(alignment), kMaxAlignment));

  std::vector<TableEntry> table;
  for (uint64_t i = 0; i < tensors; ++i) {
    KIVI_ASSIGN_OR_RETURN(TableEntry entry, read_entry(cursor, file));
    table.push_back(std::move(entry));
  }
  const uint64_t begin = (cursor.at() + alignment - 1) / alignment * alignment;
  const uint64_t room = begin > bytes ? 0 : bytes - begin;
  for (TableEntry& entry : table) {
    FileTensor& tensor = entry.tensor;
    const auto wrong = [&](const std::string& what) {
      return Error{ErrorCode::invalid,
                   fmt::format("{}: tensor '{}': {}", file, shown(entry.name), what)};
    };
    if (entry.offset % alignment != 0)
      return wrong(fmt::format("offset is {}, must be a multiple of {}", entry.offset, alignment));
    if (entry.offset > room || tensor.bytes > room - entry.offset)
      return wrong(
          fmt::format("{} bytes at offset {} lie outside of the file's {} bytes of tensors",
                      tensor.bytes, entry.offset, room));
    tensor.data = data + begin + entry.offset;
    if (!header.tensors_.emplace(std::string(entry.name), std::move(tensor)).second)
      return wrong("stands twice in the table");
  }
  return header;
}

const GgufValue* GgufHeader::find(std::string_view key) const {
  const auto found = metadata_.find(key);
  return found == metadata_.end() ? nullptr : &found->second;
}

Error GgufHeader::invalid(std::string_view key, const std::string& what) const {
  return {ErrorCode::invalid, fmt::format("{}: {} {}", file_, shown(key), what)};
}

Error GgufHeader::unsupported(std::string_view key, const std::string& what) const {
  return {ErrorCode::unsupported, fmt::format("{}: {} {}", file_, shown(key), what)};
}

Result<std::optional<std::string>> GgufHeader::string(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::optional<std::string>();
  if (value->is_array || value->type != GgufType::string)
    return invalid(key, fmt::format("is {}, must be a string", describe(*value)));
  if (!is_valid_utf8(value->bytes.substr(8))) return invalid(key, "is not UTF-8");
  return std::optional(std::string(value->bytes.substr(8)));
}

Result<std::optional<bool>> GgufHeader::boolean(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::optional<bool>();
  if (value->is_array || value->type != GgufType::boolean)
    return invalid(key, fmt::format("is {}, must be a bool", describe(*value)));
  return std::optional(value->bytes[0] != 0);
}

Result<std::optional<int64_t>> GgufHeader::integer(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::optional<int64_t>();
  std::optional<int64_t> integer;
  if (!value->is_array) integer = integer_at(value->type, value->bytes);
  if (!integer) return invalid(key, fmt::format("is {}, must be an integer", describe(*value)));
  return integer;
}

Result<std::optional<std::vector<std::string>>> GgufHeader::strings(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::optional<std::vector<std::string>>();
  if (!value->is_array || value->type != GgufType::string)
    return invalid(key, fmt::format("is {}, must be an array of strings", describe(*value)));
  std::vector<std::string> strings;
  std::string_view rest = value->bytes;
  for (uint64_t i = 0; i < value->count; ++i) {
    const std::string_view text = rest.substr(8, load<uint64_t>(rest));
    if (!is_valid_utf8(text)) return invalid(fmt::format("{}[{}]", key, i), "is not UTF-8");
    strings.emplace_back(text);
    rest.remove_prefix(8 + text.size());
  }
  return std::optional(std::move(strings));
}

Result<std::optional<std::vector<int64_t>>> GgufHeader::integers(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::optional<std::vector<int64_t>>();
  const size_t bytes = size_of(value->type);
  std::vector<int64_t> integers;
  for (uint64_t i = 0; value->is_array && i < value->count; ++i) {
    const auto integer = integer_at(value->type, value->bytes.substr(i * bytes));
    if (!integer) break;
    integers.push_back(*integer);
  }
  if (!value->is_array || integers.size() < value->count)
    return invalid(key, fmt::format("is {}, must be an array of integers", describe(*value)));
  return std::optional(std::move(integers));
}

Result<std::optional<std::vector<float>>> GgufHeader::floats(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::optional<std::vector<float>>();
  if (!value->is_array || value->type != GgufType::f32)
    return invalid(key, fmt::format("is {}, must be an array of f32", describe(*value)));
  std::vector<float> floats(value->count);
  if (!floats.empty()) std::memcpy(floats.data(), value->bytes.data(), value->bytes.size());
  return std::optional(std::move(floats));
}

GgufScalar scalar_of(const GgufValue& value) {
  GgufScalar scalar;
  if (value.is_array) return scalar;
  if (value.type == GgufType::string) scalar.string = value.bytes.substr(8);
  if (value.type == GgufType::boolean) scalar.boolean = value.bytes[0] != 0;
  if (value.type == GgufType::f32) scalar.number = double(load<float>(value.bytes));
  if (value.type == GgufType::f64) scalar.number = load<double>(value.bytes);
  scalar.integer = integer_at(value.type, value.bytes);
  return scalar;
}

std::string describe(const GgufValue& value) {
  if (value.is_array) return fmt::format("an array of {} {}", value.count, name_of(value.type));
  const GgufScalar scalar = scalar_of(value);
  if (scalar.string) return fmt::format("the string '{}'", shown(*scalar.string));
  if (scalar.integer) return fmt::format("{} ({})", *scalar.integer, name_of(value.type));
  if (scalar.number) return fmt::format("{} ({})", *scalar.number, name_of(value.type));
  return fmt::format("a {}", name_of(value.type));
}

Result<GgufFile> GgufFile::open(const std::string& path) {
  KIVI_ASSIGN_OR_RETURN(MappedFile file, MappedFile::open(path));
  KIVI_ASSIGN_OR_RETURN(GgufHeader header, GgufHeader::parse(file.data(), file.bytes(), path));
  return GgufFile{std::move(file), std::move(header)};
}

bool is_gguf_path(const std::string& path) { return path.ends_with(kExtension); }

Result<std::optional<std::string>> find_gguf(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code failed;
  if (is_gguf_path(path)) return std::optional(path);
  std::vector<std::string> found;
  for (fs::directory_iterator entry(path, failed), end; !failed && entry != end;
       entry.increment(failed))
    if (entry->path().extension() == kExtension) found.push_back(entry->path().string());
  if (found.empty()) return std::optional<std::string>();
  std::sort(found.begin(), found.end());
  if (found.size() > 1)
    return Error{
        ErrorCode::invalid,
        fmt::format("model is {}, a folder with several GGUF files, must be one of them: {}", path,
                    fmt::join(found, ", ")),
        "model"};
  return std::optional(found[0]);
}

}  // namespace kivi
