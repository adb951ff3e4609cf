// SPDX-License-Identifier: Apache-2.0
// Random matrices of every quantized weight format, for tests.
#pragma once

#include <cstring>
#include <random>
#include <vector>

#include "kernels/half.h"
#include "kernels/weight_codec.h"

namespace kivi::test {

inline const std::vector<WeightFormat>& quantized_formats() {
  static const std::vector<WeightFormat> formats = {
      {WeightKind::e4m3},      {WeightKind::int4, 32}, {WeightKind::int4, 64},
      {WeightKind::int4, 128}, {WeightKind::int4, 0},  {WeightKind::q4_0},
      {WeightKind::q4_1},      {WeightKind::q5_0},     {WeightKind::q5_1},
      {WeightKind::q8_0},      {WeightKind::q4_k},     {WeightKind::q5_k},
      {WeightKind::q6_k}};
  return formats;
}

// Codes and scales of n rows, uniform, with weights of about unit size.
struct QuantizedRows {
  WeightFormat format;
  int64_t rows = 0, columns = 0;
  std::vector<uint8_t> codes;      // [rows][columns]
  std::vector<std::byte> records;  // [rows][record_count][record_bytes]

  size_t record_bytes() const {
    return size_t(record_count(format, columns) * layout_of(format.kind).record_bytes);
  }
  WeightRow row(int64_t i) const {
    return {{codes.data() + i * columns, size_t(columns)},
            {records.data() + size_t(i) * record_bytes(), record_bytes()}};
  }
};

inline QuantizedRows random_rows(const WeightFormat& format, int64_t n, int64_t k,
                                 std::mt19937& random) {
  QuantizedRows made{format, n, k, {}, {}};
  const WeightLayout layout = layout_of(format.kind);
  for (int64_t i = 0; i < n * k; ++i) {
    auto code = uint8_t(random() % (1u << layout.bits));
    if (format.kind == WeightKind::e4m3 && (code & 0x7F) == 0x7F) code = 0;  // not a NaN
    made.codes.push_back(code);
  }
  made.records.resize(size_t(n) * made.record_bytes());
  const auto bytes = int64_t(made.records.size());
  std::uniform_real_distribution<float> unit(0.5f, 1);
  const float size = 2.0f / float(1 << layout.bits);
  const auto put = [](std::byte* at, auto x) { std::memcpy(at, &x, sizeof(x)); };
  for (int64_t at = 0; at < bytes; at += layout.record_bytes) {
    std::byte* record = made.records.data() + at;
    for (int i = 0; i < layout.record_bytes; ++i) record[i] = std::byte(random());
    const f16 scale = to_f16(unit(random) * size), minimum = to_f16(-unit(random));
    switch (format.kind) {
      case WeightKind::e4m3:
        put(record, unit(random) / 100);
        break;
      case WeightKind::int4:
        put(record, unit(random) * size);
        put(record + 4, uint8_t(random() % 17));
        break;
      case WeightKind::q4_k:
      case WeightKind::q5_k:
        put(record, to_f16(unit(random) * size / 32));
        put(record + 2, to_f16(unit(random) / 32));
        for (int i = 4; i < 20; ++i) record[i] &= std::byte{63};
        break;
      case WeightKind::q6_k:
        put(record, to_f16(unit(random) * size / 64));
        break;
      default:
        put(record, scale);
        if (layout.record_bytes == 4) put(record + 2, minimum);
    }
  }
  return made;
}

// The same rows as a Weight, in memory of its own, aligned as a backend aligns it.
class QuantizedMatrix {
 public:
  explicit QuantizedMatrix(const QuantizedRows& source)
      : codes_(lines(weight_codes_bytes(source.format, source.rows, source.columns))),
        scales_(lines(weight_scales_bytes(source.format, source.rows, source.columns))) {
    auto* codes = codes_.data()->bytes;
    auto* scales = scales_.data()->bytes;
    for (int64_t i = 0; i < source.rows; ++i)
      write_weight_row(source.format, source.columns, i, source.row(i), codes, scales);
    weight.format = source.format;
    weight.rows = source.rows;
    weight.columns = source.columns;
    weight.codes = codes;
    weight.scales = scales;
  }
  QuantizedMatrix(const QuantizedMatrix&) = delete;
  QuantizedMatrix& operator=(const QuantizedMatrix&) = delete;

  Weight weight;

 private:
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  static size_t lines(int64_t bytes) { return size_t(bytes / 64 + 1); }
  std::vector<Line> codes_, scales_;
};

}  // namespace kivi::test
