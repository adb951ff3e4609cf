#include "tools/line_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tools/html_text.h"

namespace kivi {

namespace {

constexpr double kWidth = 560, kHeight = 260, kLeft = 56, kRight = 130, kTop = 30, kBottom = 40;

// A round step that gives 3 to 7 ticks up to `largest`.
double tick_step(double largest) {
  const double power = std::pow(10.0, std::floor(std::log10(largest)));
  for (const double factor : {0.2, 0.5, 1.0})
    if (largest / (power * factor) <= 6) return power * factor;
  return 2 * power;
}

}  // namespace

std::string svg_of(const LinePlot& plot) {
  double largest = 1e-9;
  for (const PlotSeries& s : plot.series)
    for (const double v : s.values) largest = std::max(largest, v);
  const double first = plot.x.front(), span = std::max(plot.x.back() - first, 1.0);
  const double width = kWidth - kLeft - kRight, height = kHeight - kTop - kBottom;
  const auto x_at = [&](double x) { return kLeft + (x - first) / span * width; };
  const auto y_at = [&](double y) { return kTop + height - y / (largest * 1.05) * height; };

  std::string out = fmt::format(
      "<svg viewBox=\"0 0 {0:g} {1:g}\" width=\"{0:g}\" role=\"img\"><title>{2}</title>\n"
      "<text x=\"{3:g}\" y=\"18\" class=\"t\">{2}</text>\n",
      kWidth, kHeight, escape_html(plot.title), kLeft);
  const double step = tick_step(largest);
  for (double y = 0; y <= largest * 1.05; y += step)
    out += fmt::format(
        "<line x1=\"{:g}\" x2=\"{:g}\" y1=\"{:.1f}\" y2=\"{:.1f}\" class=\"g\"/>"
        "<text x=\"{:g}\" y=\"{:.1f}\" text-anchor=\"end\">{:g}</text>\n",
        kLeft, kLeft + width, y_at(y), y_at(y), kLeft - 6, y_at(y) + 4, y);
  const size_t stride = std::max<size_t>(1, plot.x.size() / 10);
  for (size_t i = 0; i < plot.x.size(); i += stride)
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:g}\" text-anchor=\"middle\">{:g}</text>\n",
                       x_at(plot.x[i]), kTop + height + 16, plot.x[i]);
  out += fmt::format(
      "<text x=\"{:g}\" y=\"{:g}\" text-anchor=\"middle\">{}</text>"
      "<text x=\"4\" y=\"{:g}\" transform=\"rotate(-90 12 {:g})\" "
      "text-anchor=\"middle\">{}</text>\n",
      kLeft + width / 2, kHeight - 6, escape_html(plot.x_name), kTop + height / 2,
      kTop + height / 2, escape_html(plot.y_name));
  for (size_t s = 0; s < plot.series.size(); ++s) {
    out += fmt::format("<g style=\"color:var(--s{})\"><polyline class=\"l\" points=\"", s);
    const std::vector<double>& values = plot.series[s].values;
    for (size_t i = 0; i < values.size(); ++i)
      out += fmt::format("{:.1f},{:.1f} ", x_at(plot.x[i]), y_at(values[i]));
    out += "\"/>";
    for (size_t i = 0; i < values.size(); ++i)
      out += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2\" fill=\"currentColor\"/>",
                         x_at(plot.x[i]), y_at(values[i]));
    const double y = kTop + 10 + 18 * double(s), x = kLeft + width + 10;
    out += fmt::format(
        "<line x1=\"{0:g}\" x2=\"{1:g}\" y1=\"{2:g}\" y2=\"{2:g}\" class=\"l\"/></g>"
        "<text x=\"{3:g}\" y=\"{4:g}\">{5}</text>\n",
        x, x + 16, y, x + 22, y + 4, escape_html(plot.series[s].name));
  }
  return out + "</svg>\n";
}

}  // namespace kivi
