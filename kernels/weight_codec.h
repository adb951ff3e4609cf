// SPDX-License-Identifier: Apache-2.0
// The executable definition of the quantized weight formats: where every code and scale of a Weight
// lies, and which number it stands for. Plain scalar functions on host memory. Loading writes with
// them, and tests and the CPU's embedding read with them.
//
// A matrix is cut into tiles of 16 rows, so that a vector register holds one number of each row and
// no sum over lanes is ever needed. A tile is cut along k into blocks of 32 columns. The block's
// column c is byte b = c % 4 of quad q = c / 4. Codes of row r of a tile (4-, 5- and 6-bit codes
// are split into low nibbles and high bits):
//
// clang-format off
//   low nibbles  256 bytes   byte (q % 4) * 64 + r * 4 + b, low half for q < 4, else high half
//   fifth bit     64 bytes   byte r * 4 + b, bit q
//   bits 5, 6    128 bytes   byte q / 4 * 64 + r * 4 + b, bits 2 (q % 4) and up
//   8-bit codes  512 bytes   byte q * 64 + r * 4 + b
//   e4m3                     row-major [n, k], no tiles
//
// Scales of a tile, for each unit of columns (a block, a superblock or a group), field by field, 16
// rows side by side:
//   q4_0, q5_0, q8_0   f16 scale
//   q4_1, q5_1         f16 scale, f16 minimum
//   q4_k, q5_k         f16 d, f16 dmin, 8 x u8 s, 8 x u8 m
//   q6_k               f16 d, 16 x i8 s
//   int4               f32 scale, u8 zero
//   e4m3               f32 scale, [n], no tiles
// clang-format on
//
// The last tile of rows and (int4 only) the last block of columns are filled up with zeros.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/weight.h"

namespace kivi {

inline constexpr int kWeightTileRows = 16;
inline constexpr int kWeightBlock = 32;  // columns

// The sizes of a format, in one table. e4m3 has units of a whole row.
struct WeightLayout {
  int bits;          // of a code
  int block_bytes;   // of the codes of 16 rows by 32 columns; 0: e4m3
  int unit;          // columns that share a record of scales; 0: WeightFormat::group, or the row
  int record_bytes;  // scales of one row and unit
  int bias;          // what is subtracted from codes; 0: see WeightKind
};
WeightLayout layout_of(WeightKind kind);

// Blocks of a row.
int64_t block_count(int64_t columns);
// Columns that share a record of scales, and how many records a row has.
int64_t unit_columns(const WeightFormat& format, int64_t columns);
int64_t record_count(const WeightFormat& format, int64_t columns);

// Checks that a matrix of this many columns can be stored. GGUF's formats need whole blocks.
bool weight_fits(const WeightFormat& format, int64_t columns);

// Bytes of Weight::codes and Weight::scales.
int64_t weight_codes_bytes(const WeightFormat& format, int64_t rows, int64_t columns);
int64_t weight_scales_bytes(const WeightFormat& format, int64_t rows, int64_t columns);

// One row of a matrix before it lies in a tile. Its records hold the fields of the table above,
// packed, in that order.
struct WeightRow {
  std::span<const uint8_t> codes;      // [columns]
  std::span<const std::byte> records;  // [record_count][record_bytes]
};

// Writes row `row` of a matrix of `columns` columns. `codes` and `scales` are the memory of the
// whole matrix, zeros before its first row is written. Different rows may be written at the same
// time only if they belong to different tiles.
void write_weight_row(const WeightFormat& format, int64_t columns, int64_t row,
                      const WeightRow& source, std::byte* codes, std::byte* scales);

// Writes the numbers of one row: W, ignoring `hadamard` and `order`. out [columns].
void read_weight_row(const Weight& weight, int64_t row, std::span<float> out);

// Writes what a row before its tile stands for. out [columns].
void dequantize_row(const WeightFormat& format, const WeightRow& source, std::span<float> out);

}  // namespace kivi
