// SPDX-License-Identifier: Apache-2.0
// What one warpgroup computes in decode attention for many query heads on one KV head
// (kv_attend_decode_heads.cu): softmax and products of one segment, unit by unit.
#pragma once

#include "kernels/cuda/byte_parameters.cuh"
#include "kernels/cuda/decode_codes.cuh"
#include "kernels/cuda/decode_merge.cuh"
#include "kernels/cuda/decode_work.cuh"
#include "kernels/cuda/kv_attend_decode_heads.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace kivi::cuda::decode_heads {

inline constexpr int kD = kHeadsDim;
inline constexpr int kThreads = 128;  // of a warpgroup
inline constexpr int kRowBytes = 2 * kD;
inline constexpr float kOverflow = 64.f;  // P above this raises the maximum
inline constexpr int kTilesAtOnce = 4;    // 16-token tiles that a warpgroup takes as one unit

__device__ __forceinline__ void group_barrier(int group) {
  asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(kThreads) : "memory");
}
// The same, and whether `any` is true in any of the threads.
__device__ __forceinline__ bool group_barrier_or(int group, bool any) {
  int result;
  asm volatile(
      "{\n.reg .pred mine, all;\n"
      "setp.ne.b32 mine, %3, 0;\n"
      "barrier.cta.red.or.pred all, %1, %2, mine;\n"
      "selp.b32 %0, 1, 0, all;\n}"
      : "=r"(result)
      : "r"(1 + group), "n"(kThreads), "r"(int(any))
      : "memory");
  return result != 0;
}

// One warpgroup's attention over one segment. X: parameters may be bytes, and keys have a bias.
// NT: blocks of 8 query heads.
template <int NT, int KB, int VB, bool X>
struct HeadsGroup {
  using Shared = HeadsShared<NT, X>;
  static constexpr int kRows = 8 * NT;  // of an operand B

  const DecodeLaunch& a;
  const int group, warp, lane;
  const int g = lane / 4, t = lane % 4;
  std::byte* const memory;  // Shared's part of this warpgroup
  const uint32_t queries, probabilities;
  float* const maxima;    // [kRows], this warp's copy
  float* const exchange;  // [4][kRows]

  float o[4 * NT], sum[2 * NT];
  uint32_t keys[16], values[16];  // of a unit, operands A
  uint32_t squares[X ? 8 : 1];    // of a sixteenth of the keys' scales, two rows of operand A
  int low, end;                   // of this warp's 16 keys, [low, end) count
  int buffer = 0;                 // of P
  bool fresh = true;              // there is no maximum yet

  __device__ HeadsGroup(const DecodeLaunch& launch, int group_index, int warp_index, int lane_index,
                        std::byte* base)
      : a(launch),
        group(group_index),
        warp(warp_index),
        lane(lane_index),
        memory(base),
        queries(shared_address(base)),
        probabilities(queries + Shared::kProbabilities),
        maxima(reinterpret_cast<float*>(base + Shared::kMaxima) + warp_index * kRows),
        exchange(reinterpret_cast<float*>(base + Shared::kExchange)) {}

