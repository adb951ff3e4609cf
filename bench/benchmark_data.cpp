// SPDX-License-Identifier: Apache-2.0
#include "bench/benchmark_data.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "engine/model/weight_quantizer.h"
#include "kernels/half.h"
#include "kernels/weight_codec.h"

namespace kivi {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int kCopiesMax = 64;
// A prime length: tensors whose sizes are powers of two start at different places of the pattern.
constexpr int64_t kPatternLength = 1'000'003;

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

std::vector<std::byte> random_pattern(int64_t length, DType dtype, float deviation) {
  std::vector<std::byte> pattern(size_t(length) * size_of(dtype));
  std::mt19937 random(7);
  const float amplitude = deviation * std::sqrt(3.0f);
  for (int64_t i = 0; i < length; ++i) {
    const float x = amplitude * float(int32_t(random())) * 0x1p-31f;  // uniform
    if (dtype == DType::f32) reinterpret_cast<float*>(pattern.data())[i] = x;
    if (dtype == DType::f16) reinterpret_cast<f16*>(pattern.data())[i] = to_f16_saturated(x);
    if (dtype == DType::bf16) reinterpret_cast<bf16*>(pattern.data())[i] = to_bf16(x);
  }
  return pattern;
}

}  // namespace

Result<RandomData> RandomData::create(Backend& backend, int64_t bytes, DType dtype,
                                      float deviation) {
  RandomData data;
  data.dtype_ = dtype;
  KIVI_ASSIGN_OR_RETURN(data.memory_, backend.allocate(size_t(aligned(bytes)), "benchmark data"));
  const int64_t size = int64_t(data.memory_.bytes());
  const int64_t numbers = size / int64_t(size_of(dtype));
  const auto pattern = random_pattern(std::min(numbers, kPatternLength), dtype, deviation);
  for (int64_t begin = 0; begin < size; begin += int64_t(pattern.size()))
    backend.upload(data.memory_.data() + begin, pattern.data(),
                   size_t(std::min(size - begin, int64_t(pattern.size()))));
  return data;
}

bool RandomData::holds(int64_t rows, int64_t columns) const {
  return rows * columns * int64_t(size_of(dtype_)) <= int64_t(memory_.bytes());
}

int RandomData::copies(int64_t rows, int64_t columns) const {
  const int64_t each = aligned(rows * columns * int64_t(size_of(dtype_)));
  return int(std::clamp<int64_t>(int64_t(memory_.bytes()) / each, 1, kCopiesMax));
}

Tensor RandomData::at(int copy, int64_t size) const {
  const int64_t each = aligned(size * int64_t(size_of(dtype_)));
  KIVI_VERIFY((copy + 1) * each <= int64_t(memory_.bytes()));
  return make_tensor(memory_.data() + copy * each, dtype_, size);
}

Tensor RandomData::matrix(int copy, int64_t rows, int64_t columns) const {
  return make_tensor(at(copy, rows * columns).data, dtype_, rows, columns);
}

Tensor RandomData::vector(int copy, int64_t n) const { return at(copy, n); }

Result<RandomWeight> RandomWeight::create(Backend& backend, const WeightFormat& format, int64_t n,
                                          int64_t k, int64_t bytes) {
  const int64_t codes_bytes = weight_codes_bytes(format, n, k);
  const int64_t scales_bytes = weight_scales_bytes(format, n, k);
  const int64_t each = aligned(codes_bytes) + aligned(scales_bytes);
  const int64_t count = std::clamp<int64_t>(bytes / each, 1, kCopiesMax);
  RandomWeight made;
  made.bytes_ = codes_bytes + scales_bytes;
  KIVI_ASSIGN_OR_RETURN(made.memory_, backend.allocate(size_t(count * each), "benchmark data"));

  constexpr int64_t kRows = 64;
  const int64_t rows = std::min(n, kRows);
  std::vector<std::byte> codes(size_t(weight_codes_bytes(format, rows, k)), std::byte{0});
  std::vector<std::byte> scales(size_t(weight_scales_bytes(format, rows, k)), std::byte{0});
  std::vector<float> row(size_t(k), 0.f);
  std::vector<uint8_t> row_codes(size_t(k), 0);
  std::vector<std::byte> row_records(
      size_t(record_count(format, k) * layout_of(format.kind).record_bytes), std::byte{0});
  std::mt19937 random(11);
  const float amplitude = std::sqrt(3.0f / float(k));
  for (int64_t i = 0; i < rows; ++i) {
    for (float& x : row) x = amplitude * float(int32_t(random())) * 0x1p-31f;
    quantize_row(format, row, row_codes, row_records);
    write_weight_row(format, k, i, {row_codes, row_records}, codes.data(), scales.data());
  }
  const auto repeat = [&](std::byte* to, int64_t size, const std::vector<std::byte>& source) {
    for (int64_t begin = 0; begin < size; begin += int64_t(source.size()))
      backend.upload(to + begin, source.data(),
                     size_t(std::min(int64_t(source.size()), size - begin)));
  };
  for (int64_t i = 0; i < count; ++i) {
    std::byte* const at = made.memory_.data() + i * each;
    repeat(at, codes_bytes, codes);
    repeat(at + aligned(codes_bytes), scales_bytes, scales);
    Weight weight;
    weight.format = format;
    weight.rows = n;
    weight.columns = k;
    weight.codes = at;
    weight.scales = at + aligned(codes_bytes);
    made.copies_.push_back(weight);
  }
  return made;
}

