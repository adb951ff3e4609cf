// SPDX-License-Identifier: Apache-2.0
#include "engine/model/files/packed_rows.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <optional>

#include "kernels/half.h"
#include "kernels/kv_codec.h"
#include "kernels/weight_codec.h"

namespace kivi {

namespace {

constexpr int64_t kPack = 8;  // 4-bit codes of an int32

template <class T>
T element(const std::byte* data, int64_t index) {
  T x;
  std::memcpy(&x, data + index * int64_t(sizeof(T)), sizeof(T));
  return x;
}

float number(const FileTensor& tensor, int64_t index) {
  if (*tensor.dtype == DType::f32) return element<float>(tensor.data, index);
  const auto bits = element<uint16_t>(tensor.data, index);
  return *tensor.dtype == DType::f16 ? to_float(f16{bits}) : to_float(bf16{bits});
}

unsigned nibble(const FileTensor& tensor, int64_t word, int place) {
  return element<uint32_t>(tensor.data, word) >> (4 * place) & 15;
}

// AWQ puts column 8 j + kAwqOrder[i] of a row of words into nibble i of word j. This is its
// inverse.
constexpr std::array<int, 8> kAwqPlace = {0, 4, 1, 5, 2, 6, 3, 7};

// A tensor of the module: taken out of the map, checked.
class Parts {
 public:
  Parts(TensorMap& tensors, const std::string& path, std::string module)
      : tensors_(tensors), path_(path), module_(std::move(module)) {}

  Result<FileTensor> take(const std::string& name, const std::vector<std::string>& dtypes,
                          const std::vector<std::vector<int64_t>>& shapes) {
    const auto found = tensors_.find(module_ + "." + name);
    if (found == tensors_.end())
      return Error{ErrorCode::invalid,
                   fmt::format("{}: tensor '{}.{}' is missing (quantization_config calls for it)",
                               path_, module_, name)};
    FileTensor tensor = std::move(found->second);
    tensors_.erase(found);
    const bool known = std::find(dtypes.begin(), dtypes.end(), tensor.dtype_name) != dtypes.end();
    if (!known || std::find(shapes.begin(), shapes.end(), tensor.shape) == shapes.end()) {
      std::vector<std::string> wanted;
      for (const auto& shape : shapes)
        wanted.push_back(fmt::format("[{}]", fmt::join(shape, ", ")));
      return Error{
          ErrorCode::invalid,
          fmt::format("{}: tensor '{}.{}' is {}, must be {} {}", tensor.file, module_, name,
                      describe(tensor), fmt::join(wanted, " or "), fmt::join(dtypes, " or "))};
    }
    return tensor;
  }
  // Takes tensors that say nothing about the matrix, where they are there.
  void drop(std::initializer_list<const char*> names) {
    for (const char* name : names) tensors_.erase(module_ + "." + name);
  }
  bool has(const std::string& name) const { return tensors_.contains(module_ + "." + name); }
  const std::string& module() const { return module_; }

 private:
  TensorMap& tensors_;
  const std::string& path_;
  std::string module_;
};

const std::vector<std::string> kFloats = {"F16", "BF16", "F32"};

class Fp8Rows final : public RowReader {
 public:
  Fp8Rows(FileTensor codes, FileTensor scales, int64_t columns)
      : codes_(std::move(codes)), scales_(std::move(scales)), columns_(columns) {}

  void split(int64_t row, std::span<uint8_t> codes, std::span<std::byte> records) const override {
    std::memcpy(codes.data(), codes_.data + row * columns_, size_t(columns_));
    const float scale = scale_of(row);
    std::memcpy(records.data(), &scale, sizeof(scale));
  }
  void read(int64_t row, std::span<float> out) const override {
    const float scale = scale_of(row);
    for (int64_t c = 0; c < columns_; ++c)
      out[size_t(c)] = scale * from_e4m3(element<uint8_t>(codes_.data, row * columns_ + c));
  }

