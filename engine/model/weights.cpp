// SPDX-License-Identifier: Apache-2.0
#include "engine/model/weights.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <span>
#include <thread>

#include "engine/model/rope_scaling.h"
#include "kernels/hadamard.h"
#include "kernels/half.h"

namespace kivi {

namespace {

constexpr int64_t kAlignment = 256;        // of every tensor in the allocation
constexpr int64_t kChunkBytes = 16 << 20;  // of conversion: one upload
constexpr int64_t kConvertThreadsMax = 8;
constexpr int64_t kConvertBytesMin = 256 << 10;  // of a thread: starting one costs 20 to 40 us
constexpr int64_t kUploadBytes = 64 << 20;       // one upload as it is; also the grain of progress

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

enum class WeightKind { matrix, norm, bias };

// A tensor of the checkpoint and the rows it gives.
struct WeightPart {
  std::string name;
  int64_t rows = 0;
  bool rotary_pairs = false;  // TensorNames::rotary_pairs
};

// One device tensor: where its view goes and the checkpoint's tensors that are stacked in it.
struct WeightItem {
  Tensor* target = nullptr;
  std::vector<WeightPart> parts;
  int64_t columns = 0;  // 0: a vector
  WeightKind kind = WeightKind::matrix;
  QkvOrder order = QkvOrder::heads;  // of its rows in the checkpoint
  bool rotated = false;              // columns are multiplied by the Hadamard matrix, head by head

  int64_t rows() const {
    int64_t n = 0;
    for (const WeightPart& part : parts) n += part.rows;
    return n;
  }
  int64_t row_size() const { return columns == 0 ? 1 : columns; }
  int64_t size() const { return rows() * row_size(); }
};

// Lists every tensor of a decoder in a fixed order; the one place that knows them all.
class WeightList {
 public:
  WeightList(const DecoderSpec& spec, const TensorNames& names, DecoderWeights& weights)
      : spec_(spec), names_(names) {
    const int64_t n = spec.hidden;
    matrix(&weights.embedding, {{names.embedding, spec.vocab}}, n);
    weights.layers.resize(size_t(spec.layers));
    for (int i = 0; i < spec.layers; ++i) add_layer(weights.layers[size_t(i)], i);
    norm(&weights.final_norm, &weights.final_norm_bias, names.final_norm);
    if (!spec.tied_embeddings) matrix(&weights.head, {{names.head, spec.vocab}}, n);
  }

  const std::vector<WeightItem>& items() const { return items_; }

 private:
  void add_layer(LayerWeights& layer, int index) {
    const std::string at = names_.layers + std::to_string(index) + ".";
    const int64_t n = spec_.hidden, f = spec_.intermediate;
    const int64_t q = spec_.query_size(), kv = spec_.kv_size();
    norm(&layer.attention_norm, &layer.attention_norm_bias, at + names_.attention_norm);
    if (spec_.norms_per_layer == 2)
      norm(&layer.mlp_norm, &layer.mlp_norm_bias, at + names_.mlp_norm);

    auto qkv = names_.qkv.size() == 3 ? stacked(at, names_.qkv, {q, kv / 2, kv / 2})
                                      : stacked(at, names_.qkv, {q + kv});
    if (names_.qkv.size() == 3)
      qkv[0].rotary_pairs = qkv[1].rotary_pairs = names_.rotary_pairs;  // q and k turn
    linear(&layer.qkv, spec_.qkv_bias ? &layer.qkv_bias : nullptr, qkv, n, names_.qkv_order);
    linear(&layer.output, spec_.output_bias ? &layer.output_bias : nullptr,
           {{at + names_.output, n}}, q);
    // Values are stored rotated, so attention's output is. This undoes it.
    for (WeightItem& item : items_)
      if (item.target == &layer.output) item.rotated = spec_.rotated_heads;
    Tensor* up_bias = spec_.mlp_bias ? &layer.up_bias : nullptr;
    linear(&layer.up, up_bias, stacked(at, names_.up, std::vector(names_.up.size(), f)), n);
    linear(&layer.down, spec_.mlp_bias ? &layer.down_bias : nullptr, {{at + names_.down, n}}, f);
  }

