// SPDX-License-Identifier: Apache-2.0
// Decode attention over the paged KIVI store, on tensor cores
// (docs/design/decode-attention.md).
//
//   out[h] = softmax(q[h] . [K', K_residual, k_own] * scale) [V', V_residual, v_own]
//
// Mapping. Each warp works alone: it owns a piece of the line of work (decode_work.cuh) and a ring
// of stages in shared memory that asynchronous copies fill, so there is no block-wide barrier after
// the prologue. The first of them start while the kernel before still runs (overlap.cuh): nothing
// of a step writes a layer's store before that layer's attention. Operands are swapped: S^T = K q^T
// and O^T = V^T P^T, so that keys and values are operand A of mma.m16n8k16, straight from the order
// in which pages store them, and up to 8 query heads of a KV head are its n = 8 columns (16 or
// 24 with NT = 2 or 3). P^T becomes operand B by movmatrix.
//
// Codes are used as they lie: a word AND a mask is a pair of fp16 subnormals c * 4^p * 2^-24
// (tensor cores take subnormals at full rate), one instruction for two codes. Everything else is
// folded into operand B: q' = q * scale * 4^-p for each key group and P' = P * scale * 4^-p for
// each value group. q . min is one more product whose A rows are the minima (its C is the
// accumulator that a group's tiles start from); sum(P * min) and sum(P) are one more whose A rows
// are the minima of the channel groups and a row of ones.
//
// Where parameters have 8 bits or keys a bias (X), the warp first puts the parameters of a unit
// into planes of f16 that suit what follows: scales times 4^-p, minima of both token groups side by
// side, and squares of scales, which the product that makes q . min also multiplies with
// -q^2 scale / 24: this is the bias.
//
// Products into one accumulator wait for each other, so two tiles always take turns.
//
// Cost of one 64-token unit at 2 bits, d = 128, G = 32: 6144 bytes, 677 instructions a warp (76 of
// them mma); with 8-bit parameters and a bias 5120 bytes, 768 instructions.
// docs/design/decode-attention.md has the count and the times. Reference: CpuBackend::do_kv_attend.
// Test: tests/cuda/kv_attend_test.cpp.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/byte_parameters.cuh"
#include "kernels/cuda/decode_merge.cuh"
#include "kernels/cuda/decode_work.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/ptx.cuh"

namespace kivi::cuda {

inline constexpr float kLazyMaximum = 2.f;    // log2: P may reach 4 before the maximum moves
inline constexpr float kCodeUnit = 0x1p-24f;  // what one code step of operand A is worth
inline constexpr float kValueNormal = 16.f;   // P' carries it, so that small scales stay normal
inline constexpr uint32_t kOnes = 0x3c003c00;

__device__ constexpr int power_of_pair(int bits, int pair) {
  return bits == 2 ? pair % 4 : bits == 4 ? pair % 2 : 0;
}
__device__ __forceinline__ uint32_t pair_weight(int bits, int pair, float scale) {
  return as_u32(__float2half2_rn(scale / float(1 << (bits * power_of_pair(bits, pair)))));
}

// Fragment register of pair `slot` of a word of codes. Codes of 2 and 4 bits stay in place; e4m3
// becomes f16.
template <int BITS>
__device__ __forceinline__ uint32_t fragment(uint32_t word, int slot) {
  if constexpr (BITS == 8) {
#if __CUDA_ARCH__ >= 890
    uint32_t y;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(y) : "h"(uint16_t(word >> (16 * slot))));
    return y;
#else
    // Exponent and mantissa one place lower give 2^-8 of the value, subnormals included.
    const uint32_t spread = __byte_perm(word, 0, slot == 0 ? 0x1404 : 0x3424);
    const uint32_t y = (spread & 0x80008000u) | ((spread >> 1) & 0x3f803f80u);
    return multiply(y, 0x5c005c00u);  // 256
#endif
  } else {
    constexpr int kInPlace = 8 / BITS;  // pairs of the low byte of each half
    constexpr uint32_t kMask = BITS == 2 ? 0x00030003u : 0x000f000fu;
    return slot < kInPlace ? word & (kMask << (BITS * slot))
                           : (word >> 8) & (kMask << (BITS * (slot - kInPlace)));
  }
}

template <int N>
__device__ __forceinline__ void load_words(uint32_t (&w)[N], const std::byte* from) {
  static_assert(N == 2 || N % 4 == 0);
  if constexpr (N == 2) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    w[0] = v.x, w[1] = v.y;
  } else {
#pragma unroll
    for (int i = 0; i < N / 4; ++i) {
      const uint4 v = *reinterpret_cast<const uint4*>(from + i * 512);
      w[4 * i] = v.x, w[4 * i + 1] = v.y, w[4 * i + 2] = v.z, w[4 * i + 3] = v.w;
    }
  }
}

// One warp's attention over one segment. D: head_dim; KB, VB: bits of keys and values; NT: blocks
// of 8 query heads; X: parameters may be bytes, and keys have a bias.
template <int D, int KB, int VB, int NT, bool X>
struct DecodeWarp {
  static constexpr int kKeyTiles = D / 16;
  static constexpr int kKeyWords = KB == 16 ? 4 : 2 * ((D * KB + 127) / 128);  // a lane and tile
  static constexpr int kValueWords = VB == 16 ? 4 : VB;  // a lane and channel tile
  static constexpr bool kCodes = KB < 8;                 // has scales and minima

  const DecodeLaunch& a;
  const int lane;
  const int g = lane / 4, t = lane % 4;
  const std::byte* ones;  // 128 bytes of 1.0 in shared memory

  static constexpr bool kWeighs = kCodes && !X;  // scales are used as they lie

