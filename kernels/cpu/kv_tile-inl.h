// SPDX-License-Identifier: Apache-2.0
// Tiles: 64 consecutive tokens of one KV head in f32, from wherever they lie.
//
//   keys   [d][64]: a channel's 64 tokens side by side (scores then need no sums over lanes)
//   values [64][d]
//
// A tile begins at a paged position that is a multiple of 64 (kv_page.h), so a token stands at the
// same place of the same tile whatever step reads it. If S is no multiple of 64, the first tile
// begins before token 0.
#if defined(KIVI_KV_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KIVI_KV_TILE_INL_H_
#undef KIVI_KV_TILE_INL_H_
#else
#define KIVI_KV_TILE_INL_H_
#endif

#include "kernels/cpu/kv_source.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/kv_parameters.h"

#ifndef KIVI_KV_TILE_CONSTANTS_
#define KIVI_KV_TILE_CONSTANTS_
namespace kivi {
inline constexpr int kTileTokens = 64;
inline constexpr int kHeadDimMax = 256;
}  // namespace kivi
#endif

HWY_BEFORE_NAMESPACE();
namespace kivi {
namespace HWY_NAMESPACE {

using D8x16 = hn::FixedTag<uint16_t, 8>;
using V8x16 = hn::Vec<D8x16>;
using D4x32 = hn::FixedTag<uint32_t, 4>;
using V4x32 = hn::Vec<D4x32>;
using D8 = hn::FixedTag<float, 8>;

// Transposes 8 x 8 16-bit numbers: v[i] lane j <-> v[j] lane i. Number the elements by six bits,
// row then lane; one round of interleaving rows i and i + 4 rotates the six bits by one, three
// rounds exchange rows and lanes.
HWY_INLINE void transpose_8x8(V8x16 (&v)[8]) {
  const D8x16 d16;
  V8x16 a[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = hn::InterleaveLower(d16, v[i], v[i + 4]);
    a[2 * i + 1] = hn::InterleaveUpper(d16, v[i], v[i + 4]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = hn::InterleaveLower(d16, a[i], a[i + 4]);
    v[2 * i + 1] = hn::InterleaveUpper(d16, a[i], a[i + 4]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) a[i] = v[i];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = hn::InterleaveLower(d16, a[i], a[i + 4]);
    v[2 * i + 1] = hn::InterleaveUpper(d16, a[i], a[i + 4]);
  }
}

// Transposes 4 x 4 words, two bits of row and two of lane.
HWY_INLINE void transpose_4x4(V4x32 (&v)[4]) {
  const D4x32 d32;
  const V4x32 a0 = hn::InterleaveLower(d32, v[0], v[2]), a1 = hn::InterleaveUpper(d32, v[0], v[2]);
  const V4x32 a2 = hn::InterleaveLower(d32, v[1], v[3]), a3 = hn::InterleaveUpper(d32, v[1], v[3]);
  v[0] = hn::InterleaveLower(d32, a0, a2);
  v[1] = hn::InterleaveUpper(d32, a0, a2);
  v[2] = hn::InterleaveLower(d32, a1, a3);
  v[3] = hn::InterleaveUpper(d32, a1, a3);
}

// Eight f16 in f32.
HWY_INLINE hn::Vec<D8> widen_8(V8x16 bits) {
  return hn::PromoteTo(D8(), hn::BitCast(hn::FixedTag<hwy::float16_t, 8>(), bits));
}

// Eight codes in f32.
HWY_INLINE hn::Vec<D8> numbers_8(V8x16 codes) {
  return hn::ConvertTo(D8(), hn::PromoteTo(hn::FixedTag<int32_t, 8>(), codes));
}

HWY_INLINE V8x16 chunk_of(const F16Row& row, int c, int head_dim) {
  return hn::LoadU(D8x16(), &row.chunk(c, head_dim)->bits);
}

// Eight tokens from `token` (in the tile) on, of f16 rows, into a tile of keys.
HWY_INLINE void read_key_rows(const F16Row* rows, int token, int head_dim, float* keys) {
  for (int c = 0; c < head_dim; c += 8) {
    V8x16 v[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) v[i] = chunk_of(rows[i], c, head_dim);
    transpose_8x8(v);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
      hn::StoreU(widen_8(v[i]), D8(), keys + (c + i) * kTileTokens + token);
  }
}

// One token of an f16 row into a tile of values.
HWY_INLINE void read_value_row(const F16Row& row, int token, int head_dim, float* values) {
  for (int c = 0; c < head_dim; c += 8)
    hn::StoreU(widen_8(chunk_of(row, c, head_dim)), D8(), values + token * head_dim + c);
}

// Scales (or minima) of `n` positions from a parameter plane, in their natural order: in runs of 32
// the plane is a transposed 4 x 4 of 32-bit pairs (lane_parameter).
HWY_INLINE void read_plane(const f16* plane, int n, float* to) {
  for (int x = 0; x < n; x += 32) {
    V4x32 v[4];
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t)
      v[t] = hn::BitCast(D4x32(), hn::LoadU(D8x16(), &plane[x + 8 * t].bits));
    transpose_4x4(v);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      hn::StoreU(widen_8(hn::BitCast(D8x16(), v[i])), D8(), to + x + 8 * i);
  }
}

// Reads the scales and minima of a group's `n` positions, in their natural order, from the planes
// that begin at parameter `first` of the region: n scales, then n minima.
HWY_INLINE void read_parameters(const std::byte* region, int first, int parameter_bits,
                                int code_bits, int n, float* scales, float* minima) {
  if (parameter_bits == 16) {
    const f16* plane = reinterpret_cast<const f16*>(region) + first;
    read_plane(plane, n, scales);
    read_plane(plane + n, n, minima);
    return;
  }
  const auto* bytes = reinterpret_cast<const uint8_t*>(region) + first;
  HWY_ALIGN f16 scale[kHeadDimMax], minimum[kHeadDimMax];
  const hn::FixedTag<uint8_t, 8> d8;
  const D8x16 d16;
  const D8 df;
  for (int i = 0; i < n; i += 8) {
    const V8x16 bits = hn::ShiftLeft<7>(hn::PromoteTo(d16, hn::LoadU(d8, bytes + i)));
    hn::Store(bits, d16, &scale[i].bits);
    const hn::Vec<D8> m =
        hn::Sub(numbers_8(hn::PromoteTo(d16, hn::LoadU(d8, bytes + n + i))), hn::Set(df, 128.0f));
    const hn::Vec<D8> step = hn::Mul(widen_8(bits), hn::Set(df, byte_minimum_unit(code_bits)));
    store_f16(df, hn::Mul(m, step), minimum + i);
  }
  read_plane(scale, n, scales);
  read_plane(minimum, n, minima);
}

// Unpacks a region of codes of 64 tokens. To the fragment order, keys and values look alike: rows
// (keys: tokens; values: channels) by columns (channels; tokens). A lane's word i holds one row
// g = lane / 4 of eight rows, and columns of the pairs of t = lane % 4: the four lanes of a row
// together hold, slot after slot, eight consecutive columns. Calls
// sink(first of eight rows, first of eight columns, v), v[c] = the eight rows of column c, in 16
// bits each: a code, or for Bits 8 an f16 that is 256 times too small.
template <int Bits, class Sink>
HWY_INLINE void unpack_codes(const uint32_t* words, int rows, int columns, bool row_inner,
                             const Sink& sink) {
  const D4x32 d32;
  const D8x16 d16;
  constexpr int kSlots = 16 / Bits;  // pairs of a row in a word
  const int words_per_row = (columns / 8 + kSlots - 1) / kSlots;
  const int lane_words = rows / 8 * words_per_row;
  for (int i4 = 0; i4 < lane_words; i4 += 4) {
    V4x32 word[4][8];  // [word i4 + q][row g]: the words of t = 0..3
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) {
      V4x32 v[4];
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) v[t] = hn::LoadU(d32, words + lane_word(i4, 4 * g + t));
      transpose_4x4(v);
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) word[q][g] = v[q];
    }
    for (int q = 0; q < 4; ++q) {
      const int i = i4 + q;
      const int pair = i / (2 * words_per_row), rest = i % (2 * words_per_row);
      const int row = pair * 16 + (row_inner ? rest % 2 : rest / words_per_row) * 8;
      const int first = (row_inner ? rest / 2 : rest % words_per_row) * kSlots * 8;
#pragma GCC unroll 8
      for (int slot = 0; slot < kSlots; ++slot) {
        const int column = first + slot * 8;
        if (column >= columns) break;
        V8x16 v[8];
#pragma GCC unroll 8
        for (int g = 0; g < 8; ++g) {
          if constexpr (Bits == 8) {
            const V4x32 w = slot == 0 ? word[q][g] : hn::ShiftRight<16>(word[q][g]);
            const V4x32 low = hn::And(w, hn::Set(d32, 0xffu));
            const V4x32 high = hn::ShiftLeft<8>(hn::And(w, hn::Set(d32, 0xff00u)));
            const V8x16 x = hn::BitCast(d16, hn::Or(low, high));
            v[g] = hn::Or(hn::ShiftLeft<8>(hn::And(x, hn::Set(d16, uint16_t(0x80)))),
                          hn::ShiftLeft<7>(hn::And(x, hn::Set(d16, uint16_t(0x7f)))));
          } else {
            const V4x32 mask = hn::Set(d32, ((1u << Bits) - 1) * 0x10001u);
            v[g] = hn::BitCast(d16, hn::And(hn::ShiftRightSame(word[q][g], slot * Bits), mask));
          }
        }
        transpose_8x8(v);
        sink(row, column, v);
      }
    }
  }
}

