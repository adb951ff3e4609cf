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
#include "engine/model/weight_quantizer.h"
#include "kernels/hadamard.h"
#include "kernels/half.h"
#include "kernels/weight_codec.h"

namespace kivi {

namespace {

constexpr int64_t kAlignment = 256;        // of every tensor in the allocation
constexpr int64_t kChunkBytes = 16 << 20;  // of conversion: one upload
constexpr int64_t kConvertThreadsMax = 8;
constexpr int64_t kConvertBytesMin = 256 << 10;  // of a thread: starting one costs 20 to 40 us
constexpr int64_t kUploadBytes = 64 << 20;       // one upload as it is; also the grain of progress

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

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

// Takes tensors in order, gives each its place in the allocation, and counts bytes.
class Uploader {
 public:
  Uploader(Backend& backend, DecoderWeights& weights, DType dtype, const WeightProgress& progress)
      : backend_(backend), memory_(weights.memory), dtype_(dtype), progress_(progress) {}

  // The next `bytes` of the allocation, aligned.
  std::byte* place(int64_t bytes) {
    std::byte* const at = memory_.data() + offset_;
    offset_ += aligned(bytes);
    KIVI_VERIFY(offset_ <= int64_t(memory_.bytes()));
    return at;
  }
  // rows * columns numbers of `dtype`; a vector where `columns` is 0.
  Tensor place_plain(int64_t rows, int64_t columns) {
    const int64_t numbers = columns == 0 ? rows : rows * columns;
    std::byte* const at = place(numbers * int64_t(size_of(dtype_)));
    return columns == 0 ? make_tensor(at, dtype_, rows) : make_tensor(at, dtype_, rows, columns);
  }
  Weight place_quantized(const WeightFormat& format, int64_t rows, int64_t columns) {
    Weight weight;
    weight.format = format;
    weight.rows = rows;
    weight.columns = columns;
    weight.codes = place(weight_codes_bytes(format, rows, columns));
    weight.scales = place(weight_scales_bytes(format, rows, columns));
    return weight;
  }

