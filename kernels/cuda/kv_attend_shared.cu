// SPDX-License-Identifier: Apache-2.0
// Decode attention to pages that several sequences share: each page is read and unpacked once
// for 64 query rows (sm_90a; docs/design/decode-attention.md, section 10).
//
// A group is sequences with the same first pages. Its query rows are those of all members for one
// KV head, and an *item* is a tile of up to 64 of these rows, one KV head and the shared pages. The
// states that result are merged by kv_attend_decode, which comes next and attends to what each
// member has for itself, from its first page of its own on.
//
// Mapping: one block a multiprocessor, which has a piece of the line of work. One of its warpgroups
// unpacks keys and one unpacks values, into tiles of 64 tokens in f16, in the order that wgmma
// wants (shared_pages_producer.cuh). The third one multiplies:
//
//   S [64 rows, 64 tokens] = Q K^T    A: queries, B: keys, both in shared memory
//   O [64 rows, d] += P V             A: P in registers, B: values in shared memory
//
// The product S of one tile is under way together with the product O of the tile before. The key
// bias is one more product: squared queries with the squares of scales, a column a token group.
//
// The first tiles of an item are its sinks, rows of 16 bits in a slab of each member. Those of one
// member are read for all.
//
// kv_attend_decode may start when this kernel has waited for the kernels before, so that it can
// read q at once. It waits for this kernel before it reads a state. A block leaves room for one
// block of four warps of kv_attend_decode, in registers and in shared memory.
//
// Cost: 4 d FLOP a (row, token) pair; the bytes of the shared pages, once for 64 rows, and
// 64 (d + 2) floats a part. Reference: CpuBackend::do_kv_attend. Test:
// tests/cuda/kv_attend_test.cpp.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/kv_attend_shared.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/shared_pages_producer.cuh"
#include "kernels/cuda/shared_pages_work.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "kernels/cuda/wgmma_softmax.cuh"

namespace kivi::cuda {
namespace {

using namespace shared_pages;

constexpr int kProducerRegisters = 96, kConsumerRegisters = 144;
constexpr int kRegisters = (2 * kProducerRegisters + kConsumerRegisters) / 3;  // at the start

// What the squares of two keys' scales are multiplied with.
__device__ __forceinline__ uint32_t bias_of(uint32_t two, float factor) {
  const float2 x = __half22float2(as_half2(two));
  return as_u32(
      __floats2half2_rn(fmaxf(x.x * x.x * factor, -65504.f), fmaxf(x.y * x.y * factor, -65504.f)));
}

// ROWS: pages have 16-bit rows, no codes.
template <int D, bool ROWS>
struct Consumer {
  static constexpr int kSide = D / 64 * kPart, kChunks = D / 8;
  static constexpr int kRowsAtOnce = kGroupThreads / kChunks;

  const SharedLaunch& a;
  std::byte* const memory;
  const GroupWork* const groups;
  const Barriers barriers;
  const PieceRange range;
  const int warp = int(threadIdx.x) % kGroupThreads / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;

  float o[D / 2], scores[kTile / 2], lift[4];
  uint32_t p[kTile / 4];

  // Where row `threadIdx.x` of the part is in q; -1: there is no such row.
  __device__ __forceinline__ int64_t place_of_row(const Part& part) const {
    const DecodeLaunch& d = a.decode;
    const GroupWork& group = groups[part.group];
    const int row = int(threadIdx.x), of_tile = row / a.unit_rows;
    const int unit = part.tile * a.units_tile + of_tile, member = unit / d.head_blocks;
    const int head = (unit - member * d.head_blocks) * a.heads_block + row - of_tile * a.unit_rows;
    if (of_tile >= a.units_tile || unit >= group.units || head >= d.ratio) return -1;
    return a.plan->row[group.members_begin + member] * d.q_stride +
           (part.head * d.ratio + head) * D;
  }
  __device__ __forceinline__ void load_queries(const Part& part) const {
    const DecodeLaunch& d = a.decode;
    auto* rows = reinterpret_cast<int64_t*>(memory + a.at.rows);
    if (threadIdx.x < kSharedRows) rows[threadIdx.x] = place_of_row(part);
    wait_for_previous();  // which writes q
    let_next_start();     // so the next one can read q at once
    consumers_meet();
    const int chunk = int(threadIdx.x) % kChunks, row0 = int(threadIdx.x) / kChunks;
    constexpr int kCount = kSharedRows / kRowsAtOnce;
    uint4 x[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int64_t from = rows[row0 + i * kRowsAtOnce];
      x[i] = from < 0 ? make_uint4(0, 0, 0, 0)
                      : __ldcg(reinterpret_cast<const uint4*>(d.q + from + chunk * 8));
    }
    const float factor = d.scale_log2 * d.bias;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int row = row0 + i * kRowsAtOnce;
      std::byte* to = memory + chunk / 8 * (kSharedRows * kRowBytes) + row * kRowBytes +
                      (chunk % 8 ^ row % 8) * 16;
      *reinterpret_cast<uint4*>(to + a.at.queries) = x[i];
      if (d.bias != 0)
        *reinterpret_cast<uint4*>(to + a.at.squared) =
            make_uint4(bias_of(x[i].x, factor), bias_of(x[i].y, factor), bias_of(x[i].z, factor),
                       bias_of(x[i].w, factor));
    }
  }