 private:
  float scale_of(int64_t row) const {
    return number(scales_, scales_.bytes > size_of(*scales_.dtype) ? row : 0);
  }
  FileTensor codes_, scales_;
  int64_t columns_;
};

// The three ways in which checkpoints pack int4, behind three small functions.
class Int4Rows final : public RowReader {
 public:
  PackedKind kind = PackedKind::gptq;
  int64_t rows = 0, columns = 0;
  int64_t groups = 0;
  FileTensor codes, scales;
  std::optional<FileTensor> zeros;
  int zeros_add = 0;            // to each stored zero point
  std::vector<int32_t> group;   // of each column
  std::vector<int32_t> sorted;  // columns by their groups; empty where they stand so

  void split(int64_t row, std::span<uint8_t> to, std::span<std::byte> records) const override {
    for (int64_t c = 0; c < columns; ++c)
      to[size_t(c)] = uint8_t(code(row, sorted.empty() ? c : sorted[size_t(c)]));
    std::byte* record = records.data();
    for (int64_t g = 0; g < groups; ++g, record += 5) {
      const float own = scale(row, g);
      std::memcpy(record, &own, sizeof(own));
      record[4] = std::byte(zero(row, g));
    }
  }
  void read(int64_t row, std::span<float> out) const override {
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t g = group[size_t(c)];
      out[size_t(c)] = scale(row, g) * float(code(row, c) - zero(row, g));
    }
  }
  std::span<const int32_t> order() const override { return sorted; }

 private:
  int code(int64_t row, int64_t c) const {
    if (kind == PackedKind::gptq) return int(nibble(codes, c / kPack * rows + row, int(c % kPack)));
    if (kind == PackedKind::awq)
      return int(nibble(codes, (c * rows + row) / kPack, kAwqPlace[size_t(row % kPack)]));
    return int(nibble(codes, (row * columns + c) / kPack, int(c % kPack)));
  }
  float scale(int64_t row, int64_t g) const {
    return number(scales, kind == PackedKind::packed ? row * groups + g : g * rows + row);
  }
  int zero(int64_t row, int64_t g) const {
    if (!zeros) return 8;
    if (kind == PackedKind::packed)
      return int(nibble(*zeros, row / kPack * groups + g, int(row % kPack)));
    const int place = kind == PackedKind::awq ? kAwqPlace[size_t(row % kPack)] : int(row % kPack);
    return int(nibble(*zeros, (g * rows + row) / kPack, place)) + zeros_add;
  }
};

// Groups of columns from g_idx, and the order that puts each group's columns side by side. Every
// group but the last must be full: W's scales are found by counting columns.
Status read_groups(const FileTensor& g_idx, const Parts& parts, int64_t group, Int4Rows& made) {
  const auto wrong = [&](const std::string& what) {
    return Error{ErrorCode::invalid,
                 fmt::format("{}: group indices of '{}' {}", g_idx.file, parts.module(), what)};
  };
  std::vector<int64_t> sizes(size_t(made.groups), 0);
  for (int64_t c = 0; c < made.columns; ++c) {
    const auto g = element<int32_t>(g_idx.data, c);
    if (g < 0 || g >= made.groups)
      return wrong(fmt::format("have {}, must be in [0, {})", g, made.groups));
    made.group[size_t(c)] = g;
    ++sizes[size_t(g)];
  }
  for (int64_t g = 0; g + 1 < made.groups; ++g)
    if (sizes[size_t(g)] != group)
      return wrong(fmt::format("give group {} {} columns, must be {}", g, sizes[size_t(g)], group));
  made.sorted.resize(size_t(made.columns));
  std::iota(made.sorted.begin(), made.sorted.end(), 0);
  std::stable_sort(made.sorted.begin(), made.sorted.end(), [&](int32_t a, int32_t b) {
    return made.group[size_t(a)] < made.group[size_t(b)];
  });
  return ok_status();
}

// The tensors of a module whose codes are int4.
Result<std::shared_ptr<const RowReader>> take_int4(Parts& parts, int64_t n, int64_t k,
                                                   const CheckpointQuantization& q) {
  auto made = std::make_shared<Int4Rows>();
  made->kind = q.kind;
  made->rows = n;
  made->columns = k;
  const int64_t group = q.group == 0 ? k : q.group;
  const int64_t groups = made->groups = (k + group - 1) / group;
  for (int64_t c = 0; c < k; ++c) made->group.push_back(int32_t(c / group));
  const bool packed = q.kind == PackedKind::packed;
  const bool along_k = q.kind != PackedKind::awq;
  if ((along_k ? k : n) % kPack != 0 || (!packed && n % kPack != 0))
    return Error{ErrorCode::unsupported,
                 fmt::format("module '{}' has [{}, {}] weights, must be multiples of 8 ({})",
                             parts.module(), n, k, q.method)};
  const std::vector<std::string> words = {"I32"};
  if (packed) {
    KIVI_ASSIGN_OR_RETURN(made->codes, parts.take("weight_packed", words, {{n, k / kPack}}));
    KIVI_ASSIGN_OR_RETURN(made->scales, parts.take("weight_scale", kFloats, {{n, groups}}));
    if (!q.symmetric) {
      KIVI_ASSIGN_OR_RETURN(
          made->zeros, parts.take("weight_zero_point", words, {{(n + kPack - 1) / kPack, groups}}));
    }
    KIVI_ASSIGN_OR_RETURN(const FileTensor shape,
                          parts.take("weight_shape", {"I64", "I32"}, {{2}}));
    const bool wide = shape.dtype_name == "I64";
    const int64_t own[] = {
        wide ? element<int64_t>(shape.data, 0) : element<int32_t>(shape.data, 0),
        wide ? element<int64_t>(shape.data, 1) : element<int32_t>(shape.data, 1)};
    if (own[0] != n || own[1] != k)
      return Error{ErrorCode::invalid,
                   fmt::format("{}: tensor '{}.weight_shape' holds [{}, {}], must be [{}, {}]",
                               shape.file, parts.module(), own[0], own[1], n, k)};
  } else {
    KIVI_ASSIGN_OR_RETURN(made->codes, along_k ? parts.take("qweight", words, {{k / kPack, n}})
                                               : parts.take("qweight", words, {{k, n / kPack}}));
    KIVI_ASSIGN_OR_RETURN(made->scales, parts.take("scales", kFloats, {{groups, n}}));
    KIVI_ASSIGN_OR_RETURN(made->zeros, parts.take("qzeros", words, {{groups, n / kPack}}));
    made->zeros_add = q.kind == PackedKind::gptq && q.zeros_less_one ? 1 : 0;
  }
  const char* const index = packed ? "weight_g_idx" : "g_idx";
  if (q.reordered || parts.has(index)) {
    KIVI_ASSIGN_OR_RETURN(const FileTensor g_idx, parts.take(index, words, {{k}}));
    KIVI_RETURN_IF_ERROR(read_groups(g_idx, parts, group, *made));
    if (!q.reordered && !std::is_sorted(made->sorted.begin(), made->sorted.end()))
      return Error{ErrorCode::invalid,
                   fmt::format("{}: tensor '{}.{}' puts columns out of order, but "
                               "quantization_config does not say so (desc_act, actorder)",
                               g_idx.file, parts.module(), index)};
    if (!q.reordered) made->sorted.clear();
  }
  return std::shared_ptr<const RowReader>(std::move(made));
}

}  // namespace