  void upload(const std::byte* to, const void* source, int64_t bytes) {
    backend_.upload(const_cast<std::byte*>(to), source, size_t(bytes));
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
  const bool readable = tensor.dtype || tensor.dequantize != nullptr || tensor.rows != nullptr;
  if (!readable || (!tensor.dtype && columns == 0))
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
  if (tensor.rows) return tensor.rows->read(row, out);
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
    const int64_t from = source_row(spec, item, part, row);
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

// Calls convert(first, end) for pieces of [begin, end) on several threads: one thread converts
// about 300 million numbers a second, and a model has billions. Pieces but the last are multiples
// of `grain` rows.
template <class Convert>
void on_threads(int64_t begin, int64_t end, int64_t row_bytes, int64_t grain,
                const Convert& convert) {
  const int64_t wanted = std::max((end - begin + kConvertThreadsMax - 1) / kConvertThreadsMax,
                                  kConvertBytesMin / row_bytes + 1);
  const int64_t each = (wanted + grain - 1) / grain * grain;
  std::vector<std::jthread> others;
  for (int64_t first = begin + each; first < end; first += each)
    others.emplace_back(
        [&convert, first, last = std::min(end, first + each)] { convert(first, last); });
  convert(begin, std::min(end, begin + each));
}

// A part of a plain tensor, whose rows begin at `to`.
void upload_converted(Uploader& uploader, const DecoderSpec& spec, const WeightItem& item,
                      const WeightPart& part, const FileTensor& source, std::byte* to) {
  const DType dtype = uploader.dtype();
  const int64_t row_bytes = item.row_size() * int64_t(size_of(dtype));
  const int64_t rows_per_chunk = std::max<int64_t>(1, kChunkBytes / row_bytes);
  std::vector<std::byte> chunk(size_t(std::min(part.rows, rows_per_chunk) * row_bytes));
  for (int64_t begin = 0; begin < part.rows; begin += rows_per_chunk) {
    const int64_t end = std::min(part.rows, begin + rows_per_chunk);
    on_threads(begin, end, row_bytes, 1, [&](int64_t first, int64_t last) {
      convert_rows(spec, item, part, source, dtype, first, last,
                   chunk.data() + (first - begin) * row_bytes);
    });
    uploader.upload(to + begin * row_bytes, chunk.data(), (end - begin) * row_bytes);
  }
}

void upload_part(Uploader& uploader, const DecoderSpec& spec, const WeightItem& item,
                 const WeightPart& part, const FileTensor& source, std::byte* to) {
  if (source.dtype != uploader.dtype() || item.order == QkvOrder::groups || part.rotary_pairs ||
      item.rotated) {
    upload_converted(uploader, spec, item, part, source, to);
    return;
  }
  for (size_t begin = 0; begin < source.bytes; begin += size_t(kUploadBytes))
    uploader.upload(to + begin, source.data + begin,
                    int64_t(std::min(source.bytes - begin, size_t(kUploadBytes))));
}

// One row of the run's matrix as codes and records.
void split_row(const FileTensor& source, const WeightFormat& format, int64_t row,
               std::span<uint8_t> codes, std::span<std::byte> records, std::span<float> numbers) {
  if (source.format == format) {
    if (source.rows) return source.rows->split(row, codes, records);
    source.split(source.data + row * (int64_t(source.bytes) / source.shape[0]),
                 int64_t(codes.size()), codes.data(), records.data());
    return;
  }
  read_row(source, row, numbers);
  quantize_row(format, numbers, codes, records);
}

// The parts of a run, as one quantized matrix.
Weight upload_run(Uploader& uploader, const DecoderSpec& spec, const WeightItem& item,
                  const WeightRun& run, const TensorMap& tensors) {
  const WeightFormat& format = run.format;
  const int64_t k = item.columns;
  Weight weight = uploader.place_quantized(format, run.rows, k);
  if (item.rotated) weight.hadamard = spec.head_dim;
  if (format.reordered) {
    const std::span<const int32_t> order = tensors.at(item.parts[run.first].name).rows->order();
    const std::byte* at = uploader.place(k * int64_t(sizeof(int32_t)));
    uploader.upload(at, order.data(), k * int64_t(sizeof(int32_t)));
    weight.order = make_tensor(const_cast<std::byte*>(at), DType::i32, k);
  }
  std::vector<std::pair<const WeightPart*, int64_t>> rows;  // part and row, of each row of the run
  for (size_t i = run.first; i < run.first + run.count; ++i)
    for (int64_t r = 0; r < item.parts[i].rows; ++r) rows.emplace_back(&item.parts[i], r);

  constexpr int64_t kTile = kWeightTileRows;
  const int64_t rows_per_chunk = std::max<int64_t>(1, kChunkBytes / k / kTile) * kTile;
  const int64_t chunk_rows = std::min(run.rows, rows_per_chunk);
  std::vector<std::byte> codes, scales;
  int64_t codes_done = 0, scales_done = 0;
  for (int64_t begin = 0; begin < run.rows; begin += chunk_rows) {
    const int64_t end = std::min(run.rows, begin + chunk_rows);
    codes.assign(size_t(weight_codes_bytes(format, end - begin, k)), std::byte{0});
    scales.assign(size_t(weight_scales_bytes(format, end - begin, k)), std::byte{0});
    on_threads(begin, end, k, kTile, [&](int64_t first, int64_t last) {
      std::vector<uint8_t> own_codes(size_t(k), 0);
      std::vector<std::byte> own_records(
          size_t(record_count(format, k) * layout_of(format.kind).record_bytes), std::byte{0});
      std::vector<float> numbers(size_t(k), 0.f);
      for (int64_t i = first; i < last; ++i) {
        const auto& [part, row] = rows[size_t(i)];
        split_row(tensors.at(part->name), format, source_row(spec, item, *part, row), own_codes,
                  own_records, numbers);
        write_weight_row(format, k, i - begin, {own_codes, own_records}, codes.data(),
                         scales.data());
      }
    });
    uploader.upload(weight.codes + codes_done, codes.data(), int64_t(codes.size()));
    uploader.upload(weight.scales + scales_done, scales.data(), int64_t(scales.size()));
    codes_done += int64_t(codes.size());
    scales_done += int64_t(scales.size());
  }
  return weight;
}

void upload_matrix(Uploader& uploader, const DecoderSpec& spec, const WeightItem& item,
                   const WeightFormats& formats, const TensorMap& tensors) {
  for (const WeightRun& run : runs_of(item, formats)) {
    if (run.format.kind != WeightKind::plain) {
      item.matrix->parts.push_back(upload_run(uploader, spec, item, run, tensors));
      continue;
    }
    const Tensor tensor = uploader.place_plain(run.rows, item.columns);
    int64_t row = 0;
    for (size_t i = run.first; i < run.first + run.count; ++i) {
      upload_part(
          uploader, spec, item, item.parts[i], tensors.at(item.parts[i].name),
          tensor.as<std::byte>() + row * item.row_size() * int64_t(size_of(uploader.dtype())));
      row += item.parts[i].rows;
    }
    item.matrix->parts.emplace_back(tensor);
  }
}

void upload_vector(Uploader& uploader, const DecoderSpec& spec, const WeightItem& item,
                   const TensorMap& tensors) {
  *item.vector = uploader.place_plain(item.rows(), 0);
  auto* to = item.vector->as<std::byte>();
  for (const WeightPart& part : item.parts) {
    upload_part(uploader, spec, item, part, tensors.at(part.name), to);
    to += part.rows * int64_t(size_of(uploader.dtype()));
  }
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

const Weight& WeightMatrix::whole() const {
  KIVI_VERIFY(parts.size() == 1);
  return parts[0];
}

const Tensor& WeightMatrix::plain() const {
  KIVI_VERIFY(whole().is_plain());
  return parts[0].plain;
}

WeightBytes weight_bytes(const DecoderSpec& spec, const TensorNames& names, DType dtype,
                         const WeightFormats& formats) {
  DecoderWeights unused;
  const WeightList list(spec, names, unused);
  WeightBytes bytes;
  bytes.total = aligned(spec.rope.rotary_dim / 2 * int64_t(sizeof(float)));
  const auto add = [&](const std::string& format, int64_t count) {
    bytes.total += aligned(count);
    bytes.by_format[format] += count;
  };
  for (const WeightItem& item : list.items())
    for (const WeightRun& run : runs_of(item, formats)) {
      if (run.format.kind == WeightKind::plain) {
        add(name_of(dtype), run.rows * item.row_size() * int64_t(size_of(dtype)));
        continue;
      }
      add(name_of(run.format), weight_codes_bytes(run.format, run.rows, item.columns));
      add(name_of(run.format), weight_scales_bytes(run.format, run.rows, item.columns));
      if (run.format.reordered) add(name_of(run.format), item.columns * int64_t(sizeof(int32_t)));
    }
  return bytes;
}

int64_t weight_bytes(const DecoderSpec& spec, DType dtype) {
  return weight_bytes(spec, any_names(spec), dtype, {}).total;
}

int64_t product_scratch_bytes(const Backend& backend, const DecoderSpec& spec,
                              const TensorNames& names, const WeightFormats& formats,
                              int64_t rows) {
  DecoderWeights unused;
  const WeightList list(spec, names, unused);
  int64_t most = 0;
  for (const WeightItem& item : list.items())
    for (const WeightRun& run : runs_of(item, formats)) {
      Weight weight;
      weight.format = run.format;
      weight.rows = run.rows;
      weight.columns = item.columns;
      weight.hadamard = item.rotated ? spec.head_dim : 0;
      most = std::max(most, backend.product_scratch_bytes(weight, rows));
    }
  return most;
}

WeightFormats layer_formats(const DecoderSpec& spec, const TensorNames& names,
                            const WeightFormat& format) {
  DecoderWeights weights;
  const WeightList list(spec, names, weights);
  WeightFormats formats;
  for (const WeightItem& item : list.items()) {
    if (item.matrix == nullptr || item.matrix == &weights.embedding || item.matrix == &weights.head)
      continue;
    if (!weight_fits(format, item.columns)) continue;
    for (const WeightPart& part : item.parts) formats[part.name] = format;
  }
  return formats;
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
                                    DType dtype, const WeightProgress& progress,
                                    const WeightFormats& formats) {
  DecoderWeights weights;
  const WeightList list(spec, names, weights);
  const TensorMap& tensors = checkpoint.tensors();
  KIVI_RETURN_IF_ERROR(check_names(list.items(), spec, names, checkpoint));
  for (const WeightItem& item : list.items())
    for (const WeightPart& part : item.parts)
      KIVI_RETURN_IF_ERROR(check_tensor(tensors.at(part.name), part, item.columns));

  const int64_t bytes = weight_bytes(spec, names, dtype, formats).total;
  KIVI_ASSIGN_OR_RETURN(weights.memory, backend.allocate(size_t(bytes), "the weights"));
  Uploader uploader(backend, weights, dtype, progress);
  for (const WeightItem& item : list.items()) {
    if (item.matrix != nullptr)
      upload_matrix(uploader, spec, item, formats, tensors);
    else
      upload_vector(uploader, spec, item, tensors);
  }
  finish(backend, spec, uploader, weights);
  return weights;
}

namespace {

// Random numbers of one tensor, made in pieces. Their length is a prime: repeated, they give no two
// equal rows of any matrix near each other, and copying them is what makes 7 billion numbers a
// matter of seconds.
class RandomNumbers {
 public:
  // The next `length` numbers of a tensor that begins now.
  std::vector<float> begin(const WeightItem& item) {
    std::vector<float> numbers(size_t(std::min<int64_t>(item.size(), 1'000'003)));
    const float amplitude = std::sqrt(3.0f / float(item.row_size()));  // variance 1 / columns
    for (float& x : numbers) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      const float uniform = float(int32_t(state_ >> 32)) * 0x1p-31f;  // [-1, 1)
      x = item.use == WeightUse::matrix ? amplitude * uniform
                                        : (item.use == WeightUse::norm ? 1.f : 0.f);
    }
    return numbers;
  }

 private:
  uint64_t state_ = 0x9e3779b97f4a7c15;
};

Tensor upload_random(Uploader& uploader, const WeightItem& item, int64_t rows,
                     const std::vector<float>& numbers) {
  const Tensor tensor = uploader.place_plain(rows, item.columns);
  const auto element = int64_t(size_of(uploader.dtype()));
  std::vector<std::byte> pattern(numbers.size() * size_t(element));
  for (size_t i = 0; i < numbers.size(); ++i)
    store_element(uploader.dtype(), numbers[i], pattern.data() + int64_t(i) * element);
  const int64_t bytes = rows * item.row_size() * element;
  for (int64_t begin = 0; begin < bytes; begin += int64_t(pattern.size()))
    uploader.upload(tensor.as<std::byte>() + begin, pattern.data(),
                    std::min<int64_t>(int64_t(pattern.size()), bytes - begin));
  return tensor;
}

// Rows that are quantized. The others repeat them, because rounding billions of numbers takes
// minutes.
constexpr int64_t kRandomRows = 256;

Weight upload_random_run(Uploader& uploader, const DecoderSpec& spec, const WeightItem& item,
                         const WeightRun& run, const std::vector<float>& numbers) {
  const int64_t k = item.columns, distinct = std::min(kRandomRows, run.rows);
  Weight weight = uploader.place_quantized(run.format, run.rows, k);
  if (item.rotated) weight.hadamard = spec.head_dim;
  std::vector<std::byte> codes(size_t(weight_codes_bytes(run.format, distinct, k)), std::byte{0});
  std::vector<std::byte> scales(size_t(weight_scales_bytes(run.format, distinct, k)), std::byte{0});
  on_threads(0, distinct, k, kWeightTileRows, [&](int64_t first, int64_t last) {
    std::vector<float> row(size_t(k), 0.f);
    std::vector<uint8_t> own_codes(size_t(k), 0);
    std::vector<std::byte> own_records(
        size_t(record_count(run.format, k) * layout_of(run.format.kind).record_bytes),
        std::byte{0});
    for (int64_t i = first; i < last; ++i) {
      for (int64_t c = 0; c < k; ++c) row[size_t(c)] = numbers[size_t(i * k + c) % numbers.size()];
      quantize_row(run.format, row, own_codes, own_records);
      write_weight_row(run.format, k, i, {own_codes, own_records}, codes.data(), scales.data());
    }
  });
  const auto repeat = [&](const std::byte* to, int64_t bytes,
                          const std::vector<std::byte>& source) {
    for (int64_t begin = 0; begin < bytes; begin += int64_t(source.size()))
      uploader.upload(to + begin, source.data(), std::min(int64_t(source.size()), bytes - begin));
  };
  repeat(weight.codes, weight_codes_bytes(run.format, run.rows, k), codes);
  repeat(weight.scales, weight_scales_bytes(run.format, run.rows, k), scales);
  return weight;
}

}  // namespace

Result<DecoderWeights> random_weights(Backend& backend, const DecoderSpec& spec,
                                      const TensorNames& names, DType dtype,
                                      const WeightProgress& progress,
                                      const WeightFormats& formats) {
  DecoderWeights weights;
  const WeightList list(spec, names, weights);
  const int64_t bytes = weight_bytes(spec, names, dtype, formats).total;
  KIVI_ASSIGN_OR_RETURN(weights.memory, backend.allocate(size_t(bytes), "the weights"));
  Uploader uploader(backend, weights, dtype, progress);
  RandomNumbers random;
  for (const WeightItem& item : list.items()) {
    const std::vector<float> numbers = random.begin(item);
    if (item.matrix == nullptr) {
      *item.vector = upload_random(uploader, item, item.rows(), numbers);
      continue;
    }
    for (const WeightRun& run : runs_of(item, formats)) {
      if (run.format.kind == WeightKind::plain) {
        item.matrix->parts.emplace_back(upload_random(uploader, item, run.rows, numbers));
        continue;
      }
      item.matrix->parts.push_back(upload_random_run(uploader, spec, item, run, numbers));
    }
  }
  finish(backend, spec, uploader, weights);
  return weights;
}

}  // namespace kivi
