// SPDX-License-Identifier: Apache-2.0
// Chooses the bits of each layer's keys and values under a budget of bytes, by measured divergence:
// `kivi tune` without its command line. docs/kv-tune.md describes the method.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "kernels/kv_page.h"
#include "study/options.h"

namespace kivi {

// Bits of keys and values that a layer may get, from most to least.
struct BitChoice {
  int key_bits, value_bits;
};
inline constexpr BitChoice kBitChoices[] = {{4, 4}, {4, 2}, {2, 4}, {2, 2}};
inline constexpr int kBitChoiceCount = 4;

// Mean KL divergence from the fp16 cache, nats a token, and its standard error over windows.
struct MeasuredKl {
  double mean = 0, error = 0;
};

// A table of bits and what it costs.
struct TuneRow {
  std::string name;  // "k4v2" if all layers are alike, "3 bits" or "1000 bytes" for a tuned table
  KvLayerBits bits;
  double bytes_per_token = 0;  // of pages, all layers
  double bits_per_value = 0;   // codes and parameters
  double estimate = 0;         // of `search`: 4 bits everywhere, and the layers' costs on top
  MeasuredKl search;           // of the windows that the choice is made by
  MeasuredKl check;            // of other windows of the text; 0 without --check-windows
};

struct TuneReport {
  std::string format;  // that of 4 bits for all layers: "kivi4.5 G32 R128 S32"
  int layers = 0;
  int window = 0, search_windows = 0, check_windows = 0;
  double base = 0;  // KL of `search` with 4 bits everywhere
  // [layer][choice] of kBitChoices: how much larger KL is if this layer alone gets the choice, at
  // least 0.
  std::vector<std::vector<double>> costs;
  std::vector<TuneRow> uniform;  // by kBitChoices
  std::vector<TuneRow> tuned;    // by the budgets
};

// Measures and chooses. `news` gets lines of progress. Errors: a wrong budget, text, model or
// setting.
Result<TuneReport> tune_layer_bits(const TuneOptions& options,
                                   const std::function<void(const std::string&)>& news);

// The report as tables, and as JSON.
std::string tune_text(const TuneReport& report);
nlohmann::ordered_json tune_json(const TuneReport& report);

}  // namespace kivi
