// SPDX-License-Identifier: Apache-2.0
// SoftmaxState: attention so far. Over any set of tokens with scores s and values v, a state is
//   max = max s, sum = sum exp(s - max), out = sum exp(s - max) v;
// `update` adds tokens, `merge` joins two states over disjoint sets; out / sum is the attention
// over the union (Milakov and Gimelshein 2018; Dao et al. 2022).
#if defined(KIVI_SOFTMAX_STATE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KIVI_SOFTMAX_STATE_INL_H_
#undef KIVI_SOFTMAX_STATE_INL_H_
#else
#define KIVI_SOFTMAX_STATE_INL_H_
#endif

#include <hwy/contrib/math/math-inl.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kivi {
namespace HWY_NAMESPACE {

struct SoftmaxState {
  float max = -HUGE_VALF;
  float sum = 0;
  float* out = nullptr;  // [d], zeros at first

  // Takes in the scores [begin, end) of `scores` [n] (n a multiple of 16; begin < end): scales out
  // and sum to the new maximum and overwrites all n scores with their weights, 0 outside
  // [begin, end). The caller then adds weights times values to `out`.
  HWY_INLINE void update(float* scores, int n, int begin, int end, float scale, int head_dim);

  // Takes in another state; its `out` has the same number of channels.
  HWY_INLINE void merge(const SoftmaxState& other, int head_dim);

 private:
  HWY_INLINE void scale_out(float factor, int head_dim);
};

HWY_INLINE float exp_of(float x) {
  const hn::CappedTag<float, 1> d1;
  return hn::GetLane(hn::Exp(d1, hn::Set(d1, x)));
}

HWY_INLINE void SoftmaxState::scale_out(float factor, int head_dim) {
  const hn::CappedTag<float, 16> df;
  for (int c = 0; c < head_dim; c += int(hn::Lanes(df)))
    hn::StoreU(hn::Mul(hn::LoadU(df, out + c), hn::Set(df, factor)), df, out + c);
}

HWY_INLINE void SoftmaxState::update(float* scores, int n, int begin, int end, float scale,
                                     int head_dim) {
  const hn::CappedTag<float, 16> df;
  const hn::RebindToSigned<decltype(df)> di;
  const int lanes = int(hn::Lanes(df));
  const auto low = hn::Set(df, -HUGE_VALF);
  auto largest = hn::Set(df, max);
  for (int t = 0; t < n; t += lanes) {
    const auto token = hn::Iota(di, t);
    const auto inside =
        hn::And(hn::Gt(token, hn::Set(di, begin - 1)), hn::Lt(token, hn::Set(di, end)));
    const auto s = hn::Mul(hn::LoadU(df, scores + t), hn::Set(df, scale));
    const auto kept = hn::IfThenElse(hn::RebindMask(df, inside), s, low);
    hn::StoreU(kept, df, scores + t);
    largest = hn::Max(largest, kept);
  }
  const float new_max = max_of_lanes(df, largest);
  auto total = hn::Zero(df);
  for (int t = 0; t < n; t += lanes) {
    const auto s = hn::LoadU(df, scores + t);
    const auto weight = hn::Exp(df, hn::Sub(s, hn::Set(df, new_max)));
    const auto kept = hn::IfThenZeroElse(hn::Eq(s, low), weight);
    hn::StoreU(kept, df, scores + t);
    total = hn::Add(total, kept);
  }
  if (max != new_max) {
    const float factor = sum == 0 ? 0.0f : exp_of(max - new_max);
    sum *= factor;
    scale_out(factor, head_dim);
    max = new_max;
  }
  sum += sum_of_lanes(df, total);
}

HWY_INLINE void SoftmaxState::merge(const SoftmaxState& other, int head_dim) {
  if (other.sum == 0) return;
  const float new_max = HWY_MAX(max, other.max);
  const float mine = sum == 0 ? 0.0f : exp_of(max - new_max);
  const float theirs = exp_of(other.max - new_max);
  const hn::CappedTag<float, 16> df;
  for (int c = 0; c < head_dim; c += int(hn::Lanes(df))) {
    const auto a = hn::Mul(hn::LoadU(df, out + c), hn::Set(df, mine));
    const auto b = hn::LoadU(df, other.out + c);
    hn::StoreU(hn::MulAdd(b, hn::Set(df, theirs), a), df, out + c);
  }
  sum = sum * mine + other.sum * theirs;
  max = new_max;
}

}  // namespace HWY_NAMESPACE
}  // namespace kivi
HWY_AFTER_NAMESPACE();
#endif
