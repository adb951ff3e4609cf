// SPDX-License-Identifier: Apache-2.0
// gated_activation, activate: out = act(gate) * up, x = act(x).
//   silu(x) = x / (1 + exp(-x));  gelu(x) = x (1 + erf(x / sqrt 2)) / 2;
//   gelu_tanh(x) = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2  (Hendrycks and Gimpel 2016)
//
// All f32. Cost: one exponential (or erf, tanh) a number; exp and tanh are Highway's, erf is the C
// library's. Reference: the formulas. Test: tests/kernels/rows_test.cpp.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/activation.cpp"
#include "kernels/cpu/simd_targets.h"
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>
// clang-format on

#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kivi {
namespace HWY_NAMESPACE {

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;

HWY_INLINE VF silu(DF df, VF x) {
  // exp(88) is still a number; beyond it the quotient is zero to f32's precision.
  const VF e = hn::Exp(df, hn::Min(hn::Neg(x), hn::Set(df, 88.0f)));
  return hn::Div(x, hn::Add(hn::Set(df, 1.0f), e));
}

HWY_INLINE VF gelu(DF df, VF x) {
  HWY_ALIGN float lanes[HWY_MAX_BYTES / sizeof(float)];
  hn::Store(hn::Mul(x, hn::Set(df, 0.70710678118654752f)), df, lanes);
  for (float& lane : lanes) lane = std::erf(lane);
  return hn::Mul(hn::Mul(x, hn::Set(df, 0.5f)), hn::Add(hn::Set(df, 1.0f), hn::Load(df, lanes)));
}

HWY_INLINE VF gelu_tanh(DF df, VF x) {
  const VF cubic = hn::MulAdd(hn::Mul(hn::Mul(x, x), x), hn::Set(df, 0.044715f), x);
  const VF t = hn::Tanh(df, hn::Mul(cubic, hn::Set(df, 0.79788456080286536f)));
  return hn::Mul(hn::Mul(x, hn::Set(df, 0.5f)), hn::Add(hn::Set(df, 1.0f), t));
}

// out = act(x), times `up` where there is one. `out` may be x.
void Activate(const float* x, const float* up, float* out, int64_t n, Activation activation) {
  const DF df;
  for_vectors(df, n, [&](int64_t c, size_t count) HWY_ATTR {
    VF y = load_part(df, x + c, count);
    if (activation == Activation::silu)
      y = silu(df, y);
    else if (activation == Activation::gelu)
      y = gelu(df, y);
    else
      y = gelu_tanh(df, y);
    if (up != nullptr) y = hn::Mul(y, load_part(df, up + c, count));
    store_part(df, y, out + c, count);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace kivi
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kivi {
HWY_EXPORT(Activate);

void CpuBackend::do_gated_activation(const Tensor& gate_up, Activation activation,
                                     const Operand& out) {
  const int64_t f = out.columns();
  pool_.parallel_for(out.count(), out.rows.size() * 4, [&](int64_t i, int worker) {
    const float* gate = gate_up.row<float>(i);
    float* const y = operand_row(out, i, worker);
    HWY_DYNAMIC_DISPATCH(Activate)(gate, gate + f, y, f, activation);
    finish_row(out, i, y);
  });
}

void CpuBackend::do_activate(const Tensor& x, Activation activation) {
  pool_.parallel_for(x.rows(), x.size() * 4, [&](int64_t i, int) {
    float* row = x.row<float>(i);
    HWY_DYNAMIC_DISPATCH(Activate)(row, nullptr, row, x.shape[1], activation);
  });
}

}  // namespace kivi
#endif
