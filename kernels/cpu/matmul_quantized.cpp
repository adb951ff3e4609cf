// SPDX-License-Identifier: Apache-2.0
// matmul by a matrix of 4- to 8-bit codes (kernels/weight.h), and embed from one.
//
// out = x' W^T (+ bias).  x' is x [t, k] f32 with each 32 columns of a row quantized to signed
// bytes: x' = s * round(x / s), s = max |x| / 127. Products of bytes are added up in integers over
// a block of 32 columns (16 for q6_k), which is exact. Blocks are added up in f32, from left to
// right, each as one fused multiply-add, and a second one where the format has minima.
//
// A lane of a vector is a row of W (kernels/weight_codec.h), so there are no sums over lanes, and
// every instruction set computes the same bits. A row of `out` depends on its row of x alone.
//
// Cost: 2 t k n operations; W's codes are read once for every block of kBlockRows rows of x. A
// register tile is 16 rows of W (8 with AVX2) by up to 8 rows of x, so that codes are unpacked once
// for several rows of x. With AVX-512 VNNI, one instruction multiplies 64 bytes. Otherwise
// vpmaddubsw adds pairs of products to 16 bits.
//
// Reference and test: tests/kernels/matmul_quantized_test.cpp.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_quantized.cpp"
#include "kernels/cpu/simd_targets.h"
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/hadamard.h"
#include "kernels/half.h"
#include "kernels/kv_codec.h"
#include "kernels/weight_codec.h"

#ifndef KIVI_MATMUL_TILES_
#define KIVI_MATMUL_TILES_
namespace kivi {
// 32 columns of a row of x, quantized.
struct RowBlock {
  int32_t quads[kWeightBlock / 4];  // signed bytes, four in each
  float scale;
  int32_t sums[2];  // of the first and the last 16 codes
};
// Rows of x by tiles of W.
struct TilesBlock {
  const RowBlock* x;  // [rows][blocks]
  int64_t rows;
  int64_t blocks;          // of a row
  const std::byte* codes;  // of the first tile
  const std::byte* scales;
  int64_t tile_codes, tile_scales;  // bytes from a tile to the next
  int64_t tiles;
  int64_t valid;      // rows of W in all tiles
  int unit_blocks;    // int4: blocks of a group
  const float* bias;  // of the first row of W, or null
  float* out;         // of the first row of x and W
  int64_t out_stride;
};
}  // namespace kivi
#endif

HWY_BEFORE_NAMESPACE();
namespace kivi {
namespace HWY_NAMESPACE {

using DI = hn::CappedTag<int32_t, kWeightTileRows>;
using DF = hn::Rebind<float, DI>;
using DB = hn::Repartition<uint8_t, DI>;
using DH = hn::Repartition<uint16_t, DI>;
using VI = hn::Vec<DI>;
using VF = hn::Vec<DF>;
using VB = hn::Vec<DB>;

constexpr int kLanes = int(hn::MaxLanes(DI()));
constexpr int kQuads = kWeightBlock / 4;
constexpr int kPlane = 64;  // bytes of one quad of 16 rows
// Rows of x in a register tile.
constexpr int kTileRows = HWY_TARGET <= HWY_AVX3 ? 8 : 3;

HWY_INLINE VB shift_right(VB x, int bits) {
  const DH dh;
  return hn::BitCast(DB(), hn::ShiftRightSame(hn::BitCast(dh, x), bits));
}
HWY_INLINE VB shift_left(VB x, int bits) {
  const DH dh;
  return hn::BitCast(DB(), hn::ShiftLeftSame(hn::BitCast(dh, x), bits));
}

// Codes of a block: quad q of the lanes' rows, one byte a code.
template <int Bits>
HWY_INLINE void unpack(const uint8_t* block, VB* quads) {
  const DB db;
  if constexpr (Bits == 8) {
#pragma GCC unroll 8
    for (int q = 0; q < kQuads; ++q) quads[q] = hn::LoadU(db, block + q * kPlane);
    return;
  }
  const VB nibble = hn::Set(db, 15);
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    const VB both = hn::LoadU(db, block + q * kPlane);
    quads[q] = hn::And(both, nibble);
    quads[q + 4] = hn::And(shift_right(both, 4), nibble);
  }
  if constexpr (Bits == 5) {
    const VB high = hn::LoadU(db, block + 4 * kPlane), mask = hn::Set(db, 16);
#pragma GCC unroll 8
    for (int q = 0; q < kQuads; ++q)
      quads[q] = hn::Or(quads[q],
                        hn::And(q < 4 ? shift_left(high, 4 - q) : shift_right(high, q - 4), mask));
  }
  if constexpr (Bits == 6) {
    const VB mask = hn::Set(db, 48);
#pragma GCC unroll 2
    for (int plane = 0; plane < 2; ++plane) {
      const VB high = hn::LoadU(db, block + (4 + plane) * kPlane);
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q)
        quads[plane * 4 + q] = hn::Or(
            quads[plane * 4 + q],
            hn::And(q < 2 ? shift_left(high, 4 - 2 * q) : shift_right(high, 2 * q - 4), mask));
    }
  }
}

