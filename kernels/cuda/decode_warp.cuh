// SPDX-License-Identifier: Apache-2.0
// What one warp of decode attention computes (kv_attend_decode.cuh): softmax and products of one
// segment, unit by unit.
#pragma once

#include "kernels/cuda/decode_codes.cuh"
#include "kernels/cuda/decode_planes.cuh"
#include "kernels/cuda/decode_state.cuh"

namespace kivi::cuda {

inline constexpr float kLazyMaximum = 2.f;  // log2: P may reach 4 before the maximum moves

// One warp's attention over one segment. D: head_dim; KB, VB: bits of keys and values; NT: blocks
// of 8 query heads; X: parameters may be bytes, and keys have a bias. G32: groups have 32 numbers,
// and with X, parameters are bytes. Then the offsets in a stage are constants. FOUR (with G32): a
// KV head has at most four query heads. Each of them has two columns of operand B, one for each
// token group of a unit.
template <int D, int KB, int VB, int NT, bool X, bool G32 = false, bool FOUR = false>
struct DecodeWarp : DecodeState<D, NT> {
  static_assert(!FOUR || (G32 && NT == 1));
  static constexpr int kKeyTiles = D / 16;
  static constexpr int kKeyWords = KB == 16 ? 4 : 2 * ((D * KB + 127) / 128);  // a lane and tile
  static constexpr int kValueWords = VB == 16 ? 4 : VB;  // a lane and channel tile
  static constexpr bool kCodes = KB < 8;                 // has scales and minima
  using Planes = DecodePlanes<D, KB, VB, X>;
  using Stage = DecodeStage<D, KB, VB, X, G32>;

  using State = DecodeState<D, NT>;
  using State::a, State::lane, State::g, State::t;
  using State::maximum, State::o, State::x;

  const std::byte* ones;  // 16 bytes of 1.0 in shared memory

  static constexpr bool kWeighs = kCodes && !X;                      // scales are used as they lie
  static constexpr float kKeyNormal = X ? Planes::kKeyNormal : 1.f;  // scales of keys carry it
  static constexpr float kKeyUnit = 1 / (kCodeUnit * kKeyNormal);

  // Head size 64 has no registers for a second copy of q (but with FOUR), and 128 has more spills
  // without it.
  static constexpr bool kCopies = kWeighs && (D == 128 || FOUR);

  // The other kernels gained nothing from it, or spilled and took up to 3 % longer.
  static constexpr bool kSums = X && D == 128;

  // The head whose column (operand B) or row (operand A) lane g has, and the token group of a page
  // whose logits it is for. With FOUR, the products with 16-bit rows have each head twice.
  __device__ __forceinline__ int head_of(int n) const { return FOUR ? g % 4 : n * 8 + g; }
  __device__ __forceinline__ bool has_second() const { return FOUR && g >= 4; }

  // q in operand B's order, times a power of two for each head (and times 4^-p where kWeighs and
  // not kCopies); the same times 4^-p; what 1/256 of the square of a scale is multiplied with for
  // the key bias.
  uint32_t q[NT][kKeyTiles * 2], qw[kCopies ? NT : 1][kCopies ? kKeyTiles * 2 : 1],
      qb[X ? NT : 1][X ? kKeyTiles * 2 : 1];
  float factor[NT][2];  // from C to the logit in log2, heads 2t and 2t + 1
  bool pages_open;      // o is in units of codes

  __device__ __forceinline__ DecodeWarp(const DecodeLaunch& launch, int lane_index,
                                        const std::byte* ones_row)
      : State(launch, lane_index), ones(ones_row) {}

  // Starts to read q of `heads` heads from `from`, d apart. Lanes of other heads read the first
  // one: begin() makes zeros of it. EARLY: the kernel that wrote q has ended before this one began.
  template <bool EARLY>
  __device__ __forceinline__ void load_queries(const __half* from, int heads) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      const int head = head_of(n) < heads ? head_of(n) : 0;
      const uint32_t* row = reinterpret_cast<const uint32_t*>(from + head * D + 2 * t);
#pragma unroll
      for (int i = 0; i < kKeyTiles * 2; ++i) q[n][i] = EARLY ? __ldcg(row + i * 4) : row[i * 4];
    }
  }

  // An empty state; q gets its normalizers.
  __device__ __forceinline__ void begin(int heads) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      __half2 most = __habs2(as_half2(q[n][0]));
