// SPDX-License-Identifier: Apache-2.0
// How matmul_tiles_pairs.cu reads the scales of each 4-bit format (kernels/weight_codec.h), and
// what it does with zero points and minima.
//
// A unit is 128 columns of two tiles. A lane has four rows of it: rows 4q to 4q + 3, q = lane / 4 %
// 4. Where a record holds for fewer columns than a unit, lane t = lane % 4 loads what belongs to
// the unit's block t, for its four rows, and the four lanes of the same rows read each other's. So
// no byte is loaded twice.
//
// A format F has:
//   Unit          what a lane loads of a unit
//   first, step   where that lies: bytes from a tile's scales to the lane's part of the first unit
//                 of a run, and from there to the second one
//   load          loads it
//   Run           what is kept of a run until its end (take), and how sums of codes become sums of
//                 weights there (finish)
//   kXSums        which sums of x it needs
// and, if records hold for less than a unit, block(), the scales of a block.
#pragma once

#include "kernels/cuda/matmul_tiles.cuh"

namespace kivi::cuda {

constexpr int kUnitColumns = 128;
constexpr int kUnitBlocks = kUnitColumns / kWeightBlock;

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

// A product of operands A and B that is added to `c`, and one that is not. Both stay where they are
// written.
__device__ __forceinline__ void multiply_add_here(float (&c)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply_here(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                              uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%10,%10,%10};"
      : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
}

// Sums of x that a format needs: of each 128 or 32 columns in fp32, times -2^-24; or of each 32
// columns as operand B (BlockSums).
enum class XSums { units, blocks, operand };

// Sums of x of the eight blocks of a run, as operand B of a product. A's columns 2t and 2t + 1
// stand for blocks t and 4 + t, and so do columns 2t + 8 and 2t + 9. B holds a sum, times a power
// of two, as two numbers of f16: the upper 11 bits of it, and the rest.
template <int NT>
struct BlockSums {
  uint32_t b[NT][2];
  float2 factor[NT];  // undoes the power of two, for rows 2t and 2t + 1 of x
};

// The sums of a run of codes become sums of weights. pairs: for each of the lane's rows, what
// multiplies the sums of blocks t and 4 + t of x. add(row, sum of such products, sum of codes).
template <int NT, class Add>
__device__ __forceinline__ void add_block_sums(const uint32_t (&pairs)[4], const BlockSums<NT>& x,
                                               float (&sums)[NT][2][4], const Add& add) {
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    const uint32_t a[4] = {pairs[2 * m], pairs[2 * m + 1], pairs[2 * m], pairs[2 * m + 1]};
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
      float c[4];
      multiply_here(c, a, x.b[nt][0], x.b[nt][1]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& sum = sums[nt][m][i];
        sum = add(2 * m + i / 2, c[i] * (i % 2 == 0 ? x.factor[nt].x : x.factor[nt].y), sum);
      }
    }
  }
}

// Pairs of f16: the lane's rows of a first and a second unit.
__device__ __forceinline__ void pair_halves(const uint2& first, const uint2& second,
                                            uint32_t (&pairs)[4]) {
  pairs[0] = __byte_perm(first.x, second.x, 0x5410);
  pairs[1] = __byte_perm(first.x, second.x, 0x7632);
  pairs[2] = __byte_perm(first.y, second.y, 0x5410);
  pairs[3] = __byte_perm(first.y, second.y, 0x7632);
}

// The scales of a block for the lane's rows. The sum of a block is scale * (codes + zero * sum of
// x).
struct BlockScales {
  float scale[4];
  float zero[4] = {};
};

// int4 with one scale for 128 columns or more.
struct LargeGroups {
  static constexpr XSums kXSums = XSums::units;
  struct Unit {
    uint4 scales;    // f32
    uint32_t zeros;  // bytes
  };
  static __device__ __forceinline__ int first(const TileProduct& p, int unit_shift, int block,
                                              int /*t*/, int quad) {
    return (block >> unit_shift) * p.record_bytes + quad * 16;
  }
  // The second unit may have the same record.
  static __device__ __forceinline__ int step(const TileProduct& p, int unit_shift, int block) {
    return (((block + kUnitBlocks) >> unit_shift) - (block >> unit_shift)) * p.record_bytes;
  }
  static __device__ __forceinline__ void load(bool yes, int /*unit*/, Unit& w, const std::byte* at,
                                              int /*t*/, int quad) {
    load_16(yes, w.scales, at);
    load_4(yes, w.zeros, at + 64 - quad * 12);
  }
  struct Run {
    __device__ __forceinline__ void take(int /*unit*/, const Unit& /*w*/) {}
    template <int NT>
    __device__ __forceinline__ void finish(const BlockSums<NT>& /*x*/,
                                           float (&/*sums*/)[NT][2][4]) const {}
  };
};

// Sums of codes are 2^-24 of what they stand for until they are multiplied by this.
template <int NT>
__device__ __forceinline__ void scale_codes(float (&sums)[NT][2][4]) {
#pragma unroll
  for (int nt = 0; nt < NT; ++nt)
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[nt][m][i] *= kCodeScale<__half>;
}

