// SPDX-License-Identifier: Apache-2.0
// What the vectorized ops share: 16-bit loads and stores, sums over lanes. Compiled once for each
// instruction set (no include guard of the usual kind; see Highway's quick reference, *-inl.h).
//
// Functions here and in the ops use no standard containers or algorithms: an inline function of a
// header that is compiled for AVX-512 and not inlined could be the copy that the linker keeps.
#if defined(KIVI_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KIVI_SIMD_INL_H_
#undef KIVI_SIMD_INL_H_
#else
#define KIVI_SIMD_INL_H_
#endif

#include <hwy/highway.h>

#include "kernels/half.h"

HWY_BEFORE_NAMESPACE();
namespace kivi {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Loads Lanes(df) numbers and widens them.
template <class DF>
HWY_INLINE hn::Vec<DF> load(DF df, const float* from) {
  return hn::LoadU(df, from);
}
template <class DF>
HWY_INLINE hn::Vec<DF> load(DF df, const bf16* from) {
  const hn::Rebind<uint16_t, DF> dh;
  const hn::Rebind<uint32_t, DF> du;
  const auto bits = hn::PromoteTo(du, hn::LoadU(dh, &from->bits));
  return hn::BitCast(df, hn::ShiftLeft<16>(bits));
}
template <class DF>
HWY_INLINE hn::Vec<DF> load(DF df, const f16* from) {
  const hn::Rebind<hwy::float16_t, DF> dh;
  return hn::PromoteTo(df, hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(from)));
}

// Narrows to f16, to nearest even, the bits of kernels/half.h. Overflow gives infinity: clamp
// before where that can be.
template <class DF>
HWY_INLINE void store_f16(DF, hn::Vec<DF> x, f16* to) {
  const hn::Rebind<hwy::float16_t, DF> dh;
  hn::StoreU(hn::DemoteTo(dh, x), dh, reinterpret_cast<hwy::float16_t*>(to));
}

// NaN -> 0, then [-65504, 65504]: to_f16_saturated before its rounding.
template <class DF>
HWY_INLINE hn::Vec<DF> saturate_f16(DF df, hn::Vec<DF> x) {
  const auto number = hn::IfThenElseZero(hn::Eq(x, x), x);
  return hn::Clamp(number, hn::Set(df, -kF16Max), hn::Set(df, kF16Max));
}

// Loads `count` (<= Lanes(df)) numbers, zeros behind them.
template <class DF, class T>
HWY_INLINE hn::Vec<DF> load_part(DF df, const T* from, size_t count) {
  if (count == hn::Lanes(df)) return load(df, from);
  T part[HWY_MAX_BYTES / sizeof(float)] = {};
  for (size_t i = 0; i < count; ++i) part[i] = from[i];
  return load(df, part);
}
template <class DF>
HWY_INLINE void store_part(DF df, hn::Vec<DF> x, float* to, size_t count) {
  if (count == hn::Lanes(df)) return hn::StoreU(x, df, to);
  HWY_ALIGN float part[HWY_MAX_BYTES / sizeof(float)];
  hn::Store(x, df, part);
  for (size_t i = 0; i < count; ++i) to[i] = part[i];
}

// Calls f(first, count) for the vectors of n numbers; count < Lanes(df) in the last one at most.
template <class DF, class F>
HWY_INLINE void for_vectors(DF df, int64_t n, const F& f) {
  const int64_t lanes = int64_t(hn::Lanes(df));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) f(i, size_t(lanes));
  if (i < n) f(i, size_t(n - i));
}

template <class DF>
HWY_INLINE float sum_of_lanes(DF df, hn::Vec<DF> x) {
  return hn::GetLane(hn::SumOfLanes(df, x));
}
template <class DF>
HWY_INLINE float max_of_lanes(DF df, hn::Vec<DF> x) {
  return hn::GetLane(hn::MaxOfLanes(df, x));
}

// Adds up the 128-bit blocks of x.
template <class D>
HWY_INLINE hn::Vec<hn::FixedTag<float, 4>> add_blocks(D, hn::Vec<D> x) {
  if constexpr (hn::MaxLanes(D()) > 4) {
    const hn::Half<D> half;
    return add_blocks(half, hn::Add(hn::LowerHalf(half, x), hn::UpperHalf(half, x)));
  } else {
    return x;
  }
}

// {sum(a), sum(b), sum(c), sum(e)}: four sums over lanes for little more than the price of one.
template <class DF>
HWY_INLINE hn::Vec<hn::FixedTag<float, 4>> sums_of_lanes(DF df, hn::Vec<DF> a, hn::Vec<DF> b,
                                                         hn::Vec<DF> c, hn::Vec<DF> e) {
  const hn::Repartition<double, DF> dd;
  const auto ab = hn::Add(hn::InterleaveLower(df, a, b), hn::InterleaveUpper(df, a, b));
  const auto ce = hn::Add(hn::InterleaveLower(df, c, e), hn::InterleaveUpper(df, c, e));
  const auto x = hn::BitCast(dd, ab), y = hn::BitCast(dd, ce);
  return add_blocks(df, hn::Add(hn::BitCast(df, hn::InterleaveLower(dd, x, y)),
                                hn::BitCast(df, hn::InterleaveUpper(dd, x, y))));
}

}  // namespace HWY_NAMESPACE
}  // namespace kivi
HWY_AFTER_NAMESPACE();

#endif  // KIVI_SIMD_INL_H_