  // q in operand B's order, times a power of two for each head; the same times 4^-p; what 1/256 of
  // the square of a scale is multiplied with for the key bias.
  uint32_t q[NT][kKeyTiles * 2], qw[kWeighs ? NT : 1][kWeighs ? kKeyTiles * 2 : 1],
      qb[X ? NT : 1][X ? kKeyTiles * 2 : 1];
  float factor[NT][2];  // from C to the logit in log2, heads 2t and 2t + 1
  // State: running maximum; O^T (channels x heads); row 7 of x is sum(P), rows below the number of
  // value groups sum(P * min).
  float maximum[NT][2], o[NT][kKeyTiles][4], x[NT][4];
  bool pages_open;  // o is in units of codes

  __device__ __forceinline__ DecodeWarp(const DecodeLaunch& launch, int lane_index,
                                        const std::byte* ones_row)
      : a(launch), lane(lane_index), ones(ones_row) {}

  // Starts to read q of `heads` heads from `from`, d apart.
  __device__ __forceinline__ void load_queries(const __half* from, int heads) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      const uint32_t* row = reinterpret_cast<const uint32_t*>(from + (n * 8 + g) * D + 2 * t);
#pragma unroll
      for (int i = 0; i < kKeyTiles * 2; ++i) q[n][i] = n * 8 + g < heads ? row[i * 4] : 0u;
    }
  }

  // An empty state; q gets its normalizers.
  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      __half2 most = __habs2(as_half2(q[n][0]));
#pragma unroll
      for (int i = 1; i < kKeyTiles * 2; ++i) most = __hmax2(most, __habs2(as_half2(q[n][i])));
      most = __hmax2(most, as_half2(__shfl_xor_sync(0xffffffffu, as_u32(most), 1)));
      most = __hmax2(most, as_half2(__shfl_xor_sync(0xffffffffu, as_u32(most), 2)));
      const float largest = __half2float(__hmax(__low2half(most), __high2half(most)));
      // Brings the largest |q| into [8, 16), if that takes no more than 2^15.
      const int exponent = min(15, 130 - int(__float_as_uint(largest) >> 23));
      const float normal = __uint_as_float(uint32_t(127 + exponent) << 23);
      const uint32_t normal2 = as_u32(__float2half2_rn(normal));
      const float f = a.scale_log2 / normal;
      const uint32_t bias = as_u32(__float2half2_rn(f * a.bias));
#pragma unroll
      for (int i = 0; i < kKeyTiles * 2; ++i) {
        q[n][i] = multiply(q[n][i], normal2);
        if constexpr (kWeighs) qw[n][i] = multiply(q[n][i], pair_weight(KB, i, 1.f));
        if constexpr (X)
          qb[n][i] = as_u32(__hmax2(as_half2(multiply(multiply(q[n][i], q[n][i]), bias)),
                                    __float2half2_rn(-65504.f)));
      }
      factor[n][0] = __shfl_sync(0xffffffffu, f, 8 * t);
      factor[n][1] = __shfl_sync(0xffffffffu, f, 8 * t + 4);
      maximum[n][0] = maximum[n][1] = kNever;
#pragma unroll
      for (int i = 0; i < 4; ++i) x[n][i] = 0;
#pragma unroll
      for (int c = 0; c < kKeyTiles; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) o[n][c][i] = 0;
    }
    pages_open = false;
  }

  // The running maximum moves only when a logit passes it by more than kLazyMaximum: then P stays
  // below 2^kLazyMaximum and no shuffle is needed in most units. s: C fragments of TILES tiles.
  template <int TILES>
  __device__ __forceinline__ void raise_maximum(const float (&s)[TILES][NT][4], float unit) {
    bool passed = false;
    float top[NT][2];
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float most = fmaxf(s[0][n][j], s[0][n][j + 2]);
#pragma unroll
        for (int i = 1; i < TILES; ++i) most = fmaxf(most, fmaxf(s[i][n][j], s[i][n][j + 2]));
        top[n][j] = most * (factor[n][j] * unit);
        passed |= top[n][j] > maximum[n][j] + kLazyMaximum;
      }
    if (!__any_sync(0xffffffffu, passed)) return;
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float most = top[n][j];
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2)
          most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, mask));
        most = fmaxf(most, maximum[n][j]);
        const float alpha = exp2_fast(maximum[n][j] - most);
        maximum[n][j] = most;
        x[n][j] *= alpha, x[n][j + 2] *= alpha;