  // Issues S of the tile in `stage`.
  __device__ __forceinline__ void score(int stage) {
    const SharedOperand queries(shared_address(memory + a.at.queries), 16, 8 * kRowBytes);
    const SharedOperand keys(shared_address(memory + a.at.tiles + 2 * stage * kSide), 16,
                             8 * kRowBytes);
#pragma unroll
    for (int k = 0; k < D / 16; ++k)
      wgmma_shared(scores, queries.at(uint32_t(k / 4 * kPart + k % 4 * 32)),
                   keys.at(uint32_t(k / 4 * kPart + k % 4 * 32)), k > 0);
    if (a.decode.bias == 0) return;
    const SharedOperand squared(shared_address(memory + a.at.squared), 16, 8 * kRowBytes);
    const SharedOperand squares(shared_address(memory + a.at.squares + stage * (D / 64 * 1024)), 16,
                                8 * kRowBytes);
#pragma unroll
    for (int k = 0; k < D / 16; ++k)
      wgmma_shared(lift, squared.at(uint32_t(k / 4 * kPart + k % 4 * 32)),
                   squares.at(uint32_t(k / 4 * 1024 + k % 4 * 32)), k > 0);
  }
  // Issues O += P V of the tile in `stage`. `rows`: of tokens, as f16 pages and sinks are stored;
  // else of channels.
  __device__ __forceinline__ void accumulate(int stage, bool rows) {
    const uint32_t tile = shared_address(memory + a.at.tiles + (2 * stage + 1) * kSide);
    if (ROWS || rows) {
      const SharedOperand values(tile, kPart, 8 * kRowBytes);
#pragma unroll
      for (int k = 0; k < kTile / 16; ++k)
        wgmma_registers(o, p + 4 * k, values.at(uint32_t(k * 16 * kRowBytes)));
    } else {
      const SharedOperand values(tile, 16, 8 * kRowBytes);
#pragma unroll
      for (int k = 0; k < kTile / 16; ++k)
        wgmma_registers_rows(o, p + 4 * k, values.at(uint32_t(k * 32)));
    }
  }
  // After the product S of 64 tokens is there, of which `count` are to count: the key bias of both
  // token groups.
  __device__ __forceinline__ void add_lifts(int count) {
    pin(scores);
    if (count < kTile) {
#pragma unroll
      for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j)
          if (8 * n + 2 * t + j >= count) scores[4 * n + j] = scores[4 * n + 2 + j] = -INFINITY;
    }
    if (a.decode.bias == 0) return;
    pin(lift);
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float of_group = __shfl_sync(0xffffffffu, lift[2 * i + j], lane & ~3);
#pragma unroll
        for (int n = 4 * j; n < 4 * j + 4; ++n)
          scores[4 * n + 2 * i] += of_group, scores[4 * n + 2 * i + 1] += of_group;
      }
  }
  // The `tiles` tiles of a part; `now` is at the first one. The first `sink_tiles` hold `sinks`
  // sinks.
  __device__ __forceinline__ void multiply_tiles(int tiles, int sink_tiles, int sinks, Ring& now,
                                                 Softmax& softmax) {
    const float scale_log2 = a.decode.scale_log2;
    const auto count_of = [&](int tile) {
      return tile < sink_tiles ? sinks - tile * kTile : kTile;
    };
    barrier_wait(barriers.tile(kKeysFull, now.stage), now.parity);
    pin(scores);
    wgmma_begin();
    score(now.stage);
    wgmma_commit();
    wgmma_wait<0>();
    add_lifts(count_of(0));
    warp_arrive(barriers.tile(kKeysEmpty, now.stage));
    softmax.update(scores, scale_log2);
    pack(scores, p);
    Ring before = now;
    for (int i = 1; i < tiles; ++i) {
      now.advance();
      barrier_wait(barriers.tile(kKeysFull, now.stage), now.parity);
      pin(o);
      wgmma_begin();
      score(now.stage);
      wgmma_commit();
      barrier_wait(barriers.tile(kValuesFull, before.stage), before.parity);
      wgmma_begin();
      accumulate(before.stage, i <= sink_tiles);
      wgmma_commit();
      wgmma_wait<1>();
      add_lifts(count_of(i));
      warp_arrive(barriers.tile(kKeysEmpty, now.stage));
      softmax.update(scores, scale_log2);
      if (softmax.moved()) {
        wgmma_wait<0>();
        pin(o);
        rescale<D>(o, softmax.shrink);
      } else {
        wgmma_wait<0>();
        pin(o);
      }
      warp_arrive(barriers.tile(kValuesEmpty, before.stage));
      pack(scores, p);
      before = now;
    }
    barrier_wait(barriers.tile(kValuesFull, before.stage), before.parity);
    pin(o);
    wgmma_begin();
    accumulate(before.stage, tiles <= sink_tiles);
    wgmma_commit();
    wgmma_wait<0>();
    pin(o);
    warp_arrive(barriers.tile(kValuesEmpty, before.stage));
    now.advance();
  }

  // The state into the part's slot.
  __device__ __forceinline__ void store(const Part& part, Softmax& softmax) const {
    float* slot = a.slots + part.slot * shared_slot_floats(D);
    const int left =
        min(a.units_tile, groups[part.group].units - part.tile * a.units_tile) * a.unit_rows;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      softmax.sum[i] += __shfl_xor_sync(0xffffffffu, softmax.sum[i], 1);
      softmax.sum[i] += __shfl_xor_sync(0xffffffffu, softmax.sum[i], 2);
      const int row = warp * 16 + g + 8 * i;
      if (row >= left) continue;
      if (t == 0)
        reinterpret_cast<float2*>(slot + kSharedRows * D)[row] =
            make_float2(softmax.maximum[i] * a.decode.scale_log2, softmax.sum[i]);
#pragma unroll
      for (int k = 0; k < D / 32; ++k)
#pragma unroll
        for (int e = 0; e < 2; ++e) {  // of this lane's two channels of each eight
          const float* of = o + 16 * k + 2 * i + e;
          *reinterpret_cast<float4*>(slot + row * D + k * 32 + (2 * t + e) * 4) =
              make_float4(of[0], of[4], of[8], of[12]);
        }
    }
  }

  __device__ __forceinline__ void run() {
    Parts parts(a, groups, range);
    Ring ring(a.at.stages);
    Part part;
    while (parts.next(part)) {
      consumers_meet();  // nobody reads the queries of the part before any more
      load_queries(part);
      fence_before_async_copy();
      consumers_meet();
      Softmax softmax;
#pragma unroll
      for (int i = 0; i < D / 2; ++i) o[i] = 0;
      const int halves = a.decode.page_shift - 6;
      multiply_tiles((part.end - part.begin) << halves, (a.sink_pages - part.begin) << halves,
                     a.decode.sinks - (part.begin << a.decode.page_shift), ring, softmax);
      store(part, softmax);
    }
    wait_for_previous();  // blocks without a part
    let_next_start();
  }
};

