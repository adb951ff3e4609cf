// SPDX-License-Identifier: Apache-2.0
#include "study/kv_stats_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace kivi {

namespace {

// Mean over layers of what `of` finds in each.
template <class F>
auto mean(const KvStatistics& s, F&& of) {
  KIVI_VERIFY(!s.layers.empty());
  double sum = 0;
  for (const KvLayerStatistics& layer : s.layers) sum += of(layer);
  return sum / double(s.layers.size());
}

const KvReconstruction& find(const KvLayerStatistics& layer, const KvQuantizer& q) {
  const auto found = std::ranges::find(layer.reconstruction, q, &KvReconstruction::quantizer);
  KIVI_VERIFY(found != layer.reconstruction.end());
  return *found;
}

double output_error(const KvLayerStatistics& layer, const KvSimulation& simulation) {
  const auto found = std::ranges::find(layer.outputs, simulation, &KvOutputError::simulation);
  KIVI_VERIFY(found != layer.outputs.end());
  return found->error;
}

double score_error(const KvLayerStatistics& layer, const KvQuantizer& q) {
  const auto found = std::ranges::find(layer.scores, q, &KvScoreError::key);
  KIVI_VERIFY(found != layer.scores.end());
  return found->error;
}

// Its keys are simulated, its values are left alone.
bool keys_alone(const SimulatedQuality& q) {
  return q.simulation.key.bits <= 4 && q.simulation.value.bits == 16;
}

std::string layers_table(const KvStatistics& s) {
  const KvQuantizer c{2, KvAxis::channel, s.group}, t{2, KvAxis::token, s.group};
  std::string out = fmt::format(
      "by layer (2 bits, G {}; errors in %)\n{:>5} {:>9} {:>6} {:>9} {:>6} | {:>6} {:>6} {:>6} "
      "{:>6} | {:>6} {:>6} | {:>7} {:>7} | {:>6} {:>7}\n",
      s.group, "layer", "K outlier", "peak", "V outlier", "peak", "K2C", "K2T", "V2C", "V2T",
      "A K2C", "A K2T", "K2C V2T", "K2T V2T", "top 5%", "for 90%");
  for (const KvLayerStatistics& l : s.layers)
    out += fmt::format(
        "{:>5} {:>9} {:>6.1f} {:>9} {:>6.1f} | {:>6.2f} {:>6.2f} {:>6.2f} {:>6.2f} | {:>6.2f} "
        "{:>6.2f} | {:>7.2f} {:>7.2f} | {:>6.1f} {:>7.1f}\n",
        l.layer, l.keys.outliers.size(), l.keys.peak_over_median, l.values.outliers.size(),
        l.values.peak_over_median, 100 * find(l, c).key_error, 100 * find(l, t).key_error,
        100 * find(l, c).value_error, 100 * find(l, t).value_error, 100 * score_error(l, c),
        100 * score_error(l, t), 100 * output_error(l, {c, t}), 100 * output_error(l, {t, t}),
        100 * l.sparsity.top_5_percent, 100 * l.sparsity.tokens_for_90);
  return out;
}

std::string reconstruction_table(const KvStatistics& s) {
  std::string out = fmt::format(
      "reconstruction, mean over layers, heads and windows (%)\n{:>4} {:>4} {:>14} {:>12} {:>16} "
      "{:>14}\n",
      "bits", "G", "K per channel", "K per token", "V per channel", "V per token");
  for (const KvReconstruction& r : s.layers[0].reconstruction) {
    if (r.quantizer.axis != KvAxis::channel) continue;
    KvQuantizer token = r.quantizer;
    token.axis = KvAxis::token;
    const auto along_token = [&](auto& error) {
      return was_studied(s, token) ? fmt::format("{:.2f}", 100 * error(s, token)) : "-";
    };
    out += fmt::format("{:>4} {:>4} {:>14.2f} {:>12} {:>16.2f} {:>14}\n", r.quantizer.bits,
                       r.quantizer.group, 100 * mean_key_error(s, r.quantizer),
                       along_token(mean_key_error), 100 * mean_value_error(s, r.quantizer),
                       along_token(mean_value_error));
  }
  return out;
}

std::string key_groups_table(const KvStatsReport& report) {
  std::string out = fmt::format(
      "keys alone, K2C V16, by group size, every token quantized\n{:>4} {:>10} {:>10} {:>9} "
      "{:>9}\n",
      "G", "perplexity", "nll rise", "+-", "change");
  for (const SimulatedQuality& q : key_groups(report))
    out += fmt::format("{:>4} {:>10.4f} {:>10.5f} {:>9.5f} {:>9.4f}\n", q.simulation.key.group,
                       q.perplexity, q.nll_rise, standard_error(q.window_rise), q.change);
  return out;
}

std::string simulations_table(const KvStatsReport& report) {
  const KvStatistics& s = report.statistics;
  std::string out = fmt::format(
      "simulated, G {}, every token quantized; +-: standard error of the rise, from the windows\n"
      "{:<10} {:<10} {:>16} {:>10} {:>10} {:>9} {:>9}\n",
      s.group, "keys, vals", "format", "attn output (%)", "perplexity", "nll rise", "+-", "change");
  out += fmt::format("{:<10} {:<10} {:>16.2f} {:>10.4f} {:>10.5f} {:>9.5f} {:>9.4f}\n", "K16 V16",
                     "fp16", 0.0, report.perplexity, 0.0, 0.0, 0.0);
  for (const KvOutputError& o : s.layers[0].outputs) {
    const SimulatedQuality* q = find_quality(report, o.simulation, 0);
    const bool known = q != nullptr;
    out += fmt::format("{:<10} {:<10} {:>16.2f}", name_of(o.simulation), known ? q->format : "",
                       100 * mean_output_error(s, o.simulation));
    if (known)
      out += fmt::format(" {:>10.4f} {:>10.5f} {:>9.5f} {:>9.4f}", q->perplexity, q->nll_rise,
                         standard_error(q->window_rise), q->change);
    out += "\n";
  }
  return out;
}

std::string residuals_table(const KvStatsReport& report) {
  std::string out = fmt::format(
      "with a residual: the newest T % R tokens in 16 bits\n{:<10} {:>4} {:>11} {:>10} "
      "{:>10} {:>9} {:>9}\n",
      "format", "R", "bits/value", "perplexity", "nll rise", "+-", "change");
  for (const SimulatedQuality& q : report.qualities)
    if (q.residual > 0)
      out += fmt::format("{:<10} {:>4} {:>11g} {:>10.4f} {:>10.5f} {:>9.5f} {:>9.4f}\n", q.format,
                         q.residual, bits_per_value(q.simulation), q.perplexity, q.nll_rise,
                         standard_error(q.window_rise), q.change);
  return out;
}

nlohmann::ordered_json json_of(const KvQuantizer& q) {
  if (q.bits > 4) return {{"bits", q.bits}};
  return {{"bits", q.bits},
          {"axis", q.axis == KvAxis::channel ? "channel" : "token"},
          {"group", q.group}};
}

nlohmann::ordered_json json_of(const KvMagnitudes& m) {
  return {{"channel_mean", m.channel_mean},
          {"channel_max", m.channel_max},
          {"token_mean", m.token_mean},
          {"outliers", m.outliers},
          {"peak_over_median", m.peak_over_median}};
}

nlohmann::ordered_json json_of(const AttentionSparsity& a) {
  return {{"top_1_percent", a.top_1_percent},
          {"top_5_percent", a.top_5_percent},
          {"top_10_percent", a.top_10_percent},
          {"tokens_for_90_percent", a.tokens_for_90},
          {"entries_below_1_percent_of_largest", a.below_1_percent}};
}

// All but magnitudes: of one layer, or means over layers.
nlohmann::ordered_json errors_json(const KvLayerStatistics& l) {
  nlohmann::ordered_json out;
  for (const KvReconstruction& r : l.reconstruction) {
    nlohmann::ordered_json row = json_of(r.quantizer);
    row["key_error"] = r.key_error;
    row["value_error"] = r.value_error;
    out["reconstruction"].push_back(row);
  }
  for (const KvScoreError& s : l.scores) {
    nlohmann::ordered_json row = json_of(s.key);
    row["error"] = s.error;
    out["attention_scores"].push_back(row);
  }
  for (const KvOutputError& o : l.outputs)
    out["attention_output"].push_back({{"name", name_of(o.simulation)}, {"error", o.error}});
  out["sparsity"] = json_of(l.sparsity);
  return out;
}

nlohmann::ordered_json json_of(const KvLayerStatistics& l) {
  nlohmann::ordered_json out = {
      {"layer", l.layer}, {"keys", json_of(l.keys)}, {"values", json_of(l.values)}};
  out.update(errors_json(l));
  return out;
}

nlohmann::ordered_json means_json(const KvStatistics& s) {
  KvLayerStatistics means = s.layers[0];
  for (KvReconstruction& r : means.reconstruction)
    r = {r.quantizer, mean_key_error(s, r.quantizer), mean_value_error(s, r.quantizer)};
  for (KvScoreError& score : means.scores) score.error = mean_score_error(s, score.key);
  for (KvOutputError& o : means.outputs) o.error = mean_output_error(s, o.simulation);
  means.sparsity = mean_sparsity(s);
  return errors_json(means);
}

// What a simulation is, and then what it costs.
nlohmann::ordered_json with_figures(nlohmann::ordered_json out, const SimulatedQuality& q) {
  out["nll"] = q.nll;
  out["perplexity"] = q.perplexity;
  out["nll_rise"] = q.nll_rise;
  out["change"] = q.change;
  out["window_rise"] = q.window_rise;
  out["window_change"] = q.window_change;
  return out;
}

}  // namespace