#pragma unroll
        for (int c = 0; c < kKeyTiles; ++c) o[n][c][j] *= alpha, o[n][c][j + 2] *= alpha;
      }
  }

  // P of one tile in operand B's order, from its C fragment.
  __device__ __forceinline__ void probabilities(const float (&s)[4], int n, float unit,
                                                uint32_t (&b)[2]) const {
    const float f0 = factor[n][0] * unit, f1 = factor[n][1] * unit;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      b[i] =
          transpose(as_u32(__floats2half2_rn(exp2_fast(fmaf(s[2 * i], f0, -maximum[n][0])),
                                             exp2_fast(fmaf(s[2 * i + 1], f1, -maximum[n][1])))));
  }

  // Where a unit's parameters lie once they are f16: scales of two groups of keys, minima, squares
  // of scales, then scales and minima of the values. The planes of minima and squares hold, for
  // each lane that wrote them, two pairs of the first group and two of the second one, pair by pair
  // as operand A takes them.
  static constexpr int kMinima = 4 * D, kSquares = 8 * D, kValuePlanes = 12 * D;
  static constexpr int kValueMinima = 4 * D;
  // From a group of values to the next, and from its scales to its minima.
  static constexpr int kValueStride = X ? 128 : 256, kValueToMinima = X ? kValueMinima : 128;

  // What the planes take from this lane: of the keys the positions 4 lane to 4 lane + 3 of the
  // parameters of two groups ([group][pair]), that is two pairs of one tile of channels; of the
  // values the positions 8 lane to 8 lane + 7.
  struct Parameters {
    uint32_t scale[2][2], minimum[2][2];
  };
  static constexpr bool kAllLanes = D == 128;  // have keys

  // Those of the second group of keys are `second` bytes behind.
  template <bool BYTES>
  __device__ __forceinline__ void read_keys(const std::byte* from, int second,
                                            Parameters& p) const {
    from += (kAllLanes ? lane : lane % (D / 4)) * (BYTES ? 4 : 8);
#pragma unroll
    for (int j = 0; j < 2; ++j, from += second) {
      if constexpr (BYTES) {
        expand_parameters(*reinterpret_cast<const uint32_t*>(from),
                          *reinterpret_cast<const uint32_t*>(from + D), KB == 2, p.scale[j],
                          p.minimum[j]);
      } else {
        const uint2 u = *reinterpret_cast<const uint2*>(from);
        const uint2 v = *reinterpret_cast<const uint2*>(from + 2 * D);
        p.scale[j][0] = u.x, p.scale[j][1] = u.y, p.minimum[j][0] = v.x, p.minimum[j][1] = v.y;
      }
    }
  }
  __device__ __forceinline__ void store_keys(std::byte* planes, const Parameters& p) const {
    if (!kAllLanes && lane >= D / 4) return;
    // 4^-p: 1, 1/4 and 1/16, 1/64 (2 bits), 1 and 1/16 (4 bits)
    constexpr uint32_t k1 = 0x3c003c00u, k4 = 0x34003400u, k16 = 0x2c002c00u, k64 = 0x24002400u;
    const bool even = KB == 4 || lane % 2 == 0;
    const uint32_t weight[2] = {even ? k1 : k16, KB == 4 ? k16 : even ? k4 : k64};
    uint32_t square[2][2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t part = multiply(p.scale[j][i], k16);
        square[j][i] = multiply(part, part);
      }
      *reinterpret_cast<uint2*>(planes + j * 2 * D + lane * 8) =
          make_uint2(multiply(p.scale[j][0], weight[0]), multiply(p.scale[j][1], weight[1]));
    }
    *reinterpret_cast<uint4*>(planes + kMinima + lane * 16) =
        make_uint4(p.minimum[0][0], p.minimum[1][0], p.minimum[0][1], p.minimum[1][1]);
    *reinterpret_cast<uint4*>(planes + kSquares + lane * 16) =
        make_uint4(square[0][0], square[1][0], square[0][1], square[1][1]);
  }
  // From the parameters of 64 values.
  template <bool BYTES>
  __device__ __forceinline__ void expand_values(const std::byte* from, std::byte* planes) const {
    if (lane >= (D >> a.group_shift) * (kUnitTokens / 8)) return;
    const int at = lane * 8 + lane / 8 * kUnitTokens;
    uint4 scale, minimum;
    if constexpr (BYTES) {
      const uint2 u = *reinterpret_cast<const uint2*>(from + at);
      const uint2 v = *reinterpret_cast<const uint2*>(from + kUnitTokens + at);
      uint32_t s[4], m[4];
      expand_parameters(u.x, v.x, VB == 2, s, m);
      expand_parameters(u.y, v.y, VB == 2, s + 2, m + 2);
      scale = make_uint4(s[0], s[1], s[2], s[3]), minimum = make_uint4(m[0], m[1], m[2], m[3]);
    } else {
      scale = *reinterpret_cast<const uint4*>(from + 2 * at);
      minimum = *reinterpret_cast<const uint4*>(from + 2 * (kUnitTokens + at));
    }
    *reinterpret_cast<uint4*>(planes + lane * 16) = scale;
    *reinterpret_cast<uint4*>(planes + kValueMinima + lane * 16) = minimum;
  }

  // q . min of two token groups, and their bias: rows 0-7 of C get the first, rows 8-15 the second.
  // `keys`: their planes (X), or the parameters of the first; those of the second are `second`
  // bytes behind.
  __device__ __forceinline__ void minimum_product(float (&c)[NT][4], const std::byte* keys,
                                                  int second) const {
    float part[2][NT][4];
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) part[0][n][i] = part[1][n][i] = 0;
    if constexpr (X) {
#pragma unroll
      for (int k = 0; k < kKeyTiles; ++k) {
        const int at = (k / 2 * 8 + 2 * t + k % 2) * 16;
        const uint4 u = *reinterpret_cast<const uint4*>(keys + kMinima + at);
        const uint4 v = *reinterpret_cast<const uint4*>(keys + kSquares + at);
#pragma unroll
        for (int n = 0; n < NT; ++n) {
          mma(part[0][n], u.x, u.y, u.z, u.w, q[n][2 * k], q[n][2 * k + 1]);
          mma(part[1][n], v.x, v.y, v.z, v.w, qb[n][2 * k], qb[n][2 * k + 1]);
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < kKeyTiles / 2; ++i) {
        const int at = 2 * D + (i * 4 + t) * 16;
        const uint4 u = *reinterpret_cast<const uint4*>(keys + at);
        const uint4 v = *reinterpret_cast<const uint4*>(keys + second + at);
#pragma unroll
        for (int n = 0; n < NT; ++n) {
          mma(part[0][n], u.x, v.x, u.y, v.y, q[n][4 * i], q[n][4 * i + 1]);
          mma(part[1][n], u.z, v.z, u.w, v.w, q[n][4 * i + 2], q[n][4 * i + 3]);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) c[n][i] = (part[0][n][i] + part[1][n][i]) * kCodeUnit;
  }

  // q' = q * 4^-p * scale of one key group. `scales`: its scales, or its plane of scales (X).
  __device__ __forceinline__ void scale_queries(uint32_t (&scaled)[NT][kKeyTiles * 2],
                                                const std::byte* scales) const {
#pragma unroll
    for (int i = 0; i < kKeyTiles / 2; ++i) {
      const uint4 v = *reinterpret_cast<const uint4*>(scales + (i * 4 + t) * 16);
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        scaled[n][4 * i] = multiply(weighted(n, 4 * i), v.x);
        scaled[n][4 * i + 1] = multiply(weighted(n, 4 * i + 1), v.y);
        scaled[n][4 * i + 2] = multiply(weighted(n, 4 * i + 2), v.z);
        scaled[n][4 * i + 3] = multiply(weighted(n, 4 * i + 3), v.w);
      }
    }
  }

  __device__ __forceinline__ uint32_t weighted(int n, int i) const {
    if constexpr (X)
      return q[n][i];
    else
      return qw[n][i];
  }

  // Where a lane's key words of tile `tile` lie, from the start of the codes.
  __device__ __forceinline__ const std::byte* key_words(const std::byte* codes, int tile) const {
    return kKeyWords == 2 ? codes + tile / 2 * 512 + lane * 16 + tile % 2 * 8
                          : codes + tile * (kKeyWords * 128) + lane * 16;
  }

  // s += K q^T of TILES tiles of 16 tokens, from `tile` on.
  template <int TILES>
  __device__ __forceinline__ void key_tiles(float (*s)[NT][4], const std::byte* codes, int tile,
                                            const uint32_t (&b)[NT][kKeyTiles * 2]) const {
    constexpr int kPairs = 16 / KB;                         // of a word
    constexpr int kWords = kKeyWords < 4 ? kKeyWords : 4;   // at a time
    constexpr int kSteps = kKeyTiles * kWords / kKeyWords;  // tiles of channels that they hold
    uint32_t w[TILES][kWords];
#pragma unroll
    for (int k = 0; k < kKeyTiles; ++k) {
      const int j = 2 * (k % kSteps) / kPairs, slot = 2 * k % kPairs;
#pragma unroll
      for (int i = 0; i < TILES; ++i) {
        if (k % kSteps == 0) load_words(w[i], key_words(codes, tile + i) + k / kSteps * 512);
        const uint32_t a0 = fragment<KB>(w[i][2 * j], slot);
        const uint32_t a1 = fragment<KB>(w[i][2 * j + 1], slot);
        const uint32_t a2 = fragment<KB>(w[i][2 * j], slot + 1);
        const uint32_t a3 = fragment<KB>(w[i][2 * j + 1], slot + 1);
#pragma unroll
        for (int n = 0; n < NT; ++n) mma(s[i][n], a0, a1, a2, a3, b[n][2 * k], b[n][2 * k + 1]);
      }
    }
  }

  // Values beyond `end` or before `low` (positions in the unit) take no part: their P is zero, but
  // what lies there may be anything, and 0 * NaN is NaN. Writes zeros over it.
  __device__ __forceinline__ void clean_values(std::byte* stage, std::byte* parameters, int low,
                                               int end) const {
    if constexpr (kCodes) {
      const int groups = (D >> a.group_shift);
      for (int token = lane; token < kUnitTokens; token += 32)
        if (token < low || token >= end)
          for (int i = 0; i < groups; ++i) {
            std::byte* scale = parameters + i * kValueStride + lane_parameter(token) * 2;
            *reinterpret_cast<uint16_t*>(scale) = 0;
            *reinterpret_cast<uint16_t*>(scale + kValueToMinima) = 0;
          }
    } else {
      uint32_t keep[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        keep[k] = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int token = k * 16 + (i / 2) * 8 + 2 * t + i % 2;
          if (token >= low && token < end) keep[k] |= 0xffu << (8 * i);
        }
      }
#pragma unroll
      for (int i = 0; i < kKeyTiles * 2; ++i) {
        auto* words = reinterpret_cast<uint4*>(stage + a.stage_vc + i * 512 + lane * 16);
        uint4 v = *words;
        v.x &= keep[0], v.y &= keep[1], v.z &= keep[2], v.w &= keep[3];
        *words = v;
      }
    }
    __syncwarp();
    fence_before_async_copy();
  }

  // A unit of 64 quantized tokens, of which [low, end) count. `planes`: room for its parameters.
  __device__ __forceinline__ void page_unit(std::byte* stage, std::byte* planes, int low, int end) {
    if constexpr (KB != 16) {
      float s[4][NT][4];
      std::byte *keys = stage + a.stage_kp, *values = stage + a.stage_vp;
      if constexpr (kCodes) {
        int second = a.group == 32 ? a.key_group_bytes : 0;  // bytes to the second token group
        if constexpr (X) {
          Parameters p;
          if (a.byte_parameters) {
            read_keys<true>(keys, second, p);
            expand_values<true>(values, planes + kValuePlanes);
          } else {
            read_keys<false>(keys, second, p);
            expand_values<false>(values, planes + kValuePlanes);
          }
          store_keys(planes, p);
          keys = planes, values = planes + kValuePlanes;
          second = 2 * D;
          __syncwarp();
        }
        float minimum[NT][4];
        minimum_product(minimum, keys, second);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          uint32_t scaled[NT][kKeyTiles * 2];
          scale_queries(scaled, keys + h * second);
#pragma unroll
          for (int i = 2 * h; i < 2 * h + 2; ++i)
#pragma unroll
            for (int n = 0; n < NT; ++n) {
              s[i][n][0] = s[i][n][2] = minimum[n][2 * h];
              s[i][n][1] = s[i][n][3] = minimum[n][2 * h + 1];
            }
          key_tiles<2>(s + 2 * h, stage, 2 * h, scaled);
        }
      } else {
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
#pragma unroll
          for (int n = 0; n < NT; ++n)
#pragma unroll
            for (int r = 0; r < 4; ++r) s[i][n][r] = s[i + 1][n][r] = 0;
          key_tiles<2>(s + i, stage, i, q);
        }
      }
      if (low > 0 || end < kUnitTokens) {
        clean_values(stage, values, low, end);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int token = i * 16 + r * 8 + g;
            if (token >= low && token < end) continue;
#pragma unroll
            for (int n = 0; n < NT; ++n) s[i][n][2 * r] = s[i][n][2 * r + 1] = -INFINITY;
          }
      }
      constexpr float kUnit = kCodes ? 1 / kCodeUnit : 1.f;
      raise_maximum(s, kUnit);
      uint32_t p[NT][8];