// int4 with one scale for 32 or 64 columns.
struct SmallGroups {
  static constexpr XSums kXSums = XSums::blocks;
  struct Unit {
    uint4 scales;
    uint32_t zeros;
  };
  static __device__ __forceinline__ int first(const TileProduct& p, int unit_shift, int block,
                                              int t, int quad) {
    return ((block + t) >> unit_shift) * p.record_bytes + quad * 16;
  }
  static __device__ __forceinline__ int step(const TileProduct& p, int unit_shift, int /*block*/) {
    return (kUnitBlocks >> unit_shift) * p.record_bytes;
  }
  static __device__ __forceinline__ void load(bool yes, int /*unit*/, Unit& w, const std::byte* at,
                                              int /*t*/, int quad) {
    load_16(yes, w.scales, at);
    load_4(yes, w.zeros, at + 64 - quad * 12);
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
    template <int NT>
    __device__ __forceinline__ void finish(const BlockSums<NT>& /*x*/,
                                           float (&sums)[NT][2][4]) const {
      scale_codes(sums);
    }
  };
};

// The scales of a block, four numbers of f16 in lane j.
__device__ __forceinline__ BlockScales block_of_halves(const uint2& w, int j) {
  const uint2 four = make_uint2(of_lane(w.x, j), of_lane(w.y, j));
  BlockScales s;
#pragma unroll
  for (int row = 0; row < 4; ++row) s.scale[row] = half_of(four, row);
  return s;
}

// Where the scales of Q4_0 and Q4_1 lie. Numbers: of f16, of a row and block.
template <int Numbers>
struct BlockRecords {
  static constexpr int kBytes = Numbers * kWeightTileRows * 2;
  static __device__ __forceinline__ int first(const TileProduct& /*p*/, int /*unit_shift*/,
                                              int block, int t, int quad) {
    return (block + t) * kBytes + quad * 8;
  }
  static __device__ __forceinline__ int step(const TileProduct& /*p*/, int /*unit_shift*/,
                                             int /*block*/) {
    return kUnitBlocks * kBytes;
  }
};

// scale * (code - 8). Minus 8 is the same for all rows and blocks, so scales multiply sums of x.
struct Q4_0 : BlockRecords<1> {
  static constexpr XSums kXSums = XSums::operand;
  struct Unit {
    uint2 scales;  // f16
  };
  static __device__ __forceinline__ void load(bool yes, int /*unit*/, Unit& w, const std::byte* at,
                                              int /*t*/, int /*quad*/) {
    load_8(yes, w.scales, at);
  }
  static __device__ __forceinline__ BlockScales block(const Unit& w, int j) {
    return block_of_halves(w.scales, j);
  }
  struct Run {
    uint2 scales[2];
    __device__ __forceinline__ void take(int unit, const Unit& w) { scales[unit] = w.scales; }
    template <int NT>
    __device__ __forceinline__ void finish(const BlockSums<NT>& x, float (&sums)[NT][2][4]) const {
      uint32_t pairs[4];
      pair_halves(scales[0], scales[1], pairs);
      add_block_sums<NT>(pairs, x, sums, [](int, float minima, float codes) {
        return fmaf(minima, -8.0f, codes * kCodeScale<__half>);
      });
    }
  };
};

// scale * code + minimum.
struct Q4_1 : BlockRecords<2> {
  static constexpr XSums kXSums = XSums::operand;
  struct Unit {
    uint2 scales, minima;  // f16
  };
  static __device__ __forceinline__ void load(bool yes, int /*unit*/, Unit& w, const std::byte* at,
                                              int /*t*/, int /*quad*/) {
    load_8(yes, w.scales, at);
    load_8(yes, w.minima, at + kWeightTileRows * 2);
  }
  static __device__ __forceinline__ BlockScales block(const Unit& w, int j) {
    return block_of_halves(w.scales, j);
  }
  struct Run {
    uint2 minima[2];
    __device__ __forceinline__ void take(int unit, const Unit& w) { minima[unit] = w.minima; }
    template <int NT>
    __device__ __forceinline__ void finish(const BlockSums<NT>& x, float (&sums)[NT][2][4]) const {
      uint32_t pairs[4];
      pair_halves(minima[0], minima[1], pairs);
      add_block_sums<NT>(pairs, x, sums, [](int, float minima_of_row, float codes) {
        return fmaf(codes, kCodeScale<__half>, minima_of_row);
      });
    }
  };
};

// d * s * code - dmin * m. A run is a superblock. d and dmin multiply the sums of a whole run.
struct Q4_K {
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
    template <int NT>
    __device__ __forceinline__ void finish(const BlockSums<NT>& x, float (&sums)[NT][2][4]) const {
      uint32_t pairs[4];
#pragma unroll
      for (int row = 0; row < 4; ++row)
        pairs[row] = __byte_perm(minima[0], minima[1], 0x7040 | row | (4 + row) << 8) & 0x00FF00FFu;
      float scale[4], minimum[4];
#pragma unroll
      for (int row = 0; row < 4; ++row) {
        scale[row] = half_of(d, row) * kCodeScale<__half>;
        minimum[row] = half_of(dmin, row) * -kCodeScale<__half>;
      }
      // A byte is m 2^-24.
      add_block_sums<NT>(pairs, x, sums, [&](int row, float minima_of_row, float codes) {
        return fmaf(minima_of_row, minimum[row], codes * scale[row]);
      });
    }
  };
};

}  // namespace kivi::cuda
