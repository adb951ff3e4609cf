// SPDX-License-Identifier: Apache-2.0
// A plot as inline SVG: lines or dots over two axes, for the pages of `kivi bench serve` and `kivi
// kv-stats`. Colors come from a style sheet, so that they follow the page's light or dark scheme.
// These pages are written where Python need not be installed; scripts/drawing.py draws the pictures
// of docs/.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace kivi {

struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;
  bool dots = false;                // a dot a point, with its values as a tooltip
  std::vector<std::string> labels;  // of the dots; may be empty
};

struct Plot {
  std::string title, x_label, y_label;
  std::vector<Series> series;
  bool log_x = false;  // points with x <= 0 are left out
  double y_max = 0;    // 0: by the points
};

// Of the plots of a page, without <style>. The page defines the colors --soft (text, axes) and
// --line (the grid).
std::string plot_style();

std::string svg_plot(const Plot& plot);

// Round values that cover [low, high]: about `count` of them, a step of 1, 2 or 5 times a power of
// ten. log: powers of ten, with 2 and 5 times them where there are few.
std::vector<double> ticks(double low, double high, int count);
std::vector<double> log_ticks(double low, double high);

}  // namespace kivi