#pragma unroll
      for (int n = 0; n < NT; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          uint32_t b[2];
          probabilities(s[i][n], n, kUnit, b);
          p[n][2 * i] = b[0], p[n][2 * i + 1] = b[1];
        }
      page_values(stage, values, p);
      pages_open = true;
    }
  }

  // O^T += V^T P^T of 64 quantized tokens.
  __device__ __forceinline__ void page_values(const std::byte* stage, const std::byte* parameters,
                                              uint32_t (&p)[NT][8]) {
    const std::byte* codes = stage + a.stage_vc + lane * 16;
    constexpr int kPairs = 16 / VB;  // of a word
    if constexpr (kCodes) {
      // Rows below the number of value groups are their minima, the others ones.
      const bool group_row = g < (D >> a.group_shift);
      const std::byte* row = group_row ? parameters + g * kValueStride + kValueToMinima : ones;
      float lower[NT][4] = {};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint4 v = *reinterpret_cast<const uint4*>(row + (i * 4 + t) * 16);
#pragma unroll
        for (int n = 0; n < NT; ++n) {
          // A is two pairs, one for the upper and one for the lower rows of C. What they make of
          // each other's P ends up in the rows that are not read: no register has to be set to
          // zero.
          mma_k8(x[n], v.x, v.y, p[n][4 * i]);
          mma_k8(lower[n], v.x, v.y, p[n][4 * i + 1]);
          mma_k8(x[n], v.z, v.w, p[n][4 * i + 2]);
          mma_k8(lower[n], v.z, v.w, p[n][4 * i + 3]);
        }
      }
#pragma unroll
      for (int n = 0; n < NT; ++n) x[n][0] += lower[n][2], x[n][1] += lower[n][3];
#pragma unroll
      for (int n = 0; n < NT; ++n)
#pragma unroll
        for (int i = 0; i < 8; ++i) p[n][i] = multiply(p[n][i], pair_weight(VB, i, kValueNormal));
    } else {
#pragma unroll
      for (int n = 0; n < NT; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          mma(x[n], kOnes, kOnes, kOnes, kOnes, p[n][2 * i], p[n][2 * i + 1]);
    }
#pragma unroll
    for (int c = 0; c < kKeyTiles; c += 2) {  // two channel tiles share their groups
      uint32_t b[NT][8];
      if constexpr (kCodes) {
        const std::byte* scales = parameters + (c * 16 >> a.group_shift) * kValueStride;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint4 v = *reinterpret_cast<const uint4*>(scales + (i * 4 + t) * 16);
#pragma unroll
          for (int n = 0; n < NT; ++n) {
            b[n][4 * i] = multiply(p[n][4 * i], v.x);
            b[n][4 * i + 1] = multiply(p[n][4 * i + 1], v.y);
            b[n][4 * i + 2] = multiply(p[n][4 * i + 2], v.z);
            b[n][4 * i + 3] = multiply(p[n][4 * i + 3], v.w);
          }
        }
      }
      uint32_t w[2 * kValueWords];
      load_words(w, codes + c * (kValueWords * 128));
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int j = 2 * k / kPairs, slot = 2 * k % kPairs;
#pragma unroll
        for (int d = 0; d < 2; ++d) {
          const int top = d * kValueWords, bottom = top + kValueWords / 2;
          const uint32_t a0 = fragment<VB>(w[top + j], slot);
          const uint32_t a1 = fragment<VB>(w[bottom + j], slot);
          const uint32_t a2 = fragment<VB>(w[top + j], slot + 1);
          const uint32_t a3 = fragment<VB>(w[bottom + j], slot + 1);
#pragma unroll
          for (int n = 0; n < NT; ++n) {
            if constexpr (kCodes)
              mma(o[n][c + d], a0, a1, a2, a3, b[n][2 * k], b[n][2 * k + 1]);
            else
              mma(o[n][c + d], a0, a1, a2, a3, p[n][2 * k], p[n][2 * k + 1]);
          }
        }
      }
    }
  }

  // After the last page: O from units of codes to numbers, minima added.
  __device__ __forceinline__ void close_pages() {
    if (!kCodes || !pages_open) return;
    pages_open = false;
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int c = 0; c < kKeyTiles; ++c) {
        const int source = (c * 16 >> a.group_shift) * 4 + t;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float minimum = __shfl_sync(0xffffffffu, x[n][j], source);
          constexpr float kUnit = 1 / (kCodeUnit * kValueNormal);
          o[n][c][j] = fmaf(o[n][c][j], kUnit, minimum);
          o[n][c][j + 2] = fmaf(o[n][c][j + 2], kUnit, minimum);
        }
      }
  }

  // A tile of 16 tokens, of which [low, end) count. Values are rows; keys are rows, or codes with
  // one group of parameters behind them (`coded`, tile `parity` of its pair).
  __device__ __forceinline__ void tile_unit(std::byte* stage, int low, int end, bool coded,
                                            int parity) {
    close_pages();
    float s[1][NT][4];
    float unit = 1;
    if (kCodes && coded) {
      if constexpr (kCodes) {
        float minimum[NT][4];
        std::byte* keys = stage + 16 * D;
        if constexpr (X) {
          Parameters p;
          if (a.byte_parameters)
            read_keys<true>(keys, 0, p);
          else
            read_keys<false>(keys, 0, p);
          keys += 4 * D;
          store_keys(keys, p);  // up to the values
          static_assert(4 * D + kValuePlanes <= 16 * D);
          __syncwarp();
          fence_before_async_copy();
        }
        minimum_product(minimum, keys, 0);
        uint32_t scaled[NT][kKeyTiles * 2];
        scale_queries(scaled, keys);
#pragma unroll
        for (int n = 0; n < NT; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) s[0][n][i] = minimum[n][i];
        key_tiles<1>(s, stage, kKeyWords == 2 ? parity : 0, scaled);
        unit = 1 / kCodeUnit;
      }
    } else {
      key_rows(s[0], stage);
    }
    const bool partial = low > 0 || end < kTileTokens;
    if (partial) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int token = r * 8 + g;
        if (token >= low && token < end) continue;
#pragma unroll
        for (int n = 0; n < NT; ++n) s[0][n][2 * r] = s[0][n][2 * r + 1] = -INFINITY;
      }
    }
    raise_maximum(s, unit);
    uint32_t p[NT][2];
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      probabilities(s[0][n], n, unit, p[n]);
      mma(x[n], kOnes, kOnes, kOnes, kOnes, p[n][0], p[n][1]);
    }
    // Rows that do not count may hold anything: they are masked away before the product.
    uint32_t keep[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = 8 * i + 2 * t;
      keep[i] = (token >= low && token < end ? 0xffffu : 0u) |
                (token + 1 >= low && token + 1 < end ? 0xffff0000u : 0u);
    }
    const int m = lane / 8, row = lane % 8 + (m / 2) * 8;
    const uint32_t rows = shared_address(stage) + 32 * D + row * 2 * D;
