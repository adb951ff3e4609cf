// SPDX-License-Identifier: Apache-2.0
// Recommends a cache format for a model from what a study measured. Pure functions.
#pragma once

#include <string>
#include <vector>

#include "study/kv_statistics.h"
#include "study/options.h"

namespace kivi {

// A format of the product and what it costs this model.
struct KvCandidate {
  std::string format;         // of --kv-cache-dtype
  int residual = 0;           // R; 0: the format has none
  double bits_per_value = 0;  // of pages, with scales and minima
  double nll_rise = 0;        // nats a token
};

struct KvRecommendation {
  std::string format;  // "fp16" where nothing else is good enough
  int group = 0;       // G and R; 0 for fp16 and fp8
  int residual = 0;
  std::string reason;      // a sentence with the figures and the thresholds
  std::string automatic;   // what --kv-cache-dtype auto takes
  std::string difference;  // why the two differ; "": they agree
};

// Returns the formats that are compared at group size G, with their simulations; fp16 is not among
// them.
struct KvNamedSimulation {
  std::string format;
  KvSimulation simulation;
};
std::vector<KvNamedSimulation> simulated_formats(int group);
// The formats of the second edition at group size G. Their sinks, parameters, key bias and rotation
// are no simulation: they are measured through the store itself.
std::vector<KvNamedSimulation> stored_formats(int group);

// Returns the mean of the bits of a key and of a value, with one scale and minimum a group.
double bits_per_value(const KvSimulation& simulation);

// Returns the candidate with the fewest bits whose rise is at most nll_rise_max. Among equals, it
// is the one with the shortest residual, then the one that rises less.
KvRecommendation recommend(std::vector<KvCandidate> candidates, const KvThresholds& thresholds,
                           int group, const std::string& automatic);

}  // namespace kivi
