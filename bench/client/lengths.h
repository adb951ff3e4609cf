// SPDX-License-Identifier: Apache-2.0
// How long prompts and outputs are: fixed, uniform, or log-normal. Tokens.
#pragma once

#include <string>

#include "base/result.h"
#include "bench/client/random.h"

namespace kivi::load {

// Mean lengths of ShareGPT's conversations, tokens (Kwon et al., SOSP 2023, section 6.1).
inline constexpr double kShareGptPromptMean = 161;
inline constexpr double kShareGptOutputMean = 338;
// The standard deviation of the logarithm. The paper gives only means, so this spread is our
// choice: the longest hundredth is at least six times the mean.
inline constexpr double kLogNormalSigma = 1.0;

struct Lengths {
  enum class Kind { uniform, log_normal };
  Kind kind = Kind::uniform;
  int min = 128, max = 128;  // log_normal: lengths outside are drawn again
  double mean = 0;           // log_normal: of what is drawn, min and max included
  double sigma = kLogNormalSigma;
};

// "128", "64:512", "lognormal:161", "lognormal:161:0.8", or "sharegpt": log-normal with
// `sharegpt_mean`. Log-normal lengths are at most `limit`. The error says what was expected,
// without the name of the flag.
Result<Lengths> parse_lengths(const std::string& text, double sharegpt_mean, int limit);
// The inverse of parse_lengths.
std::string describe(const Lengths& lengths);

// Draws lengths. The constructor finds the mu for which the distribution, cut to [min, max], has
// the wanted mean.
class LengthDrawer {
 public:
  explicit LengthDrawer(const Lengths& lengths);
  int draw(Random& random) const;
  double mu() const { return mu_; }

 private:
  Lengths lengths_;
  double mu_ = 0;
};

}  // namespace kivi::load
