// SPDX-License-Identifier: Apache-2.0
#include "engine/model/rope_scaling.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace kivi {

namespace {

constexpr double kMaxFactor = 1e6;

void read_llama3(JsonReader& scaling, RopeSpec& rope) {
  rope.factor = scaling.number("factor", 1, kMaxFactor);
  rope.low_freq_factor = scaling.number("low_freq_factor", 1e-3, 1e6);
  rope.high_freq_factor = scaling.number("high_freq_factor", 1e-3, 1e6);
  rope.original_max_position_embeddings =
      scaling.integer("original_max_position_embeddings", 1, kMaxPositions);
  if (rope.high_freq_factor <= rope.low_freq_factor)
    scaling.reject("high_freq_factor", "must be larger than low_freq_factor");
}

// How much sharper attention gets in a context that is `scale` times as long (Peng et al. 2023,
// section 3.4).
double yarn_mscale(double scale, double mscale) {
  return scale <= 1 ? 1 : 0.1 * mscale * std::log(scale) + 1;
}

void read_yarn(JsonReader& scaling, const DecoderSpec& spec, RopeSpec& rope) {
  rope.original_max_position_embeddings =
      scaling.integer_or("original_max_position_embeddings", spec.max_positions, 1, kMaxPositions);
  const double implied = double(spec.max_positions) / rope.original_max_position_embeddings;
  rope.factor = scaling.number_or("factor", std::max(implied, 1.0), 1, kMaxFactor);
  rope.beta_fast = scaling.number_or("beta_fast", 32, 1e-3, 1e6);
  rope.beta_slow = scaling.number_or("beta_slow", 1, 1e-3, 1e6);
  rope.truncate = scaling.boolean_or("truncate", true);
  const double mscale = scaling.number_or("mscale", 0, 0, 1e3);
  const double mscale_all = scaling.number_or("mscale_all_dim", 0, 0, 1e3);
  const double implied_factor =
      mscale > 0 && mscale_all > 0
          ? yarn_mscale(rope.factor, mscale) / yarn_mscale(rope.factor, mscale_all)
          : yarn_mscale(rope.factor, 1);
  rope.attention_factor = scaling.number_or("attention_factor", implied_factor, 1e-3, 1e3);
  if (rope.beta_fast < rope.beta_slow) scaling.reject("beta_fast", "must be at least beta_slow");
  if (rope.theta <= 1) scaling.reject("rope_theta", "must be larger than 1 with yarn");
}

std::vector<float> read_factors(JsonReader& scaling, const char* key) {
  const std::vector<double> numbers = scaling.numbers(key, 1e-6, kMaxFactor);
  return {numbers.begin(), numbers.end()};
}

// Phi-3's configs have the trained context outside the scaling, and no factor.
void read_longrope(JsonReader& config, JsonReader& scaling, const DecoderSpec& spec,
                   RopeSpec& rope) {
  const char* const trained = "original_max_position_embeddings";
  JsonReader& place = scaling.has(trained) ? scaling : config;
  rope.original_max_position_embeddings =
      place.integer_or(trained, spec.max_positions, 2, kMaxPositions);
  rope.divisors = read_factors(scaling, "short_factor");
  rope.long_divisors = read_factors(scaling, "long_factor");
  const double implied = double(spec.max_positions) / rope.original_max_position_embeddings;
  const double factor = scaling.number_or("factor", std::max(implied, 1.0), 1, kMaxFactor);
  rope.attention_factor = scaling.number_or(
      "attention_factor",
      std::sqrt(1 + std::log(factor) / std::log(double(rope.original_max_position_embeddings))),
      1e-3, 1e3);
}

// Each frequency has its factor.
void check_factors(JsonReader& scaling, const RopeSpec& rope) {
  const auto wanted = size_t(rope.rotary_dim / 2);
  if (rope.scaling != RopeScaling::longrope || !scaling.status().ok()) return;
  for (const auto& [key, factors] :
       {std::pair("short_factor", &rope.divisors), std::pair("long_factor", &rope.long_divisors)})
    if (factors->size() != wanted)
      scaling.reject(key, fmt::format("has {} numbers, must have one for each of the {} pairs of "
                                      "channels that turn",
                                      factors->size(), wanted));
}

void read_scaling(JsonReader& config, JsonReader& scaling, const DecoderSpec& spec,
                  RopeSpec& rope) {
  const std::string key = scaling.has("rope_type") ? "rope_type" : "type";
  const std::string type = scaling.string_or(key, "default");
  if (type == "default") return;
  if (type == "linear") {
    rope.scaling = RopeScaling::linear;
    rope.factor = scaling.number("factor", 1, kMaxFactor);
  } else if (type == "dynamic") {
    rope.scaling = RopeScaling::dynamic;
    rope.factor = scaling.number("factor", 1, kMaxFactor);
    rope.original_max_position_embeddings = spec.max_positions;
  } else if (type == "llama3") {
    rope.scaling = RopeScaling::llama3;
    read_llama3(scaling, rope);
  } else if (type == "yarn") {
    rope.scaling = RopeScaling::yarn;
    read_yarn(scaling, spec, rope);
  } else if (type == "longrope" || type == "su") {  // "su": Phi-3's first configs
    rope.scaling = RopeScaling::longrope;
    read_longrope(config, scaling, spec, rope);
  } else {
    scaling.reject(key, "supported are default, linear, dynamic, llama3, yarn and longrope",
                   ErrorCode::unsupported);
  }
}

// llama3's and longrope's configs give the long context as max_position_embeddings, the others the
// trained one.
int scaled_positions(const DecoderSpec& spec) {
  const RopeSpec& rope = spec.rope;
  double reach = spec.max_positions;
  if (rope.scaling == RopeScaling::linear || rope.scaling == RopeScaling::dynamic)
    reach *= rope.factor;
  if (rope.scaling == RopeScaling::yarn)
    reach = std::max(reach, rope.original_max_position_embeddings * rope.factor);
  return int(std::min(reach, double(kMaxPositions)));
}

// The (fractional) channel pair whose wave makes `turns` turns in the trained context.
double channel_of(double turns, const RopeSpec& rope) {
  return rope.rotary_dim *
         std::log(rope.original_max_position_embeddings / (turns * 2 * std::numbers::pi)) /
         (2 * std::log(rope.theta));
}

double llama3_frequency(double f, const RopeSpec& rope) {
  const double wave = 2 * std::numbers::pi / f;
  const double turns = rope.original_max_position_embeddings / wave;  // in the trained context
  const double smooth =
      (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  const double kept = std::clamp(smooth, 0.0, 1.0);  // 1: short wave, unchanged
  return (1 - kept) * f / rope.factor + kept * f;
}

double yarn_frequency(double f, int pair, const RopeSpec& rope) {
  double low = channel_of(rope.beta_fast, rope), high = channel_of(rope.beta_slow, rope);
  if (rope.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, double(rope.rotary_dim - 1));
  if (low == high) high += 0.001;
  const double stretched = std::clamp((pair - low) / (high - low), 0.0, 1.0);
  return stretched * f / rope.factor + (1 - stretched) * f;
}

// Which object says how frequencies are scaled; nullptr: none. As in Transformers, rope_scaling
// counts alone where it says anything, even beside rope_parameters (Transformers 5): it is how a
// scaling is added by hand. The theta of rope_parameters is then lost, there as here.
const char* scaling_key(JsonReader& config) {
  if (config.has("rope_scaling")) {
    const JsonReader scaling = config.object("rope_scaling");
    for (const char* key : {"rope_type", "type", "factor", "rope_theta", "partial_rotary_factor"})
      if (scaling.has(key)) return "rope_scaling";
  }
  return config.has("rope_parameters") ? "rope_parameters" : nullptr;
}

// Versions of Transformers disagree whether original_max_position_embeddings counts at the top of
// the file or inside the scaling. So the two must not differ.
void check_trained_context(JsonReader& config, const RopeSpec& rope) {
  if (rope.scaling != RopeScaling::llama3 && rope.scaling != RopeScaling::yarn &&
      rope.scaling != RopeScaling::longrope)
    return;
  const char* const key = "original_max_position_embeddings";
  if (!config.has(key)) return;
  if (config.integer(key, 1, kMaxPositions) != rope.original_max_position_embeddings)
    config.reject(key,
                  fmt::format("must be absent, or equal to the scaling's own, {}",
                              rope.original_max_position_embeddings),
                  ErrorCode::unsupported);
}

}  // namespace

void read_rope(JsonReader& config, DecoderSpec& spec) {
  RopeSpec& rope = spec.rope;
  double part = config.number_or("partial_rotary_factor", 1, 0.01, 1);
  rope.theta = config.number_or("rope_theta", 10000, 1, 1e12);
  if (const char* key = scaling_key(config)) {
    JsonReader parameters = config.object(key);
    for (const char* layers : {"full_attention", "sliding_attention"})
      if (parameters.has(layers))
        parameters.reject(layers, "layers must share their rotary embedding",
                          ErrorCode::unsupported);
    rope.theta = parameters.number_or("rope_theta", rope.theta, 1, 1e12);
    part = parameters.number_or("partial_rotary_factor", part, 0.01, 1);
    read_scaling(config, parameters, spec, rope);
    check_trained_context(config, rope);
    rope.rotary_dim = int(spec.head_dim * part);
    check_factors(parameters, rope);
  }
  rope.rotary_dim = int(spec.head_dim * part);
  // dynamic divides by rotary_dim - 2.
  const int rotary_min = rope.scaling == RopeScaling::dynamic ? 4 : 2;
  if (rope.rotary_dim < rotary_min || rope.rotary_dim % 2 != 0)
    config.reject(
        "partial_rotary_factor",
        fmt::format("must leave an even number of the {} channels of a head", spec.head_dim));
  spec.max_positions_scaled = scaled_positions(spec);
}

void fit_context(RopeSpec& rope, int max_model_len) {
  if (rope.scaling == RopeScaling::longrope &&
      max_model_len > rope.original_max_position_embeddings)
    rope.divisors = rope.long_divisors;
}

std::vector<float> inverse_frequencies(const RopeSpec& rope) {
  std::vector<float> frequencies;
  for (int i = 0; i < rope.rotary_dim; i += 2) {
    double f = std::pow(rope.theta, -double(i) / rope.rotary_dim);
    if (rope.scaling == RopeScaling::linear) f /= rope.factor;
    if (rope.scaling == RopeScaling::llama3) f = llama3_frequency(f, rope);
    if (rope.scaling == RopeScaling::yarn) f = yarn_frequency(f, i / 2, rope);
    if (!rope.divisors.empty()) f /= double(rope.divisors[size_t(i / 2)]);
    frequencies.push_back(float(f));
  }
  return frequencies;
}

}  // namespace kivi
