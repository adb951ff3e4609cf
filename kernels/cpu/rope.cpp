// SPDX-License-Identifier: Apache-2.0
// rope: splits q|k|v, norms the heads of q and k where asked to, turns them, multiplies all by the
// Hadamard matrix where asked to, narrows k and v to f16.
//   x'[i] = x[i] cos a - x[i + h] sin a;  x'[i + h] = x[i + h] cos a + x[i] sin a;
//   a = position * inverse_frequency[i], h = rotary_dim / 2  (Su et al. 2021; the angle in f32, as
//   Hugging Face has it).
//   Hadamard: d log2(d) additions a head, in f32, then one multiplication by 1 / sqrt(d).
//
// qkv [t, (hq + 2 hk) d] f32, q [t, hq d] f32, kv [t, 2 hk d] f16. Cost: the bytes of the rows, and
// rotary_dim sines and cosines a row in the first layer of a step: the next layers ask for the same
// positions and get them from `turns_`.
// Reference: the formula. Test: tests/kernels/rows_test.cpp.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope.cpp"
#include "kernels/cpu/simd_targets.h"
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/norm_row.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kivi {
namespace HWY_NAMESPACE {

// One head: to = from turned. turn: `half` cosines, then `half` sines. from and to may be the same.
void RotateHead(const float* from, const float* turn, int half, int head_dim, float* to) {
  const hn::ScalableTag<float> df;
  for_vectors(df, half, [&](int64_t i, size_t count) HWY_ATTR {
    const auto a = load_part(df, from + i, count), b = load_part(df, from + half + i, count);
    const auto c = load_part(df, turn + i, count), s = load_part(df, turn + half + i, count);
    store_part(df, hn::NegMulAdd(b, s, hn::Mul(a, c)), to + i, count);
    store_part(df, hn::MulAdd(a, s, hn::Mul(b, c)), to + half + i, count);
  });
  if (from != to)
    std::memcpy(to + 2 * half, from + 2 * half, size_t(head_dim - 2 * half) * sizeof(float));
}

// One head x [d] times the Hadamard matrix, divided by sqrt(d): in each round, pairs that are `h`
// apart become their sum and difference. d is a power of two, at least 16.
void TransformHead(float* x, int d) {
  const hn::CappedTag<float, 8> df;
  const int lanes = int(hn::Lanes(df));
  for (int h = d / 2; h >= 1; h /= 2)
    for (int i = 0; i < d; i += 2 * h) {
      if (h >= lanes) {
        for (int j = i; j < i + h; j += lanes) {
          const auto a = hn::LoadU(df, x + j), b = hn::LoadU(df, x + j + h);
          hn::StoreU(hn::Add(a, b), df, x + j);
          hn::StoreU(hn::Sub(a, b), df, x + j + h);
        }
        continue;
      }
      for (int j = i; j < i + h; ++j) {
        const float a = x[j], b = x[j + h];
        x[j] = a + b;
        x[j + h] = a - b;
      }
    }
  const auto factor = hn::Set(df, 1 / std::sqrt(float(d)));
  for (int i = 0; i < d; i += lanes) hn::StoreU(hn::Mul(hn::LoadU(df, x + i), factor), df, x + i);
}

// n numbers (a multiple of 16) in f16, saturated.
void NarrowRow(const float* from, int64_t n, f16* to) {
  const hn::CappedTag<float, 16> df;
  for (int64_t c = 0; c < n; c += int64_t(hn::Lanes(df)))
    store_f16(df, saturate_f16(df, hn::LoadU(df, from + c)), to + c);
}

}  // namespace HWY_NAMESPACE
}  // namespace kivi
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kivi {
HWY_EXPORT(RotateHead);
HWY_EXPORT(NarrowRow);
HWY_EXPORT(TransformHead);

namespace {

// One pass's cosines and sines of a row.
void turn_row(int32_t position, float ratio, const Rope& rope, float* turn) {
  const int half = rope.rotary_dim / 2;
  const float* f = rope.inverse_frequencies.as<float>();
  for (int i = 0; i < half; ++i) {
    float angle = float(position) * f[i];
    if (ratio != 1) angle *= std::pow(ratio, float(-2 * i) / float(rope.rotary_dim - 2));
    turn[i] = std::cos(angle) * rope.attention_factor;
    turn[half + i] = std::sin(angle) * rope.attention_factor;
  }
}

// x [d] = the RMS norm of x times weight [d].
void norm_head(float* x, const Tensor& weight, float eps) {
  normalize_row({.x = x,
                 .delta = nullptr,
                 .weight = weight.data,
                 .bias = nullptr,
                 .type = weight.dtype,
                 .n = weight.shape[0],
                 .kind = NormKind::rms,
                 .eps = eps,
                 .out = x});
}

// Dynamic scaling's r of every row (backend.h); 1: unscaled.
void ratios_of(const Rope& rope, int64_t rows, std::vector<float>& ratios) {
  ratios.assign(size_t(rows), 1);
  if (rope.dynamic_factor == 0) return;
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t length = rope.lengths.as<int32_t>()[row];
    if (length > rope.trained)
      ratios[size_t(row)] =
          rope.dynamic_factor * float(length) / float(rope.trained) - (rope.dynamic_factor - 1);
  }
}

}  // namespace

