// SPDX-License-Identifier: Apache-2.0
#include "kernels/weight_codec.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "base/verify.h"
#include "kernels/half.h"
#include "kernels/kv_codec.h"

namespace kivi {

namespace {

template <class T>
T read_as(const std::byte* at) {
  T x;
  std::memcpy(&x, at, sizeof(x));
  return x;
}

float half_at(const std::byte* at) { return to_float(f16{read_as<uint16_t>(at)}); }
float byte_at(const std::byte* at) { return float(std::to_integer<uint8_t>(*at)); }

// Sizes of the fields of a record, in order. A record of a K-quant has 18 of them at most.
struct Fields {
  std::array<uint8_t, 18> sizes = {};
  int count = 0;
};

Fields fields_of(WeightKind kind) {
  Fields fields;
  const auto add = [&](int size, int times = 1) {
    for (int i = 0; i < times; ++i) fields.sizes[size_t(fields.count++)] = uint8_t(size);
  };
  switch (kind) {
    case WeightKind::plain:
      break;
    case WeightKind::e4m3:
      add(4);
      break;
    case WeightKind::int4:
      add(4);
      add(1);
      break;
    case WeightKind::q4_0:
    case WeightKind::q5_0:
    case WeightKind::q8_0:
      add(2);
      break;
    case WeightKind::q4_1:
    case WeightKind::q5_1:
      add(2, 2);
      break;
    case WeightKind::q4_k:
    case WeightKind::q5_k:
      add(2, 2);
      add(1, 16);
      break;
    case WeightKind::q6_k:
      add(2);
      add(1, 16);
      break;
  }
  return fields;
}

// Where the code of column c (< 32) of a block and row r lies, and how it is split.
struct CodePlace {
  int low, low_shift;    // byte of the low nibble (or of all 8 bits) and its shift
  int high, high_shift;  // byte of the bits above, where there are any
};

CodePlace place_of(int bits, int r, int c) {
  const int q = c / 4, lane = r * 4 + c % 4;
  if (bits == 8) return {q * 64 + lane, 0, 0, 0};
  const CodePlace low = {q % 4 * 64 + lane, q / 4 * 4, 0, 0};
  if (bits == 5) return {low.low, low.low_shift, 256 + lane, q};
  return {low.low, low.low_shift, 256 + q / 4 * 64 + lane, q % 4 * 2};
}

uint8_t read_code(int bits, const std::byte* block, int r, int c) {
  const CodePlace at = place_of(bits, r, c);
  const auto low = std::to_integer<unsigned>(block[at.low]);
  if (bits == 8) return uint8_t(low);
  unsigned code = low >> at.low_shift & 15;
  if (bits > 4)
    code |= (std::to_integer<unsigned>(block[at.high]) >> at.high_shift & ((1u << (bits - 4)) - 1))
            << 4;
  return uint8_t(code);
}

// Writes the codes of row r of a block: what read_code reads.
void write_block(int bits, const uint8_t* codes, int r, std::byte* block) {
  std::byte* const lanes = block + r * 4;
  if (bits == 8) {
    for (int q = 0; q < 8; ++q) std::memcpy(lanes + q * 64, codes + q * 4, 4);
    return;
  }
  for (int q = 0; q < 4; ++q)
    for (int b = 0; b < 4; ++b) {
      const int low = codes[q * 4 + b] & 15, high = codes[16 + q * 4 + b] & 15;
      lanes[q * 64 + b] = std::byte(low | high << 4);
    }
  const int high_bits = bits - 4, planes = high_bits, quads = 8 / std::max(high_bits, 1);
  for (int plane = 0; plane < planes; ++plane)
    for (int b = 0; b < 4; ++b) {
      int byte = 0;
      for (int q = 0; q < quads; ++q)
        byte |= codes[(plane * quads + q) * 4 + b] >> 4 << (q * high_bits);
      lanes[256 + plane * 64 + b] = std::byte(byte);
    }
}

// The numbers of `count` columns of one unit, beginning with column `first` of the unit.
void dequantize_unit(WeightKind kind, const uint8_t* codes, const std::byte* record, int64_t count,
                     float* out) {
  const int bias = layout_of(kind).bias;
  switch (kind) {
    case WeightKind::plain:
      KIVI_VERIFY(false);
      break;
    case WeightKind::e4m3:
      for (int64_t i = 0; i < count; ++i) out[i] = read_as<float>(record) * from_e4m3(codes[i]);
      break;
    case WeightKind::int4:
      for (int64_t i = 0; i < count; ++i)
        out[i] = read_as<float>(record) * (float(codes[i]) - byte_at(record + 4));
      break;
    case WeightKind::q4_0:
    case WeightKind::q5_0:
    case WeightKind::q8_0:
      for (int64_t i = 0; i < count; ++i) out[i] = half_at(record) * float(codes[i] - bias);
      break;
    case WeightKind::q4_1:
    case WeightKind::q5_1:
      for (int64_t i = 0; i < count; ++i)
        out[i] = half_at(record) * float(codes[i]) + half_at(record + 2);
      break;
    case WeightKind::q4_k:
    case WeightKind::q5_k:
      for (int64_t i = 0; i < count; ++i) {
        const float s = half_at(record) * byte_at(record + 4 + i / 32);
        const float m = half_at(record + 2) * byte_at(record + 12 + i / 32);
        out[i] = s * float(codes[i]) - m;
      }
      break;
    case WeightKind::q6_k:
      for (int64_t i = 0; i < count; ++i) {
        const float s = half_at(record) * float(read_as<int8_t>(record + 2 + i / 16));
        out[i] = s * float(codes[i] - bias);
      }
      break;
  }
}

}  // namespace

std::string name_of(const WeightFormat& format) {
  switch (format.kind) {
    case WeightKind::plain:
      return "plain";
    case WeightKind::e4m3:
      return "fp8";
    case WeightKind::int4:
      return format.group == 0 ? "int4" : fmt::format("int4 G{}", format.group);
    case WeightKind::q4_0:
      return "Q4_0";
    case WeightKind::q4_1:
      return "Q4_1";
    case WeightKind::q5_0:
      return "Q5_0";
    case WeightKind::q5_1:
      return "Q5_1";
    case WeightKind::q8_0:
      return "Q8_0";
    case WeightKind::q4_k:
      return "Q4_K";
    case WeightKind::q5_k:
      return "Q5_K";
    case WeightKind::q6_k:
      return "Q6_K";
  }
  return "";
}

WeightLayout layout_of(WeightKind kind) {
  switch (kind) {
    case WeightKind::plain:
      break;
    case WeightKind::e4m3:
      return {8, 0, 0, 4, 0};
    case WeightKind::int4:
      return {4, 256, 0, 5, 0};
    case WeightKind::q4_0:
      return {4, 256, 32, 2, 8};
    case WeightKind::q4_1:
      return {4, 256, 32, 4, 0};
    case WeightKind::q5_0:
      return {5, 320, 32, 2, 16};
    case WeightKind::q5_1:
      return {5, 320, 32, 4, 0};
    case WeightKind::q8_0:
      return {8, 512, 32, 2, 128};
    case WeightKind::q4_k:
      return {4, 256, 256, 20, 0};
    case WeightKind::q5_k:
      return {5, 320, 256, 20, 0};
    case WeightKind::q6_k:
      return {6, 384, 256, 18, 32};
  }
  KIVI_VERIFY(false);
  return {};
}

int64_t unit_columns(const WeightFormat& format, int64_t columns) {
  const int unit = layout_of(format.kind).unit;
  if (unit != 0) return unit;
  return format.group == 0 ? columns : std::min<int64_t>(format.group, columns);
}

int64_t block_count(int64_t columns) { return (columns + kWeightBlock - 1) / kWeightBlock; }

int64_t record_count(const WeightFormat& format, int64_t columns) {
  const int64_t unit = unit_columns(format, columns);
  return (columns + unit - 1) / unit;
}

bool weight_fits(const WeightFormat& format, int64_t columns) {
  if (columns <= 0) return false;
  const WeightLayout layout = layout_of(format.kind);
  if (layout.block_bytes == 0) return true;
  if (format.kind == WeightKind::int4) return format.group >= 0 && format.group % kWeightBlock == 0;
  return columns % layout.unit == 0;
}

int64_t weight_codes_bytes(const WeightFormat& format, int64_t rows, int64_t columns) {
  const WeightLayout layout = layout_of(format.kind);
  if (layout.block_bytes == 0) return rows * columns;
  const int64_t tiles = (rows + kWeightTileRows - 1) / kWeightTileRows;
  return tiles * block_count(columns) * layout.block_bytes;
}

int64_t weight_scales_bytes(const WeightFormat& format, int64_t rows, int64_t columns) {
  const WeightLayout layout = layout_of(format.kind);
  if (layout.block_bytes == 0) return rows * layout.record_bytes;
  const int64_t tiles = (rows + kWeightTileRows - 1) / kWeightTileRows;
  return tiles * record_count(format, columns) * layout.record_bytes * kWeightTileRows;
}

void write_weight_row(const WeightFormat& format, int64_t columns, int64_t row,
                      const WeightRow& source, std::byte* codes, std::byte* scales) {
  const WeightLayout layout = layout_of(format.kind);
  KIVI_VERIFY(weight_fits(format, columns) && int64_t(source.codes.size()) == columns);
  if (layout.block_bytes == 0) {
    std::memcpy(codes + row * columns, source.codes.data(), size_t(columns));
    std::memcpy(scales + row * layout.record_bytes, source.records.data(),
                size_t(layout.record_bytes));
    return;
  }
  const int64_t tile = row / kWeightTileRows, blocks = block_count(columns);
  const int r = int(row % kWeightTileRows);
  std::byte* block = codes + tile * blocks * layout.block_bytes;
  for (int64_t b = 0; b < blocks; ++b, block += layout.block_bytes) {
    const int64_t begin = b * kWeightBlock,
                  count = std::min<int64_t>(kWeightBlock, columns - begin);
    std::array<uint8_t, kWeightBlock> padded = {};
    std::copy_n(source.codes.begin() + begin, count, padded.begin());
    write_block(layout.bits, padded.data(), r, block);
  }

  const int64_t records = record_count(format, columns);
  const Fields fields = fields_of(format.kind);
  const std::byte* from = source.records.data();
  std::byte* to = scales + tile * records * layout.record_bytes * kWeightTileRows;
  for (int64_t i = 0; i < records; ++i)
    for (int f = 0; f < fields.count; ++f) {
      const size_t size = fields.sizes[size_t(f)];
      std::memcpy(to + size_t(r) * size, from, size);
      from += size;
      to += size * kWeightTileRows;
    }
}

void dequantize_row(const WeightFormat& format, const WeightRow& source, std::span<float> out) {
  const auto columns = int64_t(out.size());
  const int64_t unit = unit_columns(format, columns);
  const std::byte* record = source.records.data();
  for (int64_t c = 0; c < columns; c += unit) {
    dequantize_unit(format.kind, source.codes.data() + c, record, std::min(unit, columns - c),
                    out.data() + c);
    record += layout_of(format.kind).record_bytes;
  }
}

void read_weight_row(const Weight& weight, int64_t row, std::span<float> out) {
  const WeightFormat& format = weight.format;
  const int64_t columns = weight.columns;
  KIVI_VERIFY(row >= 0 && row < weight.rows && int64_t(out.size()) == columns);
  const WeightLayout layout = layout_of(format.kind);
  if (layout.block_bytes == 0) {
    const auto* codes = reinterpret_cast<const uint8_t*>(weight.codes) + row * columns;
    return dequantize_row(
        format,
        {{codes, size_t(columns)},
         {weight.scales + row * layout.record_bytes, size_t(layout.record_bytes)}},
        out);
  }
  const int64_t tile = row / kWeightTileRows, blocks = block_count(columns);
  const int r = int(row % kWeightTileRows);
  std::vector<uint8_t> codes(size_t(columns), 0);
  const std::byte* block = weight.codes + tile * blocks * layout.block_bytes;
  for (int64_t b = 0; b < blocks; ++b, block += layout.block_bytes)
    for (int c = 0; c < std::min<int64_t>(kWeightBlock, columns - b * kWeightBlock); ++c)
      codes[size_t(b * kWeightBlock + c)] = read_code(layout.bits, block, r, c);

  const int64_t records = record_count(format, columns);
  const Fields fields = fields_of(format.kind);
  std::vector<std::byte> own(size_t(records * layout.record_bytes), std::byte{0});
  const std::byte* from = weight.scales + tile * records * layout.record_bytes * kWeightTileRows;
  std::byte* to = own.data();
  for (int64_t i = 0; i < records; ++i)
    for (int f = 0; f < fields.count; ++f) {
      const size_t size = fields.sizes[size_t(f)];
      std::memcpy(to, from + size_t(r) * size, size);
      to += size;
      from += size * kWeightTileRows;
    }
  dequantize_row(format, {codes, own}, out);
}

}  // namespace kivi
