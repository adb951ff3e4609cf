// SPDX-License-Identifier: Apache-2.0
// matmul: out = x W^T (+ bias).
//
// x [t, k] f32, W [n, k] f32, f16, bf16 or e4m3 with a scale a row, out [t, n] f32; sums in f32.
// Cost: 2 t k n operations; W is read once for every block of rows of x that fits the level-2
// cache.
//
// Every element of `out` is one vector of partial sums, lane l adding up the products at the same
// places of k in the same order, whatever stands beside it in registers; then one sum over lanes.
// So a row of `out` depends on its row of x alone, bit for bit. Registers hold a tile of 4 rows of
// W by 3 rows of x (6 with AVX-512), so that each weight is converted once for several rows of x;
// a single row of x takes 8 rows of W at a time to keep 8 sums in flight.
//
// Reference: the formula. Test: tests/kernels/matmul_test.cpp.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul.cpp"
#include "kernels/cpu/simd_targets.h"
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/half.h"

#ifndef KIVI_MATMUL_BLOCK_
#define KIVI_MATMUL_BLOCK_
namespace kivi {
// A number of a matrix of format e4m3, without its scale.
struct E4m3 {
  uint8_t bits;
};
// out [rows, n] of packed rows of x and n rows of W. Strides in elements.
struct MatmulBlock {
  const float* x;
  int64_t x_stride;
  int64_t rows;
  const void* w;
  int64_t w_stride;
  const void* bias;    // of the first row of W, or null; f32 for e4m3
  const float* scale;  // of the first row of W; e4m3 only
  int64_t n;
  int64_t k;
  float* out;
  int64_t out_stride;
};
// What a sum over k becomes: sum * scale + bias, for 8 rows of W.
struct RowEnds {
  float bias[8] = {};
  float scale[8] = {};
};
}  // namespace kivi
#endif

HWY_BEFORE_NAMESPACE();
namespace kivi {
namespace HWY_NAMESPACE {

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;

// The columns [2 L c, 2 L c + 2 L) of a row are a chunk: two vectors. Rows of x are packed in whole
// chunks, zeros behind k. For bf16 a chunk holds its even columns, then its odd ones, because that
// is how two bf16 leave a 32-bit word: one shift, one mask.
constexpr int kLanes = int(hn::MaxLanes(DF()));
constexpr int kChunk = 2 * kLanes;
constexpr int kTileRows = HWY_TARGET == HWY_AVX3 ? 4 : 2;  // rows of x in a register tile

// The first and the second vector of a chunk of W.
HWY_INLINE VF first_of(DF df, const float* chunk) { return hn::LoadU(df, chunk); }
HWY_INLINE VF second_of(DF df, const float* chunk) { return hn::LoadU(df, chunk + kLanes); }
HWY_INLINE VF first_of(DF df, const f16* chunk) { return load(df, chunk); }
HWY_INLINE VF second_of(DF df, const f16* chunk) { return load(df, chunk + kLanes); }
// e4m3 as f16 bits with the same exponent and mantissa is 2^-8 of its value: the exponents' biases
// are 7 and 15. kE4m3Factor makes up for it at the end.
constexpr float kE4m3Factor = 256;
HWY_INLINE VF load(DF df, const E4m3* from) {
  const hn::Rebind<uint8_t, DF> d8;
  const hn::Rebind<uint16_t, DF> dh;
  const hn::Rebind<hwy::float16_t, DF> d16;
  const auto bits = hn::PromoteTo(dh, hn::LoadU(d8, &from->bits));
  const auto magnitude = hn::ShiftLeft<7>(hn::And(bits, hn::Set(dh, 0x7F)));
  const auto sign = hn::ShiftLeft<8>(hn::And(bits, hn::Set(dh, 0x80)));
  return hn::PromoteTo(df, hn::BitCast(d16, hn::Or(magnitude, sign)));
}
HWY_INLINE VF first_of(DF df, const E4m3* chunk) { return load(df, chunk); }
HWY_INLINE VF second_of(DF df, const E4m3* chunk) { return load(df, chunk + kLanes); }
HWY_INLINE hn::Vec<hn::Repartition<uint32_t, DF>> pairs_of(const bf16* chunk) {
  const hn::Repartition<uint16_t, DF> dh;
  const hn::Repartition<uint32_t, DF> du;
  return hn::BitCast(du, hn::LoadU(dh, &chunk->bits));
}
HWY_INLINE VF first_of(DF df, const bf16* chunk) {
  return hn::BitCast(df, hn::ShiftLeft<16>(pairs_of(chunk)));
}
HWY_INLINE VF second_of(DF df, const bf16* chunk) {
  const hn::Repartition<uint32_t, DF> du;
  return hn::BitCast(df, hn::And(pairs_of(chunk), hn::Set(du, 0xffff0000u)));
}

// Keeps a loaded vector in a register: else GCC repeats the load in each instruction that uses it,
// and loads, not multiplications, set the pace (bf16, k 688: 79 GFLOP/s against 69).
HWY_INLINE VF in_register(VF v) {
#if HWY_ARCH_X86
  asm("" : "+v"(v.raw));
#endif
  return v;
}

// out[i][j] for `Columns` rows of W from `w` on (stride w_stride; only `valid` of them exist) and
// `Rows` packed rows of x.
template <class W, int Columns, int Rows>
HWY_NOINLINE void multiply_tile(const MatmulBlock& m, const W* w, int valid, const RowEnds& ends,
                                const float* x, float* out) {
  const DF df;
  const W* row[Columns];
  for (int j = 0; j < Columns; ++j) row[j] = w + (j < valid ? j : valid - 1) * m.w_stride;
  VF sum[Rows][Columns];  // unrolled everywhere, so that it lives in registers
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < Columns; ++j) sum[i][j] = hn::Zero(df);

