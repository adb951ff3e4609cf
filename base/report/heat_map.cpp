// SPDX-License-Identifier: Apache-2.0
// PNG as its specification (RFC 2083) has it: one byte a pixel, an index into a palette.
#include "base/report/heat_map.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/base64.h"
#include "base/verify.h"

namespace kivi {

namespace {

using Bytes = std::vector<uint8_t>;

void append_u32(Bytes& out, uint32_t x) {
  for (const int shift : {24, 16, 8, 0}) out.push_back(uint8_t(x >> shift));
}

void append_chunk(Bytes& out, const char (&type)[5], const Bytes& data) {
  append_u32(out, uint32_t(data.size()));
  Bytes body(type, type + 4);
  body.insert(body.end(), data.begin(), data.end());
  out.insert(out.end(), body.begin(), body.end());
  append_u32(out, uint32_t(crc32(0, body.data(), uInt(body.size()))));
}

Bytes compressed(const Bytes& data) {
  uLongf size = compressBound(uLong(data.size()));
  Bytes out(size);
  const int status = compress(out.data(), &size, data.data(), uLong(data.size()));
  KIVI_VERIFY(status == Z_OK);
  out.resize(size);
  return out;
}

// 256 colors from night blue through teal to yellow; brightness grows all the way.
Bytes palette() {
  constexpr std::array<std::array<double, 3>, 5> kStops = {
      {{18, 16, 52}, {44, 70, 140}, {38, 140, 150}, {110, 200, 110}, {250, 232, 100}}};
  Bytes out;
  for (int i = 0; i < 256; ++i) {
    const double x = i / 255.0 * double(kStops.size() - 1);
    const size_t stop = std::min(size_t(x), kStops.size() - 2);
    for (size_t c = 0; c < 3; ++c)
      out.push_back(uint8_t(std::lround(
          kStops[stop][c] + (x - double(stop)) * (kStops[stop + 1][c] - kStops[stop][c]))));
  }
  return out;
}

}  // namespace

HeatMap downsampled(const HeatMap& map, int rows_max, int columns_max) {
  HeatMap out{std::min(map.rows, rows_max), std::min(map.columns, columns_max), {}};
  out.values.resize(size_t(out.rows) * size_t(out.columns));
  for (int r = 0; r < map.rows; ++r)
    for (int c = 0; c < map.columns; ++c) {
      const int64_t row = int64_t(r) * out.rows / map.rows;
      const int64_t column = int64_t(c) * out.columns / map.columns;
      float& cell = out.values[size_t(row * out.columns + column)];
      cell = std::max(cell, map.values[size_t(r) * size_t(map.columns) + size_t(c)]);
    }
  return out;
}

std::vector<uint8_t> png_of(const HeatMap& map) {
  KIVI_VERIFY(map.rows > 0 && map.columns > 0);
  KIVI_VERIFY(map.values.size() == size_t(map.rows) * size_t(map.columns));
  Bytes out = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
  Bytes header;
  append_u32(header, uint32_t(map.columns));
  append_u32(header, uint32_t(map.rows));
  header.insert(header.end(), {8, 3, 0, 0, 0});  // bits, palette, deflate, filters, no interlace
  append_chunk(out, "IHDR", header);
  append_chunk(out, "PLTE", palette());
  const float largest = std::max(*std::ranges::max_element(map.values), 1e-30f);
  Bytes pixels;
  for (int r = 0; r < map.rows; ++r) {
    pixels.push_back(0);  // no filter
    for (int c = 0; c < map.columns; ++c) {
      const float x = map.values[size_t(r) * size_t(map.columns) + size_t(c)] / largest;
      pixels.push_back(uint8_t(std::lround(255 * std::sqrt(std::clamp(x, 0.0f, 1.0f)))));
    }
  }
  append_chunk(out, "IDAT", compressed(pixels));
  append_chunk(out, "IEND", {});
  return out;
}

std::string data_uri(std::span<const uint8_t> png) {
  std::string out = "data:image/png;base64,";
  append_base64(out, png);
  return out;
}

}  // namespace kivi