  // An empty state, and q of `heads` heads.
  __device__ __forceinline__ void begin(const __half* from, int heads) {
    // Of half of the heads, all reads are under way at once. More registers would be spilled.
    constexpr int kChunks = kD / 8, kRowsAtOnce = kThreads / kChunks;
    constexpr int kReads = NT == kHeadsTilesHalf ? (kRows + kRowsAtOnce - 1) / kRowsAtOnce : 1;
    const int chunk = int(threadIdx.x) % kChunks;
    for (int first = int(threadIdx.x) % kThreads / kChunks; first < kRows;
         first += kReads * kRowsAtOnce) {
      uint4 read[kReads];
#pragma unroll
      for (int i = 0; i < kReads; ++i) {
        const int row = first + i * kRowsAtOnce;
        read[i] = make_uint4(0, 0, 0, 0);
        if (row < heads) read[i] = *reinterpret_cast<const uint4*>(from + row * kD + chunk * 8);
      }
#pragma unroll
      for (int i = 0; i < kReads; ++i) {
        const int row = first + i * kRowsAtOnce;
        if (row >= kRows) break;
        const uint4 x = read[i];
        std::byte* to = memory + row * kRowBytes + (chunk ^ row % 8) * 16;
        *reinterpret_cast<uint4*>(to) = x;
        if constexpr (X)
          *reinterpret_cast<uint4*>(to + Shared::kOperandBytes) =
              make_uint4(bias_of(x.x), bias_of(x.y), bias_of(x.z), bias_of(x.w));
      }
    }
    for (int i = lane; i < kRows; i += 32) maxima[i] = kNever;
#pragma unroll
    for (int i = 0; i < 4 * NT; ++i) o[i] = 0;
#pragma unroll
    for (int i = 0; i < 2 * NT; ++i) sum[i] = 0;
    fresh = true;
    fence_before_async_copy();
    group_barrier(group);
  }

  // What the squares of two keys' scales are multiplied with.
  __device__ __forceinline__ uint32_t bias_of(uint32_t two) const {
    const float2 x = __half22float2(as_half2(two));
    const float factor = a.scale_log2 * a.bias;
    return as_u32(__floats2half2_rn(fmaxf(x.x * x.x * factor, -65504.f),
                                    fmaxf(x.y * x.y * factor, -65504.f)));
  }

  struct Parameters {
    uint32_t scale[4], minimum[4];
  };
  // Part `i` of two of the parameters of 64 keys' channels or values' tokens.
  template <int BITS>
  __device__ __forceinline__ void read_parameters(const std::byte* from, int i,
                                                  Parameters& p) const {
    if (X && a.byte_parameters) {
      const uint2 s = *reinterpret_cast<const uint2*>(from + (i * 4 + t) * 8);
      const uint2 m = *reinterpret_cast<const uint2*>(from + 64 + (i * 4 + t) * 8);
      expand_parameters(s.x, m.x, BITS == 2, p.scale, p.minimum);
      expand_parameters(s.y, m.y, BITS == 2, p.scale + 2, p.minimum + 2);
    } else {
      const uint4 s = *reinterpret_cast<const uint4*>(from + (i * 4 + t) * 16);
      const uint4 m = *reinterpret_cast<const uint4*>(from + 128 + (i * 4 + t) * 16);
      p.scale[0] = s.x, p.scale[1] = s.y, p.scale[2] = s.z, p.scale[3] = s.w;
      p.minimum[0] = m.x, p.minimum[1] = m.y, p.minimum[2] = m.z, p.minimum[3] = m.w;
    }
  }

