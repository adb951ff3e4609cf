// SPDX-License-Identifier: Apache-2.0
// How matmul_tiles_pairs.cu reads the scales of each format of 4 to 8 bits
// (kernels/weight_codec.h), and what it does with zero points and minima.
//
// A unit is 128 columns of two tiles. A lane has four rows of it: rows 4q to 4q + 3, q = lane / 4 %
// 4. Where a record holds for fewer columns than a unit, lane t = lane % 4 loads what belongs to
// the unit's block t, for its four rows, and the four lanes of the same rows read each other's. So
// no byte is loaded twice.
//
// A format F has:
//   kBits         bits of a code
//   Unit          what a lane loads of a unit
//   first, step   where that lies: bytes from a tile's scales to the lane's part of the first unit
//                 of a run, and from there to the second one
//   load          loads it
//   Run           what is kept of a run until its end (take), and how sums of codes become sums of
//                 weights there (finish)
//   kXSums        which sums of x it needs
// and, if records hold for less than a unit, block(), the scales of a block.
#pragma once

#include "kernels/cuda/pair_sums.cuh"

namespace kivi::cuda {

// Loads, if `yes`. "relaxed" and the clobber keep these loads where they are written: ptxas moves
// others to the end of the loop, where the next use waits for all of them.
__device__ __forceinline__ void load_16(bool yes, uint4& v, const std::byte* from) {
  asm volatile(
      "{\n.reg .pred yes;\n"
      "setp.ne.b32 yes, %5, 0;\n"
      "@yes ld.relaxed.gpu.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
      : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
      : "l"(from), "r"(int(yes))
      : "memory");
}
__device__ __forceinline__ void load_8(bool yes, uint2& v, const std::byte* from) {
  asm volatile(
      "{\n.reg .pred yes;\n"
      "setp.ne.b32 yes, %3, 0;\n"
      "@yes ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];\n}"
      : "+r"(v.x), "+r"(v.y)
      : "l"(from), "r"(int(yes))
      : "memory");
}
__device__ __forceinline__ void load_4(bool yes, uint32_t& v, const std::byte* from) {
  asm volatile(
      "{\n.reg .pred yes;\n"
      "setp.ne.b32 yes, %2, 0;\n"
      "@yes ld.relaxed.gpu.global.u32 %0, [%1];\n}"
      : "+r"(v)
      : "l"(from), "r"(int(yes))
      : "memory");
}

// Lane t's value, of the four lanes that have the same rows.
__device__ __forceinline__ uint32_t of_lane(uint32_t value, int t) {
  return __shfl_sync(0xffffffffu, value, t, 4);
}
// Byte `row` of a word as a number.
__device__ __forceinline__ float byte_of(uint32_t word, int row) {
  return __uint_as_float(__byte_perm(word, 0x4B000000u, 0x7540 | row)) - 8388608.0f;
}
__device__ __forceinline__ float half_of(const uint2& four, int row) {
  const float2 two = __half22float2(as_half2(row < 2 ? four.x : four.y));
  return row % 2 == 0 ? two.x : two.y;
}

// Pairs of f16: the lane's rows of a first and a second unit.
__device__ __forceinline__ void pair_halves(const uint2& first, const uint2& second,
                                            uint32_t (&pairs)[4]) {
  pairs[0] = __byte_perm(first.x, second.x, 0x5410);
  pairs[1] = __byte_perm(first.x, second.x, 0x7632);
  pairs[2] = __byte_perm(first.y, second.y, 0x5410);
  pairs[3] = __byte_perm(first.y, second.y, 0x7632);
}

// Byte `row` of two words in the lower bytes of two halves.
__device__ __forceinline__ uint32_t pair_bytes(uint32_t first, uint32_t second, int row) {
  return __byte_perm(first, second, 0x7040 | row | (4 + row) << 8) & 0x00FF00FFu;
}

// The scales of a block for the lane's rows. The sum of a block is scale * (codes + zero * sum of
// x). other: of the block's last 16 columns, if they have a scale of their own, divided by 16.
struct BlockScales {
  float scale[4];
  float zero[4] = {};
  float other[4] = {};
};

// A record of int4.
struct GroupRecords {
  static constexpr int kBits = 4;
  struct Unit {
    uint4 scales;    // f32
    uint32_t zeros;  // bytes
  };
  static __device__ __forceinline__ void load(bool yes, int /*unit*/, Unit& w, const std::byte* at,
                                              int /*t*/, int quad) {
    load_16(yes, w.scales, at);
    load_4(yes, w.zeros, at + 64 - quad * 12);
  }
};

// int4 with one scale for 128 columns or more.
struct LargeGroups : GroupRecords {
  static constexpr XSums kXSums = XSums::units;
  static __device__ __forceinline__ int first(const TileProduct& p, int unit_shift, int block,
                                              int /*t*/, int quad) {
    return (block >> unit_shift) * p.record_bytes + quad * 16;
  }
  // The second unit may have the same record.
  static __device__ __forceinline__ int step(const TileProduct& p, int unit_shift, int block) {
    return (((block + kUnitBlocks) >> unit_shift) - (block >> unit_shift)) * p.record_bytes;
  }
  struct Run {
    __device__ __forceinline__ void take(int /*unit*/, const Unit& /*w*/) {}
    __device__ __forceinline__ void finish(const RunSums<kXSums>& /*x*/,
                                           float (&/*sums*/)[2][4]) const {}
  };
};

// Sums of codes are 2^-24 of what they stand for until they are multiplied by this.
__device__ __forceinline__ void scale_codes(float (&sums)[2][4]) {
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[m][i] *= kCodeScale<__half>;
}

// int4 with one scale for 32 or 64 columns.
struct SmallGroups : GroupRecords {
  static constexpr XSums kXSums = XSums::blocks;
  static __device__ __forceinline__ int first(const TileProduct& p, int unit_shift, int block,
                                              int t, int quad) {
    return ((block + t) >> unit_shift) * p.record_bytes + quad * 16;
  }
  static __device__ __forceinline__ int step(const TileProduct& p, int unit_shift, int /*block*/) {
    return (kUnitBlocks >> unit_shift) * p.record_bytes;
  }
  static __device__ __forceinline__ BlockScales block(const Unit& w, int j) {
    const uint32_t scales[4] = {w.scales.x, w.scales.y, w.scales.z, w.scales.w};
    const uint32_t zeros = of_lane(w.zeros, j) & 0x7F7F7F7Fu;
    BlockScales s;
#pragma unroll
    for (int row = 0; row < 4; ++row) {
      s.scale[row] = __uint_as_float(of_lane(scales[row], j));
      s.zero[row] = byte_of(zeros, row);
    }
    return s;
  }
  struct Run {
    __device__ __forceinline__ void take(int /*unit*/, const Unit& /*w*/) {}
    __device__ __forceinline__ void finish(const RunSums<kXSums>& /*x*/,
                                           float (&sums)[2][4]) const {
      scale_codes(sums);
    }
  };
};

// The scales of Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0. Numbers: of f16, of a row and block.
template <int Bits, int Numbers>
struct BlockRecords {
  static constexpr int kBits = Bits;
  static constexpr int kBytes = Numbers * kWeightTileRows * 2;
  static __device__ __forceinline__ int first(const TileProduct& /*p*/, int /*unit_shift*/,
                                              int block, int t, int quad) {
    return (block + t) * kBytes + quad * 8;
  }
  static __device__ __forceinline__ int step(const TileProduct& /*p*/, int /*unit_shift*/,
                                             int /*block*/) {
    return kUnitBlocks * kBytes;
  }
  static __device__ __forceinline__ BlockScales block(const auto& w, int j) {
    const uint2 four = make_uint2(of_lane(w.scales.x, j), of_lane(w.scales.y, j));
    BlockScales s;
#pragma unroll
    for (int row = 0; row < 4; ++row) s.scale[row] = half_of(four, row);
    return s;
  }
};

// Q4_0, Q5_0 and Q8_0: scale * (code - zero). The zero point is the same for all rows and blocks,
// so scales multiply sums of x.
template <int Bits>
struct BlockScale : BlockRecords<Bits, 1> {
  static constexpr XSums kXSums = XSums::operand;
  static constexpr float kZero = 1 << (Bits - 1);
  struct Unit {
    uint2 scales;  // f16
  };
  static __device__ __forceinline__ void load(bool yes, int /*unit*/, Unit& w, const std::byte* at,
                                              int /*t*/, int /*quad*/) {
    load_8(yes, w.scales, at);
  }
  struct Run {
    uint2 scales[2];
    __device__ __forceinline__ void take(int unit, const Unit& w) { scales[unit] = w.scales; }
    __device__ __forceinline__ void finish(const RunSums<kXSums>& x, float (&sums)[2][4]) const {
      uint32_t pairs[4];
      pair_halves(scales[0], scales[1], pairs);
      add_run_sums(pairs, pairs, x, sums, [](int, float scaled, float codes) {
        return fmaf(scaled, -kZero, codes * kCodeScale<__half>);
      });
    }
  };
};

// Q4_1 and Q5_1: scale * code + minimum.
template <int Bits>
struct BlockScaleMinimum : BlockRecords<Bits, 2> {
  static constexpr XSums kXSums = XSums::operand;
  struct Unit {
    uint2 scales, minima;  // f16
  };
  static __device__ __forceinline__ void load(bool yes, int /*unit*/, Unit& w, const std::byte* at,
                                              int /*t*/, int /*quad*/) {
    load_8(yes, w.scales, at);
    load_8(yes, w.minima, at + kWeightTileRows * 2);
  }
  struct Run {
    uint2 minima[2];
    __device__ __forceinline__ void take(int unit, const Unit& w) { minima[unit] = w.minima; }
    __device__ __forceinline__ void finish(const RunSums<kXSums>& x, float (&sums)[2][4]) const {
      uint32_t pairs[4];
      pair_halves(minima[0], minima[1], pairs);
      add_run_sums(pairs, pairs, x, sums, [](int, float minima_of_row, float codes) {
        return fmaf(codes, kCodeScale<__half>, minima_of_row);
      });
    }
  };
};

// Q4_K and Q5_K: d * s * code - dmin * m. A run is a superblock. d and dmin multiply the sums of a
// whole run.
template <int Bits>
struct Superblock {
  static constexpr int kBits = Bits;
  static constexpr XSums kXSums = XSums::operand;
  static constexpr int kRecord = 320, kScalesAt = 64, kMinimaAt = 192;  // bytes
  struct Unit {
    uint32_t scales, minima;  // bytes s and m
    uint2 d, dmin;            // f16; of the second unit alone
  };
  static __device__ __forceinline__ int first(const TileProduct& /*p*/, int /*unit_shift*/,
                                              int block, int t, int quad) {
    return block / 8 * kRecord + kScalesAt + t * 16 + quad * 4;
  }
  static __device__ __forceinline__ int step(const TileProduct& /*p*/, int /*unit_shift*/,
                                             int /*block*/) {
    return kUnitBlocks * kWeightTileRows;
  }
  static __device__ __forceinline__ void load(bool yes, int unit, Unit& w, const std::byte* at,
                                              int t, int quad) {
    load_4(yes, w.scales, at);
    load_4(yes, w.minima, at + (kMinimaAt - kScalesAt));
    if (unit == 0) return;
    const std::byte* const factors =
        at - kUnitBlocks * kWeightTileRows - kScalesAt - t * 16 + quad * 4;
    load_8(yes, w.d, factors);
    load_8(yes, w.dmin, factors + kWeightTileRows * 2);
  }
  static __device__ __forceinline__ BlockScales block(const Unit& w, int j) {
    const uint32_t scales = of_lane(w.scales, j);
    BlockScales s;
#pragma unroll
    for (int row = 0; row < 4; ++row) s.scale[row] = byte_of(scales, row);
    return s;
  }
  struct Run {
    uint32_t minima[2];
    uint2 d, dmin;
    __device__ __forceinline__ void take(int unit, const Unit& w) {
      minima[unit] = w.minima;
      d = w.d;
      dmin = w.dmin;
    }
    __device__ __forceinline__ void finish(const RunSums<kXSums>& x, float (&sums)[2][4]) const {
      uint32_t pairs[4];
#pragma unroll
      for (int row = 0; row < 4; ++row) pairs[row] = pair_bytes(minima[0], minima[1], row);
      float scale[4], minimum[4];
#pragma unroll
      for (int row = 0; row < 4; ++row) {
        scale[row] = half_of(d, row) * kCodeScale<__half>;
        minimum[row] = half_of(dmin, row) * -kCodeScale<__half>;
      }
      // A byte is m 2^-24.
      add_run_sums(pairs, pairs, x, sums, [&](int row, float minima_of_row, float codes) {
        return fmaf(minima_of_row, minimum[row], codes * scale[row]);
      });
    }
  };
};

// Signed bytes of two words as pairs of f16: byte `row` of the first is the lower half.
__device__ __forceinline__ uint32_t two_signed(uint32_t first, uint32_t second, int row) {
  constexpr uint32_t k1024 = 0x64006400u, k1152 = 0x64806480u, kSigns = 0x00800080u;
  const uint32_t bytes = pair_bytes(first, second, row);
  return as_u32(__hsub2(as_half2((bytes ^ kSigns) | k1024), as_half2(k1152)));
}

// Q6_K: d * s * (code - 32), s a signed byte for 16 columns. A run is a superblock.
struct SixBits {
  static constexpr int kBits = 6;
  static constexpr XSums kXSums = XSums::two_operands;
  static constexpr int kRecord = 288, kScalesAt = 32;  // bytes
  struct Unit {
    uint32_t scales[2];  // of the two halves of block t, bytes
    uint2 d;             // f16; of the second unit alone
  };
  static __device__ __forceinline__ int first(const TileProduct& /*p*/, int /*unit_shift*/,
                                              int block, int t, int quad) {
    return block / 8 * kRecord + kScalesAt + t * 32 + quad * 4;
  }
  static __device__ __forceinline__ int step(const TileProduct& /*p*/, int /*unit_shift*/,
                                             int /*block*/) {
    return 2 * kUnitBlocks * kWeightTileRows;
  }
  static __device__ __forceinline__ void load(bool yes, int unit, Unit& w, const std::byte* at,
                                              int t, int quad) {
    load_4(yes, w.scales[0], at);
    load_4(yes, w.scales[1], at + kWeightTileRows);
    if (unit == 0) return;
    load_8(yes, w.d, at - 2 * kUnitBlocks * kWeightTileRows - kScalesAt - t * 32 + quad * 4);
  }
  static __device__ __forceinline__ BlockScales block(const Unit& w, int j) {
    constexpr uint32_t kSigns = 0x80808080u;
    const uint32_t first = of_lane(w.scales[0], j) ^ kSigns,
                   second = of_lane(w.scales[1], j) ^ kSigns;
    BlockScales s;
#pragma unroll
    for (int row = 0; row < 4; ++row) {
      // 2^23 + 128 + s.
      const float a = __uint_as_float(__byte_perm(first, 0x4B000000u, 0x7540 | row)),
                  b = __uint_as_float(__byte_perm(second, 0x4B000000u, 0x7540 | row));
      s.scale[row] = a - 8388736.0f;
      s.other[row] = fmaf(b, 1.0f / 16, -8388736.0f / 16);
    }
    return s;
  }
  struct Run {
    uint32_t scales[2][2];
    uint2 d;
    __device__ __forceinline__ void take(int unit, const Unit& w) {
      scales[unit][0] = w.scales[0];
      scales[unit][1] = w.scales[1];
      d = w.d;
    }
    __device__ __forceinline__ void finish(const RunSums<kXSums>& x, float (&sums)[2][4]) const {
      uint32_t pairs[2][4];
#pragma unroll
      for (int unit = 0; unit < 2; ++unit)
#pragma unroll
        for (int row = 0; row < 4; ++row)
          pairs[unit][row] = two_signed(scales[unit][0], scales[unit][1], row);
      add_run_sums(pairs[0], pairs[1], x, sums, [&](int row, float scaled, float codes) {
        return half_of(d, row) * fmaf(scaled, -32.0f, codes * kCodeScale<__half>);
      });
    }
  };
};

}  // namespace kivi::cuda
