// SPDX-License-Identifier: Apache-2.0
// KvStudy: a loaded model whose keys and values can be looked at, or replaced by what a format of
// the store would give back, while the engine scores windows of a text. Public header.
//
// Without a residual each window is one step: all of it attends to itself, from the step's rows. A
// simulation quantizes every token there, the newest as well, as the paper's tables 1 and 2 have
// it; a group along the channel axis has its scale and minimum from all of its G tokens, also for
// the query of an earlier one.
//
// With a residual of R a window is computed in steps of R tokens. A step's own tokens are read in
// 16 bits and simulated as they go to the (fp16) store: of T tokens the newest T % R are exact,
// which is what the product does with keys; of its values it keeps more.
//
// Memory, besides the model's: one window of one layer at a time, about T (40 hk + 16 hq) d bytes,
// and of each collected layer 2 (map_rows + 4) hk d floats, T doubles.
//
// Engine thread only: whoever runs the engine's steps.
#pragma once

#include <memory>
#include <vector>

#include "engine/serving/load.h"
#include "study/kv_statistics.h"

namespace kivi {

struct KvStudyOptions {
  std::vector<int> layers;    // empty: all
  int group = 32;             // G of scores and outputs
  double outlier_factor = 3;  // KvMagnitudes::outliers
  int map_rows = 64;          // KvMagnitudes::map; at most the window
};

class KvStudy {
 public:
  // The model in the fp16 format; requests of at most `window` tokens, one at a time. `residual`: R
  // (0: none). Of `config` the model, tokenizer, device, dtype, load_format and threads count.
  // Errors: the config's; field "window" where it is longer than the model's context.
  static Result<std::unique_ptr<KvStudy>> load(const EngineConfig& config, int window,
                                               int residual);
  ~KvStudy();
  KvStudy(const KvStudy&) = delete;
  KvStudy& operator=(const KvStudy&) = delete;

  LoadedModel& model();

  // From now on every step adds to the statistics, which begin anew. Without a residual only.
  // Errors name layers or group.
  Status collect(const KvStudyOptions& options);
  // From now on keys and values are simulated. R must be a multiple of G. Errors name group:
  // along a token it must divide head_dim.
  Status simulate(const KvSimulation& simulation);
  // From now on steps are left alone.
  void rest();

  KvStatistics statistics() const;

 private:
  struct Impl;
  explicit KvStudy(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// What collect() takes the output errors of, at group size G: all axes at 2 and at 4 bits, mixed
// bits on the product's axes, e4m3, and keys or values alone.
std::vector<KvSimulation> studied_simulations(int group);
// And the reconstruction errors: 2 and 4 bits, both axes, every G of 32, 64 and 128; along a token
// those that divide head_dim.
std::vector<KvQuantizer> studied_quantizers(int head_dim);

}  // namespace kivi
