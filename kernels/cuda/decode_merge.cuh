// SPDX-License-Identifier: Apache-2.0
// How decode attention merges the partial states of segments that several warps have computed.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/decode_work.cuh"
#include "kernels/cuda/ptx.cuh"

namespace kivi::cuda {

inline constexpr float kNever = -1e30f;  // the initial maximum: every logit is larger

// Partial states of one block: what its warps leave in shared memory, and what it leaves for
// others.
//
// A piece has at most two incomplete segments: one that began in an earlier piece (slot 2 warp) and
// one that goes on in a later piece (slot 2 warp + 1). Neighboring slots of one segment are merged
// in the block; what is then still incomplete goes to the workspace. Where a segment has two
// blocks, the second one waits for the state of the first. Where it has more, the last block to
// arrive merges in the order of blocks. So the result does not depend on who came last.
struct PartialSlot {
  int id;           // segment, numbered over all sequences; -1: empty
  int start, last;  // where its first and its last unit begin on the line
  int row, heads;   // of the output
  int channel;
  // DecodeLaunch::shared_where of the segment, where the states of attend_shared are to be added;
  // else zeros.
  int2 where;
};
static_assert(sizeof(PartialSlot) == 32);

// Two neighboring elements of the output.
__device__ __forceinline__ uint32_t pack_output(const DecodeLaunch& a, float u, float v) {
  if (!a.out_bf16) return as_u32(__floats2half2_rn(u, v));
  __nv_bfloat162 y = __floats2bfloat162_rn(u, v);
  return *reinterpret_cast<uint32_t*>(&y);
}

// Adds 1 to a counter of the device and returns what it was.
__device__ __forceinline__ int count_arrival(int* counter) {
  int before;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(counter)
               : "memory");
  return before;
}

// x, or another NaN in place of the one that says that nothing is there.
__device__ __forceinline__ float given(float x) {
  return __float_as_uint(x) == kNotGiven ? __uint_as_float(0x7FFFFFFFu) : x;
}
__device__ __forceinline__ void give(float4* to, const float4& v) {
  asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(given(v.x)),
               "f"(given(v.y)), "f"(given(v.z)), "f"(given(v.w))
               : "memory");
}
// What is there, which may not be given yet.
__device__ __forceinline__ float4 look_at(const float4* from) {
  float4 v;
  asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(from)
               : "memory");
  return v;
}
__device__ __forceinline__ bool is_given(const float4& v) {
  return (__float_as_uint(v.x) != kNotGiven) & (__float_as_uint(v.y) != kNotGiven) &
         (__float_as_uint(v.z) != kNotGiven) & (__float_as_uint(v.w) != kNotGiven);
}
__device__ __forceinline__ void take_back(float4* to) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %1, %1, %1};" ::"l"(to), "r"(kNotGiven)
               : "memory");
}

// SHARES: states of attend_shared may have to be added.
template <int D, int NT, bool SHARES>
struct DecodeMerge {
  static constexpr int kTiles = D / 16;
  static constexpr int kPartialFloats = NT * (kTiles * 128 + 16);  // of the workspace, at most

  const DecodeLaunch& a;
  const BlockLine& of_block;

