// SPDX-License-Identifier: Apache-2.0
// The state of one warp's softmax over a segment of decode attention, and how it leaves the warp:
// as a part that others merge, or as output (kv_attend_decode.cuh).
#pragma once

#include "kernels/cuda/decode_merge.cuh"
#include "kernels/cuda/decode_work.cuh"

namespace kivi::cuda {

// D: head_dim; NT: blocks of 8 query heads. Numbers are C fragments of products whose columns are
// heads: a lane has heads 2t and 2t + 1.
template <int D, int NT>
struct DecodeState {
  static constexpr int kTiles = D / 16;  // of channels

  const DecodeLaunch& a;
  const int lane;
  const int g = lane / 4, t = lane % 4;

  // Running maximum; O^T (channels x heads); row 7 of x is sum(P), rows below the number of value
  // groups sum(P * min).
  float maximum[NT][2], o[NT][kTiles][4], x[NT][4];

  __device__ __forceinline__ DecodeState(const DecodeLaunch& launch, int lane_index)
      : a(launch), lane(lane_index) {}

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
      for (int c = 0; c < kTiles; ++c)
        to[((n * kTiles + c) * pairs + t) * 8 + g] =
            make_float4(o[n][c][0], o[n][c][1], o[n][c][2], o[n][c][3]);
      if (g == 0)
        to[NT * kTiles * pairs * 8 + n * 4 + t] = make_float4(maximum[n][0], maximum[n][1], l0, l1);
    }
  }

  // Adds the states of attend_shared for this segment (DecodeLaunch::shared_where). The sums are
  // then in all lanes that have such heads.
  __device__ __forceinline__ void merge_shared(int2 where, int heads) {
    constexpr int kBatch = NT == 1 ? 4 : 2;  // states whose reads are under way at once
    const int count = where.y / kSharedRows;
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (n * 8 + j >= heads) continue;
        float l = sum_of(n, j);
        const int head = n * 8 + 2 * t + j;
        const float* slot = a.shared_slots + where.x * shared_slot_floats(D);
        const int row = where.y % kSharedRows + head;
#pragma unroll 1
        for (int first = 0; first < count; first += kBatch) {
          float2 s[kBatch];
          float4 v[kBatch][kTiles / 2];
#pragma unroll
          for (int i = 0; i < kBatch; ++i) {
            s[i] = make_float2(kNever, 0);
#pragma unroll
            for (int k = 0; k < kTiles / 2; ++k) v[i][k] = make_float4(0, 0, 0, 0);
            if (head < heads && first + i < count) {
              s[i] = __ldcg(reinterpret_cast<const float2*>(slot + kSharedRows * D) + row);
#pragma unroll
              for (int k = 0; k < kTiles / 2; ++k)
                v[i][k] = __ldcg(reinterpret_cast<const float4*>(slot + row * D) + k * 8 + g);
            }
            slot += shared_slot_floats(D);
          }
          float most = maximum[n][j];
#pragma unroll
          for (int i = 0; i < kBatch; ++i) most = fmaxf(most, s[i].x);
          const float own = exp2_fast(maximum[n][j] - most);
          maximum[n][j] = most;
          l *= own;
#pragma unroll
          for (int c = 0; c < kTiles; ++c) o[n][c][j] *= own, o[n][c][j + 2] *= own;
#pragma unroll
          for (int i = 0; i < kBatch; ++i) {
            const float other = exp2_fast(s[i].x - most);
            l = fmaf(s[i].y, other, l);
#pragma unroll
            for (int k = 0; k < kTiles / 2; ++k) {
              o[n][2 * k][j] = fmaf(v[i][k].x, other, o[n][2 * k][j]);
              o[n][2 * k][j + 2] = fmaf(v[i][k].y, other, o[n][2 * k][j + 2]);
              o[n][2 * k + 1][j] = fmaf(v[i][k].z, other, o[n][2 * k + 1][j]);
              o[n][2 * k + 1][j + 2] = fmaf(v[i][k].w, other, o[n][2 * k + 1][j + 2]);
            }
          }
        }
        x[n][j] = l;
      }
  }

  // O / sum(P) of `heads` heads to 16-bit rows, d apart, from `to` on.
  __device__ __forceinline__ void store_output(uint16_t* to, int heads) const {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      const float i0 = 1 / sum_of(n, 0), i1 = 1 / sum_of(n, 1);
      uint16_t* row = to + (n * 8 + g) * D + 2 * t;
#pragma unroll
      for (int c = 0; c < kTiles; ++c)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const uint32_t y =
              transpose(pack_output(a, o[n][c][2 * r] * i0, o[n][c][2 * r + 1] * i1));
          if (n * 8 + g < heads) *reinterpret_cast<uint32_t*>(row + c * 16 + r * 8) = y;
        }
    }
  }
};

}  // namespace kivi::cuda