  // Operand A of four steps of 16 k-positions from codes and the parameters of these positions, a
  // word of which holds pairs of one row. upper(j), lower(j): the words of rows g and g + 8 of A.
  // noted(i, p) sees the two parts of the parameters.
  template <int BITS, class WordOf, class OtherOf, class Noted>
  __device__ __forceinline__ void expand(uint32_t (&to)[16], WordOf upper, OtherOf lower,
                                         const std::byte* parameters, Noted noted) const {
    constexpr int kPairs = 16 / BITS;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      Parameters p;
      read_parameters<BITS>(parameters, i, p);
#pragma unroll
      for (int k = 2 * i; k < 2 * i + 2; ++k) {
        const int j = 2 * k / kPairs, slot = 2 * k % kPairs, x = k % 2 * 2;
        to[4 * k] = numbers<BITS>(upper(j), slot, p.scale[x], p.minimum[x]);
        to[4 * k + 1] = numbers<BITS>(lower(j), slot, p.scale[x], p.minimum[x]);
        to[4 * k + 2] = numbers<BITS>(upper(j), slot + 1, p.scale[x + 1], p.minimum[x + 1]);
        to[4 * k + 3] = numbers<BITS>(lower(j), slot + 1, p.scale[x + 1], p.minimum[x + 1]);
      }
      noted(i, p);
    }
  }

  // This lane's words of tile `tile` of 16 tokens (keys) or channels (values).
  template <int BITS>
  __device__ __forceinline__ void read_words(uint32_t (&w)[BITS], const std::byte* codes,
                                             int tile) const {
    if constexpr (BITS == 2) {
      const uint2 v =
          *reinterpret_cast<const uint2*>(codes + tile / 2 * 512 + lane * 16 + tile % 2 * 8);
      w[0] = v.x, w[1] = v.y;
    } else {
      const uint4 v = *reinterpret_cast<const uint4*>(codes + tile * 512 + lane * 16);
      w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
    }
  }

  // Keys of 16 tokens as operand A: `codes` of tile `tile` and the parameters of its group.
  __device__ __forceinline__ void expand_keys(const std::byte* codes, int tile,
                                              const std::byte* parameters) {
    uint32_t w[KB];
    read_words<KB>(w, codes, tile);
    expand<KB>(
        keys, [&](int j) { return w[2 * j]; }, [&](int j) { return w[2 * j + 1]; }, parameters,
        [&](int i, const Parameters& p) {
          if constexpr (X) {
#pragma unroll
            for (int x = 0; x < 4; ++x) {
              const uint32_t part = multiply(p.scale[x], 0x2c002c00u);  // 1/16
              squares[4 * i + x] = a.bias == 0 ? 0u : multiply(part, part);
            }
          }
        });
  }

  // This warp's 16 channels of the values of a page, as operand A.
  __device__ __forceinline__ void expand_values(const std::byte* codes,
                                                const std::byte* parameters) {
    uint32_t w[VB];  // upper rows of A, then lower ones
    read_words<VB>(w, codes, warp);
    expand<VB>(
        values, [&](int j) { return w[j]; }, [&](int j) { return w[VB / 2 + j]; },
        parameters + (warp * 16 >> a.group_shift) * (X && a.byte_parameters ? 128 : 256),
        [](int, const Parameters&) {});
  }

  // Both tokens of a register of values, at k-positions 2t and 2t + 1 from `first` on: all ones
  // where they count.
  __device__ __forceinline__ uint32_t keep(int first, int low, int end) const {
    const int token = first + 2 * t;
    return (token >= low && token < end ? 0xffffu : 0u) |
           (token + 1 >= low && token + 1 < end ? 0xffff0000u : 0u);
  }

  // Operands of a page of 64 tokens, of which [from, to) count.
  __device__ __forceinline__ void read_page(const std::byte* stage, int from, int to) {
    const std::byte* parameters =
        stage + a.stage_kp + (a.group == 32 ? warp / 2 * a.key_group_bytes : 0);
    expand_keys(stage, warp, parameters);
    expand_values(stage + a.stage_vc, stage + a.stage_vp);
    if (from > 0 || to < kUnitTokens) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const uint32_t mask = keep(8 * i, from, to);
        values[4 * (i / 2) + i % 2 * 2] &= mask;
        values[4 * (i / 2) + i % 2 * 2 + 1] &= mask;
      }
    }
    low = from - 16 * warp, end = to - 16 * warp;
  }

  // Operands of `count` tiles of 16 tokens from `unit` on; stage(i) is where the i-th lies.
  template <class StageOf>
  __device__ __forceinline__ void read_tiles(const Extent& extent, int unit, int count,
                                             StageOf stage) {
    low = end = 0;
    if constexpr (X) {
#pragma unroll
      for (int i = 0; i < 8; ++i) squares[i] = 0;
    }
    if (warp < count) {
      const int first = extent.tile_position(unit + warp);
      low = extent.tile_low(first) - first;
      end = min(16, extent.past + 1 - first);
      const std::byte* mine = stage(warp);
      if (extent.is_coded(first)) {
        expand_keys(mine, KB == 2 ? first / kTileTokens % 2 : 0, mine + 16 * kD);
      } else {
        const int m = lane / 8, row = lane % 8 + (m % 2) * 8;
        const uint32_t rows = shared_address(mine) + row * kRowBytes;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          uint32_t v[4];
          load_matrices(v, rows + (((2 * k + m / 2) ^ (row % 8)) * 16));
#pragma unroll
          for (int i = 0; i < 4; ++i) keys[4 * k + i] = v[i];
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < 16; ++i) keys[i] = 0;
    }
    const int m = lane / 8, row = lane % 8 + (m / 2) * 8;
#pragma unroll
    for (int k = 0; k < kTilesAtOnce; ++k) {
      uint32_t v[4] = {0, 0, 0, 0};
      if (k < count) {
        const int first = extent.tile_position(unit + k);
        const int from = extent.tile_low(first) - first, to = min(16, extent.past + 1 - first);
        const uint32_t rows = shared_address(stage(k)) + 16 * kRowBytes + row * kRowBytes;
        load_matrices_transposed(v, rows + (((2 * warp + m % 2) ^ (row % 8)) * 16));
        // Rows that do not count may hold anything.
        const uint32_t upper = keep(0, from, to), lower = keep(8, from, to);
        v[0] &= upper, v[1] &= upper, v[2] &= lower, v[3] &= lower;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) values[4 * k + i] = v[i];
    }
  }

  // S, P and the products of P with the values. `release` is called once the stages were read.
  template <class Release>
  __device__ __forceinline__ void attend(Release release) {
    const SharedOperand q(queries, 0, 8 * kRowBytes);
    const uint32_t to = probabilities + buffer * Shared::kOperandBytes;
    float s[4 * NT];
    bool raises = fresh;
    while (true) {
      wgmma_begin();
      pin(s);
#pragma unroll
      for (int k = 0; k < 4; ++k) wgmma_rows(s, keys + 4 * k, q.at(uint32_t(32 * k)), k > 0);
      if constexpr (X) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const uint32_t rows[4] = {squares[2 * k], squares[2 * k], squares[2 * k + 1],
                                    squares[2 * k + 1]};
          wgmma_rows(s, rows, q.at(uint32_t(Shared::kOperandBytes + 32 * k)), true);
        }
      }
      wgmma_commit();
      wgmma_wait<0>();
      pin(s);
      if (low > 0 || end < 16) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int token = r * 8 + g;
          if (token >= low && token < end) continue;
