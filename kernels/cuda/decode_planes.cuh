// SPDX-License-Identifier: Apache-2.0
// The parameters of a unit as planes of f16, for formats whose parameters have 8 bits or whose keys
// have a bias (docs/design/decode-attention.md, section 4).
#pragma once

#include "kernels/cuda/byte_parameters.cuh"
#include "kernels/cuda/decode_codes.cuh"
#include "kernels/cuda/decode_work.cuh"
#include "kernels/cuda/ptx.cuh"

namespace kivi::cuda {

// What a warp expands. D: head_dim; KB, VB: bits of keys and values; X: there are planes, else the
// offsets are those of a page's own parameters.
template <int D, int KB, int VB, bool X>
struct DecodePlanes {
  // Where a unit's parameters lie once they are f16: scales of two groups of keys, minima of both,
  // squares of their scales, then scales and minima of the values. In those of the second group the
  // 64-byte halves of each 128 bytes are exchanged, so that lanes that read both groups find them
  // in different banks.
  static constexpr int kMinima = X ? 4 * D : 2 * D, kValuePlanes = 12 * D;
  static constexpr int kSwapped = 64;
  static constexpr int kValueMinima = 4 * D;
  // From a group of values to the next, and from its scales to its minima.
  static constexpr int kValueStride = X ? 128 : 256, kValueToMinima = X ? kValueMinima : 128;

  // A lane has eight consecutive numbers of a plane. They are four pairs, of two tiles of channels
  // (keys) or tokens (values). With head size 128 all lanes have eight of the keys and then eight
  // of the values. With 64 one half of the lanes has keys and the other half values, at once.
  static constexpr int kKeyLanes = D / 4;  // two groups of keys
  static constexpr bool kTogether = D == 64;
  // Scales of keys carry this as well, so that both halves of the lanes do the same.
  static constexpr float kKeyNormal = kTogether ? kValueNormal : 1.f;

  struct Parameters {
    uint32_t scale[4], minimum[4];
  };

  // Eight scales from `from` on, and the minima, which are `apart` numbers behind them.
  template <bool BYTES>
  static __device__ __forceinline__ Parameters read(const std::byte* from, int apart,
                                                    bool two_bits) {
    Parameters p;
    if constexpr (BYTES) {
      const uint2 u = *reinterpret_cast<const uint2*>(from);
      const uint2 v = *reinterpret_cast<const uint2*>(from + apart);
      expand_parameters(u.x, v.x, two_bits, p.scale, p.minimum);
      expand_parameters(u.y, v.y, two_bits, p.scale + 2, p.minimum + 2);
    } else {
      const uint4 u = *reinterpret_cast<const uint4*>(from);
      const uint4 v = *reinterpret_cast<const uint4*>(from + 2 * apart);
      p.scale[0] = u.x, p.scale[1] = u.y, p.scale[2] = u.z, p.scale[3] = u.w;
      p.minimum[0] = v.x, p.minimum[1] = v.y, p.minimum[2] = v.z, p.minimum[3] = v.w;
    }
    return p;
  }
  static __device__ __forceinline__ void store(std::byte* to, const uint32_t (&v)[4]) {
    *reinterpret_cast<uint4*>(to) = make_uint4(v[0], v[1], v[2], v[3]);
  }
  // The scales with the powers of two of their pairs. BITS: of the codes; NORMAL: 1 or 16.
  template <int BITS, int NORMAL>
  static __device__ __forceinline__ void store_scales(std::byte* to, const Parameters& p) {
    uint32_t weighted[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      weighted[i] = NORMAL == 1 << (BITS * power_of_pair(BITS, i))
                        ? p.scale[i]
                        : multiply(p.scale[i], pair_weight(BITS, i, NORMAL));
    store(to, weighted);
  }
  static __device__ __forceinline__ void store_squares(std::byte* to, const Parameters& p) {
    uint32_t square[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t part = multiply(p.scale[i], 0x2c002c00u);  // a sixteenth
      square[i] = multiply(part, part);
    }
    store(to, square);
  }

  // Of two groups of keys. The parameters of the second one are `second` bytes behind.
  template <bool BYTES>
  static __device__ __forceinline__ void expand_keys(const std::byte* from, int second, int lane,
                                                     std::byte* planes) {
    const int at = lane % kKeyLanes, group = at / (D / 8);
    const Parameters p =
        read<BYTES>(from + group * second + at % (D / 8) * (BYTES ? 8 : 16), D, KB == 2);
    store_scales<KB, int(kKeyNormal)>(planes + at * 16, p);
    std::byte* minima = planes + kMinima + (at * 16 ^ group * kSwapped);
    store(minima, p.minimum);
    store_squares(minima + 4 * D, p);
  }
  // Of 64 values, with `groups` groups of channels.
  template <bool BYTES>
  static __device__ __forceinline__ void expand_values(const std::byte* from, int groups, int lane,
                                                       std::byte* planes) {
    if (lane >= groups * (kUnitTokens / 8)) return;
    const int at = lane * 8 + lane / 8 * kUnitTokens;
    const Parameters p = read<BYTES>(from + at * (BYTES ? 1 : 2), kUnitTokens, VB == 2);
    store_scales<VB, int(kValueNormal)>(planes + lane * 16, p);
    store(planes + kValueMinima + lane * 16, p.minimum);
  }

  // Of a unit: keys and values.
  template <bool BYTES>
  static __device__ __forceinline__ void expand(const std::byte* keys, int second,
                                                const std::byte* values, int groups, int lane,
                                                std::byte* planes) {
    if constexpr (!kTogether) {
      expand_values<BYTES>(values, groups, lane, planes + kValuePlanes);
      expand_keys<BYTES>(keys, second, lane, planes);
    } else {
      // A second group of values that does not exist gets a plane that nobody reads.
      static_assert(D == kUnitTokens && kMinima == kValueMinima);
      const bool has_keys = lane < kKeyLanes;
      const int at = lane % kKeyLanes, group = at / (D / 8);
      constexpr int kNumber = BYTES ? 1 : 2;
      const std::byte* from =
          (has_keys ? keys + group * second : values + group * (2 * kUnitTokens * kNumber)) +
          at % (D / 8) * (8 * kNumber);
      const Parameters p = read<BYTES>(from, D, KB == VB ? KB == 2 : (has_keys ? KB : VB) == 2);
      std::byte* to = planes + (has_keys ? 0 : kValuePlanes);
      static_assert(kKeyNormal == kValueNormal);
      if (KB == VB || has_keys)
        store_scales<KB, int(kValueNormal)>(to + at * 16, p);
      else
        store_scales<VB, int(kValueNormal)>(to + at * 16, p);
      std::byte* minima = to + kMinima + (at * 16 ^ (has_keys ? group * kSwapped : 0));
      store(minima, p.minimum);
      if (has_keys) store_squares(minima + 4 * D, p);
    }
  }
};

}  // namespace kivi::cuda
