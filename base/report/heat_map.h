// SPDX-License-Identifier: Apache-2.0
// Heat maps as PNG images inside a page, so that the page is one file.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace kivi {

// [rows, columns], row after row.
struct HeatMap {
  int rows = 0, columns = 0;
  std::vector<float> values;  // finite, >= 0
};

// Reduces a map to at most this many rows and columns. Each cell is the largest value of the cells
// that it stands for, so that a single outlier stays visible.
HeatMap downsampled(const HeatMap& map, int rows_max, int columns_max);

// A PNG of a pixel a cell: dark for 0, bright for the largest value, the square root between.
std::vector<uint8_t> png_of(const HeatMap& map);

// "data:image/png;base64,...".
std::string data_uri(std::span<const uint8_t> png);

}  // namespace kivi