#pragma unroll
          for (int n = 0; n < NT; ++n) s[4 * n + 2 * r] = s[4 * n + 2 * r + 1] = -INFINITY;
        }
      }
      if (raises) raise_maximum(s);
      float2 m[NT];  // all reads at once
#pragma unroll
      for (int n = 0; n < NT; ++n) m[n] = *reinterpret_cast<const float2*>(maxima + n * 8 + 2 * t);
      __half2 most = __float2half2_rn(0);
      const int j = lane % 8, chunk = 2 * warp + lane / 8 % 2;
      const uint32_t row = to + (lane / 16 * 8 + j) * kRowBytes + (chunk ^ j) * 16;
#pragma unroll
      for (int n = 0; n < NT; n += 2) {
        uint32_t packed[4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (n + i == NT) break;
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            float& x = s[4 * (n + i) + 2 * r];
            float& y = s[4 * (n + i) + 2 * r + 1];
            x = exp2_fast(fmaf(x, a.scale_log2, -m[n + i].x));
            y = exp2_fast(fmaf(y, a.scale_log2, -m[n + i].y));
            const __half2 p = __floats2half2_rn(x, y);
            most = __hmax2(most, p);
            packed[2 * i + r] = as_u32(p);
          }
        }
        if (n + 1 < NT)
          store_matrices_transposed(row + n * 8 * kRowBytes, packed);
        else
          store_two_matrices_transposed(row + n * 8 * kRowBytes, packed);
      }
      fence_before_async_copy();
      const bool over = !raises && fmaxf(__low2float(most), __high2float(most)) > kOverflow;
      if (!group_barrier_or(group, over)) break;
      raises = true;
    }
    release();
    fresh = false;
    const SharedOperand p(to, 0, 8 * kRowBytes);
    wgmma_begin();
    pin(o);
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma_rows(o, values + 4 * k, p.at(uint32_t(32 * k)), true);
    wgmma_commit();
    buffer ^= 1;
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) sum[2 * n + j] += s[4 * n + j] + s[4 * n + 2 + j];
    wgmma_wait<0>();
    pin(o);
  }

  // Raises the maxima to those of `s`. All warps of the group; no product is under way.
  __device__ __forceinline__ void raise_maximum(const float (&s)[4 * NT]) {
    float2 before[NT];
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      before[n] = *reinterpret_cast<const float2*>(maxima + n * 8 + 2 * t);
      float x = fmaxf(s[4 * n], s[4 * n + 2]), y = fmaxf(s[4 * n + 1], s[4 * n + 3]);
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) {
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, mask));
        y = fmaxf(y, __shfl_xor_sync(0xffffffffu, y, mask));
      }
      if (g == 0)
        *reinterpret_cast<float2*>(exchange + warp * kRows + n * 8 + 2 * t) =
            make_float2(x * a.scale_log2, y * a.scale_log2);
    }
    group_barrier(group);
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      float2 most = before[n];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float2 x = *reinterpret_cast<const float2*>(exchange + w * kRows + n * 8 + 2 * t);
        most.x = fmaxf(most.x, x.x), most.y = fmaxf(most.y, x.y);
      }
      const float u = exp2_fast(before[n].x - most.x), v = exp2_fast(before[n].y - most.y);
      sum[2 * n] *= u, sum[2 * n + 1] *= v;
      o[4 * n] *= u, o[4 * n + 1] *= v, o[4 * n + 2] *= u, o[4 * n + 3] *= v;
      if (g == 0) *reinterpret_cast<float2*>(maxima + n * 8 + 2 * t) = most;
    }
    __syncwarp();
  }

  // After the last unit of a segment: sums of all tokens, in every lane.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int mask = 4; mask < 32; mask *= 2) {
        sum[2 * n] += __shfl_xor_sync(0xffffffffu, sum[2 * n], mask);
        sum[2 * n + 1] += __shfl_xor_sync(0xffffffffu, sum[2 * n + 1], mask);
      }
      if (g == 0)
        *reinterpret_cast<float2*>(exchange + warp * kRows + n * 8 + 2 * t) =
            make_float2(sum[2 * n], sum[2 * n + 1]);
    }
    group_barrier(group);
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      sum[2 * n] = sum[2 * n + 1] = 0;
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float2 x = *reinterpret_cast<const float2*>(exchange + w * kRows + n * 8 + 2 * t);
        sum[2 * n] += x.x, sum[2 * n + 1] += x.y;
      }
    }
  }

  // The state in memory, as DecodeMerge reads it.
  __device__ __forceinline__ void store_partial(float4* to, int heads) const {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      if (n * 8 + 2 * t >= heads) continue;
      to[((n * 4 + warp) * 4 + t) * 8 + g] =
          make_float4(o[4 * n], o[4 * n + 1], o[4 * n + 2], o[4 * n + 3]);
      if (warp == 0 && g == 0) {
        const float2 m = *reinterpret_cast<const float2*>(maxima + n * 8 + 2 * t);
        to[NT * 128 + n * 4 + t] = make_float4(m.x, m.y, sum[2 * n], sum[2 * n + 1]);
      }
    }
  }

  // O / sum(P) of `heads` heads to 16-bit rows, kD apart, from `to` on.
  __device__ __forceinline__ void store_output(uint16_t* to, int heads) const {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      const float u = 1 / sum[2 * n], v = 1 / sum[2 * n + 1];
      uint16_t* row = to + (n * 8 + g) * kD + warp * 16 + 2 * t;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint32_t y =
            transpose(pack_output(a, o[4 * n + 2 * r] * u, o[4 * n + 2 * r + 1] * v));
        if (n * 8 + g < heads) *reinterpret_cast<uint32_t*>(row + r * 8) = y;
      }
    }
  }
};

}  // namespace kivi::cuda::decode_heads
