// SPDX-License-Identifier: Apache-2.0
#include "study/kv_stats_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <sstream>

#include "study/perplexity.h"

namespace kivi {

namespace {

using Windows = std::vector<std::vector<int32_t>>;
using News = std::function<void(const std::string&)>;

Result<std::string> read_stats_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf()))
    return Error{ErrorCode::not_found,
                 fmt::format("text is \"{}\", which cannot be read, or is empty", path), "text"};
  return text.str();
}

Status check(const KvStatsOptions& o) {
  if (o.window < kWindowMultiple || o.window % kWindowMultiple != 0)
    return Error{ErrorCode::invalid,
                 fmt::format("window is {}, must be a multiple of {}", o.window, kWindowMultiple),
                 "window"};
  if (o.tokens < kWindowMultiple)
    return Error{ErrorCode::invalid,
                 fmt::format("tokens is {}, must be at least {}", o.tokens, kWindowMultiple),
                 "tokens"};
  if (!(o.outlier_factor > 1))
    return Error{ErrorCode::invalid,
                 fmt::format("outlier_factor is {}, must be more than 1", o.outlier_factor),
                 "outlier_factor"};
  return ok_status();
}

Result<Windows> windows_from(const KvStatsOptions& o, int window, const std::string& text,
                             const Tokenizer& tokenizer) {
  Windows windows = windows_of(stories_of(text), tokenizer, window, o.tokens / window);
  if (!windows.empty()) return windows;
  const size_t held = windows_of(stories_of(text), tokenizer, 1, 0).size();
  return Error{
      ErrorCode::invalid,
      fmt::format("text {} has {} tokens (in parts of more than 200 characters), must have "
                  "at least a window of {}",
                  o.text, held, window),
      "text"};
}

// The axes of the paper's table 1, the product's formats, and keys alone by group size.
std::vector<KvNamedSimulation> simulations_of(int group) {
  std::vector<KvNamedSimulation> all;
  for (const int bits : {2, 4})
    for (const KvAxis key : {KvAxis::token, KvAxis::channel})
      for (const KvAxis value : {KvAxis::token, KvAxis::channel})
        all.push_back({"", {{bits, key, group}, {bits, value, group}}});
  for (const KvNamedSimulation& format : simulated_formats(group)) {
    const auto same = [&](const KvNamedSimulation& s) { return s.simulation == format.simulation; };
    const auto found = std::ranges::find_if(all, same);
    if (found == all.end())
      all.push_back(format);
    else
      found->format = format.format;
  }
  // Values alone: their axes without the keys' errors.
  for (const KvAxis axis : {KvAxis::token, KvAxis::channel})
    all.push_back({"", {{16, KvAxis::channel, group}, {2, axis, group}}});
  // Groups of keys run over tokens, so every G can be had, whatever head_dim is.
  for (const int key_group : {32, 64, 128})
    all.push_back({"", {{2, KvAxis::channel, key_group}, {16, KvAxis::token, group}}});
  return all;
}

// Residuals that are weighed: the paper's two, where G divides them, else G.
std::vector<int> residuals_of(int group) {
  if (group == 128) return {128};
  return {std::max(32, group), 128};
}

Status measure(Engine& engine, const KvNamedSimulation& s, int residual, const Windows& windows,
               const Perplexity& exact, KvStatsReport& report) {
  KIVI_ASSIGN_OR_RETURN(const Perplexity p, measure_perplexity(engine, windows, {}));
  SimulatedQuality q{
      s.simulation,          s.format, residual, p.nll, p.perplexity, p.nll - exact.nll,
      mean_change(p, exact), {},       {}};
  const size_t predicted = windows[0].size() - 1;  // of each window
  for (size_t begin = 0; begin < p.token_nll.size(); begin += predicted) {
    double rise = 0, change = 0;
    for (size_t i = begin; i < begin + predicted; ++i) {
      const double d = double(p.token_nll[i]) - double(exact.token_nll[i]);
      rise += d;
      change += std::abs(d);
    }
    q.window_rise.push_back(rise / double(predicted));
    q.window_change.push_back(change / double(predicted));
  }
  report.qualities.push_back(std::move(q));
  return ok_status();
}

Status measure(KvStudy& study, const KvNamedSimulation& s, int residual, const Windows& windows,
               const Perplexity& exact, KvStatsReport& report) {
  KIVI_RETURN_IF_ERROR(study.simulate(s.simulation));
  return measure(*study.model().engine, s, residual, windows, exact, report);
}

// A format of the second edition through the store, a token at a time, as decoding reads it.
Status measure_stored(const KvStatsOptions& o, const KvNamedSimulation& s, int residual,
                      const Windows& windows, const Perplexity& exact, KvStatsReport& report) {
  EngineConfig config = o.engine;
  config.kv_cache_dtype = s.format;
  config.enable_prefix_caching = false;
  config.kivi_group_size = 0;
  config.kivi_residual_length = residual;
  config.kivi_prefill = PrefillMode::stream;
  config.prefill_chunk_tokens = 1;
  config.max_num_queued_reqs = 1 << 20;
  config.max_num_queued_tokens = int64_t(1) << 40;
  const Result<std::unique_ptr<LoadedModel>> model = load_model(config, {});
  // Not every head size has every format.
  if (!model.ok() && model.error().field.starts_with("k")) return ok_status();
  if (!model.ok()) return model.error();
  return measure(*(*model)->engine, s, residual, windows, exact, report);
}