#pragma unroll
      for (int i = 1; i < kKeyTiles * 2; ++i) most = __hmax2(most, __habs2(as_half2(q[n][i])));
      most = __hmax2(most, as_half2(__shfl_xor_sync(0xffffffffu, as_u32(most), 1)));
      most = __hmax2(most, as_half2(__shfl_xor_sync(0xffffffffu, as_u32(most), 2)));
      const float largest = __half2float(__hmax(__low2half(most), __high2half(most)));
      // Brings the largest |q| times kKeyNormal into [8, 16), if that takes no more than 2^15.
      constexpr int kLargest = 130 - (kKeyNormal == 1.f ? 0 : 4);
      static_assert(kKeyNormal == 1.f || kKeyNormal == 16.f);
      const int exponent = min(15, kLargest - int(__float_as_uint(largest) >> 23));
      const float normal = __uint_as_float(uint32_t(127 + exponent) << 23);
      const uint32_t normal2 = as_u32(__float2half2_rn(head_of(n) < heads ? normal : 0.f));
      // Over `normal`, a power of two.
      const float f = a.scale_log2 * __uint_as_float(uint32_t(127 - exponent) << 23);
      const uint32_t bias = as_u32(__float2half2_rn(f * a.bias));
#pragma unroll
      for (int i = 0; i < kKeyTiles * 2; ++i) {
        q[n][i] = multiply(q[n][i], normal2);
        if constexpr (kCopies)
          qw[n][i] = multiply(q[n][i], pair_weight(KB, i, 1.f));
        else if constexpr (kWeighs)
          q[n][i] = multiply(q[n][i], pair_weight(KB, i, 1.f));
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
  // below 2^kLazyMaximum and no shuffle is needed in most units. s: C fragments of TILES tiles, two
  // for each lift.
  template <int TILES>
  __device__ __forceinline__ void raise_maximum(const float (&s)[TILES][NT][4], float unit,
                                                const float (&lift)[2][NT][2]) {
    bool passed = false;
    float top[NT][2];
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        constexpr int kSpan = TILES == 1 ? 1 : 2;
#pragma unroll
        for (int first = 0; first < TILES; first += kSpan) {
          float most = fmaxf(s[first][n][j], s[first][n][j + 2]);
          if (kSpan == 2)
            most = fmaxf(most, fmaxf(s[first + kSpan - 1][n][j], s[first + kSpan - 1][n][j + 2]));
          most = fmaf(most, factor[n][j] * unit, lift[first / 2][n][j]);
          top[n][j] = first == 0 ? most : fmaxf(top[n][j], most);
        }
        passed |= top[n][j] > maximum[n][j] + kLazyMaximum;
      }
    if (!__any_sync(0xffffffffu, passed)) return;
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float most = top[n][j];
#pragma unroll
        for (int mask = FOUR ? 2 : 4; mask < 32; mask *= 2)
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
                                                const float (&lift)[NT][2],
                                                uint32_t (&b)[2]) const {
    const float f0 = factor[n][0] * unit, f1 = factor[n][1] * unit;
    const float d0 = lift[n][0] - maximum[n][0], d1 = lift[n][1] - maximum[n][1];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      b[i] = transpose(as_u32(__floats2half2_rn(exp2_fast(fmaf(s[2 * i], f0, d0)),
                                                exp2_fast(fmaf(s[2 * i + 1], f1, d1)))));
  }

  // What the minima of two token groups, and their key bias, add to the logits (log2) of heads 2t
  // and 2t + 1 (FOUR: lift[0] is that of the columns 2t and 2t + 1): q is operand A, whose rows are
  // the heads, and the parameters are operand B, a column for each group. `minima`: their plane
  // (X), or those of the first group; those of the second one are `second` bytes behind.
  __device__ __forceinline__ void find_lifts(float (&lift)[2][NT][2], const std::byte* minima,
                                             int second) const {
    float part[NT][2][4] = {};  // two chains of products
    const std::byte* column = minima + t * 16 + (X ? g % 4 * (2 * D) : g % 2 * second);
    const int swapped = X ? g % 2 * 64 : 0;
#pragma unroll
    for (int i = 0; i < kKeyTiles / 2; ++i) {
      const std::byte* block = (i % 2 == 0 ? column + swapped : column - swapped) + i * 64;
      const uint4 v = *reinterpret_cast<const uint4*>(block);
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        const uint32_t of_q[4] = {plain(n, 4 * i), plain(n, 4 * i + 1), plain(n, 4 * i + 2),
                                  plain(n, 4 * i + 3)};
        if constexpr (X) {
          // Rows 0 to 7 are q, rows 8 to 15 what squares are multiplied with; columns 0 and 1 are
          // minima, columns 2 and 3 squares.
          const uint32_t* of_bias = qb[n] + 4 * i;
          mma(part[n][0], of_q[0], of_bias[0], of_q[1], of_bias[1], v.x, v.y);
          mma(part[n][1], of_q[2], of_bias[2], of_q[3], of_bias[3], v.z, v.w);
        } else {
          // Rows 0 to 7 have the channels of the first product, rows 8 to 15 those of the second:
          // no register has to be moved.
          mma(part[n][0], of_q[0], of_q[2], of_q[1], of_q[3], v.x, v.y);
          mma(part[n][1], of_q[0], of_q[2], of_q[1], of_q[3], v.z, v.w);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      float of[2];  // both groups: of head g, in all lanes t (X: one half, the other in lane t ^ 1)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if constexpr (X)
          of[j] = select(t % 2 == 0, part[n][0][j] + part[n][1][j],
                         part[n][0][2 + j] + part[n][1][2 + j]);
        else
          of[j] = part[n][0][j] + part[n][1][2 + j];
      }
      if constexpr (FOUR) of[0] = select(has_second(), of[1], of[0]);
#pragma unroll
      for (int j = 0; j < (FOUR ? 1 : 2); ++j) {
        if constexpr (X) of[j] += __shfl_xor_sync(0xffffffffu, of[j], 1);
#pragma unroll
        for (int h = 0; h < 2; ++h)
          lift[j][n][h] = __shfl_sync(0xffffffffu, of[j], 8 * t + 4 * h) * factor[n][h];
      }
    }
  }

  // q' = q * 4^-p * scale of one key group. `scales`: its scales, or its plane of scales (X).
  __device__ __forceinline__ void scale_queries(uint32_t (&scaled)[NT][kKeyTiles * 2],
                                                const std::byte* scales) const {
#pragma unroll
    for (int i = 0; i < kKeyTiles / 2; ++i) {
      const uint4 v = *reinterpret_cast<const uint4*>(scales + (i * 4 + t) * 16);
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        const uint32_t of_q[4] = {weighted(n, 4 * i), weighted(n, 4 * i + 1),
                                  weighted(n, 4 * i + 2), weighted(n, 4 * i + 3)};
        scale_pairs<KB, kSums>(scaled[n] + 4 * i, of_q, v, 4 * i);
      }
    }
  }

  __device__ __forceinline__ uint32_t weighted(int n, int i) const {
    if constexpr (kCopies)
      return qw[n][i];
    else
      return q[n][i];
  }
  // q without 4^-p. It is volatile so that the compiler makes no second copy ahead of the units.
  __device__ __forceinline__ uint32_t plain(int n, int i) const {
    if (!kWeighs || kCopies || power_of_pair(KB, i) == 0) return q[n][i];
    const uint32_t power = as_u32(__float2half2_rn(float(1 << KB * power_of_pair(KB, i))));
    uint32_t y;
    asm volatile("mul.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(q[n][i]), "r"(power));
    return y;
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
        const uint32_t a0 = fragment<KB, kSums>(w[i][2 * j], slot);
        const uint32_t a1 = fragment<KB, kSums>(w[i][2 * j + 1], slot);
        const uint32_t a2 = fragment<KB, kSums>(w[i][2 * j], slot + 1);
        const uint32_t a3 = fragment<KB, kSums>(w[i][2 * j + 1], slot + 1);
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
      const int groups = (D >> Stage::group_shift(a));
      for (int token = lane; token < kUnitTokens; token += 32)
        if (token < low || token >= end)
          for (int i = 0; i < groups; ++i) {
            std::byte* scale = parameters + i * Planes::kValueStride + lane_parameter(token) * 2;
            *reinterpret_cast<uint16_t*>(scale) = 0;
            *reinterpret_cast<uint16_t*>(scale + Planes::kValueToMinima) = 0;
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
        auto* words = reinterpret_cast<uint4*>(stage + Stage::value_codes(a) + i * 512 + lane * 16);
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
      float s[4][NT][4] = {}, lift[2][NT][2] = {};
      std::byte *keys = stage + Stage::key_parameters(a),
                *values = stage + Stage::value_parameters(a);
      if constexpr (kCodes) {
        int second = Stage::second_group(a);  // bytes to the second token group
        if constexpr (X) {
          const int groups = D >> Stage::group_shift(a);
          if (Stage::has_bytes(a))
            Planes::template expand<true>(keys, second, values, groups, lane, planes);
          else
            Planes::template expand<false>(keys, second, values, groups, lane, planes);
          keys = planes, values = planes + Planes::kValuePlanes;
          second = 2 * D;
          __syncwarp();
        }
        find_lifts(lift, keys + Planes::kMinima, second);
        if constexpr (FOUR) {
          uint32_t scaled[NT][kKeyTiles * 2];
          scale_queries(scaled, has_second() ? keys + second : keys);
#pragma unroll
          for (int h = 0; h < 2; ++h) key_tiles<2>(s + 2 * h, stage, 2 * h, scaled);
        } else {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            uint32_t scaled[NT][kKeyTiles * 2];
            scale_queries(scaled, keys + h * second);
            key_tiles<2>(s + 2 * h, stage, 2 * h, scaled);
          }
        }
      } else {
#pragma unroll
        for (int i = 0; i < 4; i += 2) key_tiles<2>(s + i, stage, i, q);
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
          // Parameters of a group without a token that counts may be anything.
#pragma unroll
        for (int j = 0; j < (FOUR ? 1 : 2); ++j) {
          const int group = FOUR ? t / 2 : j;
          if (low < 32 * (group + 1) && end > 32 * group) continue;
#pragma unroll
          for (int n = 0; n < NT; ++n) lift[j][n][0] = lift[j][n][1] = 0;
        }
      }
      constexpr float kUnit = kCodes ? kKeyUnit : 1.f;
      uint32_t p[NT][8];
      if constexpr (FOUR) {
        // Columns below 4 count of the first group's tiles, the others of the second group's.
        float both[2][NT][4];
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int r = 0; r < 4; ++r) both[i][0][r] = select(t < 2, s[i][0][r], s[i + 2][0][r]);
        raise_maximum(both, kUnit, lift);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          uint32_t b[2];
          probabilities(both[i][0], 0, kUnit, lift[0], b);
          // The second group's P moves to the heads' columns. In the other columns P belongs to
          // other tokens than the values do: nobody reads what they make.
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            p[0][2 * i + r] = b[r];
            p[0][2 * i + r + 4] = __shfl_xor_sync(0xffffffffu, b[r], 16);
          }
        }
      } else {
        raise_maximum(s, kUnit, lift);
#pragma unroll
        for (int n = 0; n < NT; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            uint32_t b[2];
            probabilities(s[i][n], n, kUnit, lift[i / 2], b);
            p[n][2 * i] = b[0], p[n][2 * i + 1] = b[1];
          }
      }
      page_values(stage, values, p);
      pages_open = true;
    }
  }

  // O^T += V^T P^T of 64 quantized tokens.
  __device__ __forceinline__ void page_values(const std::byte* stage, const std::byte* parameters,
                                              uint32_t (&p)[NT][8]) {
    const std::byte* codes = stage + Stage::value_codes(a) + lane * 16;
    constexpr int kPairs = 16 / VB;  // of a word
    if constexpr (kCodes) {
      // Rows below the number of value groups are their minima, the others ones.
      const bool group_row = g < (D >> Stage::group_shift(a));
      const std::byte* row =
          group_row ? parameters + g * Planes::kValueStride + Planes::kValueToMinima + t * 16
                    : ones;
      const int next = group_row ? 64 : 0;
      float lower[NT][4] = {};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint4 v = *reinterpret_cast<const uint4*>(row + i * next);
#pragma unroll
        for (int n = 0; n < NT; ++n) {
          // A is four pairs, two for the upper and two for the lower rows of C. What they make of
          // each other's P ends up in the rows that are not read: no register has to be moved.
          mma(x[n], v.x, v.y, v.z, v.w, p[n][4 * i], p[n][4 * i + 2]);
          mma(lower[n], v.x, v.y, v.z, v.w, p[n][4 * i + 1], p[n][4 * i + 3]);
        }
      }
#pragma unroll
      for (int n = 0; n < NT; ++n) x[n][0] += lower[n][2], x[n][1] += lower[n][3];
      if constexpr (!X) {  // planes have the weights already
#pragma unroll
        for (int n = 0; n < NT; ++n)
#pragma unroll
          for (int i = 0; i < 8; ++i) p[n][i] = multiply(p[n][i], pair_weight(VB, i, kValueNormal));
      }
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
        const std::byte* scales =
            parameters + (c * 16 >> Stage::group_shift(a)) * Planes::kValueStride;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint4 v = *reinterpret_cast<const uint4*>(scales + (i * 4 + t) * 16);
#pragma unroll
          for (int n = 0; n < NT; ++n) scale_pairs<VB, kSums>(b[n] + 4 * i, p[n] + 4 * i, v, 4 * i);
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
          const uint32_t a0 = fragment<VB, kSums>(w[top + j], slot);
          const uint32_t a1 = fragment<VB, kSums>(w[bottom + j], slot);
          const uint32_t a2 = fragment<VB, kSums>(w[top + j], slot + 1);
          const uint32_t a3 = fragment<VB, kSums>(w[bottom + j], slot + 1);
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
      for (int c = 0; c < kKeyTiles; c += 2) {  // two channel tiles share their groups
        const int source = (c * 16 >> Stage::group_shift(a)) * 4 + t;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float minimum = __shfl_sync(0xffffffffu, x[n][j], source);
          constexpr float kUnit = 1 / (kCodeUnit * kValueNormal);
#pragma unroll
          for (int i = c; i < c + 2; ++i) {
            o[n][i][j] = fmaf(o[n][i][j], kUnit, minimum);
            o[n][i][j + 2] = fmaf(o[n][i][j + 2], kUnit, minimum);
          }
        }
      }
  }

  // A tile of 16 tokens, of which [low, end) count. Values are rows; keys are rows, or codes with
  // one group of parameters behind them (`coded`, tile `parity` of its pair).
  __device__ __forceinline__ void tile_unit(std::byte* stage, int low, int end, bool coded,
                                            int parity) {
    close_pages();
    float s[1][NT][4] = {}, lift[2][NT][2] = {};
    float unit = 1;
    if (kCodes && coded) {
      if constexpr (kCodes) {
        std::byte* keys = stage + 16 * D;
        if constexpr (X) {
          std::byte* planes = keys + 4 * D;  // up to the values
          if (Stage::has_bytes(a))
            Planes::template expand_keys<true>(keys, 0, lane, planes);
          else
            Planes::template expand_keys<false>(keys, 0, lane, planes);
          keys = planes;
          static_assert(4 * D + Planes::kValuePlanes <= 16 * D);
          __syncwarp();
          fence_before_async_copy();
        }
        find_lifts(lift, keys + Planes::kMinima, 0);
        uint32_t scaled[NT][kKeyTiles * 2];
        scale_queries(scaled, keys);
        key_tiles<1>(s, stage, kKeyWords == 2 ? parity : 0, scaled);
        unit = kKeyUnit;
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
    raise_maximum(s, unit, lift);
    uint32_t p[NT][2];
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      probabilities(s[0][n], n, unit, lift[0], p[n]);
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
    const uint32_t rows = shared_address(stage) + 32 * D + row * 2 * D + (m % 2 ^ row % 8) * 16;
#pragma unroll
    for (int c = 0; c < kKeyTiles; ++c) {
      uint32_t v[4];
      load_matrices_transposed(v, (rows ^ 2 * c % 8 * 16) + 2 * c / 8 * 128);
      if (partial) v[0] &= keep[0], v[1] &= keep[0], v[2] &= keep[1], v[3] &= keep[1];
#pragma unroll
      for (int n = 0; n < NT; ++n) mma(o[n][c], v[0], v[1], v[2], v[3], p[n][0], p[n][1]);
    }
  }

  // s = K q^T of 16 rows. find_lifts decides which words of q lie side by side in registers: none
  // (X), or words that are two apart. The products here take them as they lie.
  __device__ __forceinline__ void key_rows(float (&s)[NT][4], const std::byte* stage) const {
    constexpr int kApart = kWeighs ? 2 : 1;  // the 8-channel chunks of one product
    const int m = lane / 8, row = lane % 8 + (m % 2) * 8;
    // Chunk c lies at c ^ row % 8; 8 chunks are 128 bytes, to which stages are aligned.
    const uint32_t rows = shared_address(stage) + row * 2 * D + (m / 2 * kApart ^ row % 8) * 16;
    float odd[NT][4] = {};  // two chains of products
#pragma unroll
    for (int k = 0; k < kKeyTiles * 2; k += 4) {
      uint32_t u[4], v[4];
      load_matrices(u, (rows ^ k % 8 * 16) + k / 8 * 128);
      load_matrices(v, (rows ^ (k % 8 + 3 - kApart) * 16) + k / 8 * 128);
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        if constexpr (X) {
          mma_k8(s[n], u[0], u[1], q[n][k]);
          mma_k8(odd[n], u[2], u[3], q[n][k + 1]);
          mma_k8(s[n], v[0], v[1], q[n][k + 2]);
          mma_k8(odd[n], v[2], v[3], q[n][k + 3]);
        } else {
          mma(s[n], u[0], u[1], u[2], u[3], plain(n, k), plain(n, k + kApart));
          mma(odd[n], v[0], v[1], v[2], v[3], plain(n, k + 3 - kApart), plain(n, k + 3));
        }
      }
    }
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[n][i] += odd[n][i];
  }
};

}  // namespace kivi::cuda
