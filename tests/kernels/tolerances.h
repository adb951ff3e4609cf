// SPDX-License-Identifier: Apache-2.0
// The one table of tolerances of the kernel tests. A value passes where
// |got - want| <= absolute + relative * |want|, want being the fp64 formula on the stored inputs.
#pragma once

namespace kivi::test {

struct Tolerance {
  double absolute;
  double relative;
};

// fp32 accumulation of a few hundred terms of size ~1.
inline constexpr Tolerance kMatmul{2e-4, 2e-5};
// One pass of fp32 over a row.
inline constexpr Tolerance kElementwise{2e-6, 4e-6};
inline constexpr Tolerance kNorm{4e-6, 4e-6};
// fp32 angles up to 2,000 radians: the angle itself is rounded to 6e-5.
inline constexpr Tolerance kRope{3e-4, 1e-5};
// f16 keys and values as the last step: half a unit in the last place.
inline constexpr Tolerance kRopeF16{3e-4, 6e-4};
// Attention over the numbers that the store holds, softmax and sums in fp32. Keys with channels ten
// times as large give scores up to ~40, whose rounding (2e-6 each) moves a weight by as much.
inline constexpr Tolerance kAttention{1e-4, 5e-5};
// Scores of thousands: a rounding of 5e-4 in a score.
inline constexpr Tolerance kAttentionLargeScores{1e-2, 4e-3};
inline constexpr Tolerance kLogprob{2e-5, 2e-6};

}  // namespace kivi::test
