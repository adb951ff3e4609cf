// SPDX-License-Identifier: Apache-2.0
#include "base/report/svg_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/report/html_text.h"

namespace kivi {
namespace {

constexpr double kWidth = 460, kHeight = 280;
constexpr double kLeft = 62, kRight = 14, kTop = 12, kBottom = 44;
constexpr double kLegendLine = 16;
constexpr size_t kSeriesColors = 8;

constexpr const char* kStyle = R"(
:root { --c0: #2563a8; --c1: #c2571a; --c2: #2d8a4e; --c3: #8b4bb0; --c4: #b8860b; --c5: #0e8a8a;
  --c6: #c23b6b; --c7: #6b7280; }
@media (prefers-color-scheme: dark) { :root { --c0: #6aaef0; --c1: #f0935a; --c2: #6cc78a;
  --c3: #c493e6; --c4: #e0b84a; --c5: #4fc4c4; --c6: #f07fa6; --c7: #a3abb5; } }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.grid { stroke: var(--line); stroke-width: 0.6; } .axis { stroke: var(--soft); fill: none; }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; } .dot { stroke: none; }
)";

// Values to pixels.
struct Scale {
  double low = 0, high = 1, from = 0, to = 1;
  bool log = false;
  double at(double value) const {
    const double share =
        log ? std::log(value / low) / std::log(high / low) : (value - low) / (high - low);
    return from + share * (to - from);
  }
};

std::string number(double value) {
  if (value != 0 && (std::abs(value) >= 1e6 || std::abs(value) < 1e-3))
    return fmt::format("{:.0e}", value);
  return fmt::format("{:.6g}", value);
}

Scale x_scale(const Plot& plot) {
  double low = std::numeric_limits<double>::infinity(), high = 0;
  for (const Series& s : plot.series)
    for (const auto& [x, y] : s.points) {
      if (plot.log_x && x <= 0) continue;
      low = std::min(low, x);
      high = std::max(high, x);
    }
  if (!(high > 0)) low = plot.log_x ? 0.1 : 0, high = 1;
  if (!plot.log_x) return {0, high * 1.05, kLeft, kWidth - kRight};
  if (high / low < 1.2) low /= 1.5, high *= 1.5;
  return {low, high * 1.05, kLeft, kWidth - kRight, true};
}

Scale y_scale(const Plot& plot) {
  double high = plot.y_max;
  if (high == 0)
    for (const Series& s : plot.series)
      for (const auto& [x, y] : s.points) high = std::max(high, y * 1.08);
  return {0, high > 0 ? high : 1, kHeight - kBottom, kTop};
}

std::string axes(const Plot& plot, const Scale& x, const Scale& y) {
  std::string out;
  for (const double t : plot.log_x ? log_ticks(x.low, x.high) : ticks(x.low, x.high, 6))
    out += fmt::format(
        "<line class=grid x1={0:.1f} x2={0:.1f} y1={1:.1f} y2={2:.1f} />"
        "<text class=tick text-anchor=middle x={0:.1f} y={3:.1f}>{4}</text>\n",
        x.at(t), kTop, kHeight - kBottom, kHeight - kBottom + 15, number(t));
  for (const double t : ticks(y.low, y.high, 5))
    out += fmt::format(
        "<line class=grid y1={0:.1f} y2={0:.1f} x1={1:.1f} x2={2:.1f} />"
        "<text class=tick text-anchor=end x={3:.1f} y={4:.1f}>{5}</text>\n",
        y.at(t), kLeft, kWidth - kRight, kLeft - 6, y.at(t) + 4, number(t));
  out += fmt::format(
      "<path class=axis d=\"M{0:.1f},{1:.1f}V{2:.1f}H{3:.1f}\" />"
      "<text class=label text-anchor=middle x={4:.1f} y={5:.1f}>{6}</text>"
      "<text class=label text-anchor=middle transform=\"translate(14,{7:.1f}) "
      "rotate(-90)\">{8}</text>\n",
      kLeft, kTop, kHeight - kBottom, kWidth - kRight, (kLeft + kWidth - kRight) / 2,
      kHeight - kBottom + 33, escape_html(plot.x_label), (kTop + kHeight - kBottom) / 2,
      escape_html(plot.y_label));
  return out;
}

std::string curve(const Series& series, size_t color, const Plot& plot, const Scale& x,
                  const Scale& y) {
  std::string path, dots;
  for (size_t i = 0; i < series.points.size(); ++i) {
    const auto& [px, py] = series.points[i];
    if (plot.log_x && px <= 0) continue;
    path += fmt::format("{}{:.1f},{:.1f}", path.empty() ? "M" : "L", x.at(px), y.at(py));
    if (!series.dots) continue;
    const std::string label = i < series.labels.size() ? series.labels[i] + ": " : "";
    dots += fmt::format(
        "<circle class=\"s{} dot\" cx={:.1f} cy={:.1f} r=4><title>{}</title>"
        "</circle>\n",
        color, x.at(px), y.at(py),
        escape_html(fmt::format("{}{}, {}", label, number(px), number(py))));
  }
  if (path.empty()) return "";
  return fmt::format("<path class=\"s{} curve\" d=\"{}\" />\n{}", color, path, dots);
}

std::string legend(const Plot& plot) {
  std::string out;
  for (size_t i = 0; i < plot.series.size(); ++i)
    out += fmt::format(
        "<line class=\"s{0} curve\" x1={1:.1f} x2={2:.1f} y1={3:.1f} y2={3:.1f} />"
        "<text class=label x={4:.1f} y={5:.1f}>{6}</text>\n",
        i % kSeriesColors, kLeft, kLeft + 18, kHeight + kLegendLine * double(i) + 4, kLeft + 24,
        kHeight + kLegendLine * double(i) + 8, escape_html(plot.series[i].name));
  return out;
}

}  // namespace

std::vector<double> ticks(double low, double high, int count) {
  std::vector<double> out;
  if (!(high > low)) return {low};
  const double rough = (high - low) / count;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  const double lead = rough / power;
  const double step = power * (lead <= 1 ? 1 : lead <= 2 ? 2 : lead <= 5 ? 5 : 10);
  for (double i = std::ceil(low / step); i * step <= high * (1 + 1e-12); ++i)
    out.push_back(i * step);
  return out;
}

std::vector<double> log_ticks(double low, double high) {
  std::vector<double> tens, all;
  for (double power = std::pow(10, std::floor(std::log10(low))); power <= high; power *= 10)
    for (const double lead : {1.0, 2.0, 5.0}) {
      const double value = lead * power;
      if (value < low || value > high) continue;
      all.push_back(value);
      if (lead == 1) tens.push_back(value);
    }
  return all.size() <= 8 ? all : tens;
}

std::string plot_style() {
  std::string out = kStyle;
  for (size_t i = 0; i < kSeriesColors; ++i)
    out += fmt::format(".s{0} {{ stroke: var(--c{0}); }} .s{0}.dot {{ fill: var(--c{0}); }}\n", i);
  return out;
}

std::string svg_plot(const Plot& plot) {
  const Scale x = x_scale(plot), y = y_scale(plot);
  std::string out = fmt::format(
      "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {} {}\" role=img "
      "aria-label=\"{}\">\n",
      escape_html(plot.title), kWidth,
      kHeight + kLegendLine * double(plot.series.size() > 1 ? plot.series.size() : 0),
      escape_html(plot.title));
  out += axes(plot, x, y);
  for (size_t i = 0; i < plot.series.size(); ++i)
    out += curve(plot.series[i], i % kSeriesColors, plot, x, y);
  if (plot.series.size() > 1) out += legend(plot);
  return out + "</svg></figure>\n";
}

}  // namespace kivi
