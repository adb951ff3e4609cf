// SPDX-License-Identifier: Apache-2.0
#include "study/kv_layer_study.h"

#include <algorithm>
#include <cmath>
#include <memory>

namespace kivi {

namespace {

double median(std::vector<float> x) {
  const auto middle = x.begin() + std::ptrdiff_t(x.size() / 2);
  std::nth_element(x.begin(), middle, x.end());
  return *middle;
}

// Mean over query heads of ||a - b|| / ||b||; both [tokens, heads, d].
double output_error(const std::vector<float>& a, const std::vector<float>& b, int heads, int d) {
  std::vector<double> difference(static_cast<size_t>(heads)), norm(static_cast<size_t>(heads));
  for (size_t i = 0; i < b.size(); ++i) {
    const size_t head = i / size_t(d) % size_t(heads);
    const double e = double(a[i]) - b[i];
    difference[head] += e * e;
    norm[head] += double(b[i]) * b[i];
  }
  double sum = 0;
  for (size_t head = 0; head < size_t(heads); ++head)
    if (norm[head] > 0) sum += std::sqrt(difference[head] / norm[head]);
  return sum / heads;
}

// Simulations of one tensor, each made once.
class Simulated {
 public:
  explicit Simulated(const KvRows& rows) : rows_(rows) {}
  const KvRows& get(const KvQuantizer& q) {
    for (const auto& [known, rows] : made_)
      if (known == q) return *rows;
    made_.emplace_back(q, std::make_unique<KvRows>(simulated(rows_, q)));
    return *made_.back().second;
  }