#pragma unroll
    for (int c = 0; c < kKeyTiles; ++c) {
      uint32_t v[4];
      load_matrices_transposed(v, rows + (((2 * c + m % 2) ^ (row % 8)) * 16));
      if (partial) v[0] &= keep[0], v[1] &= keep[0], v[2] &= keep[1], v[3] &= keep[1];
#pragma unroll
      for (int n = 0; n < NT; ++n) mma(o[n][c], v[0], v[1], v[2], v[3], p[n][0], p[n][1]);
    }
  }

  // s = K q^T of 16 rows.
  __device__ __forceinline__ void key_rows(float (&s)[NT][4], const std::byte* stage) const {
    const int m = lane / 8, row = lane % 8 + (m % 2) * 8;
    const uint32_t rows = shared_address(stage) + row * 2 * D;
    float odd[NT][4];  // two chains of products
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[n][i] = odd[n][i] = 0;
#pragma unroll
    for (int k = 0; k < kKeyTiles; k += 2) {
      uint32_t u[4], v[4];
      load_matrices(u, rows + (((2 * k + m / 2) ^ (row % 8)) * 16));
      load_matrices(v, rows + (((2 * k + 2 + m / 2) ^ (row % 8)) * 16));
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        mma(s[n], u[0], u[1], u[2], u[3], q[n][2 * k], q[n][2 * k + 1]);
        mma(odd[n], v[0], v[1], v[2], v[3], q[n][2 * k + 2], q[n][2 * k + 3]);
      }
    }
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[n][i] += odd[n][i];
  }

  __device__ __forceinline__ float sum_of(int n, int j) const {  // sum(P) of head 2t + j
    return __shfl_sync(0xffffffffu, x[n][j], 28 + t);
  }

  // The state in memory: float4 [n][channel tile][t][g] of O, then {maxima, sums} [n][4]; t only as
  // far as there are heads (2^pair_shift).
  __device__ __forceinline__ void store_partial(float4* to, int heads) const {
    const int pairs = 1 << a.pair_shift;
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      const float l0 = sum_of(n, 0), l1 = sum_of(n, 1);
      if (n * 8 + 2 * t >= heads) continue;
#pragma unroll
      for (int c = 0; c < kKeyTiles; ++c)
        to[((n * kKeyTiles + c) * pairs + t) * 8 + g] =
            make_float4(o[n][c][0], o[n][c][1], o[n][c][2], o[n][c][3]);
      if (g == 0)
        to[NT * kKeyTiles * pairs * 8 + n * 4 + t] =
            make_float4(maximum[n][0], maximum[n][1], l0, l1);
    }
  }

  __device__ __forceinline__ uint32_t pack(float u, float v) const {
    if (!a.out_bf16) return as_u32(__floats2half2_rn(u, v));
    __nv_bfloat162 y = __floats2bfloat162_rn(u, v);
    return *reinterpret_cast<uint32_t*>(&y);
  }

  // O / sum(P) of `heads` heads to 16-bit rows, d apart, from `to` on.
  __device__ __forceinline__ void store_output(uint16_t* to, int heads) const {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      const float i0 = 1 / sum_of(n, 0), i1 = 1 / sum_of(n, 1);
      uint16_t* row = to + (n * 8 + g) * D + 2 * t;
#pragma unroll
      for (int c = 0; c < kKeyTiles; ++c)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const uint32_t y = transpose(pack(o[n][c][2 * r] * i0, o[n][c][2 * r + 1] * i1));
          if (n * 8 + g < heads) *reinterpret_cast<uint32_t*>(row + c * 16 + r * 8) = y;
        }
    }
  }
};