Result<Buffer> upload_ids(Backend& backend, const std::vector<int32_t>& ids) {
  KIVI_ASSIGN_OR_RETURN(Buffer buffer,
                        backend.allocate(std::max<size_t>(ids.size(), 1) * sizeof(int32_t), "ids"));
  backend.upload(buffer.data(), ids.data(), ids.size() * sizeof(int32_t));
  return buffer;
}

Result<BenchmarkStep> BenchmarkStep::create(Backend& backend, const std::vector<int>& pasts,
                                            int row_count, int pages_each,
                                            const std::vector<int32_t>& page_table) {
  constexpr size_t kWords = sizeof(StepSequence) / sizeof(int32_t);
  BenchmarkStep step;
  step.page_table_ = page_table;
  for (size_t i = 0; i < pasts.size(); ++i)
    step.sequences_.push_back({.row_begin = int32_t(i) * row_count,
                               .row_count = row_count,
                               .past = pasts[i],
                               .slot = int32_t(i),
                               .pages_begin = int32_t(i) * pages_each,
                               .pages_count = pages_each});
  const auto* words = reinterpret_cast<const int32_t*>(step.sequences_.data());
  std::vector<int32_t> packed(words, words + step.sequences_.size() * kWords);
  packed.resize(size_t(aligned(int64_t(packed.size() * sizeof(int32_t)))) / sizeof(int32_t));
  const size_t table_begin = packed.size();
  packed.insert(packed.end(), page_table.begin(), page_table.end());
  KIVI_ASSIGN_OR_RETURN(step.device_, upload_ids(backend, packed));
  auto* device = reinterpret_cast<int32_t*>(step.device_.data());
  step.view_.rows = int(pasts.size()) * row_count;
  step.view_.sequences = step.sequences_;
  step.view_.page_table = step.page_table_;
  step.view_.device_sequences =
      make_tensor(device, DType::i32, int64_t(step.sequences_.size()), int64_t(kWords));
  step.view_.device_page_table =
      make_tensor(device + table_begin, DType::i32, int64_t(page_table.size()));
  return step;
}

Result<BenchmarkStore> BenchmarkStore::create(Backend& backend, const Shape& shape,
                                              const Tensor& kv, int64_t rotation_bytes) {
  BenchmarkStore store;
  store.backend_ = &backend;
  KvLayout layout{shape.format, {1, shape.heads, shape.head_dim}};
  store.pages_each_ = (shape.room + layout.page_tokens() - 1) / layout.page_tokens();
  const int64_t pages = int64_t(store.pages_each_) * shape.sequences;
  const int64_t layer_bytes = layout.page_bytes() * pages + layout.slot_bytes() * shape.sequences;
  layout.shape.layers =
      shape.layers > 0 ? shape.layers
                       : int(std::clamp<int64_t>(rotation_bytes / layer_bytes + 1, 1, kCopiesMax));
  const int64_t page_bytes = aligned(layout.page_bytes() * pages);
  const int64_t residual_bytes = aligned(layout.slot_bytes() * shape.sequences);
  KIVI_ASSIGN_OR_RETURN(store.memory_,
                        backend.allocate(size_t(page_bytes + residual_bytes + shape.scratch_bytes),
                                         "the benchmark's key-value store"));
  store.view_ = {.layout = layout,
                 .pages = store.memory_.data(),
                 .slots = store.memory_.data() + page_bytes,
                 .scratch = store.memory_.data() + page_bytes + residual_bytes,
                 .page_count = pages,
                 .slot_count = shape.sequences,
                 .scratch_bytes = shape.scratch_bytes};
  store.page_table_.resize(size_t(pages));
  std::iota(store.page_table_.begin(), store.page_table_.end(), 0);
  std::shuffle(store.page_table_.begin(), store.page_table_.end(), std::mt19937(5));

  const int chunk = std::max(1, int(kv.rows()) / shape.sequences);
  for (int past = 0; past < shape.cached; past += chunk) {
    const int rows = std::min(chunk, shape.cached - past);
    KIVI_ASSIGN_OR_RETURN(const BenchmarkStep step,
                          store.step(std::vector<int>(size_t(shape.sequences), past), rows));
    for (int layer = 0; layer < layout.shape.layers; ++layer)
      backend.kv_append(kv.slice_rows(0, step.view().rows), store.view_, step.view(), layer);
    backend.synchronize();  // the step's device memory goes with it
  }
  return store;
}

Result<BenchmarkStep> BenchmarkStore::step(const std::vector<int>& pasts, int row_count) const {
  return BenchmarkStep::create(*backend_, pasts, row_count, pages_each_, page_table_);
}

}  // namespace kivi
