// SPDX-License-Identifier: Apache-2.0
// A literal transcription, in doubles, of docs/design/kv-format.md, sections 1 and 2. It says what
// codes, scales, minima and lengths the store must hold for T tokens. It was written from the page
// and shares no code with the product. It is slow on purpose.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

namespace kivi::test {

// The nearest fp16 number, ties to even; beyond the largest it stays at the largest.
inline double fp16(double x) {
  if (x == 0) return 0;
  int exponent = 0;
  std::frexp(std::abs(x), &exponent);
  const double unit = std::ldexp(1.0, std::max(exponent, -13) - 11);
  return std::clamp(std::nearbyint(x / unit) * unit, -65504.0, 65504.0);
}

struct ReferenceGroup {
  double scale = 0, minimum = 0;
  std::vector<int> codes;
};

// The nearest number with 3 bits of mantissa and f16's exponents, ties upwards; `up`: the next one
// that is not below. At most 61440.
inline double scale_of_8_bits(double x, bool up) {
  if (x == 0) return 0;
  int exponent = 0;
  std::frexp(x, &exponent);
  const double unit = std::ldexp(1.0, std::max(exponent, -13) - 4);
  return std::min((up ? std::ceil(x / unit) : std::floor(x / unit + 0.5)) * unit, 61440.0);
}

inline ReferenceGroup reference_quantize(std::vector<double> x, int bits, int parameter_bits = 16) {
  for (double& v : x) {
    if (std::isnan(v)) v = 0;
    v = std::clamp(v, -65504.0, 65504.0);
  }
  const double min = *std::min_element(x.begin(), x.end());
  const double max = *std::max_element(x.begin(), x.end());
  const int largest = (1 << bits) - 1;
  ReferenceGroup group;
  group.minimum = min;
  group.scale = fp16(fp16(max - min) / largest);
  if (parameter_bits == 8) {
    const double quarter = bits == 2 ? 0.25 : 0.5;  // what the minimum counts, in scales
    const double reach = fp16(float(std::abs(min)) * float(1 / (127 * quarter)));
    group.scale = std::max(scale_of_8_bits(group.scale, false), scale_of_8_bits(reach, true));
    group.minimum = 0;
    if (group.scale > 0) {
      const double m = std::nearbyint(double(float(min) / float(quarter * group.scale)));
      const double most = std::min(127.0, std::floor(65504 / (quarter * group.scale)));
      group.minimum = std::clamp(m, -most, most) * quarter * group.scale;
    }
  }
  for (const double v : x) {
    if (group.scale == 0) {
      group.codes.push_back(0);
      continue;
    }
    const double q = std::nearbyint(fp16(fp16(v - group.minimum) / group.scale));
    group.codes.push_back(int(std::clamp(q, 0.0, double(largest))));
  }
  return group;
}

// One KV head of one layer of one sequence.
class KiviReference {
 public:
  KiviReference(int key_bits, int value_bits, int group, int residual, int head_dim, int sinks = 0,
                int parameter_bits = 16)
      : key_bits_(key_bits),
        value_bits_(value_bits),
        g_(group),
        r_(residual),
        d_(head_dim),
        s_(sinks),
        parameter_bits_(parameter_bits) {}

  // The token's key and value in fp16, as doubles.
  void append(std::vector<double> key, std::vector<double> value) {
    keys_.push_back(std::move(key));
    values_.push_back(std::move(value));
  }
  int tokens() const { return int(keys_.size()); }
  // Of the first t tokens, behind the sinks.
  int keys_quantized(int t) const { return t > s_ ? (t - s_) / r_ * r_ : 0; }
  int values_quantized(int t) const { return std::max(0, t - s_ - r_); }
  bool key_is_quantized(int token, int t) const {
    return token >= s_ && token < s_ + keys_quantized(t);
  }
  bool value_is_quantized(int token, int t) const {
    return token >= s_ && token < s_ + values_quantized(t);
  }

  const std::vector<double>& key(int token) const { return keys_[size_t(token)]; }
  const std::vector<double>& value(int token) const { return values_[size_t(token)]; }

  // The group of `g` consecutive tokens that holds `token`, of one channel. Groups begin behind the
  // sinks. All its tokens must be there.
  const ReferenceGroup& key_group(int token, int channel) {
    const int first = s_ + (token - s_) / g_ * g_;
    const size_t index = size_t((token - s_) / g_) * size_t(d_) + size_t(channel);
    if (key_groups_.size() <= index) key_groups_.resize(index + 1);
    ReferenceGroup& group = key_groups_[index];
    if (group.codes.empty()) {
      std::vector<double> x;
      for (int i = 0; i < g_; ++i) x.push_back(keys_[size_t(first + i)][size_t(channel)]);
      group = reference_quantize(x, key_bits_, parameter_bits_);
    }
    return group;
  }
  int key_code(int token, int channel) {
    return key_group(token, channel).codes[size_t((token - s_) % g_)];
  }
  // The group of `g` consecutive channels that holds `channel`, of one token.
  const ReferenceGroup& value_group(int token, int channel) {
    const int groups = d_ / g_;
    const size_t index = size_t(token) * size_t(groups) + size_t(channel / g_);
    if (value_groups_.size() <= index) value_groups_.resize(index + 1);
    ReferenceGroup& group = value_groups_[index];
    if (group.codes.empty()) {
      const auto begin = values_[size_t(token)].begin() + channel / g_ * g_;
      group = reference_quantize({begin, begin + g_}, value_bits_, parameter_bits_);
    }
    return group;
  }
  int value_code(int token, int channel) {
    return value_group(token, channel).codes[size_t(channel % g_)];
  }
  double dequantized_key(int token, int channel) {
    const ReferenceGroup& group = key_group(token, channel);
    return group.scale * group.codes[size_t((token - s_) % g_)] + group.minimum;
  }
  double dequantized_value(int token, int channel) {
    const ReferenceGroup& group = value_group(token, channel);
    return group.scale * group.codes[size_t(channel % g_)] + group.minimum;
  }

 private:
  int key_bits_, value_bits_, g_, r_, d_, s_, parameter_bits_;
  std::vector<std::vector<double>> keys_, values_;
  std::vector<ReferenceGroup> key_groups_, value_groups_;
};

}  // namespace kivi::test
