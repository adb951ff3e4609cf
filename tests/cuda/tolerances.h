// SPDX-License-Identifier: Apache-2.0
// The one table of tolerances of the GPU tests, and the judgment of a result by it.
//
// Every element is judged by itself: it passes where
//   |got - want| <= of_rms * rms(row of want) + relative * |want|.
// The first part is for the rounding of the terms of a sum, which does not shrink with the sum; the
// second is for the rounding of the result. A norm over the row would let one element be wrong.
#pragma once

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "kernels/tensor.h"

namespace kivi::test {

struct RowTolerance {
  const char* name;
  double of_rms;
  double relative;
};

// fp32 inside, one rounding to the type of the result: half a unit is 2^-12 of f16, 2^-9 of bf16.
inline RowTolerance elementwise_tolerance(DType type) {
  if (type == DType::f16) return {"elementwise f16", 1e-4, 1.5e-3};
  if (type == DType::bf16) return {"elementwise bf16", 1e-3, 1.2e-2};
  return {"elementwise f32", 1e-5, 1e-5};
}
// The normalized row is rounded once before the weight: up to 2^-10 of f16 where it is above 2,
// times a weight of up to 3. The bias may cancel the value, but not that rounding.
inline RowTolerance norm_tolerance(DType type) {
  if (type == DType::f16) return {"norm f16", 3e-3, 1e-3};
  if (type == DType::bf16) return {"norm bf16", 2.4e-2, 8e-3};
  return {"norm f32", 1e-5, 1e-5};
}
// Sums of a few thousand products in fp32.
inline RowTolerance product_tolerance(DType out) {
  if (out == DType::f16) return {"product f16", 1e-4, 1e-3};
  if (out == DType::bf16) return {"product bf16", 1e-4, 8e-3};
  return {"product f32", 2e-5, 1e-5};
}
// The same where W is rounded to 16 bits first: some of its numbers lie so near the middle of two
// that the GPU's fused arithmetic rounds them to the other one, which is 2^-8 (bf16) or 2^-11 (f16)
// of them away. Of k such errors with random signs, the largest of a few thousand sums is about
// four times their root mean square. Of the row's mean size, 1.6e-2 was seen for bf16, and 1.1e-3
// for f16.
inline RowTolerance slab_product_tolerance(DType out, DType weights) {
  RowTolerance tolerance = product_tolerance(out);
  tolerance.of_rms += weights == DType::bf16 ? 1.6e-2 : 1.5e-3;
  tolerance.name = "product, W rounded";
  return tolerance;
}
// 8-bit products on Hopper add up in fewer bits than fp32 has: 2.8 % of the row's mean size was
// seen for 14,336 products by cuBLASLt.
inline RowTolerance e4m3_product_tolerance(DType out) {
  RowTolerance tolerance = product_tolerance(out);
  tolerance.of_rms += 3.5e-2;
  tolerance.name = "product e4m3";
  return tolerance;
}
// A number that two devices round to 16 bits differently may become the next e4m3 number: the steps
// are an eighth of the smallest numbers of a power of two.
inline RowTolerance e4m3_rows_tolerance(DType type) {
  RowTolerance tolerance = norm_tolerance(type);
  tolerance.relative = 0.14;
  tolerance.name = "rows in e4m3";
  return tolerance;
}
// Dequantized keys, and queries times a scale, are rounded to f16. With scores of up to 10 this
// moves a weight by 1e-3 and more. The probabilities are rounded to f16 before they meet the
// values.
inline RowTolerance attention_tolerance(DType out) {
  if (out == DType::f16) return {"attention f16", 8e-3, 1e-3};
  return {"attention bf16", 8e-3, 8e-3};
}
// Both sides round position times frequency alike. A dynamic frequency is computed on the device: a
// rounding of 1e-7 in it is an angle of 0.013 at position 131,071, and 0.026 of a value of 2 was
// seen.
inline RowTolerance rope_tolerance(bool dynamic) {
  if (dynamic) return {"rope, dynamic", 3.5e-2, 1e-3};
  return {"rope", 1e-3, 1e-3};
}

// The largest share of each tolerance that a run has used. Printed at exit where
// KIVI_PRINT_TOLERANCES is set, so that the table can be checked for being too wide.
class ToleranceUse {
 public:
  static void record(const char* name, double share) {
    static ToleranceUse use;
    double& most = use.most_[name];
    most = std::max(most, share);
  }
  ~ToleranceUse() {
    if (std::getenv("KIVI_PRINT_TOLERANCES") == nullptr) return;
    for (const auto& [name, share] : most_)
      std::printf("tolerance \"%s\": %.0f %% used\n", name.c_str(), 100 * share);
  }

 private:
  std::map<std::string, double> most_;
};

// Whether every element of `got` is within the tolerance of `want`; a NaN never is. Rows of
// `columns` elements. On false the message names the worst element.
inline bool close_everywhere(const std::vector<float>& got, const std::vector<float>& want,
                             int64_t columns, const RowTolerance& tolerance) {
  REQUIRE(got.size() == want.size());
  REQUIRE(columns > 0);
  REQUIRE(got.size() % size_t(columns) == 0);
  double worst = 0;
  size_t at = 0;
  for (size_t row = 0; row < got.size(); row += size_t(columns)) {
    double squares = 0;
    for (size_t i = row; i < row + size_t(columns); ++i) squares += double(want[i]) * want[i];
    const double rms = std::sqrt(squares / double(columns));
    for (size_t i = row; i < row + size_t(columns); ++i) {
      const double allowed = tolerance.of_rms * rms + tolerance.relative * std::abs(want[i]);
      const double off = std::abs(double(got[i]) - want[i]);
      const double share = off == 0 ? 0 : off / allowed;
      if (!(share <= worst)) {
        worst = share;
        at = i;
        if (std::isnan(share)) break;
      }
    }
    if (std::isnan(worst)) break;
  }
  ToleranceUse::record(tolerance.name, worst);
  if (worst <= 1) return true;
  UNSCOPED_INFO("row " << at / size_t(columns) << ", column " << at % size_t(columns) << ": got "
                       << got[at] << ", want " << want[at] << ", " << worst
                       << " of the tolerance \"" << tolerance.name << "\"");
  return false;
}

}  // namespace kivi::test