template <int D, bool ROWS>
__global__ void __maxnreg__(kRegisters)
    attend_shared_kernel(const __grid_constant__ SharedLaunch a) {
#if KIVI_WGMMA
  extern __shared__ __align__(1024) std::byte memory[];
  const int wg = __shfl_sync(0xffffffffu, int(threadIdx.x) / kGroupThreads, 0);  // uniform
  const Barriers barriers{shared_address(memory + a.at.barriers), a.at.stages, a.at.raw_stages};
  auto* groups = reinterpret_cast<GroupWork*>(memory + a.at.plan);
  const PieceRange range = range_of(*a.plan);
  // Of tiles: full (keys, values), empty (both). Of pages as they are stored: full and empty, of
  // each side.
  const int tiles = 4 * a.at.stages, i = int(threadIdx.x);
  if (i < tiles + 4 * a.at.raw_stages) {
    const bool raw_full = i >= tiles && (i - tiles) / a.at.raw_stages % 2 == 0;
    const bool consumers_arrive = i >= tiles / 2 && i < tiles;
    barrier_init(barriers.base + uint32_t(i) * 8,
                 raw_full ? 1 : (consumers_arrive ? kGroupThreads : kSideThreads) / 32);
  }
  for (int k = i; k < a.group_capacity * int(sizeof(GroupWork) / 16); k += kSharedThreads)
    reinterpret_cast<int4*>(groups)[k] = reinterpret_cast<const int4*>(a.plan->group)[k];
  fence_before_async_copy();
  __syncthreads();
  if (wg > 0) {
    registers_down<kProducerRegisters>();
    if (wg == 1)
      Producer<D, ROWS, true>{a, memory, groups, barriers, range}.run();
    else
      Producer<D, ROWS, false>{a, memory, groups, barriers, range}.run();
  } else {
    registers_up<kConsumerRegisters>();
    Consumer<D, ROWS>{a, memory, groups, barriers, range}.run();
  }
#endif
}

