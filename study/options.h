// SPDX-License-Identifier: Apache-2.0
// What `kivi eval`, `kivi kv-stats` and `kivi tune` can be told: plain data with the defaults.
// tools/flags_table.cpp has a row for every field.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/config.h"

namespace kivi {

struct PasskeyOptions {
  std::vector<int> lengths;                      // tokens of a prompt, at most
  std::vector<double> depths = {0.1, 0.5, 0.9};  // of the filler that stands before the key
  int trials = 1;                                // keys for each length and depth
  int distractors = 7;                           // wrong keys that the right one competes with
};

struct EvalOptions {
  EngineConfig engine;                          // format, G, R, prefill and chunk are set by cell
  std::string text;                             // file
  std::vector<std::string> formats = {"auto"};  // --kv-cache-dtype
  std::vector<int> groups = {0};                // G; 0: the format's own
  std::vector<int> residuals = {0};             // R; 0: the format's own
  PrefillMode prefill = PrefillMode::stream;
  int chunk = 0;            // tokens; 0: 1, and 256 for fp16, which reads the same numbers
  int window = 1024;        // tokens
  int windows = 0;          // 0: all
  int stride = 0;           // 0: no strided perplexity
  bool divergence = false;  // from the fp16 cache
  int64_t reference_bytes = int64_t(2) << 30;  // for the fp16 cache's logits, at most
  PasskeyOptions passkey;                      // no lengths: not measured
  std::string choices;                         // file; "": not measured
  std::string results;                         // file; "": not kept
};

// What the recommendation goes by.
struct KvThresholds {
  // Largest rise of the mean negative log likelihood over fp16, nats a token, that is taken: 0.01
  // is 1 % of the perplexity.
  double nll_rise_max = 0.01;
};

// Whole groups and whole pages for every G.
inline constexpr int kWindowMultiple = 128;

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

// Bytes of pages that a token may take in all layers together, or bits that a number may take,
// scales and minima included.
struct TuneBudget {
  double amount = 0;
  bool in_bits = false;
};

struct TuneOptions {
  EngineConfig engine;  // the cache format counts but for its bits
  std::string text;     // file
  std::vector<TuneBudget> budgets;
  int window = 512;                            // tokens
  int windows = 4;                             // that the choice is made by
  int check_windows = 4;                       // behind them, which only check it
  int64_t reference_bytes = int64_t(2) << 30;  // for the fp16 cache's logits, at most
  std::string output;                          // file for the table; "": none
};

// "all", "3", "0,4,7", "2-5": layers as a user writes them. Empty for "all". Error: field layers.
Result<std::vector<int>> parse_layers(const std::string& text);

}  // namespace kivi