// Codes of one kind into a tile: element (row, column) at to[column * stride + row].
template <int Bits>
HWY_INLINE void read_codes(const std::byte* codes, int rows, int columns, bool row_inner,
                           const float* scales, const float* minima, int group, float* to,
                           int stride) {
  const auto* words = reinterpret_cast<const uint32_t*>(codes);
  unpack_codes<Bits>(
      words, rows, columns, row_inner, [&](int row, int column, V8x16(&v)[8]) HWY_ATTR {
        float* at = to + column * stride + row;
        if constexpr (Bits == 8) {
#pragma GCC unroll 8
          for (int c = 0; c < 8; ++c)
            hn::StoreU(hn::Mul(widen_8(v[c]), hn::Set(D8(), 256.0f)), D8(), at + c * stride);
        } else {
          const int place = row / group * columns + column;
#pragma GCC unroll 8
          for (int c = 0; c < 8; ++c)
            hn::StoreU(hn::MulAdd(numbers_8(v[c]), hn::Set(D8(), scales[place + c]),
                                  hn::Set(D8(), minima[place + c])),
                       D8(), at + c * stride);
        }
      });
}

HWY_INLINE void read_codes(int bits, const std::byte* codes, int rows, int columns, bool row_inner,
                           const float* scales, const float* minima, int group, float* to,
                           int stride) {
  if (bits == 2)
    read_codes<2>(codes, rows, columns, row_inner, scales, minima, group, to, stride);
  else if (bits == 4)
    read_codes<4>(codes, rows, columns, row_inner, scales, minima, group, to, stride);
  else
    read_codes<8>(codes, rows, columns, row_inner, scales, minima, group, to, stride);
}