// Sums of products of `Count` quads with as many times four codes of a row of x, for each lane.
template <bool Vnni, int Bits, int Count>
HWY_INLINE VI dot(const VB* quads, const int32_t* x) {
#if (HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2) && !defined(KIVI_PORTABLE_DOT)
  if constexpr (Vnni) {
    VI sum = hn::Zero(DI());
#pragma GCC unroll 8
    for (int q = 0; q < Count; ++q) {
      // By name: the instruction set of this function need not have it, the caller's check does.
#if HWY_TARGET == HWY_AVX3
      asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum.raw) : "v"(quads[q].raw), "m"(x[q]));
#else
      const VI four = hn::Set(DI(), x[q]);
      asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum.raw) : "x"(quads[q].raw), "x"(four.raw));
#endif
    }
    return sum;
  }
#if HWY_TARGET == HWY_AVX3
  using V = __m512i;
  const auto pairs = [](V a, V b) HWY_ATTR { return _mm512_maddubs_epi16(a, b); };
  const auto add = [](V a, V b) HWY_ATTR { return _mm512_add_epi16(a, b); };
  const auto widen = [](V a, V by) HWY_ATTR { return VI{_mm512_madd_epi16(a, by)}; };
  const auto four = [](int32_t x4) HWY_ATTR { return _mm512_set1_epi32(x4); };
#else
  using V = __m256i;
  const auto pairs = [](V a, V b) HWY_ATTR { return _mm256_maddubs_epi16(a, b); };
  const auto add = [](V a, V b) HWY_ATTR { return _mm256_add_epi16(a, b); };
  const auto widen = [](V a, V by) HWY_ATTR { return VI{_mm256_madd_epi16(a, by)}; };
  const auto four = [](int32_t x4) HWY_ATTR { return _mm256_set1_epi32(x4); };
#endif
  const hn::Repartition<int16_t, DI> ds;
  const V one = hn::Set(ds, 1).raw;
  if constexpr (Bits == 8) {
    // 255 * 127 * 2 is too much for 16 bits, so the halves of a code are multiplied by themselves.
    const V sixteen = hn::Set(ds, 16).raw;
    const VB nibble = hn::Set(DB(), 15);
    V low = hn::Zero(ds).raw, high = low;
#pragma GCC unroll 8
    for (int q = 0; q < Count; ++q) {
      const V xq = four(x[q]);
      low = add(low, pairs(hn::And(quads[q], nibble).raw, xq));
      high = add(high, pairs(hn::And(shift_right(quads[q], 4), nibble).raw, xq));
    }
    return hn::Add(widen(low, one), widen(high, sixteen));
  }
  // Pairs of products that 16 bits hold: 15 * 127 * 2 * 8, 31 * 127 * 2 * 4, 63 * 127 * 2 * 2.
  constexpr int kTogether = Bits == 4 ? 8 : Bits == 5 ? 4 : 2;
  VI sum = hn::Zero(DI());
#pragma GCC unroll 4
  for (int q = 0; q < Count; q += kTogether) {
    V some = pairs(quads[q].raw, four(x[q]));
#pragma GCC unroll 8
    for (int i = 1; i < HWY_MIN(kTogether, Count); ++i)
      some = add(some, pairs(quads[q + i].raw, four(x[q + i])));
    sum = hn::Add(sum, widen(some, one));
  }
  return sum;
#else
  const DI di;
  VI sum = hn::Zero(di);
  const VI byte = hn::Set(di, 255);
  for (int q = 0; q < Count; ++q) {
    const VI four = hn::BitCast(di, quads[q]);
    const auto* xq = reinterpret_cast<const int8_t*>(x + q);
    sum = hn::Add(sum, hn::Mul(hn::And(four, byte), hn::Set(di, xq[0])));
    sum = hn::Add(sum, hn::Mul(hn::And(hn::ShiftRight<8>(four), byte), hn::Set(di, xq[1])));
    sum = hn::Add(sum, hn::Mul(hn::And(hn::ShiftRight<16>(four), byte), hn::Set(di, xq[2])));
    sum = hn::Add(sum, hn::Mul(hn::And(hn::ShiftRight<24>(four), byte), hn::Set(di, xq[3])));
  }
  return sum;
