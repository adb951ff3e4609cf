// SPDX-License-Identifier: Apache-2.0
#include "study/kv_recommendation.h"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "engine/config.h"

namespace kivi {

std::vector<KvNamedSimulation> simulated_formats(int group) {
  const auto kivi = [&](int key_bits, int value_bits) {
    return KvSimulation{{key_bits, KvAxis::channel, group}, {value_bits, KvAxis::token, group}};
  };
  const KvQuantizer e4m3 = {8, KvAxis::channel, group};
  return {{"kivi2", kivi(2, 2)},
          {"kivi-k2v4", kivi(2, 4)},
          {"kivi-k4v2", kivi(4, 2)},
          {"kivi4", kivi(4, 4)},
          {"fp8", {e4m3, e4m3}}};
}

std::vector<KvNamedSimulation> stored_formats(int group) {
  std::vector<KvNamedSimulation> formats;
  for (const std::string_view name : kv_format_names()) {
    EngineConfig config;
    config.kv_cache_dtype = name;
    const KvFormat f = kv_format_of(config, KvShape{1, 1, 128}, 1).value();
    if (f.sinks == 0 || f.group != group) continue;
    formats.push_back({std::string(name),
                       {{f.key_bits, KvAxis::channel, group, f.parameter_bits},
                        {f.value_bits, KvAxis::token, group, f.parameter_bits}}});
  }
  return formats;
}

double bits_per_value(const KvSimulation& s) {
  const auto bits = [](const KvQuantizer& q) {
    return q.bits + (q.bits <= 4 ? 2.0 * q.parameter_bits / q.group : 0);
  };
  return (bits(s.key) + bits(s.value)) / 2;
}

namespace {

std::string difference(const KvRecommendation& r, const std::vector<KvCandidate>& candidates) {
  if (r.format == r.automatic) return "";
  std::string out =
      "auto goes by the heads alone (kivi2.5 where each query head has keys of its own, else "
      "kivi3.5); ";
  const KvCandidate* least = nullptr;
  for (const KvCandidate& c : candidates)
    if (c.format == r.automatic && (least == nullptr || c.nll_rise < least->nll_rise)) least = &c;
  if (least == nullptr) return out + "this recommendation by this model's figures.";
  return out + fmt::format("{} costs this model {:.4f} nats a token{}.", r.automatic,
                           least->nll_rise,
                           least->residual > 0 ? fmt::format(" at R {}", least->residual) : "");
}

}  // namespace

KvRecommendation recommend(std::vector<KvCandidate> candidates, const KvThresholds& thresholds,
                           int group, const std::string& automatic) {
  std::ranges::sort(candidates, {}, [](const KvCandidate& c) {
    return std::make_tuple(c.bits_per_value, c.residual, c.nll_rise);
  });
  KvRecommendation r{.format = "fp16", .automatic = automatic};
  const auto good = std::ranges::find_if(candidates, [&](const KvCandidate& c) {
    return c.nll_rise <= thresholds.nll_rise_max;  // false for NaN
  });
  if (good == candidates.end()) {
    r.reason = fmt::format("every smaller format costs more than {:g} nats a token.",
                           thresholds.nll_rise_max);
  } else {
    r.format = good->format;
    r.residual = good->residual;
    r.group = good->residual > 0 ? group : 0;
    r.reason = fmt::format(
        "the fewest bits a value ({:g}), then the shortest residual, at a rise of at most {:g} "
        "nats a "
        "token over fp16: {:.4f}.",
        good->bits_per_value, thresholds.nll_rise_max, good->nll_rise);
  }
  r.difference = difference(r, candidates);
  return r;
}

}  // namespace kivi
