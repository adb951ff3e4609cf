// SPDX-License-Identifier: Apache-2.0
// KvLayerStudy: gathers one layer's statistics, window after window.
#pragma once

#include <functional>
#include <vector>

#include "study/attention_statistics.h"
#include "study/kv_quantizer.h"
#include "study/kv_study.h"

namespace kivi {

// Attention's output [T, hq d] with the keys and values that are given.
using AttendWith = std::function<std::vector<float>(const KvRows& keys, const KvRows& values)>;

class KvLayerStudy {
 public:
  KvLayerStudy(int layer, const KvStudyOptions& options);

  void add(const QueryRows& q, const KvRows& keys, const KvRows& values, const AttendWith& attend);
  KvLayerStatistics result() const;
  int windows() const { return windows_; }

 private:
  // Sums of |x|; see KvMagnitudes.
  struct Magnitudes {
    std::vector<double> channel_sum;
    KvMagnitudes found;  // all but channel_mean and what follows from it
    void add(const KvRows& rows, int map_rows);
    KvMagnitudes result(int64_t tokens, int head_dim, double outlier_factor) const;
  };
  void add_reconstruction(const KvRows& keys, const KvRows& values);
  void add_scores(const QueryRows& q, const KvRows& keys);
  void add_outputs(const QueryRows& q, const KvRows& keys, const KvRows& values,
                   const AttendWith& attend);

  const KvStudyOptions options_;
  KvLayerStatistics sums_;  // errors: sums over windows of means over heads
  Magnitudes keys_, values_;
  SparsitySums sparsity_;
  int64_t tokens_ = 0;
  int windows_ = 0, head_dim_ = 0;
};

}  // namespace kivi