// The copies of a warp's units, in the order in which it will use them.
template <int D, int KB, int VB, int NT, bool X>
struct DecodeProducer {
  static constexpr int kKeyTileBytes = 16 * D * KB / 8 < 512 ? 512 : 16 * D * KB / 8;

  const DecodeLaunch& a;
  Cursor cursor, end;
  Extent extent;
  int behind;  // units of the cursor's segment up to the piece's end
  const int32_t* table;
  int64_t kv_row;
  int slot;
  int page = 0;  // id of the page of the cursor's unit; read one unit ahead of its use

  __device__ __forceinline__ DecodeProducer(const DecodeLaunch& launch, Cursor first, Cursor last)
      : a(launch), cursor(first), end(last) {
    enter_segment();
  }

  __device__ __forceinline__ bool done() const { return cursor.unit == behind; }
  // The cursor's unit has the step's own token, which the kernel before writes.
  __device__ __forceinline__ bool at_own_token() const { return cursor.unit == extent.units() - 1; }

  __device__ __forceinline__ void enter_segment() {
    behind = cursor.unit;
    if (cursor == end) return;
    const StepSequence& s = a.sequences[cursor.sequence];
    extent = extent_of(a, s.past);
    behind = cursor.sequence == end.sequence && cursor.segment == end.segment ? end.unit
                                                                              : extent.units();
    table = a.page_table + s.pages_begin;
    kv_row = s.row_begin;
    slot = s.slot;
    look_up();
  }
  __device__ __forceinline__ void look_up() {
    int position = (extent.page_first + cursor.unit) * kUnitTokens;
    if (KB == 16 || cursor.unit >= extent.pages) {
      position = extent.tile_position(cursor.unit);
      if (KB < 16 && !extent.is_coded(position)) return;  // rows of the slab need no page
    }
    page = __ldg(table + (position >> a.page_shift));
  }