  // Half a chunk at a time, so that the vectors of x and the sums fit the 16 registers of AVX2.
  // (The compiler must not keep W's words of the first half for the second, hence the `asm`.)
  const auto add_chunk = [&](const float* xc, const auto& weights) HWY_ATTR {
    VF xv[Rows];
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) xv[i] = in_register(hn::LoadU(df, xc + i * m.x_stride));
#pragma GCC unroll 8
    for (int j = 0; j < Columns; ++j) {
      const VF wv = first_of(df, weights(j));
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i) sum[i][j] = hn::MulAdd(wv, xv[i], sum[i][j]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) xv[i] = in_register(hn::LoadU(df, xc + i * m.x_stride + kLanes));
#pragma GCC unroll 8
    for (int j = 0; j < Columns; ++j) {
      const W* chunk = weights(j);
      asm("" : "+r"(chunk));
      const VF wv = second_of(df, chunk);
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i) sum[i][j] = hn::MulAdd(wv, xv[i], sum[i][j]);
    }
  };
  int64_t c = 0;
  for (; c + kChunk <= m.k; c += kChunk)
    add_chunk(x + c, [&](int j) HWY_ATTR { return row[j] + c; });
  if (c < m.k) {
    W part[Columns][kChunk] = {};
    for (int j = 0; j < Columns; ++j)
      for (int64_t l = c; l < m.k; ++l) part[j][l - c] = row[j][l];
    add_chunk(x + c, [&](int j) HWY_ATTR { return &part[j][0]; });
  }

  const hn::FixedTag<float, 4> d4;
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < Columns; j += 4) {
      const auto raw = sums_of_lanes(df, sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3]);
      const auto bias = hn::LoadU(d4, ends.bias + j);
      auto sums = bias;
      if constexpr (hwy::IsSame<W, E4m3>())
        sums = hn::MulAdd(raw, hn::LoadU(d4, ends.scale + j), bias);
      else
        sums = hn::Add(raw, bias);
      float* to = out + i * m.out_stride + j;
      if (valid >= j + 4)
        hn::StoreU(sums, d4, to);
      else if (valid > j)
        store_part(d4, sums, to, size_t(valid - j));
    }
}

