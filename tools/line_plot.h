// Line plots as inline SVG, in the colours of the page that they stand in. Pure functions.
#pragma once

#include <string>
#include <vector>

namespace kivi {

struct PlotSeries {
  std::string name;
  std::vector<double> values;  // one for each x; finite
};

struct LinePlot {
  std::string title;
  std::string x_name, y_name;
  std::vector<double> x;           // ascending
  std::vector<PlotSeries> series;  // at most 6
};

// An <svg> with its legend. Series i has the CSS colour var(--s<i>), text and axes currentColor.
std::string svg_of(const LinePlot& plot);

}  // namespace kivi