#endif
}

HWY_INLINE VF halves(const std::byte* at) { return load(DF(), reinterpret_cast<const f16*>(at)); }
HWY_INLINE VF unsigned_bytes(const std::byte* at) {
  const hn::Rebind<uint8_t, DI> du;
  const DI di;
  return hn::ConvertTo(DF(),
                       hn::PromoteTo(di, hn::LoadU(du, reinterpret_cast<const uint8_t*>(at))));
}
HWY_INLINE VF signed_bytes(const std::byte* at) {
  const hn::Rebind<int8_t, DI> ds;
  const DI di;
  return hn::ConvertTo(DF(), hn::PromoteTo(di, hn::LoadU(ds, reinterpret_cast<const int8_t*>(at))));
}

// What a format adds to the sums of a row of x for one block. `scales` is the tile's; `lane` is the
// first row of the tile that the vectors hold. load() reads the scales of block b once; add() takes
// them to each row of x.
constexpr int kR = kWeightTileRows;

template <bool Vnni, int Bits>
struct ScaledBlock {  // q4_0, q5_0, q8_0
  static constexpr int kBits = Bits;
  static constexpr int kBias = 1 << (Bits - 1);
  VF scale;
  HWY_INLINE void load(const std::byte* scales, int lane, int64_t b, int) {
    scale = halves(scales + b * 2 * kR + lane * 2);
  }
  HWY_INLINE VF add(VF sum, const VB* quads, const RowBlock& x) const {
    const DF df;
    const DI di;
    const VI products = hn::Sub(dot<Vnni, Bits, kQuads>(quads, x.quads),
                                hn::Set(di, kBias * (x.sums[0] + x.sums[1])));
    return hn::MulAdd(hn::ConvertTo(df, products), hn::Mul(scale, hn::Set(df, x.scale)), sum);
  }
};

template <bool Vnni, int Bits>
struct AffineBlock {  // q4_1, q5_1; and the K-quants
  static constexpr int kBits = Bits;
  VF scale, minimum;
  HWY_INLINE void load(const std::byte* scales, int lane, int64_t b, int) {
    scale = halves(scales + b * 4 * kR + lane * 2);
    minimum = halves(scales + b * 4 * kR + 2 * kR + lane * 2);
  }
  HWY_INLINE VF add(VF sum, const VB* quads, const RowBlock& x) const {
    const DF df;
    const VF products = hn::ConvertTo(df, dot<Vnni, Bits, kQuads>(quads, x.quads));
    sum = hn::MulAdd(products, hn::Mul(scale, hn::Set(df, x.scale)), sum);
    return hn::MulAdd(minimum, hn::Set(df, x.scale * float(x.sums[0] + x.sums[1])), sum);
  }
};

template <bool Vnni, int Bits>
struct SuperBlock : AffineBlock<Vnni, Bits> {  // q4_k, q5_k
  HWY_INLINE void load(const std::byte* scales, int lane, int64_t b, int) {
    const std::byte* record = scales + b / 8 * 20 * kR;
    const int64_t group = b % 8;
    this->scale =
        hn::Mul(halves(record + lane * 2), unsigned_bytes(record + (4 + group) * kR + lane));
    this->minimum = hn::Neg(hn::Mul(halves(record + 2 * kR + lane * 2),
                                    unsigned_bytes(record + (12 + group) * kR + lane)));
  }
};

template <bool Vnni>
struct SixBitBlock {  // q6_k
  static constexpr int kBits = 6;
  VF scale[2];
  HWY_INLINE void load(const std::byte* scales, int lane, int64_t b, int) {
    const std::byte* record = scales + b / 8 * 18 * kR;
    const VF all = halves(record + lane * 2);
    const std::byte* own = record + (2 + b % 8 * 2) * kR + lane;
    scale[0] = hn::Mul(all, signed_bytes(own));
    scale[1] = hn::Mul(all, signed_bytes(own + kR));
  }
  HWY_INLINE VF add(VF sum, const VB* quads, const RowBlock& x) const {
    const DF df;
    const DI di;
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const VI products = hn::Sub(dot<Vnni, 6, kQuads / 2>(quads + half * 4, x.quads + half * 4),
                                  hn::Set(di, 32 * x.sums[half]));
      sum =
          hn::MulAdd(hn::ConvertTo(df, products), hn::Mul(scale[half], hn::Set(df, x.scale)), sum);
    }
    return sum;
  }
};

