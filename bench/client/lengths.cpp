// SPDX-License-Identifier: Apache-2.0
#include "bench/client/lengths.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bench/client/text.h"

namespace kivi::load {
namespace {

double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }

// Mean of a log-normal distribution cut to [a, b].
double cut_mean(double mu, double sigma, double a, double b) {
  const double low = (std::log(a) - mu) / sigma, high = (std::log(b) - mu) / sigma;
  const double mass = normal_cdf(high) - normal_cdf(low);
  if (mass < 1e-12) return low > 0 ? a : b;  // all of it is on one side
  return std::exp(mu + sigma * sigma / 2) * (normal_cdf(high - sigma) - normal_cdf(low - sigma)) /
         mass;
}

Error expected(std::string what) { return Error{ErrorCode::invalid, std::move(what)}; }

Result<Lengths> log_normal(double mean, double sigma, int limit) {
  Lengths lengths{.kind = Lengths::Kind::log_normal, .min = 1, .max = limit};
  lengths.mean = mean;
  lengths.sigma = sigma;
  if (!(mean >= 2 && mean <= limit / 2.0))
    return expected(fmt::format("a mean in [2, {}], half of --max-len", limit / 2));
  if (!(sigma > 0 && sigma <= 3)) return expected("a sigma in (0, 3]");
  return lengths;
}

}  // namespace

Result<Lengths> parse_lengths(const std::string& text, double sharegpt_mean, int limit) {
  const char* const kForms = "N, MIN:MAX, lognormal:MEAN, lognormal:MEAN:SIGMA or sharegpt";
  if (text == "sharegpt") return log_normal(sharegpt_mean, kLogNormalSigma, limit);
  const std::vector<std::string> parts = split(text, ':');
  if (parts[0] == "lognormal" && (parts.size() == 2 || parts.size() == 3)) {
    const auto mean = parse_number<double>(parts[1]);
    const auto sigma =
        parts.size() == 3 ? parse_number<double>(parts[2]) : std::optional(kLogNormalSigma);
    if (!mean || !sigma) return expected(kForms);
    return log_normal(*mean, *sigma, limit);
  }
  const auto min = parse_number<int>(parts[0]);
  const auto max = parts.size() == 2 ? parse_number<int>(parts[1]) : min;
  if (parts.size() > 2 || !min || !max) return expected(kForms);
  if (*min < 1 || *max < *min || *max > kTokensMax)
    return expected(fmt::format("1 <= MIN <= MAX <= {}", kTokensMax));
  return Lengths{.min = *min, .max = *max};
}

std::string describe(const Lengths& lengths) {
  if (lengths.kind == Lengths::Kind::log_normal)
    return fmt::format("lognormal:{}:{}", lengths.mean, lengths.sigma);
  return lengths.min == lengths.max ? fmt::format("{}", lengths.min)
                                    : fmt::format("{}:{}", lengths.min, lengths.max);
}

LengthDrawer::LengthDrawer(const Lengths& lengths) : lengths_(lengths) {
  if (lengths.kind != Lengths::Kind::log_normal) return;
  // The mean grows with mu. Half a token each way: draws are rounded.
  const double a = lengths.min - 0.5, b = lengths.max + 0.5;
  double low = std::log(a), high = std::log(b) + 1;
  for (int i = 0; i < 100; ++i) {
    const double middle = (low + high) / 2;
    (cut_mean(middle, lengths.sigma, a, b) < lengths.mean ? low : high) = middle;
  }
  mu_ = low;
}

int LengthDrawer::draw(Random& random) const {
  if (lengths_.kind == Lengths::Kind::uniform)
    return int(random.integer(lengths_.min, lengths_.max));
  for (int tries = 0; tries < 1000; ++tries) {
    const double length = std::round(std::exp(mu_ + lengths_.sigma * random.normal()));
    if (length >= lengths_.min && length <= lengths_.max) return int(length);
  }
  return std::clamp(int(lengths_.mean), lengths_.min, lengths_.max);
}

}  // namespace kivi::load