// The product's formats with a residual: steps of R tokens, so a model of its own for each R.
Status measure_residuals(const KvStatsOptions& o, int window, const Windows& windows,
                         const Perplexity& exact, const News& news, KvStatsReport& report) {
  for (const int residual : residuals_of(o.group)) {
    KIVI_ASSIGN_OR_RETURN(const std::unique_ptr<KvStudy> study,
                          KvStudy::load(o.engine, window, residual));
    for (const KvNamedSimulation& s : simulated_formats(o.group)) {
      if (s.simulation.key.bits > 4) continue;
      news(fmt::format("perplexity of {}, R {}", s.format, residual));
      KIVI_RETURN_IF_ERROR(measure(*study, s, residual, windows, exact, report));
    }
    for (const KvNamedSimulation& s : stored_formats(o.group)) {
      news(fmt::format("perplexity of {}, R {}", s.format, residual));
      KIVI_RETURN_IF_ERROR(measure_stored(o, s, residual, windows, exact, report));
    }
  }
  return ok_status();
}

void add_recommendation(const KvStatsOptions& o, const ModelSummary& summary,
                        KvStatsReport& report) {
  EngineConfig config = o.engine;
  config.kv_cache_dtype = "auto";
  const KvShape shape{summary.layers, summary.heads_kv, summary.head_dim};
  const Result<KvFormat> automatic = kv_format_of(config, shape, summary.heads_q);
  std::vector<KvCandidate> candidates;
  for (const SimulatedQuality& q : report.qualities)
    if (q.residual > 0 || q.format == "fp8")
      candidates.push_back({q.format, q.residual, bits_per_value(q.simulation), q.nll_rise});
  report.thresholds = o.thresholds;
  report.recommendation =
      recommend(candidates, o.thresholds, o.group, automatic.ok() ? name_of(*automatic) : "fp16");
}

}  // namespace

double standard_error(const std::vector<double>& x) {
  if (x.size() < 2) return 0;
  const double n = double(x.size()), mean = std::accumulate(x.begin(), x.end(), 0.0) / n;
  double squares = 0;
  for (const double v : x) squares += (v - mean) * (v - mean);
  return std::sqrt(squares / (n - 1) / n);
}

Result<KvStatsReport> study(const KvStatsOptions& o, const News& news) {
  KIVI_RETURN_IF_ERROR(check(o));
  KIVI_ASSIGN_OR_RETURN(const std::string text, read_stats_text(o.text));
  const int window = std::min(o.window, o.tokens / kWindowMultiple * kWindowMultiple);
  news("loading");
  KIVI_ASSIGN_OR_RETURN(std::unique_ptr<KvStudy> study, KvStudy::load(o.engine, window, 0));
  LoadedModel& model = study->model();
  KIVI_ASSIGN_OR_RETURN(const Windows windows, windows_from(o, window, text, *model.tokenizer));

  KvStudyOptions options;
  options.layers = o.layers;
  options.group = o.group;
  options.outlier_factor = o.outlier_factor;
  KIVI_RETURN_IF_ERROR(study->collect(options));
  news(fmt::format("statistics of {} windows of {} tokens", windows.size(), window));
  KIVI_ASSIGN_OR_RETURN(const Perplexity exact, measure_perplexity(*model.engine, windows, {}));

  KvStatsReport report;
  report.model = model.served.name;
  report.text = std::filesystem::path(o.text).filename().string();
  report.layers_in_model = model.summary.layers;
  report.statistics = study->statistics();
  report.predicted = exact.tokens;
  report.nll = exact.nll;
  report.perplexity = exact.perplexity;
  if (o.perplexity) {
    for (const KvNamedSimulation& s : simulations_of(o.group)) {
      news("perplexity with " + name_of(s.simulation));
      KIVI_RETURN_IF_ERROR(measure(*study, s, 0, windows, exact, report));
    }
    const ModelSummary summary = model.summary;
    study.reset();  // one model in memory at a time
    KIVI_RETURN_IF_ERROR(measure_residuals(o, window, windows, exact, news, report));
    add_recommendation(o, summary, report);
  }
  news("");
  return report;
}

Result<std::vector<int>> parse_layers(const std::string& text) {
  std::vector<int> layers;
  if (text == "all") return layers;
  const auto wrong = [&] {
    return Error{
        ErrorCode::invalid,
        fmt::format("layers is \"{}\", must be all, or numbers and ranges (0,4,7-9)", text),
        "layers"};
  };
  std::istringstream parts(text + ",");
  for (std::string part; std::getline(parts, part, ',');) {
    int first = 0, last = 0;
    const char* const end = part.data() + part.size();
    auto [at, error] = std::from_chars(part.data(), end, first);
    if (error != std::errc() || first < 0) return wrong();
    last = first;
    if (at != end && *at == '-') {
      const auto second = std::from_chars(at + 1, end, last);
      if (second.ec != std::errc()) return wrong();
      at = second.ptr;
    }
    if (at != end || last < first || last - first > 4096) return wrong();
    for (int layer = first; layer <= last; ++layer) layers.push_back(layer);
  }
  std::ranges::sort(layers);
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  return layers;
}

}  // namespace kivi