  __device__ __forceinline__ int head() const {
    return NT == 1 ? cursor.segment : cursor.segment / a.head_blocks;
  }
  __device__ __forceinline__ const std::byte* block() const {
    return a.pages + page * a.page_stride + int64_t(head()) * a.block_bytes;
  }
  // The cursor's unit is a page of 64 tokens.
  __device__ __forceinline__ bool at_page() const {
    return KB < 16 && cursor.unit < min(behind, extent.pages) && a.page_shift == 6;
  }
  // Starts the copy of that page and moves on. Segments do not end with a page.
  __device__ __forceinline__ void issue_page(const WarpCopy& copy, uint32_t stage) {
    copy.start_one(stage, block(), a.unit_bytes);
    if (++cursor.unit < behind) look_up();
  }

  // Starts the copies of the cursor's unit and moves on.
  __device__ __forceinline__ void issue(const WarpCopy& copy, uint32_t stage) {
    if (at_page()) return issue_page(copy, stage);
    issue_pieces(copy, stage, block(), head());
    if (++cursor.unit < behind) {
      look_up();
    } else if (cursor.unit == extent.units()) {
      cursor = next_segment(a, cursor);
      enter_segment();
    }
  }

  // Lane i < 4 has piece i of the unit: keys, values, and, where they are apart from these, key and
  // value parameters. The step's own token comes chunk by chunk, since rows are swizzled.
  __device__ __forceinline__ void issue_pieces(const WarpCopy& copy, uint32_t stage,
                                               const std::byte* block, int head) const {
    const int piece = copy.lane;
    const std::byte* from = block;
    const void* own = nullptr;
    int to = 0, bytes = 0, all, own_to = 0;
    if (KB < 16 && cursor.unit < extent.pages) {
      // Half of a 128-token page: its codes and value parameters, and the key parameters of both.
      all = a.unit_bytes;
      if (piece < 4) {
        const int half = (extent.page_first + cursor.unit) % 2;
        const int vc = a.stage_vp - a.stage_vc, vp = all - a.stage_vp;
        to = piece == 0 ? 0 : piece == 1 ? a.stage_vc : piece == 2 ? a.stage_kp : a.stage_vp;
        bytes = piece == 0 ? a.stage_kp : piece == 1 ? vc : piece == 2 ? a.key_group_bytes : vp;
        from += piece == 0   ? half * a.stage_kp
                : piece == 1 ? a.block_vc + half * vc
                : piece == 2 ? a.block_kp
                             : a.block_vp + half * vp;
      }
    } else {
      // Expanded parameters are written where this copy may go.
      if constexpr (X) fence_before_async_copy();
      const int position = extent.tile_position(cursor.unit);
      const int low = extent.tile_low(position), rows = min(position + 16, extent.past) - low;
      const int row_bytes = rows * 2 * D;
      int64_t values;
      if constexpr (KB == 16) {
        from += low % kUnitTokens * (2 * D);
        values = a.block_vc;
      } else {
        const bool sink = position < 0;
        from = a.residual + slot * a.slot_stride + int64_t(head) * a.slab_bytes +
               (sink ? a.sink_rows + (low + a.sinks) * (2 * D) : a.residual_row(low) * (2 * D));
        values = (sink ? a.sinks : a.residual_rows) * (2 * D);
      }
      const bool coded = KB < 8 && extent.is_coded(position);
      all = coded ? row_bytes + kKeyTileBytes + a.key_group_bytes : 2 * row_bytes;
      bytes = piece < 2 ? row_bytes : 0;
      to = (low - position) * 2 * D + piece * 32 * D;
      if (piece == 1) from += values;
      if (coded && piece != 1) {
        const int in_page = position & ((1 << a.page_shift) - 1);
        to = piece == 0 ? 0 : 16 * D;
        bytes = piece == 0 ? kKeyTileBytes : piece == 2 ? a.key_group_bytes : 0;
        from = block + (piece == 0 ? in_page * (D * KB / 8) / kKeyTileBytes * kKeyTileBytes
                                   : a.block_kp + (in_page >> a.group_shift) * a.key_group_bytes);
      }
      if (at_own_token()) {
        all += 4 * D;
        const int which = copy.lane / (D / 8), chunk = copy.lane % (D / 8);
        const int row = extent.past - position;
        if (which < 2)
          own = a.kv + kv_row * a.kv_stride + (head + which * a.kv_heads) * D + chunk * 8;
        own_to = which * 32 * D + row * 2 * D + (chunk ^ row % 8) * 16;
      }
    }
    copy.start(all, stage + to, from, bytes, stage + own_to, own);
  }
};

// The query heads of a segment: how many, and the first one's first channel in a row of q.
struct Heads {
  int count, channel;
};
template <int D, int NT>
__device__ __forceinline__ Heads heads_of(const DecodeLaunch& a, int segment) {
  const int head = NT == 1 ? segment : segment / a.head_blocks;
  const int first = NT == 1 ? 0 : segment % a.head_blocks * 8 * NT;
  return {min(8 * NT, a.ratio - first), (head * a.ratio + first) * D};
}