Result<FileTensor> take_packed(TensorMap& tensors, const std::string& path,
                               const std::string& module, int64_t rows, int64_t columns,
                               const CheckpointQuantization& q) {
  Parts parts(tensors, path, module);
  FileTensor tensor;
  tensor.file = path;
  tensor.shape = {rows, columns};
  if (q.kind == PackedKind::fp8) {
    KIVI_ASSIGN_OR_RETURN(FileTensor codes, parts.take("weight", {"F8_E4M3"}, {{rows, columns}}));
    KIVI_ASSIGN_OR_RETURN(FileTensor scales, parts.take("weight_scale", kFloats,
                                                        {{}, {1}, {1, 1}, {rows}, {rows, 1}}));
    parts.drop({"input_scale", "input_scale_ub", "output_scale", "k_scale", "v_scale"});
    tensor.file = codes.file;
    tensor.dtype_name = codes.dtype_name;
    tensor.format.kind = WeightKind::e4m3;
    tensor.rows = std::make_shared<Fp8Rows>(std::move(codes), std::move(scales), columns);
    return tensor;
  }
  KIVI_ASSIGN_OR_RETURN(tensor.rows, take_int4(parts, rows, columns, q));
  tensor.dtype_name = "int4";
  tensor.format.kind = WeightKind::int4;
  tensor.format.group = q.group;
  tensor.format.reordered = q.reordered;
  return tensor;
}

}  // namespace kivi