// 64 keys of a page of codes, from `token` (in the page, a multiple of 64) on.
HWY_INLINE void read_key_codes(const KvLayout& l, const std::byte* block, int token, float* keys) {
  const int d = l.shape.head_dim, group = l.format.group;
  float scales[2 * kHeadDimMax], minima[2 * kHeadDimMax];
  if (l.format.kind == KvKind::kivi) {
    for (int t = 0; t < kTileTokens; t += group)
      read_parameters(block + l.key_parameters_offset(), (token + t) / group * 2 * d,
                      l.format.parameter_bits, l.format.key_bits, d, scales + t / group * d,
                      minima + t / group * d);
  }
  const int row_words = l.key_words_per_row();
  const int before = token / 16 * 2 * row_words * 32 * 4;  // bytes; a multiple of 4 words a lane
  read_codes(l.format.key_bits, block + l.key_codes_offset() + before, kTileTokens, d,
             /*row_inner=*/true, scales, minima, group, keys, kTileTokens);
}

// The same for values.
HWY_INLINE void read_value_codes(const KvLayout& l, const std::byte* block, int token,
                                 float* values) {
  const int d = l.shape.head_dim, group = l.format.group;
  float scales[kHeadDimMax / 32 * kTileTokens], minima[kHeadDimMax / 32 * kTileTokens];
  if (l.format.kind == KvKind::kivi) {
    for (int c = 0; c < d; c += group)
      read_parameters(block + l.value_parameters_offset(),
                      (token / 64 * l.value_groups() + c / group) * 128, l.format.parameter_bits,
                      l.format.value_bits, kTileTokens, scales + c / group * kTileTokens,
                      minima + c / group * kTileTokens);
  }
  const int before = token / 64 * d / 16 * 2 * l.value_words_per_row() * 32 * 4;
  read_codes(l.format.value_bits, block + l.value_codes_offset() + before, d, kTileTokens,
             /*row_inner=*/false, scales, minima, group, values, d);
}