template <int D, int KB, int VB, int NT, bool X>
__global__ void __launch_bounds__(32 * decode_warps_max(D, NT), 1)
    kv_attend_decode(const __grid_constant__ DecodeLaunch a) {
  extern __shared__ __align__(128) std::byte shared[];
  // The shuffle lets the compiler see that the warp's number, and what follows from it, is uniform.
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int warp = __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0);
  const DecodeShared& at = a.at;
  auto* slots = reinterpret_cast<PartialSlot*>(shared + at.slots);
  std::byte* ring = shared + at.ring + warp * a.ring_bytes;
  const uint32_t barriers = shared_address(shared) + warp * a.stages * 8;

  let_next_start();
  const Piece piece = a.pieces[blockIdx.x * warps + warp];
  if (lane < a.stages) barrier_init(barriers + lane * 8, WarpCopy::kArrivals);
  if (threadIdx.x < 32) reinterpret_cast<uint32_t*>(shared + at.ones)[lane] = kOnes;
  if (lane < 2) slots[2 * warp + lane].id = -1;
  if (threadIdx.x < sizeof(Line) / 4)
    reinterpret_cast<uint32_t*>(shared + at.line)[threadIdx.x] =
        reinterpret_cast<const uint32_t*>(a.line)[threadIdx.x];
  const Line& line = *reinterpret_cast<const Line*>(shared + at.line);
  fence_before_async_copy();
  __syncthreads();

  if (!(piece.begin == piece.end)) {
    Cursor cursor = piece.begin;
    const Cursor end = piece.end;
    DecodeProducer<D, KB, VB, NT, X> producer(a, cursor, end);
    bool waited = producer.at_own_token();
    if (waited) wait_for_previous();
    DecodeWarp<D, KB, VB, NT, X> state(a, lane, shared + at.ones);
    // Of the cursor's segment. What only the ends of a segment need is computed there again: it
    // would take registers from the pages.
    int past = 0, pages = 0, page_first = 0, low = 0, values_end = 0;
    int begin = 0, behind = 0, row = 0;
    bool inside = false, fresh = false;  // in a segment; its state is not set up yet
    int in = 0, out = 0, in_flight = 0;  // stages
    uint32_t parity = 0;
    // One place each for starting copies, for a unit and for the ends of a segment: the code of the
    // kernel has to come through the instruction cache as well.
    while (true) {
      if (waited && !inside && (in_flight > 0 || !producer.done())) {
        inside = fresh = true;
        const StepSequence& sequence = a.sequences[cursor.sequence];
        const Extent extent = extent_of(a, sequence.past);
        row = sequence.row_begin;
        past = sequence.past, pages = extent.pages, page_first = extent.page_first;
        low = extent.low, values_end = extent.values_end;
        begin = cursor.unit;
        const bool stops = cursor.sequence == end.sequence && cursor.segment == end.segment;
        behind = stops ? end.unit : extent.units();
        const Heads h = heads_of<D, NT>(a, cursor.segment);
        state.load_queries(a.q + row * a.q_stride + h.channel, h.count);
      }
      if (in_flight < a.stages && !producer.done()) {
        producer.issue({barriers + in * 8, lane}, shared_address(ring + in * a.stage_bytes));
        in = in + 1 == a.stages ? 0 : in + 1;
        ++in_flight;
        if (!waited) wait_for_previous();  // one unit is on its way; q comes next
        waited = true;
        continue;
      }
      if (in_flight == 0) break;
      if (fresh) {
        fresh = false;
        state.begin();
      }
      // In the middle of a row of pages the next copy goes where the last unit was.
      bool goes_on, refilled;
      do {
        std::byte* data = ring + out * a.stage_bytes;
        const uint32_t barrier = barriers + out * 8;
        barrier_wait(barrier, parity);
        if (cursor.unit < pages) {
          const int first = (page_first + cursor.unit) * kUnitTokens;
          state.page_unit(data, ring + a.planes_base + out * a.planes_stride, max(0, low - first),
                          min(64, values_end - first));
        } else {
          const Extent extent = extent_of(a, past);
          const int first = extent.tile_position(cursor.unit);
          state.tile_unit(data, extent.tile_low(first) - first, min(16, extent.past + 1 - first),
                          extent.is_coded(first), first / kTileTokens % 2);
        }
        __syncwarp();
        if (++out == a.stages) out = 0, parity ^= 1;
        refilled = in_flight == a.stages && pages > a.refill_pages && producer.at_page();
        if (refilled) {
          producer.issue_page({barrier, lane}, shared_address(data));
          in = out;
        } else {
          --in_flight;
        }
        goes_on = ++cursor.unit < behind;
      } while (goes_on && refilled);
      if (goes_on) continue;

      inside = false;
      state.close_pages();
      const Extent extent = extent_of(a, past);
      const int units = extent.units();
      const auto [heads, channel] = heads_of<D, NT>(a, cursor.segment);
      if (begin == 0 && behind == units) {
        state.store_output(static_cast<uint16_t*>(a.out) + row * a.out_stride + channel, heads);
      } else {
        // What goes on in a later piece is the last thing this warp does: the ring is free.
        const int slot = begin == 0 ? 1 : 0;
        std::byte* to = slot == 1 ? ring : shared + at.partials + warp * at.partial_bytes;
        state.store_partial(reinterpret_cast<float4*>(to), heads);
        if (lane == 0) {
          const int weight = extent.weight(a);
          // What began earlier is the segment of the piece's begin, what goes on that of its end.
          const Piece& own = a.pieces[blockIdx.x * warps + warp];
          const int start = slot == 0 ? own.begin_start : own.end_start;
          slots[2 * warp + slot] = {cursor.sequence * (a.kv_heads * a.head_blocks) + cursor.segment,
                                    start,
                                    start + weight - a.tile_weight,
                                    row,
                                    heads,
                                    channel};
        }
      }
      if (behind == units) cursor = next_segment(a, cursor);
    }
  }
  wait_for_previous();
  __syncthreads();
  DecodeMerge<D, NT>{a, line}.run(
      slots, warps,
      [&](int slot) {
        return slot % 2 == 1 ? shared + at.ring + slot / 2 * a.ring_bytes
                             : shared + at.partials + slot / 2 * at.partial_bytes;
      },
      reinterpret_cast<int*>(shared + at.arrived));
}

}  // namespace kivi::cuda