double mean_key_error(const KvStatistics& s, const KvQuantizer& q) {
  return mean(s, [&](const KvLayerStatistics& l) { return find(l, q).key_error; });
}
double mean_value_error(const KvStatistics& s, const KvQuantizer& q) {
  return mean(s, [&](const KvLayerStatistics& l) { return find(l, q).value_error; });
}
double mean_score_error(const KvStatistics& s, const KvQuantizer& q) {
  return mean(s, [&](const KvLayerStatistics& l) { return score_error(l, q); });
}
double mean_output_error(const KvStatistics& s, const KvSimulation& simulation) {
  return mean(s, [&](const KvLayerStatistics& l) { return output_error(l, simulation); });
}

AttentionSparsity mean_sparsity(const KvStatistics& s) {
  const auto of = [&](double AttentionSparsity::*field) {
    return mean(s, [&](const KvLayerStatistics& l) { return l.sparsity.*field; });
  };
  return {of(&AttentionSparsity::top_1_percent), of(&AttentionSparsity::top_5_percent),
          of(&AttentionSparsity::top_10_percent), of(&AttentionSparsity::tokens_for_90),
          of(&AttentionSparsity::below_1_percent)};
}

bool was_studied(const KvStatistics& s, const KvQuantizer& q) {
  const auto& known = s.layers[0].reconstruction;
  return std::ranges::find(known, q, &KvReconstruction::quantizer) != known.end();
}