// Reads tiles of one (sequence, KV head).
class TileReader {
 public:
  explicit TileReader(const KvSource& source) : source_(source), layout_(source.store.layout) {
    const KvFormat& f = layout_.format;
    const int past = source.sequence.past;
    const bool paged = source.sequence.mode == KvMode::append && f.kind != KvKind::f16;
    key_codes_ = paged ? keys_paged(f, past) : 0;
    value_codes_ = paged ? values_paged(f, past) : 0;
  }

  // The tile of the paged positions [first, first + 64). Positions before token 0, and tokens from
  // `end` on, read as zero. keys [d][64], values [64][d].
  void read(int first, int end, float* keys, float* values) const {
    const int d = source_.head_dim(), sinks = layout_.format.sinks;
    const int page = first / layout_.page_tokens(), row = first % layout_.page_tokens();
    const bool paged = first >= 0;
    if (paged && first < key_codes_) read_key_codes(layout_, source_.page(page), row, keys);
    if (paged && first < value_codes_) read_value_codes(layout_, source_.page(page), row, values);
    for (int t = 0; t < kTileTokens; t += 8) {
      // Of these eight tokens.
      const int codes = paged ? HWY_MAX(0, HWY_MIN(8, key_codes_ - first - t)) : 0;
      if (codes == 8) continue;
      F16Row rows[8];
      for (int i = codes; i < 8; ++i) rows[i] = row_of(first + t + i + sinks, end, Side::key);
      if (codes == 0) {
        read_key_rows(rows, t, d, keys);
        continue;
      }
      for (int i = codes; i < 8; ++i)  // f8 alone: its codes may end anywhere
        for (int c = 0; c < d; ++c)
          keys[c * kTileTokens + t + i] = to_float(rows[i].chunk(c / 8 * 8, d)[c % 8]);
    }
    for (int t = paged ? HWY_MAX(0, value_codes_ - first) : 0; t < kTileTokens; ++t)
      read_value_row(row_of(first + t + sinks, end, Side::value), t, d, values);
  }

  // Adds `factor` times the sum over channels of (q D)^2 to the scores of the tile's tokens whose
  // keys are codes; D is the channel's scale. q [d], scores [64]. KIVI formats alone.
  void add_key_bias(int first, const float* q, float factor, float* scores) const {
    if (first < 0 || first >= key_codes_) return;
    const int d = source_.head_dim(), group = layout_.format.group;
    const std::byte* region =
        source_.page(first / layout_.page_tokens()) + layout_.key_parameters_offset();
    float scales[kHeadDimMax], minima[kHeadDimMax];
    for (int t = 0; t < kTileTokens && first + t < key_codes_; t += group) {
      const int place = (first + t) % layout_.page_tokens() / group * 2 * d;
      read_parameters(region, place, layout_.format.parameter_bits, layout_.format.key_bits, d,
                      scales, minima);
      float sum = 0;
      for (int c = 0; c < d; ++c) sum += q[c] * scales[c] * (q[c] * scales[c]);
      for (int i = t; i < HWY_MIN(t + group, kTileTokens); ++i) scores[i] += factor * sum;
    }
  }

 private:
  F16Row row_of(int token, int end, Side side) const {
    static constexpr f16 kZeros[kHeadDimMax] = {};
    if (token < 0 || token >= end) return {kZeros};
    return source_.row(read_place(layout_, source_.sequence, token, side), side);
  }

  const KvSource& source_;
  const KvLayout& layout_;
  int key_codes_ = 0;    // paged positions whose keys are read from codes: [0, key_codes_)
  int value_codes_ = 0;  // the same for values
};

}  // namespace HWY_NAMESPACE
}  // namespace kivi
HWY_AFTER_NAMESPACE();
#endif