template <bool Vnni>
struct GroupBlock {  // int4
  static constexpr int kBits = 4;
  VF scale, zero;
  HWY_INLINE void load(const std::byte* scales, int lane, int64_t b, int unit_blocks) {
    const std::byte* record = scales + b / unit_blocks * 5 * kR;
    scale = hn::LoadU(DF(), reinterpret_cast<const float*>(record) + lane);
    zero = unsigned_bytes(record + 4 * kR + lane);
  }
  HWY_INLINE VF add(VF sum, const VB* quads, const RowBlock& x) const {
    const DF df;
    // Both products are integers below 2^24, so their difference is exact.
    const VF products = hn::NegMulAdd(zero, hn::Set(df, float(x.sums[0] + x.sums[1])),
                                      hn::ConvertTo(df, dot<Vnni, 4, kQuads>(quads, x.quads)));
    return hn::MulAdd(products, hn::Mul(scale, hn::Set(df, x.scale)), sum);
  }
};

constexpr int block_bytes(int bits) { return (bits == 8 ? 8 : bits) * kPlane; }

// `Rows` rows of x by one tile.
template <class Block, int Rows>
HWY_NOINLINE void multiply_tile(const TilesBlock& m, const std::byte* codes,
                                const std::byte* scales, const RowBlock* x, int valid,
                                const float* bias, float* out) {
  const DF df;
  for (int lane = 0; lane < kWeightTileRows; lane += kLanes) {
    if (lane >= valid) return;
    VF sum[Rows];
    const auto* block = reinterpret_cast<const uint8_t*>(codes) + lane * 4;
    const size_t count = size_t(HWY_MIN(valid - lane, kLanes));
    const VF start = bias == nullptr ? hn::Zero(df) : load_part(df, bias + lane, count);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) sum[i] = start;
    for (int64_t b = 0; b < m.blocks; ++b, block += block_bytes(Block::kBits)) {
      VB quads[kQuads];
      unpack<Block::kBits>(block, quads);
      Block own;
      own.load(scales, lane, b, m.unit_blocks);
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i) sum[i] = own.add(sum[i], quads, x[i * m.blocks + b]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) store_part(df, sum[i], out + i * m.out_stride + lane, count);
  }
}

template <class Block, int Rows>
HWY_INLINE void multiply_rest(const TilesBlock& m, int rows, const std::byte* codes,
                              const std::byte* scales, const RowBlock* x, int valid,
                              const float* bias, float* out) {
  if constexpr (Rows > 0) {
    if (rows == Rows)
      multiply_tile<Block, Rows>(m, codes, scales, x, valid, bias, out);
    else
      multiply_rest<Block, Rows - 1>(m, rows, codes, scales, x, valid, bias, out);
  }
}

template <class Block>
void multiply_tiles(const TilesBlock& m) {
  for (int64_t tile = 0; tile < m.tiles; ++tile) {
    const std::byte* codes = m.codes + tile * m.tile_codes;
    const std::byte* scales = m.scales + tile * m.tile_scales;
    const int64_t first = tile * kWeightTileRows;
    const int valid = int(HWY_MIN(m.valid - first, int64_t(kWeightTileRows)));
    const float* bias = m.bias == nullptr ? nullptr : m.bias + first;
    for (int64_t i = 0; i < m.rows; i += kTileRows)
      multiply_rest<Block, kTileRows>(m, int(HWY_MIN(m.rows - i, int64_t(kTileRows))), codes,
                                      scales, m.x + i * m.blocks, valid, bias,
                                      m.out + i * m.out_stride + first);
  }
}

// Returns true if the processor has the instructions that `dot` uses for this instruction set.
bool HasByteDots() {
#if HWY_TARGET == HWY_AVX3
  return __builtin_cpu_supports("avx512vnni");
#elif HWY_TARGET == HWY_AVX2
  // Clang 16's __builtin_cpu_supports does not know AVX-VNNI.
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
#else
  return false;
#endif
}