 private:
  const KvRows& rows_;
  std::vector<std::pair<KvQuantizer, std::unique_ptr<KvRows>>> made_;
};

}  // namespace

std::vector<KvSimulation> studied_simulations(int group) {
  const auto q = [&](int bits, KvAxis axis) { return KvQuantizer{bits, axis, group}; };
  const KvQuantizer whole = q(16, KvAxis::channel), e4m3 = q(8, KvAxis::channel);
  std::vector<KvSimulation> all;
  for (const int bits : {2, 4})
    for (const KvAxis key : {KvAxis::token, KvAxis::channel})
      for (const KvAxis value : {KvAxis::token, KvAxis::channel})
        all.push_back({q(bits, key), q(bits, value)});
  all.push_back({q(4, KvAxis::channel), q(2, KvAxis::token)});
  all.push_back({q(2, KvAxis::channel), q(4, KvAxis::token)});
  all.push_back({e4m3, e4m3});
  for (const int bits : {2, 4})
    for (const KvAxis axis : {KvAxis::token, KvAxis::channel}) {
      all.push_back({q(bits, axis), whole});
      all.push_back({whole, q(bits, axis)});
    }
  return all;
}

std::vector<KvQuantizer> studied_quantizers(int head_dim) {
  std::vector<KvQuantizer> all;
  for (const int bits : {2, 4})
    for (const int group : {32, 64, 128})
      for (const KvAxis axis : {KvAxis::token, KvAxis::channel})
        if (axis == KvAxis::channel || head_dim % group == 0) all.push_back({bits, axis, group});
  return all;
}

KvLayerStudy::KvLayerStudy(int layer, const KvStudyOptions& options) : options_(options) {
  sums_.layer = layer;
}

void KvLayerStudy::Magnitudes::add(const KvRows& rows, int map_rows) {
  const size_t columns = size_t(rows.columns()), tokens = size_t(rows.tokens);
  const bool first = channel_sum.empty();
  channel_sum.resize(columns);
  found.channel_max.resize(columns);
  if (first) {
    found.map_rows = std::min(map_rows, rows.tokens);
    found.map.resize(size_t(found.map_rows) * columns);
    found.token_mean.resize(tokens);
  }
  const size_t bins = size_t(found.map_rows);
  std::vector<int> tokens_of_bin(bins);
  for (size_t t = 0; t < tokens; ++t) {
    const size_t bin = t * bins / tokens;
    ++tokens_of_bin[bin];
    double sum = 0;
    for (size_t c = 0; c < columns; ++c) {
      const float x = std::abs(to_float(rows.data[t * columns + c]));
      channel_sum[c] += x;
      found.channel_max[c] = std::max(found.channel_max[c], x);
      if (first) found.map[bin * columns + c] += x;
      sum += x;
    }
    if (first) found.token_mean[t] = float(sum / double(columns));
  }
  if (first)
    for (size_t i = 0; i < found.map.size(); ++i)
      found.map[i] /= float(std::max(1, tokens_of_bin[i / columns]));
}

KvMagnitudes KvLayerStudy::Magnitudes::result(int64_t tokens, int head_dim,
                                              double outlier_factor) const {
  KvMagnitudes m = found;
  for (const double sum : channel_sum) m.channel_mean.push_back(float(sum / double(tokens)));
  const size_t d = size_t(head_dim), heads = m.channel_mean.size() / d;
  for (size_t head = 0; head < heads; ++head) {
    const auto begin = m.channel_mean.begin() + std::ptrdiff_t(head * d);
    const double middle = median({begin, begin + std::ptrdiff_t(d)});
    if (middle == 0) continue;
    for (size_t c = head * d; c < (head + 1) * d; ++c)
      if (m.channel_mean[c] >= outlier_factor * middle) m.outliers.push_back(int(c));
    m.peak_over_median +=
        *std::max_element(begin, begin + std::ptrdiff_t(d)) / middle / double(heads);
  }
  return m;
}

void KvLayerStudy::add(const QueryRows& q, const KvRows& keys, const KvRows& values,
                       const AttendWith& attend) {
  keys_.add(keys, options_.map_rows);
  values_.add(values, options_.map_rows);
  add_reconstruction(keys, values);
  add_scores(q, keys);
  add_outputs(q, keys, values, attend);
  tokens_ += keys.tokens;
  head_dim_ = keys.head_dim;
  ++windows_;
}

void KvLayerStudy::add_reconstruction(const KvRows& keys, const KvRows& values) {
  const std::vector<KvQuantizer> quantizers = studied_quantizers(keys.head_dim);
  sums_.reconstruction.resize(quantizers.size());
  for (size_t i = 0; i < quantizers.size(); ++i) {
    KvReconstruction& r = sums_.reconstruction[i];
    r.quantizer = quantizers[i];
    const KvRows k = simulated(keys, r.quantizer), v = simulated(values, r.quantizer);
    for (int head = 0; head < keys.heads; ++head) {
      r.key_error += relative_error(k, keys, head) / keys.heads;
      r.value_error += relative_error(v, values, head) / keys.heads;
    }
  }
}

void KvLayerStudy::add_scores(const QueryRows& q, const KvRows& keys) {
  if (sums_.scores.empty())
    for (const int bits : {2, 4})
      for (const KvAxis axis : {KvAxis::token, KvAxis::channel})
        sums_.scores.push_back({{bits, axis, options_.group}, 0});
  std::vector<KvRows> moved;
  for (const KvScoreError& s : sums_.scores) moved.push_back(simulated(keys, s.key));
  const std::vector<double> errors = score_errors(q, keys, moved, sparsity_);
  for (size_t i = 0; i < errors.size(); ++i) sums_.scores[i].error += errors[i] / q.heads;
}

void KvLayerStudy::add_outputs(const QueryRows& q, const KvRows& keys, const KvRows& values,
                               const AttendWith& attend) {
  const std::vector<KvSimulation> simulations = studied_simulations(options_.group);
  sums_.outputs.resize(simulations.size());
  const std::vector<float> exact = attend(keys, values);  // [T, hq d]
  Simulated k(keys), v(values);
  for (size_t i = 0; i < simulations.size(); ++i) {
    const KvSimulation& s = simulations[i];
    sums_.outputs[i].simulation = s;
    sums_.outputs[i].error +=
        output_error(attend(k.get(s.key), v.get(s.value)), exact, q.heads, q.head_dim);
  }
}

KvLayerStatistics KvLayerStudy::result() const {
  KvLayerStatistics out = sums_;
  if (windows_ == 0) return out;
  out.keys = keys_.result(tokens_, head_dim_, options_.outlier_factor);
  out.values = values_.result(tokens_, head_dim_, options_.outlier_factor);
  for (KvReconstruction& r : out.reconstruction) {
    r.key_error /= windows_;
    r.value_error /= windows_;
  }
  for (KvScoreError& s : out.scores) s.error /= windows_;
  for (KvOutputError& o : out.outputs) o.error /= windows_;
  const double rows = double(std::max<int64_t>(sparsity_.rows, 1));
  const AttentionSparsity& s = sparsity_.sums;
  out.sparsity = {s.top_1_percent / rows, s.top_5_percent / rows, s.top_10_percent / rows,
                  s.tokens_for_90 / rows, s.below_1_percent / rows};
  return out;
}

}  // namespace kivi