// Rows of x that are left, fewer than a tile.
template <class W, int Rows>
HWY_INLINE void multiply_rest(const MatmulBlock& m, int rows, const W* w, int valid,
                              const RowEnds& ends, const float* x, float* out) {
  if constexpr (Rows > 0) {
    if (rows == Rows)
      multiply_tile<W, 4, Rows>(m, w, valid, ends, x, out);
    else
      multiply_rest<W, Rows - 1>(m, rows, w, valid, ends, x, out);
  }
}

// Bytes of W that stay in the level-1 cache while the rows of x pass.
constexpr int64_t kPanelBytes = 12 << 10;

// Rows of W from j on, at most `columns`, by all rows of x.
template <class W>
HWY_INLINE void multiply_columns(const MatmulBlock& m, int64_t j, int columns, const float* x,
                                 int rows, float* out) {
  const DF df;
  const int valid = int(HWY_MIN(m.n - j, int64_t(columns)));
  const W* w = static_cast<const W*>(m.w) + j * m.w_stride;
  RowEnds ends;
  for (int i = 0; i < valid; ++i) {
    if constexpr (hwy::IsSame<W, E4m3>()) {
      ends.scale[i] = m.scale[j + i] * kE4m3Factor;
      if (m.bias != nullptr) ends.bias[i] = static_cast<const float*>(m.bias)[j + i];
    } else if (m.bias != nullptr) {
      ends.bias[i] = hn::GetLane(load_part(df, static_cast<const W*>(m.bias) + j + i, 1));
    }
  }
  if (columns == 8)
    multiply_tile<W, 8, 1>(m, w, valid, ends, x, out + j);
  else if (rows == kTileRows)
    multiply_tile<W, 4, kTileRows>(m, w, valid, ends, x, out + j);
  else
    multiply_rest<W, kTileRows - 1>(m, rows, w, valid, ends, x, out + j);
}

template <class W>
void multiply_block(const MatmulBlock& m) {
  const int columns = m.rows == 1 ? 8 : 4;
  const int64_t panel = HWY_MAX(int64_t(1), kPanelBytes / int64_t(m.k * sizeof(W)) / columns);
  for (int64_t begin = 0; begin < m.n; begin += panel * columns)
    for (int64_t i = 0; i < m.rows; i += kTileRows)
      for (int64_t j = begin; j < HWY_MIN(m.n, begin + panel * columns); j += columns)
        multiply_columns<W>(m, j, columns, m.x + i * m.x_stride,
                            int(HWY_MIN(m.rows - i, int64_t(kTileRows))), m.out + i * m.out_stride);
}

void MultiplyBlock(const MatmulBlock& m, DType type) {
  if (type == DType::f32) return multiply_block<float>(m);
  if (type == DType::f16) return multiply_block<f16>(m);
  multiply_block<bf16>(m);
}

// One row of x in the order of load_chunk.
void PackRow(const float* x, int64_t k, DType type, float* packed) {
  for (int64_t c = 0; c < k; c += kChunk) {
    const int64_t columns = HWY_MIN(k - c, int64_t(kChunk));
    float* to = packed + c;
    if (columns < kChunk) std::memset(to, 0, kChunk * sizeof(float));
    if (type != DType::bf16) {
      std::memcpy(to, x + c, size_t(columns) * sizeof(float));
    } else if (columns == kChunk) {
      const DF df;
      const auto a = hn::LoadU(df, x + c), b = hn::LoadU(df, x + c + kLanes);
      hn::StoreU(hn::ConcatEven(df, b, a), df, to);
      hn::StoreU(hn::ConcatOdd(df, b, a), df, to + kLanes);
    } else {
      for (int64_t l = 0; l < columns; ++l) to[l / 2 + l % 2 * kLanes] = x[c + l];
    }
  }
}

void MultiplyE4m3(const MatmulBlock& m) { multiply_block<E4m3>(m); }

