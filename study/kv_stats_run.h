// SPDX-License-Identifier: Apache-2.0
// `kivi kv-stats` without its command line and its reports: studies a model's keys, values and
// attention on a text.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "study/kv_recommendation.h"
#include "study/kv_study.h"
#include "study/options.h"

namespace kivi {

// What simulated keys and values do to the predictions of the whole model.
struct SimulatedQuality {
  KvSimulation simulation;
  std::string format;  // the product's name for it; "": not a format of the product
  int residual = 0;    // R; 0: every token is quantized
  double nll = 0;      // nats a token
  double perplexity = 0;
  double nll_rise = 0;  // over fp16
  double change = 0;    // mean |change| of a token's nll
  // The same two for each window. They give the standard errors, and the windows of two simulations
  // can be compared in pairs.
  std::vector<double> window_rise, window_change;
};

// Returns the standard error of the mean of `x`, or 0 if there are fewer than two values.
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

// Runs the study. `news` gets a line of progress now and then. Errors name text, tokens, window,
// layers, group or the model.
Result<KvStatsReport> study(const KvStatsOptions& options,
                            const std::function<void(const std::string&)>& news);

}  // namespace kivi