  // Merges float4 `i` of `count` states; partial(j) is the j-th, written by this block or
  // (IN_BLOCK false) by others; its maxima and sums are float4 `state`. m, l: of the whole.
  template <bool IN_BLOCK, class PartialOf>
  __device__ __forceinline__ float4 merge(int i, int state, int count, PartialOf partial, float2& m,
                                          float2& l) const {
    constexpr int kBatch = 4;  // loads in flight
    float4 o = make_float4(0, 0, 0, 0);
    m = make_float2(kNever, kNever), l = make_float2(0, 0);
    for (int base = 0; base < count; base += kBatch) {
      float4 s[kBatch], v[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        s[j] = make_float4(kNever, kNever, 0, 0), v[j] = make_float4(0, 0, 0, 0);
        if (base + j >= count) continue;
        const float4* from = partial(base + j);
        s[j] = IN_BLOCK ? from[state] : __ldcg(from + state);
        v[j] = IN_BLOCK ? from[i] : __ldcg(from + i);
      }
      float2 top = m;
#pragma unroll
      for (int j = 0; j < kBatch; ++j) top.x = fmaxf(top.x, s[j].x), top.y = fmaxf(top.y, s[j].y);
      float2 f = make_float2(exp2_fast(m.x - top.x), exp2_fast(m.y - top.y));
      o.x *= f.x, o.y *= f.y, o.z *= f.x, o.w *= f.y, l.x *= f.x, l.y *= f.y;
      m = top;
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        f = make_float2(exp2_fast(s[j].x - m.x), exp2_fast(s[j].y - m.y));
        l.x = fmaf(s[j].z, f.x, l.x), l.y = fmaf(s[j].w, f.y, l.y);
        o.x = fmaf(v[j].x, f.x, o.x), o.y = fmaf(v[j].y, f.y, o.y);
        o.z = fmaf(v[j].z, f.x, o.z), o.w = fmaf(v[j].w, f.y, o.w);
      }
    }
    return o;
  }

  __device__ __forceinline__ void store_16(uint16_t* to, float x) const {
    *to = a.out_bf16 ? __bfloat16_as_ushort(__float2bfloat16_rn(x))
                     : __half_as_ushort(__float2half_rn(x));
  }

  __device__ __forceinline__ int quads() const { return NT * kTiles * 8 << a.pair_shift; }

  // Adds the states of attend_shared to the merged own ones: of the heads from `head` on, channels
  // c * 16 + g and 8 behind it.
  __device__ __forceinline__ void add_shared(const PartialSlot& p, int head, int c, int g,
                                             float4& o, float2& m, float2& l) const {
    const int row = p.where.y % kSharedRows + head, count = p.where.y / kSharedRows;
    const bool two = head + 1 < p.heads;
    constexpr int kBatch = 4;  // states whose reads are under way at once
    const float* slot = a.shared_slots + p.where.x * shared_slot_floats(D);
    for (int first = 0; first < count; first += kBatch) {
      float2 s[kBatch][2], v[kBatch][2];  // maximum and sum, both channels; of both heads
#pragma unroll
      for (int i = 0; i < kBatch; ++i, slot += shared_slot_floats(D)) {
        const float* from = slot + row * D + c / 2 * 32 + g * 4 + c % 2 * 2;
        const auto* sums = reinterpret_cast<const float2*>(slot + kSharedRows * D) + row;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          s[i][j] = make_float2(kNever, 0), v[i][j] = make_float2(0, 0);
          if (first + i >= count || (j == 1 && !two)) continue;
          s[i][j] = __ldcg(sums + j);
          v[i][j] = __ldcg(reinterpret_cast<const float2*>(from + j * D));
        }
      }
      float2 top = m;
#pragma unroll
      for (int i = 0; i < kBatch; ++i)
        top.x = fmaxf(top.x, s[i][0].x), top.y = fmaxf(top.y, s[i][1].x);
      const float2 own = make_float2(exp2_fast(m.x - top.x), exp2_fast(m.y - top.y));
      m = top;
      l.x *= own.x, l.y *= own.y;
      o.x *= own.x, o.y *= own.y, o.z *= own.x, o.w *= own.y;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const float2 f = make_float2(exp2_fast(s[i][0].x - m.x), exp2_fast(s[i][1].x - m.y));
        l.x = fmaf(s[i][0].y, f.x, l.x), l.y = fmaf(s[i][1].y, f.y, l.y);
        o.x = fmaf(v[i][0].x, f.x, o.x), o.y = fmaf(v[i][1].x, f.y, o.y);
        o.z = fmaf(v[i][0].y, f.x, o.z), o.w = fmaf(v[i][1].y, f.y, o.w);
      }
    }
  }

  // Waits for float4 `i` of the state that the block before gives, and for its maxima and sums,
  // float4 `state`. Merges it before o, m and l. That block has started earlier, and gives before
  // it waits itself, so this ends.
  __device__ __forceinline__ void take(float4* before, int i, int state, float4& o, float2& m,
                                       float2& l) const {
    float4 s, v;
    do {
      s = look_at(before + state), v = look_at(before + i);
    } while (!(is_given(s) & is_given(v)));
    take_back(before + i);
    const float2 top = make_float2(fmaxf(m.x, s.x), fmaxf(m.y, s.y));
    const float2 f = make_float2(exp2_fast(s.x - top.x), exp2_fast(s.y - top.y));
    const float2 own = make_float2(exp2_fast(m.x - top.x), exp2_fast(m.y - top.y));
    l.x = fmaf(s.z, f.x, l.x * own.x), l.y = fmaf(s.w, f.y, l.y * own.y);
    o.x = fmaf(v.x, f.x, o.x * own.x), o.y = fmaf(v.y, f.y, o.y * own.y);
    o.z = fmaf(v.z, f.x, o.z * own.x), o.w = fmaf(v.w, f.y, o.w * own.y);
    m = top;
  }

  // Merges float4 `i` of `count` states, and the one that is given at `before` if there is one,
  // into the output row or (`to` given) one state.
  template <bool IN_BLOCK, class PartialOf>
  __device__ __forceinline__ void reduce(int i, const PartialSlot& p, int count, PartialOf partial,
                                         float4* to, float4* before = nullptr) const {
    const int g = i % 8, t = (i >> 3) & ((1 << a.pair_shift) - 1);
    const int n = (i >> (3 + a.pair_shift)) / kTiles, c = (i >> (3 + a.pair_shift)) % kTiles;
    const int head = n * 8 + 2 * t, state = quads() + n * 4 + t;
    if (head >= p.heads) return;
    float2 m, l;
    float4 o = merge<IN_BLOCK>(i, state, count, partial, m, l);
    if (IN_BLOCK && __builtin_expect(before != nullptr, 0)) take(before, i, state, o, m, l);
    if (to != nullptr) {
      give(to + i, o);
      if (c == 0 && g == 0) give(to + state, make_float4(m.x, m.y, l.x, l.y));
      return;
    }
    if (SHARES && p.where.y > 0) add_shared(p, head, c, g, o, m, l);
    auto* row = static_cast<uint16_t*>(a.out) + int64_t(p.row) * a.out_stride + p.channel +
                head * D + c * 16 + g;
    store_16(row, o.x / l.x), store_16(row + 8, o.z / l.x);
    if (head + 1 < p.heads) store_16(row + D, o.y / l.y), store_16(row + D + 8, o.w / l.y);
  }

  // slots [2 workers]: what each state belongs to. state(slot): its memory. A worker is what has a
  // piece: a warp, or a warpgroup. All threads of the block, after a barrier. `arrived` [2][3] is
  // shared memory.
  // stamp(place) notes the time.
  template <class StateOf, class Stamp>
  __device__ __forceinline__ void run(const PartialSlot* slots, int workers, StateOf state,
                                      int* arrived, Stamp stamp) {
    constexpr uint32_t kAll = 0xffffffffu;
    const int lane = threadIdx.x % 32;
    // Lane i looks at slot i. The slots of one segment are a first one, then the even ones of the
    // next workers.
    const int id = lane < 2 * workers ? slots[lane].id : -1;
    const uint32_t same = __match_any_sync(kAll, id);
    const bool leads = id >= 0 && (same & ((1u << lane) - 1)) == 0;
    const int4 borders = of_block.borders;
    const int start = leads ? slots[lane].start : 0, last = leads ? slots[lane].last : 0;
    const bool begins = leads && start >= borders.y, ends = leads && last < borders.z;
    const uint32_t leaders = __ballot_sync(kAll, leads);
    const int rank = __popc(leaders & ((1u << lane) - 1));
    // Left for other blocks: at most one that began earlier, at most one that begins here.
    const int earlier = __ffs(int(__ballot_sync(kAll, leads && !begins))) - 1;
    const int here = __ffs(int(__ballot_sync(kAll, begins && !ends))) - 1;
    // Segments of two blocks: of the one before and this one, and of this one and the next.
    const bool takes = __any_sync(kAll, leads && !begins && ends && start >= borders.x);
    const bool gives = __any_sync(kAll, begins && !ends && last < borders.w);
    float4* const own = a.given + int64_t(blockIdx.x) * (kPartialFloats / 4);
    float4* const before = own - kPartialFloats / 4;
    const int groups = __popc(leaders);
    for (int i = threadIdx.x; i - lane < groups * quads(); i += blockDim.x) {
      const int part = (i - lane) / quads();  // quads() is a multiple of 32
      // What waits for another block, which is the first segment, comes last.
      const int group = !takes ? part : part + 1 < groups ? part + 1 : 0;
      const int first = __ffs(int(__ballot_sync(kAll, leads && rank == group))) - 1;
      const int count = __popc(__shfl_sync(kAll, same, first));
      const bool is_taken = takes && first == earlier;
      float4* to = nullptr;
      if (gives && first == here)
        to = own;
      else if (!is_taken && (first == earlier || first == here))
        to = reinterpret_cast<float4*>(a.partials +
                                       int64_t(2 * blockIdx.x + (first == here)) * kPartialFloats);
      reduce<true>(
          i - part * quads(), slots[first], count,
          [&](int j) {
            return reinterpret_cast<const float4*>(state(j == 0 ? first : 2 * (first / 2 + j)));
          },
          to, is_taken ? before : nullptr);
    }
    if (takes) {
      __syncthreads();  // all have read the maxima and sums
      for (int i = threadIdx.x; i < NT * 4; i += blockDim.x) take_back(before + quads() + i);
    }
    stamp(DecodePlace::block_merged);
    const int of_earlier = takes ? -1 : earlier, of_here = gives ? -1 : here;  // counted
    if (of_earlier < 0 && of_here < 0) return;  // the same in all threads
    __syncthreads();
    const int mine = threadIdx.x == 0 ? of_earlier : of_here;
    if (threadIdx.x < 2 && mine >= 0) {
      // After the barrier, this one thread releases what all threads of the block have written, and
      // before the next one it acquires for them what other blocks have.
      const int n = count_arrival(a.counters + slots[mine].id) + 1;
      const Line& line = of_block.line;
      const int first = line.block_of(line.owner(slots[mine].start));
      const int count = line.block_of(line.owner(slots[mine].last)) - first + 1;
      if (n == count) a.counters[slots[mine].id] = 0;
      int* out = arrived + threadIdx.x * 3;
      out[0] = n == count, out[1] = first, out[2] = count;
    }
    __syncthreads();
    stamp(DecodePlace::counted);
    for (int k = 0; k < 2; ++k) {
      const int slot = k == 0 ? of_earlier : of_here;
      if (slot < 0 || !arrived[k * 3]) continue;
      const int first = arrived[k * 3 + 1];
      for (int i = threadIdx.x; i < quads(); i += blockDim.x)
        reduce<false>(
            i, slots[slot], arrived[k * 3 + 2],
            [&](int j) {
              return reinterpret_cast<const float4*>(
                  a.partials + int64_t(2 * (first + j) + (j == 0)) * kPartialFloats);
            },
            nullptr);
    }
  }
};

}  // namespace kivi::cuda