  static std::vector<WeightPart> stacked(const std::string& at,
                                         const std::vector<std::string>& names,
                                         const std::vector<int64_t>& rows) {
    std::vector<WeightPart> parts;
    for (size_t i = 0; i < names.size(); ++i) parts.push_back({at + names[i], rows[i]});
    return parts;
  }

  static std::vector<WeightPart> suffixed(std::vector<WeightPart> parts, const char* suffix) {
    for (WeightPart& part : parts) part.name += suffix;
    return parts;
  }

  void matrix(Tensor* target, const std::vector<WeightPart>& parts, int64_t columns,
              QkvOrder order = QkvOrder::heads) {
    items_.push_back({target, suffixed(parts, ".weight"), columns, WeightKind::matrix, order});
  }

  void linear(Tensor* target, Tensor* bias, const std::vector<WeightPart>& parts, int64_t columns,
              QkvOrder order = QkvOrder::heads) {
    matrix(target, parts, columns, order);
    if (bias != nullptr)
      items_.push_back({bias, suffixed(parts, ".bias"), 0, WeightKind::bias, order});
  }

  void norm(Tensor* weight, Tensor* bias, const std::string& name) {
    const int64_t n = spec_.hidden;
    items_.push_back({weight, {{name + ".weight", n}}, 0, WeightKind::norm});
    if (spec_.norm == NormKind::layer)
      items_.push_back({bias, {{name + ".bias", n}}, 0, WeightKind::bias});
  }

  const DecoderSpec& spec_;
  const TensorNames& names_;
  std::vector<WeightItem> items_;
};

// Sizes do not depend on names, only on how many matrices the checkpoint splits q|k|v and gate|up
// into; these stand in where there is no checkpoint.
TensorNames any_names(const DecoderSpec& spec) {
  TensorNames names;
  names.qkv = {"qkv"};
  names.up = spec.gated ? std::vector<std::string>{"gate", "up"} : std::vector<std::string>{"up"};
  return names;
}

float load_element(DType dtype, const std::byte* source) {
  if (dtype == DType::f32) {
    float x;
    std::memcpy(&x, source, sizeof(x));
    return x;
  }
  uint16_t bits;
  std::memcpy(&bits, source, sizeof(bits));
  return dtype == DType::f16 ? to_float(f16{bits}) : to_float(bf16{bits});
}

void store_element(DType dtype, float x, std::byte* target) {
  if (dtype == DType::f32) {
    std::memcpy(target, &x, sizeof(x));
    return;
  }
  const uint16_t bits = dtype == DType::f16 ? to_f16_saturated(x).bits : to_bf16(x).bits;
  std::memcpy(target, &bits, sizeof(bits));
}

// The checkpoint's row of a q|k|v matrix that is row `row` of ours (QkvOrder).
int64_t grouped_row(const DecoderSpec& spec, int64_t row) {
  const int64_t d = spec.head_dim, per_kv = spec.heads_q / spec.heads_kv;
  const int64_t head = row / d, channel = row % d;
  int64_t kv = 0, place = 0;  // KV head, and head inside its group
  if (head < spec.heads_q) {
    kv = head / per_kv;
    place = head % per_kv;
  } else if (head < spec.heads_q + spec.heads_kv) {
    kv = head - spec.heads_q;
    place = per_kv;
  } else {
    kv = head - spec.heads_q - spec.heads_kv;
    place = per_kv + 1;
  }
  return (kv * (per_kv + 2) + place) * d + channel;
}

// The same for a q or k matrix whose heads hold their channels as pairs.
int64_t paired_row(const DecoderSpec& spec, int64_t row) {
  const int64_t half = spec.head_dim / 2;
  const int64_t head = row / spec.head_dim, channel = row % spec.head_dim;
  return head * spec.head_dim + channel % half * 2 + channel / half;
}

// Takes items in order, gives each its place in the allocation, and counts bytes.
class Uploader {
 public:
  Uploader(Backend& backend, DecoderWeights& weights, DType dtype, const WeightProgress& progress)
      : backend_(backend), memory_(weights.memory), dtype_(dtype), progress_(progress) {}

