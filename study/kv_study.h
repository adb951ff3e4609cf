// SPDX-License-Identifier: Apache-2.0
// KvStudy is a loaded model whose keys and values can be observed, or replaced by what a cache
// format would return, while the engine scores windows of a text.
//
// Without a residual, each window is one step, whose tokens attend to each other from the rows of
// the step. A simulation then quantizes every token, the newest too, as tables 1 and 2 of the paper
// do. A group along the channel axis takes its scale and minimum from all of its G tokens, even for
// the query of an earlier token.
//
// With a residual of R, a window is computed in steps of R tokens. The tokens of a step are read in
// 16 bits and are simulated when they go to the fp16 store. So the newest T % R of T tokens are
// exact, as the product keeps keys; of values, the product keeps more.
//
// Memory, besides the model's: one window of one layer at a time, about T (40 hk + 16 hq) d bytes,
// and of each collected layer 2 (map_rows + 4) hk d floats, T doubles.
//
// Only the thread that runs the steps of the engine may use it.
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

  // Empties the statistics, to which every later step adds. Only without a residual. Errors name
  // layers or group.
  Status collect(const KvStudyOptions& options);
  // Simulates keys and values in every later step. R must be a multiple of G. Along a token, G must
  // divide head_dim; errors name group.
  Status simulate(const KvSimulation& simulation);
  // Leaves every later step unchanged.
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
