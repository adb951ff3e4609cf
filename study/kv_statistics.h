// SPDX-License-Identifier: Apache-2.0
// What a study of a model's keys, values and attention finds (study/kv_study.h). Public header:
// plain data. After Liu et al., KIVI (ICML 2024), section 3.
//
// Letters: T tokens of a window, hq and hk query and KV heads, d channels a head, G group size. A
// relative error of X' for X is ||X' - X|| / ||X|| (Frobenius), of one head and window; figures are
// means over heads and windows.
#pragma once

#include <string>
#include <vector>

namespace kivi {

// What a group of G values runs along. channel: G consecutive tokens of one channel (the product's
// keys). token: G consecutive channels of one token and head (the product's values).
enum class KvAxis { channel, token };

// How keys, or values, are simulated: quantized and dequantized by the product's own arithmetic
// (kernels/kv_codec.h), then rounded to f16.
struct KvQuantizer {
  int bits = 16;  // 16: left alone; 8: e4m3, no groups; 4, 2: groups of G
  KvAxis axis = KvAxis::channel;
  int group = 32;
  int parameter_bits = 16;  // of a scale and of a minimum
  friend bool operator==(const KvQuantizer&, const KvQuantizer&) = default;
};

struct KvSimulation {
  KvQuantizer key, value;
  friend bool operator==(const KvSimulation&, const KvSimulation&) = default;
};

// "2C", "4T", "8", "16".
std::string name_of(const KvQuantizer& quantizer);
// "K2C V2T".
std::string name_of(const KvSimulation& simulation);

// |x| of the keys or of the values of one layer. Channels of all heads: index head * d + channel.
struct KvMagnitudes {
  std::vector<float> channel_mean;  // [hk d], over the tokens of all windows
  std::vector<float> channel_max;   // [hk d]
  std::vector<float> token_mean;    // [T], over all channels; first window
  // [map_rows, hk d]: means over equal runs of the first window's tokens.
  std::vector<float> map;
  int map_rows = 0;
  // Channels whose channel_mean is at least outlier_factor times the median of their head's.
  std::vector<int> outliers;
  // The largest channel_mean over the median of its head's: mean over heads.
  double peak_over_median = 0;
};

struct KvReconstruction {
  KvQuantizer quantizer;
  double key_error = 0, value_error = 0;
};

// Of the probabilities A = softmax(q K^T / sqrt(d)), with keys alone simulated.
struct KvScoreError {
  KvQuantizer key;
  double error = 0;
};

// Of the attention's output A V.
struct KvOutputError {
  KvSimulation simulation;
  double error = 0;
};

// How much of a row of A the largest entries hold. Only rows that see at least kSparsityTokensMin
// tokens count.
struct AttentionSparsity {
  double top_1_percent = 0;  // probability in the largest 1 % of the entries (at least one)
  double top_5_percent = 0;
  double top_10_percent = 0;
  double tokens_for_90 = 0;    // share of the entries, largest first, that hold 90 %
  double below_1_percent = 0;  // share of the entries that are less than 1 % of the row's largest
};
inline constexpr int kSparsityTokensMin = 100;

struct KvLayerStatistics {
  int layer = 0;
  KvMagnitudes keys, values;
  std::vector<KvReconstruction> reconstruction;
  std::vector<KvScoreError> scores;
  std::vector<KvOutputError> outputs;
  AttentionSparsity sparsity;
};

struct KvStatistics {
  int heads_q = 0, heads_kv = 0, head_dim = 0;
  int window = 0, windows = 0;  // T, and how many
  int group = 32;               // G of scores and outputs
  double outlier_factor = 0;
  std::vector<KvLayerStatistics> layers;
};

}  // namespace kivi