template <bool Vnni>
void multiply_kind(const TilesBlock& m, WeightKind kind) {
  switch (kind) {
    case WeightKind::q4_0:
      return multiply_tiles<ScaledBlock<Vnni, 4>>(m);
    case WeightKind::q5_0:
      return multiply_tiles<ScaledBlock<Vnni, 5>>(m);
    case WeightKind::q8_0:
      return multiply_tiles<ScaledBlock<Vnni, 8>>(m);
    case WeightKind::q4_1:
      return multiply_tiles<AffineBlock<Vnni, 4>>(m);
    case WeightKind::q5_1:
      return multiply_tiles<AffineBlock<Vnni, 5>>(m);
    case WeightKind::q4_k:
      return multiply_tiles<SuperBlock<Vnni, 4>>(m);
    case WeightKind::q5_k:
      return multiply_tiles<SuperBlock<Vnni, 5>>(m);
    case WeightKind::q6_k:
      return multiply_tiles<SixBitBlock<Vnni>>(m);
    default:
      return multiply_tiles<GroupBlock<Vnni>>(m);
  }
}

void MultiplyTiles(const TilesBlock& m, WeightKind kind, bool byte_dots) {
  if (byte_dots && HasByteDots())
    multiply_kind<true>(m, kind);
  else
    multiply_kind<false>(m, kind);
}

// 32 columns of x. What is not finite makes the block's scale NaN, and so its row of `out`. Numbers
// that are all below 1e-30 become zero, because the inverse of their scale would be infinite.
HWY_INLINE void quantize_block(const float* x, RowBlock& to) {
  const hn::CappedTag<float, 16> df;
  const hn::Rebind<int32_t, decltype(df)> di;
  const hn::Rebind<int8_t, decltype(df)> d8;
  constexpr int kStep = int(hn::MaxLanes(df));
  auto largest = hn::Zero(df), difference = hn::Zero(df);
  for (int c = 0; c < kWeightBlock; c += kStep) {
    const auto v = hn::LoadU(df, x + c);
    largest = hn::Max(largest, hn::Abs(v));
    difference = hn::Add(difference, hn::Sub(v, v));
  }
  const float found = max_of_lanes(df, largest), most = found >= 1e-30f ? found : 0.0f;
  const float inverse = most > 0 ? 127.0f / most : 0.0f;
  to.scale = most / 127.0f + sum_of_lanes(df, difference);
  for (int half = 0; half < 2; ++half) {
    auto sum = hn::Zero(di);
    for (int c = half * 16; c < half * 16 + 16; c += kStep) {
      const auto codes =
          hn::Clamp(hn::NearestInt(hn::Mul(hn::LoadU(df, x + c), hn::Set(df, inverse))),
                    hn::Set(di, -127), hn::Set(di, 127));
      sum = hn::Add(sum, codes);
      hn::StoreU(hn::DemoteTo(d8, codes), d8, reinterpret_cast<int8_t*>(to.quads) + c);
    }
    to.sums[half] = hn::GetLane(hn::SumOfLanes(di, sum));
  }
}