int64_t PackedColumns(int64_t k) { return (k + kChunk - 1) / kChunk * kChunk; }

}  // namespace HWY_NAMESPACE
}  // namespace kivi
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kivi {
HWY_EXPORT(MultiplyBlock);
HWY_EXPORT(MultiplyE4m3);
HWY_EXPORT(PackRow);
HWY_EXPORT(PackedColumns);

namespace {

// Packed rows of x that stay in the level-2 cache while W passes.
constexpr int64_t kBlockBytes = 128 << 10;
// Multiplications that pay for one task.
constexpr int64_t kTaskWork = 128 << 10;

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

}  // namespace

// Divides rows of x and columns of `out` among the threads. `multiply` sets W's part of a block,
// beginning with the given row of W, and computes it. `packing` says how rows of x are packed.
template <class Multiply>
void CpuBackend::matmul_rows(const Tensor& x, int64_t n, DType packing, const Tensor& out,
                             const Multiply& multiply) {
  const int64_t t = x.rows(), k = x.shape[1];
  const int64_t packed = HWY_DYNAMIC_DISPATCH(PackedColumns)(k);
  // A multiple of the tile heights.
  const int64_t block_rows = std::min(t, std::max<int64_t>(4, kBlockBytes / (packed * 4) / 4 * 4));
  const int64_t blocks = (t + block_rows - 1) / block_rows;
  // Few blocks: threads share W's rows as well. Dividing them finer than the threads evens out.
  int64_t splits = 1;
  if (blocks < 4 * pool_.threads())
    splits = std::clamp<int64_t>(t * k * n / blocks / kTaskWork, 1, 2 * pool_.threads());
  const int64_t columns = round_up((n + splits - 1) / splits, 8);
  splits = (n + columns - 1) / columns;
  ++packing_;
  pool_.parallel_for(blocks * splits, t * k * n / 16, [&](int64_t task, int worker) {
    const int64_t block = task / splits, column = task % splits * columns;
    const int64_t row = block * block_rows, rows = std::min(block_rows, t - row);
    Scratch& scratch = scratch_[size_t(worker)];
    float* xp = scratch.floats(size_t(block_rows * packed));
    if (scratch.packed_block != block || scratch.packing != packing_) {
      for (int64_t i = 0; i < rows; ++i)
        HWY_DYNAMIC_DISPATCH(PackRow)(x.row<float>(row + i), k, packing, xp + i * packed);
      scratch.packed_block = block;
      scratch.packing = packing_;
    }
    MatmulBlock m = {};
    m.x = xp;
    m.x_stride = packed;
    m.rows = rows;
    m.n = std::min(columns, n - column);
    m.k = k;
    m.out = out.row<float>(row) + column;
    m.out_stride = out.row_stride;
    multiply(m, column);
  });
}

void CpuBackend::do_matmul(const Tensor& x, const Tensor& w, const Tensor& bias,
                           const Tensor& out) {
  const size_t element = size_of(w.dtype);
  matmul_rows(x, w.rows(), w.dtype, out, [&](MatmulBlock& m, int64_t column) {
    m.w = w.as<std::byte>() + size_t(column * w.row_stride) * element;
    m.w_stride = w.row_stride;
    m.bias = bias.empty() ? nullptr : bias.as<std::byte>() + size_t(column) * element;
    HWY_DYNAMIC_DISPATCH(MultiplyBlock)(m, w.dtype);
  });
}

void CpuBackend::matmul_e4m3(const Tensor& x, const Weight& w, const Tensor& bias,
                             const Tensor& out) {
  const float* added = bias_floats(bias);
  matmul_rows(x, w.rows, DType::f16, out, [&](MatmulBlock& m, int64_t column) {
    m.w = w.codes + column * w.columns;
    m.w_stride = w.columns;
    m.bias = added == nullptr ? nullptr : added + column;
    m.scale = reinterpret_cast<const float*>(w.scales) + column;
    HWY_DYNAMIC_DISPATCH(MultiplyE4m3)(m);
  });
}

}  // namespace kivi
#endif
