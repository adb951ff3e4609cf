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
  // 64-byte halves of each 128 bytes are exchanged (kSwapped), so that lanes that read both groups
  // find them in different banks.
  static constexpr int kMinima = X ? 4 * D : 2 * D, kValuePlanes = 12 * D;
  static constexpr int kSwapped = 8;  // lanes that write 8 bytes each
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
  static __device__ __forceinline__ void read_keys(const std::byte* from, int second, int lane,
                                                   Parameters& p) {
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
  static __device__ __forceinline__ void store_keys(std::byte* planes, int lane,
                                                    const Parameters& p) {
    if (!kAllLanes && lane >= D / 4) return;
    // 4^-p: 1, 1/4 and 1/16, 1/64 (2 bits), 1 and 1/16 (4 bits)
    constexpr uint32_t k1 = 0x3c003c00u, k4 = 0x34003400u, k16 = 0x2c002c00u, k64 = 0x24002400u;
    const bool even = KB == 4 || lane % 2 == 0;
    const uint32_t weight[2] = {even ? k1 : k16, KB == 4 ? k16 : even ? k4 : k64};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int at = (j == 0 ? lane : lane ^ kSwapped) * 8 + j * 2 * D;
      uint32_t square[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t part = multiply(p.scale[j][i], k16);
        square[i] = multiply(part, part);
      }
      *reinterpret_cast<uint2*>(planes + j * 2 * D + lane * 8) =
          make_uint2(multiply(p.scale[j][0], weight[0]), multiply(p.scale[j][1], weight[1]));
      *reinterpret_cast<uint2*>(planes + kMinima + at) =
          make_uint2(p.minimum[j][0], p.minimum[j][1]);
      *reinterpret_cast<uint2*>(planes + kMinima + 4 * D + at) = make_uint2(square[0], square[1]);
    }
  }
  // From the parameters of 64 values, `groups` groups of channels.
  template <bool BYTES>
  static __device__ __forceinline__ void expand_values(const std::byte* from, int groups, int lane,
                                                       std::byte* planes) {
    if (lane >= groups * (kUnitTokens / 8)) return;
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
    // Scales carry the powers of two of P'.
    const auto weighted = [](uint32_t pair, int i) {
      return kValueNormal == float(1 << (VB * power_of_pair(VB, i)))
                 ? pair
                 : multiply(pair, pair_weight(VB, i, kValueNormal));
    };
    *reinterpret_cast<uint4*>(planes + lane * 16) = make_uint4(
        weighted(scale.x, 0), weighted(scale.y, 1), weighted(scale.z, 2), weighted(scale.w, 3));
    *reinterpret_cast<uint4*>(planes + kValueMinima + lane * 16) = minimum;
  }
};

}  // namespace kivi::cuda