template <int D>
cudaError_t launch(const SharedLaunch& a, int blocks, bool overlaps, cudaStream_t stream) {
  auto* kernel =
      a.decode.kind == KvKind::f16 ? attend_shared_kernel<D, true> : attend_shared_kernel<D, false>;
  if (const cudaError_t e = prefer_shared_memory(kernel, a.at.bytes); e != cudaSuccess) return e;
  const dim3 grid{unsigned(blocks)}, block(kSharedThreads);
  if (overlaps) return launch_overlapped(kernel, grid, block, size_t(a.at.bytes), stream, a);
  kernel<<<grid, block, size_t(a.at.bytes), stream>>>(a);
  return cudaGetLastError();
}

// With so many tiles in 16 bits, and pages as they are stored, at once.
SharedOffsets lay_out(const DecodeLaunch& d, int head_dim, int groups, int stages, int raw_stages) {
  const int parts = head_dim / 64, side = parts * kPart;
  const bool bias = d.bias != 0;
  SharedOffsets at{};
  at.stages = stages, at.raw_stages = raw_stages;
  const auto take = [&](int size) {
    const int begin = at.bytes;
    at.bytes += (size + 1023) / 1024 * 1024;
    return begin;
  };
  at.queries = take(side);
  at.squared = take(bias ? side : 0);
  at.squares = take(bias ? stages * parts * 1024 : 0);
  at.tiles = take(stages * 2 * side);
  at.raw_keys = take(raw_stages * d.block_vc);
  at.raw_values = take(raw_stages * (d.block_bytes - d.block_vc));
  at.rows = take(kSharedRows * 8);
  at.plan = take(groups * int(sizeof(GroupWork)));
  at.barriers = take(8 * 4 * (stages + raw_stages));
  return at;
}
int raw_stages_min(const DecodeLaunch& d) { return d.kind == KvKind::f16 ? 0 : 2; }
// Tiles of f16 pages are announced kLag tiles later.
int stages_min(const DecodeLaunch& d) { return d.kind == KvKind::f16 ? kLag + 1 : 2; }

}  // namespace

int shared_bytes_min(const DecodeLaunch& d, int head_dim) {
  return lay_out(d, head_dim, kSharedGroupsMax, stages_min(d), raw_stages_min(d)).bytes;
}

bool lay_out_shared(SharedLaunch& a, int shared_bytes_max) {
  const int raw_min = raw_stages_min(a.decode), raw_max = raw_min > 0 ? 6 : 0;
  for (int stages = 3; stages >= stages_min(a.decode); --stages)
    for (int raw_stages = raw_max; raw_stages >= raw_min; --raw_stages) {
      a.at = lay_out(a.decode, a.head_dim, a.group_capacity, stages, raw_stages);
      if (a.at.bytes <= shared_bytes_max) return true;
    }
  return false;
}

cudaError_t attend_shared(const SharedLaunch& a, int blocks, bool overlaps, cudaStream_t stream) {
  return a.head_dim == 128 ? launch<128>(a, blocks, overlaps, stream)
                           : launch<64>(a, blocks, overlaps, stream);
}

}  // namespace kivi::cuda
