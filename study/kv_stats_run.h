// SPDX-License-Identifier: Apache-2.0
// `kivi kv-stats` without its command line and its reports: studies a model's keys, values and
// attention on a text.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "study/kv_recommendation.h"
#include "study/kv_study.h"

namespace kivi {

struct KvStatsOptions {
  EngineConfig engine;      // model, tokenizer, device, dtype, threads
  std::string text;         // file
  int tokens = 2048;        // of the text, at most
  int window = 1024;        // tokens; a multiple of kWindowMultiple
  std::vector<int> layers;  // empty: all
  int group = 32;           // G
  double outlier_factor = 3;
  bool perplexity = true;  // model-level effect of each simulation, and a recommendation
  KvThresholds thresholds;
};

// Whole groups and whole pages for every G.
inline constexpr int kWindowMultiple = 128;

// What simulated keys and values do to the model, not to one layer.
struct SimulatedQuality {
  KvSimulation simulation;
  std::string format;  // the product's name for it; "": not a format of the product
  int residual = 0;    // R; 0: every token is quantized
  double nll = 0;      // nats a token
  double perplexity = 0;
  double nll_rise = 0;  // over fp16
  double change = 0;    // mean |change| of a token's nll
  // The same two of each window: they say how sure the means are, and two simulations' windows are
  // pairs.
  std::vector<double> window_rise, window_change;
};

// Standard error of the mean of `x`, from its spread; 0 of fewer than two.
double standard_error(const std::vector<double>& x);

struct KvStatsReport {
  std::string model;  // its name
  std::string text;   // file name
  int layers_in_model = 0;
  KvStatistics statistics;
  int64_t predicted = 0;                    // tokens that perplexities are of
  double nll = 0, perplexity = 0;           // fp16
  std::vector<SimulatedQuality> qualities;  // empty: not asked for
  KvThresholds thresholds;
  KvRecommendation recommendation;
};

// `news` gets a line of progress now and then. Errors name text, tokens, window, layers, group or
// the model.
Result<KvStatsReport> study(const KvStatsOptions& options,
                            const std::function<void(const std::string&)>& news);

// "all", "3", "0,4,7", "2-5": layers as a user writes them. Empty for "all". Error: field layers.
Result<std::vector<int>> parse_layers(const std::string& text);

}  // namespace kivi
