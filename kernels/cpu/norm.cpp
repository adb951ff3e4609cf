// SPDX-License-Identifier: Apache-2.0
// add_norm: x += delta; out = norm(x) * weight (+ bias), norm being
//   rms:   x / sqrt(mean(x^2) + eps)                  (Zhang and Sennrich 2019)
//   layer: (x - mean(x)) / sqrt(var(x) + eps)
//
// x, delta, out [t, n] f32; weight, bias [n] f32, f16 or bf16. Cost: two (layer: three) passes over
// a row, which stays in the level-1 cache. A row's sums run in one order, whatever t is. Reference:
// the formula. Test: tests/kernels/rows_test.cpp.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/norm.cpp"
#include "kernels/cpu/simd_targets.h"
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/norm_row.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kivi {
namespace HWY_NAMESPACE {

template <class W>
void norm_row(const NormRow& r) {
  const hn::ScalableTag<float> df;
  const auto inside = [&](hn::Vec<decltype(df)> v, size_t count)
                          HWY_ATTR { return hn::IfThenElseZero(hn::FirstN(df, count), v); };
  auto total = hn::Zero(df);
  for_vectors(df, r.n, [&](int64_t c, size_t count) HWY_ATTR {
    auto x = load_part(df, r.x + c, count);
    if (r.delta != nullptr) {
      x = hn::Add(x, load_part(df, r.delta + c, count));
      store_part(df, x, r.x + c, count);
    }
    total = hn::Add(total, x);
  });
  const float mean = r.kind == NormKind::layer ? sum_of_lanes(df, total) / float(r.n) : 0;
  auto squares = hn::Zero(df);
  for_vectors(df, r.n, [&](int64_t c, size_t count) HWY_ATTR {
    const auto x = inside(hn::Sub(load_part(df, r.x + c, count), hn::Set(df, mean)), count);
    squares = hn::MulAdd(x, x, squares);
  });
  const float factor = 1.0f / std::sqrt(sum_of_lanes(df, squares) / float(r.n) + r.eps);
  const W* weight = static_cast<const W*>(r.weight);
  const W* bias = static_cast<const W*>(r.bias);
  for_vectors(df, r.n, [&](int64_t c, size_t count) HWY_ATTR {
    const auto x = hn::Sub(load_part(df, r.x + c, count), hn::Set(df, mean));
    auto y = hn::Mul(hn::Mul(x, hn::Set(df, factor)), load_part(df, weight + c, count));
    if (bias != nullptr) y = hn::Add(y, load_part(df, bias + c, count));
    store_part(df, y, r.out + c, count);
  });
}

void Normalize(const NormRow& r) {
  if (r.type == DType::f32) return norm_row<float>(r);
  if (r.type == DType::f16) return norm_row<f16>(r);
  norm_row<bf16>(r);
}

}  // namespace HWY_NAMESPACE
}  // namespace kivi
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kivi {
HWY_EXPORT(Normalize);

void normalize_row(const NormRow& row) { HWY_DYNAMIC_DISPATCH(Normalize)(row); }

void CpuBackend::do_add_norm(const Tensor& x, const Tensor& delta, const Tensor& weight,
                             const Tensor& bias, NormKind kind, float eps, const Operand& out) {
  const int64_t n = x.shape[1];
  pool_.parallel_for(x.rows(), x.size(), [&](int64_t i, int worker) {
    float* const y = operand_row(out, i, worker);
    normalize_row({.x = x.row<float>(i),
                   .delta = delta.empty() ? nullptr : delta.row<float>(i),
                   .weight = weight.data,
                   .bias = bias.empty() ? nullptr : bias.data,
                   .type = weight.dtype,
                   .n = n,
                   .kind = kind,
                   .eps = eps,
                   .out = y});
    finish_row(out, i, y);
  });
}

}  // namespace kivi
#endif