  void place(const WeightItem& item) {
    at_ = memory_.data() + offset_;
    *item.target = item.columns == 0 ? make_tensor(at_, dtype_, item.rows())
                                     : make_tensor(at_, dtype_, item.rows(), item.columns);
    offset_ += aligned(item.size() * int64_t(size_of(dtype_)));
    KIVI_VERIFY(offset_ <= int64_t(memory_.bytes()));
  }

  // The next `bytes` of the current item.
  void append(const void* source, int64_t bytes) {
    backend_.upload(at_, source, size_t(bytes));
    at_ += bytes;
    done_ += bytes;
    if (progress_) progress_(done_, int64_t(memory_.bytes()));
  }

  DType dtype() const { return dtype_; }
  std::byte* rest() const { return memory_.data() + offset_; }

 private:
  Backend& backend_;
  const Buffer& memory_;
  DType dtype_;
  const WeightProgress& progress_;
  std::byte* at_ = nullptr;
  int64_t offset_ = 0;
  int64_t done_ = 0;
};

// Checkpoints carry these without anybody computing with them.
bool may_be_ignored(const std::string& name, const DecoderSpec& spec, const TensorNames& names) {
  const auto ends_with = [&](std::string_view suffix) { return name.ends_with(suffix); };
  return ends_with(".rotary_emb.inv_freq") || ends_with(".masked_bias") ||
         (spec.tied_embeddings && name == names.head + ".weight");
}

Status check_names(const std::vector<WeightItem>& items, const DecoderSpec& spec,
                   const TensorNames& names, const Checkpoint& checkpoint) {
  const TensorMap& tensors = checkpoint.tensors();
  std::set<std::string> expected;
  std::vector<std::string> missing, unexpected;
  for (const WeightItem& item : items)
    for (const WeightPart& part : item.parts) {
      expected.insert(part.name);
      if (!tensors.contains(part.name)) missing.push_back(part.name);
    }
  for (const auto& [name, tensor] : tensors)
    if (!expected.contains(name) && !may_be_ignored(name, spec, names)) unexpected.push_back(name);
  if (missing.empty() && unexpected.empty()) return ok_status();

  const auto listed = [](std::vector<std::string>& list) {
    constexpr size_t kShownMax = 5;
    const size_t count = list.size();
    if (count > kShownMax) list.resize(kShownMax);
    return fmt::format("{}{}", fmt::join(list, ", "), count > kShownMax ? ", ..." : "");
  };
  std::string text = checkpoint.path() + ":";
  if (!missing.empty())
    text += fmt::format(" {} of {} tensors are missing: {}", missing.size(), expected.size(),
                        listed(missing));
  if (!unexpected.empty())
    text +=
        fmt::format("{} {} tensors are unexpected (the configuration does not call for them): {}",
                    missing.empty() ? "" : ";", unexpected.size(), listed(unexpected));
  return Error{ErrorCode::invalid, text};
}

Status check_tensor(const FileTensor& tensor, const WeightPart& part, int64_t columns) {
  // Vectors are never quantized, and their elements may have to be reordered.
  if (!tensor.dtype && (tensor.dequantize == nullptr || columns == 0))
    return Error{ErrorCode::unsupported,
                 fmt::format("{}: tensor '{}' is {}, must be F32, F16 or BF16", tensor.file,
                             part.name, describe(tensor))};
  std::vector<int64_t> shape = {part.rows};
  if (columns != 0) shape.push_back(columns);
  if (tensor.shape != shape)
    return Error{ErrorCode::invalid,
                 fmt::format("{}: tensor '{}' is {}, must be [{}] (from the configuration)",
                             tensor.file, part.name, describe(tensor), fmt::join(shape, ", "))};
  return ok_status();
}

// Row `row` of a tensor of the checkpoint.
void read_row(const FileTensor& tensor, int64_t row, std::span<float> out) {
  const std::byte* in = tensor.data + row * (int64_t(tensor.bytes) / tensor.shape[0]);
  if (!tensor.dtype) return tensor.dequantize(in, int64_t(out.size()), out.data());
  const auto element = int64_t(size_of(*tensor.dtype));
  for (float& x : out) {
    x = load_element(*tensor.dtype, in);
    in += element;
  }
}

// Rows [begin, end) of a part as `dtype`, in the kernels' order.
void convert_rows(const DecoderSpec& spec, const WeightItem& item, const WeightPart& part,
                  const FileTensor& source, DType dtype, int64_t begin, int64_t end,
                  std::byte* out) {
  const int64_t row_size = item.row_size(), element = int64_t(size_of(dtype));
  std::vector<float> values(size_t(row_size), 0.f);
  for (int64_t row = begin; row < end; ++row) {
    int64_t from = row;
    if (item.order == QkvOrder::groups) from = grouped_row(spec, row);
    if (part.rotary_pairs) from = paired_row(spec, row);
    if (source.dtype == dtype && !item.rotated) {  // only the order differs
      std::memcpy(out, source.data + from * row_size * element, size_t(row_size * element));
      out += row_size * element;
      continue;
    }
    read_row(source, from, values);
    if (item.rotated)
      for (int64_t c = 0; c < row_size; c += spec.head_dim)
        hadamard_transform(&values[size_t(c)], spec.head_dim);
    for (const float x : values) {
      store_element(dtype, x, out);
      out += element;
    }
  }
}

// Converts on several threads: one does about 300 million numbers a second, a model has billions.
void upload_converted(Uploader& uploader, const DecoderSpec& spec, const WeightItem& item,
                      const WeightPart& part, const FileTensor& source) {
  const DType dtype = uploader.dtype();
  const int64_t row_bytes = item.row_size() * int64_t(size_of(dtype));
  const int64_t rows_per_chunk = std::max<int64_t>(1, kChunkBytes / row_bytes);
  std::vector<std::byte> chunk(size_t(std::min(part.rows, rows_per_chunk) * row_bytes));
  for (int64_t begin = 0; begin < part.rows; begin += rows_per_chunk) {
    const int64_t end = std::min(part.rows, begin + rows_per_chunk);
    const int64_t rows_each = std::max((end - begin + kConvertThreadsMax - 1) / kConvertThreadsMax,
                                       kConvertBytesMin / row_bytes + 1);
    const auto convert = [&](int64_t first) {
      convert_rows(spec, item, part, source, dtype, first, std::min(end, first + rows_each),
                   chunk.data() + (first - begin) * row_bytes);
    };
    {
      std::vector<std::jthread> others;
      for (int64_t first = begin + rows_each; first < end; first += rows_each)
        others.emplace_back(convert, first);
      convert(begin);
    }
    uploader.append(chunk.data(), (end - begin) * row_bytes);
  }
}

void upload_tensor(Uploader& uploader, const DecoderSpec& spec, const WeightItem& item,
                   const WeightPart& part, const FileTensor& source) {
  if (source.dtype != uploader.dtype() || item.order == QkvOrder::groups || part.rotary_pairs ||
      item.rotated) {
    upload_converted(uploader, spec, item, part, source);
    return;
  }
  for (size_t begin = 0; begin < source.bytes; begin += size_t(kUploadBytes))
    uploader.append(source.data + begin,
                    int64_t(std::min(source.bytes - begin, size_t(kUploadBytes))));
}

void finish(Backend& backend, const DecoderSpec& spec, const Uploader& uploader,
            DecoderWeights& weights) {
  if (spec.tied_embeddings) weights.head = weights.embedding;  // [vocab, n]
  const std::vector<float> frequencies = inverse_frequencies(spec.rope);
  std::byte* at = uploader.rest();
  backend.upload(at, frequencies.data(), frequencies.size() * sizeof(float));
  weights.inverse_frequencies =
      make_tensor(at, DType::f32, int64_t(frequencies.size()));  // [rotary_dim / 2]
}

}  // namespace

int64_t weight_bytes(const DecoderSpec& spec, DType dtype) {
  const TensorNames names = any_names(spec);
  DecoderWeights unused;
  const WeightList list(spec, names, unused);
  int64_t bytes = aligned(spec.rope.rotary_dim / 2 * int64_t(sizeof(float)));
  for (const WeightItem& item : list.items())
    bytes += aligned(item.size() * int64_t(size_of(dtype)));
  return bytes;
}

int64_t parameter_count(const DecoderSpec& spec) {
  const TensorNames names = any_names(spec);
  DecoderWeights unused;
  const WeightList list(spec, names, unused);
  int64_t count = 0;
  for (const WeightItem& item : list.items()) count += item.size();
  return count;
}

Result<DecoderWeights> load_weights(Backend& backend, const DecoderSpec& spec,
                                    const TensorNames& names, const Checkpoint& checkpoint,
                                    DType dtype, const WeightProgress& progress) {
  DecoderWeights weights;
  const WeightList list(spec, names, weights);
  const TensorMap& tensors = checkpoint.tensors();
  KIVI_RETURN_IF_ERROR(check_names(list.items(), spec, names, checkpoint));
  for (const WeightItem& item : list.items())
    for (const WeightPart& part : item.parts)
      KIVI_RETURN_IF_ERROR(check_tensor(tensors.at(part.name), part, item.columns));

  KIVI_ASSIGN_OR_RETURN(weights.memory,
                        backend.allocate(size_t(weight_bytes(spec, dtype)), "the weights"));
  Uploader uploader(backend, weights, dtype, progress);
  for (const WeightItem& item : list.items()) {
    uploader.place(item);
    for (const WeightPart& part : item.parts)
      upload_tensor(uploader, spec, item, part, tensors.at(part.name));
  }
  finish(backend, spec, uploader, weights);
  return weights;
}

Result<DecoderWeights> random_weights(Backend& backend, const DecoderSpec& spec, DType dtype,
                                      const WeightProgress& progress) {
  const TensorNames names = any_names(spec);
  DecoderWeights weights;
  const WeightList list(spec, names, weights);
  KIVI_ASSIGN_OR_RETURN(weights.memory,
                        backend.allocate(size_t(weight_bytes(spec, dtype)), "the weights"));
  Uploader uploader(backend, weights, dtype, progress);
  const int64_t element = int64_t(size_of(dtype));
  // A prime length: repeated, it gives no two equal rows of any matrix near each other, and copying
  // it is what makes 7 billion numbers a matter of seconds.
  constexpr int64_t kPatternLength = 1'000'003;
  std::vector<std::byte> pattern;
  uint64_t state = 0x9e3779b97f4a7c15;
  for (const WeightItem& item : list.items()) {
    uploader.place(item);
    const int64_t length = std::min(item.size(), kPatternLength);
    const float amplitude = std::sqrt(3.0f / float(item.row_size()));  // variance 1 / columns
    pattern.resize(size_t(length * element));
    for (int64_t i = 0; i < length; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      const float uniform = float(int32_t(state >> 32)) * 0x1p-31f;  // [-1, 1)
      const float x = item.kind == WeightKind::matrix ? amplitude * uniform
                                                      : (item.kind == WeightKind::norm ? 1.f : 0.f);
      store_element(dtype, x, pattern.data() + i * element);
    }
    for (int64_t begin = 0; begin < item.size(); begin += length)
      uploader.append(pattern.data(), std::min(length, item.size() - begin) * element);
  }
  finish(backend, spec, uploader, weights);
  return weights;
}

}  // namespace kivi