bool CpuBackend::Turns::equal(std::span<const int32_t> p, std::span<const float> f,
                              std::span<const float> r, float factor) const {
  return std::equal(p.begin(), p.end(), positions.begin(), positions.end()) &&
         std::equal(f.begin(), f.end(), frequencies.begin(), frequencies.end()) &&
         std::equal(r.begin(), r.end(), ratios.begin(), ratios.end()) && factor == attention_factor;
}

const float* CpuBackend::turns_of(const Tensor& positions, const Rope& rope) {
  const std::span<const int32_t> p(positions.as<int32_t>(), size_t(positions.rows()));
  const size_t half = size_t(rope.rotary_dim / 2);
  const std::span<const float> f(rope.inverse_frequencies.as<float>(), half);
  Turns& t = turns_;
  ratios_of(rope, positions.rows(), ratios_);
  if (t.equal(p, f, ratios_, rope.attention_factor)) return t.values.data();
  t.positions.assign(p.begin(), p.end());
  t.frequencies.assign(f.begin(), f.end());
  t.ratios = ratios_;
  t.attention_factor = rope.attention_factor;
  t.values.resize(p.size() * 2 * half);
  pool_.parallel_for(int64_t(p.size()), int64_t(p.size() * half) * 64, [&](int64_t row, int) {
    turn_row(p[size_t(row)], t.ratios[size_t(row)], rope, &t.values[size_t(row) * 2 * half]);
  });
  return t.values.data();
}

void CpuBackend::do_rope(const Tensor& qkv, const Tensor& positions, const Rope& rope,
                         const KvShape& shape, const Tensor& q, const Tensor& kv) {
  const int half = rope.rotary_dim / 2, d = shape.head_dim;
  const int64_t q_columns = q.shape[1], k_columns = int64_t(shape.heads) * d;
  const float* turns = half > 0 ? turns_of(positions, rope) : nullptr;
  pool_.parallel_for(qkv.rows(), qkv.size(), [&](int64_t row, int worker) {
    const float* turn = turns + row * 2 * half;
    const float* from = qkv.row<float>(row);
    float* to = q.row<float>(row);
    const auto turn_head = [&](const float* head, const Tensor& norm, float* turned) {
      if (!norm.empty()) {
        std::memcpy(turned, head, size_t(d) * sizeof(float));
        norm_head(turned, norm, rope.norm_eps);
        head = turned;
      }
      HWY_DYNAMIC_DISPATCH(RotateHead)(head, turn, half, d, turned);
    };
    for (int64_t c = 0; c < q_columns; c += d) turn_head(from + c, rope.q_norm, to + c);
    // Keys, then values.
    float* rows = scratch_[size_t(worker)].floats(size_t(2 * k_columns));
    for (int64_t c = 0; c < k_columns; c += d)
      turn_head(from + q_columns + c, rope.k_norm, rows + c);
    std::memcpy(rows + k_columns, from + q_columns + k_columns, size_t(k_columns) * sizeof(float));
    if (rope.hadamard) {
      for (int64_t c = 0; c < q_columns; c += d) HWY_DYNAMIC_DISPATCH(TransformHead)(to + c, d);
      for (int64_t c = 0; c < 2 * k_columns; c += d)
        HWY_DYNAMIC_DISPATCH(TransformHead)(rows + c, d);
    }
    HWY_DYNAMIC_DISPATCH(NarrowRow)(rows, 2 * k_columns, kv.row<f16>(row));
  });
}

}  // namespace kivi
#endif
