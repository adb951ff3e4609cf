// SPDX-License-Identifier: Apache-2.0
#include "study/kv_stats_page.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "base/report/heat_map.h"
#include "base/report/html_text.h"
#include "base/report/svg_plot.h"
#include "study/kv_stats_report.h"

namespace kivi {

namespace {

// Token x channel maps are drawn for at most so many layers, of so many columns.
constexpr size_t kMapsMax = 6;
constexpr int kMapColumnsMax = 512;

constexpr char kStyle[] = R"(
:root{color-scheme:light dark;--bg:#fbfbf9;--fg:#1c1e21;--soft:#686d73;--line:#d9dad6}
@media(prefers-color-scheme:dark){:root{--bg:#17191c;--fg:#e6e6e3;--soft:#9aa0a6;--line:#33373c}}
body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}p,figcaption{max-width:50rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.87rem}
th,td{padding:.2rem .6rem;text-align:right;border-bottom:1px solid var(--line)}th{font-weight:600}
td:first-child,th:first-child{text-align:left}.best{font-weight:700}
.note{border-left:4px solid var(--c2);padding:.4rem .9rem;margin:1rem 0}
figure{margin:1rem 0}figcaption,.dim{color:var(--soft);font-size:.87rem}
img{image-rendering:pixelated;width:100%;max-width:56rem;height:auto;min-height:4.5rem;display:block}
.pair{display:flex;flex-wrap:wrap;gap:1rem}.pair figure{flex:1 1 26rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(340px,1fr));gap:16px}
)";

std::string table(const std::vector<std::string>& heads,
                  const std::vector<std::vector<std::string>>& rows) {
  std::string out = "<div class=\"scroll\"><table><thead><tr>";
  for (const std::string& head : heads) out += "<th>" + escape_html(head) + "</th>";
  out += "</tr></thead><tbody>\n";
  for (const std::vector<std::string>& row : rows) {
    out += "<tr>";
    for (const std::string& cell : row) out += "<td>" + escape_html(cell) + "</td>";
    out += "</tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

std::string percent(double share) { return fmt::format("{:.2f}", 100 * share); }

std::string figure(const HeatMap& map, const std::string& caption) {
  const float largest = *std::ranges::max_element(map.values);
  return fmt::format(
      "<figure><img alt=\"{0}\" src=\"{1}\"/><figcaption>{0}. Brightest: {2:.3g}.</figcaption>"
      "</figure>\n",
      escape_html(caption), data_uri(png_of(map)), largest);
}

// Layer x channel: which channels are large, through the whole model.
HeatMap channels_by_layer(const KvStatistics& s, KvMagnitudes KvLayerStatistics::*side) {
  HeatMap map{int(s.layers.size()), s.heads_kv * s.head_dim, {}};
  for (const KvLayerStatistics& l : s.layers)
    std::ranges::copy((l.*side).channel_mean, std::back_inserter(map.values));
  return downsampled(map, 128, kMapColumnsMax);
}

std::string magnitudes(const KvStatistics& s) {
  std::string out =
      "<h2>Magnitudes</h2>\n<p>Mean |x| of each channel by layer (one row a layer; channels of all "
      "KV "
      "heads side by side), then of each channel along the first window's tokens (oldest on top). "
      "Vertical lines are channels that are large at every token; square-root scale.</p>\n"
      "<div class=\"pair\">";
  out += figure(channels_by_layer(s, &KvLayerStatistics::keys), "Keys, layer by channel");
  out += figure(channels_by_layer(s, &KvLayerStatistics::values), "Values, layer by channel");
  out += "</div>\n";
  const size_t count = std::min(kMapsMax, s.layers.size());
  for (size_t i = 0; i < count; ++i) {
    const size_t index = count == 1 ? 0 : i * (s.layers.size() - 1) / (count - 1);
    const KvLayerStatistics& l = s.layers[index];
    out += "<div class=\"pair\">";
    for (const auto& [name, m] : {std::pair{"Keys", &l.keys}, std::pair{"Values", &l.values}}) {
      const HeatMap map{m->map_rows, s.heads_kv * s.head_dim, m->map};
      out += figure(downsampled(map, 64, kMapColumnsMax),
                    fmt::format("{}, layer {}, token by channel", name, l.layer));
    }
    out += "</div>\n";
  }
  return out;
}

std::string outliers(const KvStatistics& s) {
  std::vector<std::vector<std::string>> rows;
  const auto listed = [&](const KvMagnitudes& m) {
    std::string out;
    for (size_t i = 0; i < std::min<size_t>(8, m.outliers.size()); ++i)
      out += fmt::format("{}{}:{}", i == 0 ? "" : " ", m.outliers[i] / s.head_dim,
                         m.outliers[i] % s.head_dim);
    return m.outliers.size() > 8 ? out + " ..." : out;
  };
  for (const KvLayerStatistics& l : s.layers)
    rows.push_back({std::to_string(l.layer), std::to_string(l.keys.outliers.size()),
                    fmt::format("{:.1f}", l.keys.peak_over_median), listed(l.keys),
                    std::to_string(l.values.outliers.size()),
                    fmt::format("{:.1f}", l.values.peak_over_median), listed(l.values)});
  return fmt::format(
             "<h2>Outlier channels</h2>\n<p>A channel whose mean |x| is at least {:g} times "
             "the median of its head's channels. Peak: the largest over the median, mean "
             "over heads. Channels as head:channel.</p>\n",
             s.outlier_factor) +
         table(
             {"layer", "K outliers", "K peak", "K channels", "V outliers", "V peak", "V channels"},
             rows);
}

Plot plot_of(const std::string& title, const std::string& y_label = "error, %") {
  return {.title = title, .x_label = "layer", .y_label = y_label};
}

template <class F>
void add_series(Plot& plot, const KvStatistics& s, const std::string& name, F&& of) {
  Series series{.name = name};
  for (const KvLayerStatistics& l : s.layers) series.points.emplace_back(l.layer, 100 * of(l));
  plot.series.push_back(std::move(series));
}

std::string shown(std::initializer_list<Plot> plots) {
  std::string out = "<div class=\"plots\">\n";
  for (const Plot& plot : plots) out += svg_plot(plot);
  return out + "</div>\n";
}

std::string error_plots(const KvStatistics& s) {
  Plot rebuilt = plot_of(fmt::format("Reconstruction, 2 bits, G {}", s.group));
  Plot scores = plot_of(fmt::format("Attention scores, G {}", s.group));
  Plot outputs = plot_of(fmt::format("Attention output, 2 bits, G {}", s.group));
  for (const auto& [axis, name] :
       {std::pair{KvAxis::channel, "channel"}, std::pair{KvAxis::token, "token"}}) {
    const KvQuantizer q{2, axis, s.group};
    const auto find = [q](const KvLayerStatistics& l) {
      return *std::ranges::find(l.reconstruction, q, &KvReconstruction::quantizer);
    };
    add_series(rebuilt, s, fmt::format("K per {}", name),
               [&](const KvLayerStatistics& l) { return find(l).key_error; });
    add_series(rebuilt, s, fmt::format("V per {}", name),
               [&](const KvLayerStatistics& l) { return find(l).value_error; });
  }
  for (const KvScoreError& score : s.layers[0].scores)
    add_series(scores, s, "K" + name_of(score.key), [&](const KvLayerStatistics& l) {
      return std::ranges::find(l.scores, score.key, &KvScoreError::key)->error;
    });
  for (size_t i = 0; i < 4; ++i)  // the four axes at 2 bits come first
    add_series(outputs, s, name_of(s.layers[0].outputs[i].simulation),
               [&](const KvLayerStatistics& l) { return l.outputs[i].error; });
  return shown({rebuilt, scores, outputs});
}

std::string errors(const KvStatsReport& report) {
  const KvStatistics& s = report.statistics;
  std::vector<std::vector<std::string>> rows;
  for (const KvReconstruction& r : s.layers[0].reconstruction) {
    if (r.quantizer.axis != KvAxis::channel) continue;
    KvQuantizer token = r.quantizer;
    token.axis = KvAxis::token;
    rows.push_back({fmt::format("{} bits, G {}", r.quantizer.bits, r.quantizer.group),
                    percent(mean_key_error(s, r.quantizer)),
                    was_studied(s, token) ? percent(mean_key_error(s, token)) : "-",
                    percent(mean_value_error(s, r.quantizer)),
                    was_studied(s, token) ? percent(mean_value_error(s, token)) : "-"});
  }
  return "<h2>Errors</h2>\n<p>Relative errors in %, means over layers, heads and windows: "
         "||X' - X|| / ||X||.</p>\n" +
         table({"", "K per channel", "K per token", "V per channel", "V per token"}, rows) +
         error_plots(s);
}

std::string rise_of(const SimulatedQuality& q) {
  return fmt::format("{:.5f} ± {:.5f}", q.nll_rise, standard_error(q.window_rise));
}

std::string simulations(const KvStatsReport& report) {
  const KvStatistics& s = report.statistics;
  std::vector<std::vector<std::string>> rows;
  rows.push_back({"K16 V16", "fp16", "0", fmt::format("{:.4f}", report.perplexity), "0", "0"});
  for (const KvOutputError& o : s.layers[0].outputs) {
    const SimulatedQuality* q = find_quality(report, o.simulation, 0);
    std::vector<std::string> row = {
        name_of(o.simulation), "", percent(mean_output_error(s, o.simulation)), "", "", ""};
    if (q != nullptr) {
      row[1] = q->format;
      row[3] = fmt::format("{:.4f}", q->perplexity);
      row[4] = rise_of(*q);
      row[5] = fmt::format("{:.4f}", q->change);
    }
    rows.push_back(std::move(row));
  }
  return fmt::format(
             "<h2>What attention and the model make of it</h2>\n<p>Every key and value is "
             "quantized and dequantized, the newest too (no residual), G {}. C: a group runs "
             "along a channel, T: along a token; 8 is e4m3, 16 left alone. Attention output: "
             "||A'V' - AV|| / ||AV||. Loss: nats a token over {} predicted tokens, with its "
             "standard "
             "error from the windows.</p>\n",
             s.group, report.predicted) +
         table({"keys, values", "format", "attention output, %", "perplexity", "rise of the loss",
                "mean change"},
               rows);
}

std::string groups(const KvStatsReport& report) {
  std::vector<std::vector<std::string>> rows;
  for (const SimulatedQuality& q : key_groups(report))
    rows.push_back({std::to_string(q.simulation.key.group), fmt::format("{:.4f}", q.perplexity),
                    rise_of(q), fmt::format("{:.4f}", q.change)});
  if (rows.empty()) return "";
  return "<p>Keys alone, K2C V16, by group size.</p>\n" +
         table({"G", "perplexity", "rise of the loss", "mean change"}, rows);
}

std::string residuals(const KvStatsReport& report) {
  std::vector<std::vector<std::string>> rows;
  for (const SimulatedQuality& q : report.qualities)
    if (q.residual > 0)
      rows.push_back(
          {q.format, std::to_string(q.residual), fmt::format("{:g}", bits_per_value(q.simulation)),
           fmt::format("{:.4f}", q.perplexity), rise_of(q), fmt::format("{:.4f}", q.change)});
  if (rows.empty()) return "";
  return "<p>The product's formats with a residual: of T tokens the newest T % R are exact.</p>\n" +
         table({"format", "R", "bits a value", "perplexity", "rise of the loss", "mean change"},
               rows);
}

std::string sparsity(const KvStatistics& s) {
  const AttentionSparsity a = mean_sparsity(s);
  Plot plot = plot_of("Attention's concentration", "%");
  add_series(plot, s, "in the top 1 %",
             [](const KvLayerStatistics& l) { return l.sparsity.top_1_percent; });
  add_series(plot, s, "in the top 10 %",
             [](const KvLayerStatistics& l) { return l.sparsity.top_10_percent; });
  add_series(plot, s, "tokens for 90 %",
             [](const KvLayerStatistics& l) { return l.sparsity.tokens_for_90; });
  return fmt::format(
             "<h2>Sparsity of attention</h2>\n<p>Of the rows that see at least {} tokens: the "
             "largest 1 / 5 / 10 % of the entries hold {:.1f} / {:.1f} / {:.1f} % of the "
             "probability; {:.1f} % of the tokens hold 90 %; {:.1f} % of the entries are below 1 % "
             "of their row's largest.</p>\n",
             kSparsityTokensMin, 100 * a.top_1_percent, 100 * a.top_5_percent,
             100 * a.top_10_percent, 100 * a.tokens_for_90, 100 * a.below_1_percent) +
         shown({plot});
}

std::string recommendation(const KvStatsReport& report) {
  if (report.qualities.empty()) return "";
  const KvRecommendation& r = report.recommendation;
  std::string out = fmt::format("<div class=\"note\"><strong>Recommended: {}</strong><br/>{}",
                                escape_html(text_of(r)), escape_html(r.reason));
  if (!r.difference.empty())
    out += fmt::format("<br/><span class=\"dim\">auto is {}: {}</span>", r.automatic,
                       escape_html(r.difference));
  return out + "</div>\n";
}

}  // namespace

std::string kv_stats_page(const KvStatsReport& report) {
  const KvStatistics& s = report.statistics;
  const std::string model = escape_html(report.model);
  return fmt::format(
             "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><meta "
             "name=\"viewport\" content=\"width=device-width,initial-scale=1\"/><title>kv-stats: "
             "{0}</title>\n<style>{1}</style></head><body>\n<h1>Keys and values of "
             "{0}</h1>\n<p>{2} layers, {3} "
             "query and {4} KV heads of {5} channels; {6} windows of {7} tokens of {8}.</p>\n",
             model, kStyle + plot_style(), report.layers_in_model, s.heads_q, s.heads_kv,
             s.head_dim, s.windows, s.window, escape_html(report.text)) +
         recommendation(report) + simulations(report) + groups(report) + residuals(report) +
         errors(report) + magnitudes(s) + outliers(s) + sparsity(s) + "</body></html>\n";
}

}  // namespace kivi