void QuantizeRow(const float* x, int64_t blocks, RowBlock* to) {
  for (int64_t b = 0; b < blocks; ++b) quantize_block(x + b * kWeightBlock, to[b]);
}

}  // namespace HWY_NAMESPACE
}  // namespace kivi
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kivi {
HWY_EXPORT(MultiplyTiles);
HWY_EXPORT(QuantizeRow);

namespace {

// Rows of x that pass while a tile of W stays in the level-1 cache.
constexpr int64_t kBlockRows = 192;
// Multiplications that pay for one task.
constexpr int64_t kTaskWork = 256 << 10;
// Multiplications of bytes for one element operation of ThreadPool::parallel_for.
constexpr int64_t kWorkPerOperation = 64;

// What W multiplies: x times the Hadamard matrix, in W's order, with zeros behind it up to whole
// blocks. `scratch` has room for two such rows.
const float* columns_of(const Weight& w, const float* x, float* scratch) {
  const int64_t k = w.columns, padded = block_count(k) * kWeightBlock;
  if (w.hadamard == 0 && w.order.empty() && k == padded) return x;
  std::memcpy(scratch, x, size_t(k) * sizeof(float));
  for (int64_t c = 0; w.hadamard > 0 && c < k; c += w.hadamard)
    hadamard_transform(scratch + c, w.hadamard);
  if (!w.order.empty()) {
    float* const ordered = scratch + padded;
    for (int64_t c = 0; c < k; ++c) ordered[c] = scratch[w.order.as<int32_t>()[c]];
    scratch = ordered;
  }
  std::fill(scratch + k, scratch + padded, 0.0f);
  return scratch;
}

}  // namespace

void CpuBackend::matmul_tiles(const Tensor& x, const Weight& w, const Tensor& bias,
                              const Tensor& out) {
  const int64_t t = x.rows(), k = w.columns, n = w.rows, blocks = block_count(k);
  const WeightLayout layout = layout_of(w.format.kind);
  const size_t row_floats = size_t(blocks) * sizeof(RowBlock) / sizeof(float);
  auto* rows = reinterpret_cast<RowBlock*>(quantized_rows_.floats(size_t(t) * row_floats));
  pool_.parallel_for(t, t * k, [&](int64_t i, int worker) {
    float* scratch = scratch_[size_t(worker)].floats(size_t(2 * blocks * kWeightBlock));
    HWY_DYNAMIC_DISPATCH(QuantizeRow)
    (columns_of(w, x.row<float>(i), scratch), blocks, rows + i * blocks);
  });
  const float* added = bias_floats(bias);

  const int64_t tiles = (n + kWeightTileRows - 1) / kWeightTileRows;
  const int64_t row_blocks = (t + kBlockRows - 1) / kBlockRows;
  int64_t splits = std::clamp<int64_t>(t * k * n / row_blocks / kTaskWork, 1, 4 * pool_.threads());
  const int64_t tiles_each = (tiles + splits - 1) / splits;
  splits = (tiles + tiles_each - 1) / tiles_each;
  pool_.parallel_for(row_blocks * splits, t * k * n / kWorkPerOperation, [&](int64_t task, int) {
    const int64_t first = task / splits * kBlockRows, tile = task % splits * tiles_each;
    TilesBlock m;
    m.x = rows + first * blocks;
    m.rows = std::min(kBlockRows, t - first);
    m.blocks = blocks;
    m.tile_codes = blocks * layout.block_bytes;
    m.tile_scales = record_count(w.format, k) * layout.record_bytes * kWeightTileRows;
    m.codes = w.codes + tile * m.tile_codes;
    m.scales = w.scales + tile * m.tile_scales;
    m.tiles = std::min(tiles_each, tiles - tile);
    m.valid = n - tile * kWeightTileRows;
    m.unit_blocks =
        w.format.kind == WeightKind::int4 ? int(block_count(unit_columns(w.format, k))) : 1;
    m.bias = added == nullptr ? nullptr : added + tile * kWeightTileRows;
    m.out = out.row<float>(first) + tile * kWeightTileRows;
    m.out_stride = out.row_stride;
    HWY_DYNAMIC_DISPATCH(MultiplyTiles)(m, w.format.kind, byte_dots_);
  });
}

// A bias in f32: as it is, or widened into bias_. Null for none.
const float* CpuBackend::bias_floats(const Tensor& bias) {
  if (bias.empty()) return nullptr;
  if (bias.dtype == DType::f32) return bias.as<float>();
  float* to = bias_.floats(size_t(bias.rows()));
  for (int64_t i = 0; i < bias.rows(); ++i)
    to[i] = bias.dtype == DType::f16 ? to_float(bias.as<f16>()[i]) : to_float(bias.as<bf16>()[i]);
  return to;
}

void CpuBackend::do_matmul_quantized(const Operand& x, const Weight& w, const Tensor& bias,
                                     const Tensor& out) {
  if (w.format.kind != WeightKind::e4m3) return matmul_tiles(x.rows, w, bias, out);
  if (w.hadamard == 0 && !x.quantized()) return matmul_e4m3(x.rows, w, bias, out);
  const int64_t t = x.count(), k = w.columns;
  float* turned = quantized_rows_.floats(size_t(t * k));
  pool_.parallel_for(t, t * k, [&](int64_t i, int) {
    if (x.quantized()) {
      for (int64_t c = 0; c < k; ++c)
        turned[i * k + c] = x.scales[i] * from_e4m3(x.codes[i * k + c]);
      return;
    }
    std::memcpy(turned + i * k, x.rows.row<float>(i), size_t(k) * sizeof(float));
    for (int64_t c = 0; c < k; c += w.hadamard) hadamard_transform(turned + i * k + c, w.hadamard);
  });
  matmul_e4m3(make_tensor(turned, DType::f32, t, k), w, bias, out);
}

void CpuBackend::do_embed_quantized(const Weight& table, const Tensor& ids, const Tensor& out) {
  const int64_t n = out.shape[1];
  pool_.parallel_for(out.rows(), out.size() * 8, [&](int64_t i, int) {
    read_weight_row(table, ids.as<int32_t>()[i], {out.row<float>(i), size_t(n)});
  });
}

}  // namespace kivi
#endif