std::vector<SimulatedQuality> key_groups(const KvStatsReport& report) {
  std::vector<SimulatedQuality> out;
  std::ranges::copy_if(report.qualities, std::back_inserter(out), keys_alone);
  return out;
}

const SimulatedQuality* find_quality(const KvStatsReport& report, const KvSimulation& simulation,
                                     int residual) {
  for (const SimulatedQuality& q : report.qualities)
    if (q.simulation == simulation && q.residual == residual) return &q;
  return nullptr;
}

std::string text_of(const KvRecommendation& r) {
  if (r.group == 0) return r.format;
  return fmt::format("{}, G {}, R {}", r.format, r.group, r.residual);
}

std::string kv_stats_text(const KvStatsReport& report) {
  const KvStatistics& s = report.statistics;
  std::string out = fmt::format(
      "{}: {} layers, {} query and {} KV heads of {} channels; {} windows of {} tokens of {}\n\n",
      report.model, report.layers_in_model, s.heads_q, s.heads_kv, s.head_dim, s.windows, s.window,
      report.text);
  out += layers_table(s) + "\n" + reconstruction_table(s) + "\n" + simulations_table(report) + "\n";
  if (!report.qualities.empty())
    out += key_groups_table(report) + "\n" + residuals_table(report) + "\n";
  const AttentionSparsity a = mean_sparsity(s);
  out += fmt::format(
      "attention: the largest 1 / 5 / 10 % of a row hold {:.1f} / {:.1f} / {:.1f} % of its "
      "probability; {:.1f} % of the tokens hold 90 %; {:.1f} % are below 1 % of the largest\n",
      100 * a.top_1_percent, 100 * a.top_5_percent, 100 * a.top_10_percent, 100 * a.tokens_for_90,
      100 * a.below_1_percent);
  if (report.qualities.empty()) return out;
  const KvRecommendation& r = report.recommendation;
  out += fmt::format("\nrecommended: {}: {}\n", text_of(r), r.reason);
  if (!r.difference.empty()) out += fmt::format("auto is {}: {}\n", r.automatic, r.difference);
  return out;
}

nlohmann::ordered_json kv_stats_json(const KvStatsReport& report) {
  const KvStatistics& s = report.statistics;
  nlohmann::ordered_json out = {
      {"kind", "kv-stats"},
      {"model", report.model},
      {"text", report.text},
      {"layers_in_model", report.layers_in_model},
      {"heads_q", s.heads_q},
      {"heads_kv", s.heads_kv},
      {"head_dim", s.head_dim},
      {"window", s.window},
      {"windows", s.windows},
      {"group", s.group},
      {"outlier_factor", s.outlier_factor},
      {"mean", means_json(s)},
      {"perplexity",
       {{"tokens", report.predicted}, {"nll", report.nll}, {"perplexity", report.perplexity}}}};
  out["simulated"] = nlohmann::ordered_json::array();
  for (const SimulatedQuality& q : report.qualities)
    if (!keys_alone(q))
      out["simulated"].push_back(with_figures({{"name", name_of(q.simulation)},
                                               {"format", q.format},
                                               {"residual", q.residual},
                                               {"bits_per_value", bits_per_value(q.simulation)}},
                                              q));
  for (const SimulatedQuality& q : key_groups(report))
    out["key_groups"].push_back(
        with_figures({{"name", name_of(q.simulation)}, {"group", q.simulation.key.group}}, q));
  if (!report.qualities.empty()) {
    const KvRecommendation& r = report.recommendation;
    out["recommendation"] = {{"format", r.format},
                             {"group", r.group},
                             {"residual", r.residual},
                             {"reason", r.reason},
                             {"auto", r.automatic},
                             {"difference", r.difference},
                             {"nll_rise_max", report.thresholds.nll_rise_max}};
  }
  for (const KvLayerStatistics& l : s.layers) out["layers"].push_back(json_of(l));
  return out;
}

}  // namespace kivi
