// SPDX-License-Identifier: Apache-2.0
// Decode attention to pages that several sequences share: each page is read and taken apart once
// for 64 query rows (sm_90a; docs/design/decode-attention.md, section 10).
//
// A group is sequences with the same first pages. Its query rows are those of all members for one
// KV head, and an *item* is a tile of up to 64 of these rows, one KV head and the shared pages. The
// states that result are merged by kv_attend_decode, which comes next and attends to what each
// member has for itself, from its first page of its own on.
//
// Mapping: one block a multiprocessor, which has a piece of the line of work. Of
// its four warpgroups one takes keys apart and one values, into tiles of 64 tokens in f16, in the
// order that wgmma wants. The other two multiply, tile by tile in turn, and merge their states at
// the end of a part:
//
//   S [64 rows, 64 tokens] = Q K^T    A: queries, B: keys, both in shared memory
//   O [64 rows, d] += P V             A: P in registers, B: values in shared memory
//
// The product S of one tile is under way together with the product O of the tile before. The key
// bias is one more product: squared queries with the squares of scales, a column a token group.
//
// Cost: 4 d FLOP a (row, token) pair; the bytes of the shared pages, once for 64 rows, and
// 64 (d + 2) floats a part. Reference: CpuBackend::do_kv_attend. Test:
// tests/cuda/kv_attend_test.cpp.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "kernels/cuda/byte_parameters.cuh"
#include "kernels/cuda/decode_codes.cuh"
#include "kernels/cuda/decode_merge.cuh"
#include "kernels/cuda/kv_attend_shared.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "kernels/cuda/wgmma_softmax.cuh"

namespace kivi::cuda {
namespace {

constexpr int kGroupThreads = 128;
constexpr int kConsumers = 2;   // warpgroups that multiply
constexpr int kTile = 64;       // tokens
constexpr int kRowBytes = 128;  // of 64 halves in shared memory
constexpr int kPart = kTile * kRowBytes;
constexpr int kProducerRegisters = 104, kConsumerRegisters = 152;
constexpr int kPlanThreads = 1024;
constexpr int kLag = 2;  // tiles of f16 pages on their way besides the newest one

enum TileBarrier { kKeysFull, kValuesFull, kKeysEmpty, kValuesEmpty };
enum RawBarrier { kRawFull, kRawEmpty };

// A place in a ring of stages.
struct Ring {
  int stages;
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ explicit Ring(int count) : stages(count) {}
  __device__ __forceinline__ void advance() {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

struct Barriers {
  uint32_t base;
  int stages, raw_stages;
  __device__ __forceinline__ uint32_t tile(TileBarrier which, int stage) const {
    return base + uint32_t((int(which) * stages + stage) * 8);
  }
  __device__ __forceinline__ uint32_t raw(int side, RawBarrier which, int stage) const {
    return base + uint32_t((4 * stages + (side * 2 + int(which)) * raw_stages + stage) * 8);
  }
};

__device__ __forceinline__ void consumers_meet() {
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumers * kGroupThreads) : "memory");
}

// Where piece `i` begins on the line.
__device__ __forceinline__ int boundary(const SharedPlan& plan, int i) {
  return int(int64_t(plan.total) * i / plan.pieces);
}
// A part of an item that one block computes: pages [begin, end).
struct Part {
  int group, head, tile;
  int begin, end;
  int slot;
};
// Where this block's piece lies on the line.
struct PieceRange {
  int begin, end;
};
__device__ __forceinline__ PieceRange range_of(const SharedPlan& plan) {
  if (int(blockIdx.x) >= plan.pieces) return {0, 0};
  return {boundary(plan, int(blockIdx.x)), boundary(plan, int(blockIdx.x) + 1)};
}

// The parts of this block, in order. `groups`: the plan's, in shared memory.
struct Parts {
  const GroupWork* groups;
  int group_count, x, x_end, group = 0;

  __device__ Parts(const SharedLaunch& a, const GroupWork* in_shared, const PieceRange& range)
      : groups(in_shared), group_count(a.group_capacity), x(range.begin), x_end(range.end) {}
  __device__ __forceinline__ bool next(Part& part) {
    if (x >= x_end) return false;
    while (group + 1 < group_count && groups[group + 1].work_base <= x) ++group;
    const GroupWork& g = groups[group];
    const int item = (x - g.work_base) / g.pages;
    part.group = group;
    part.head = item / g.tiles, part.tile = item % g.tiles;
    part.begin = x - g.work_base - item * g.pages;
    part.end = min(g.pages, part.begin + x_end - x);
    part.slot = g.item_base + item + int(blockIdx.x);
    x += part.end - part.begin;
    return true;
  }
};

// --- the warpgroups that take pages apart -------------------------------------------------------

// Parameters of four chunks of 8 positions, of those that this lane has.
template <int BITS>
__device__ __forceinline__ void read_parameters(const std::byte* plane, int columns, int at,
                                                bool bytes, uint32_t (&scale)[4],
                                                uint32_t (&minimum)[4]) {
  if (bytes) {
    const uint2 s = *reinterpret_cast<const uint2*>(plane + at);
    const uint2 m = *reinterpret_cast<const uint2*>(plane + columns + at);
    expand_parameters(s.x, m.x, BITS == 2, scale, minimum);
    expand_parameters(s.y, m.y, BITS == 2, scale + 2, minimum + 2);
  } else {
    const uint4 s = *reinterpret_cast<const uint4*>(plane + 2 * at);
    const uint4 m = *reinterpret_cast<const uint4*>(plane + 2 * (columns + at));
    scale[0] = s.x, scale[1] = s.y, scale[2] = s.z, scale[3] = s.w;
    minimum[0] = m.x, minimum[1] = m.y, minimum[2] = m.z, minimum[3] = m.w;
  }
}

// The codes of one side of 64 tokens into a tile of f16. One warpgroup. Words are those of
// kv_page.h: of keys a token's channels, of values a channel's tokens, and so are the tile's rows:
// keys [d / 64] parts of [64 tokens] rows of 64 channels, values [d] rows of 64 tokens. 16-byte
// chunks of a row are permuted by XOR with row % 8.
//
// A lane takes four words at a time. Words of one tile of 16 rows have the same parameters where
// they have the same columns, so these are read once.
template <int D, int BITS, bool KEYS>
__device__ __forceinline__ void expand_tile(const std::byte* codes, const std::byte* parameters,
                                            int group_shift, bool bytes, std::byte* tile) {
  constexpr int kSlots = 16 / BITS;  // pairs of a word
  constexpr int kColumns = KEYS ? D : kTile;
  constexpr int kRowWords = (kColumns / 8 + kSlots - 1) / kSlots;
  constexpr int kLaneWords = (KEYS ? kTile : D) / 16 * 2 * kRowWords;
  constexpr int kSets = kRowWords == 1 ? 1 : 2;  // of words with the same columns, among four
  static_assert(kLaneWords % 4 == 0);
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int warp = int(threadIdx.x) % kGroupThreads / 32;
  std::byte* const mine = tile + t * 4;
  const int swizzle = g * (kRowBytes + 16);
#pragma unroll 1
  for (int first = 0; first < kLaneWords; first += 16) {
    const int i4 = first + warp * 4;
    if (kLaneWords % 16 != 0 && i4 >= kLaneWords) break;
    const uint4 four = *reinterpret_cast<const uint4*>(codes + (i4 * 32 + lane * 4) * 4);
    const uint32_t words[4] = {four.x, four.y, four.z, four.w};
    const int tile16 = i4 / (2 * kRowWords), rest = i4 % (2 * kRowWords);
    // The pairs [s0, s0 + 4) of word q, whose columns are those of word j of its row.
    const auto expand_word = [&](int q, int j, int s0, const uint32_t* scale,
                                 const uint32_t* minimum) {
      const int half = KEYS || kRowWords == 1 ? q % 2 : kRowWords == 2 ? q / 2 : rest / 4;
      const int row_chunk = (tile16 + (kRowWords == 1 ? q / 2 : 0)) * 2 + half;  // this lane's is g
#pragma unroll
      for (int s = s0; s < s0 + 4 && s < kSlots; ++s) {
        uint32_t pair;
        if constexpr (BITS < 8)
          pair = numbers<BITS>(words[q], s, scale[s - s0], minimum[s - s0]);
        else
          pair = fragment<8>(words[q], s);
        const int chunk = j * kSlots + s;  // 8 columns: this lane's are 2 t and 2 t + 1
        *reinterpret_cast<uint32_t*>(mine + chunk / 8 * kPart + row_chunk * (8 * kRowBytes) +
                                     (swizzle ^ chunk % 8 * 16)) = pair;
      }
    };
    if constexpr (BITS == 8) {
#pragma unroll
      for (int q = 0; q < 4; ++q) expand_word(q, KEYS ? rest / 2 + q / 2 : q, 0, nullptr, nullptr);
    } else {
      const std::byte* plane =
          parameters + (tile16 * 16 >> group_shift) * (2 * kColumns) * (bytes ? 1 : 2);
#pragma unroll
      for (int set = 0; set < kSets; ++set) {
        const int j = (KEYS ? rest / 2 : 0) + set;
#pragma unroll
        for (int s0 = 0; s0 < kSlots; s0 += 4) {
          uint32_t scale[4], minimum[4];
          read_parameters<BITS>(plane, kColumns, (j * kSlots + s0) * 8 + t * 8, bytes, scale,
                                minimum);
#pragma unroll
          for (int q = 0; q < 4; ++q)
            if (kSets == 1 || (KEYS ? q / 2 : q % 2) == set) expand_word(q, j, s0, scale, minimum);
        }
      }
    }
  }
}

// Squares of a sixteenth of the keys' scales: row j of operand B is token group j of two.
template <int D>
__device__ __forceinline__ void expand_squares(const std::byte* parameters, int group, bool bytes,
                                               std::byte* to) {
  for (int i = int(threadIdx.x) % kGroupThreads; i < D; i += kGroupThreads) {
    const int j = i / (D / 2), x = i % (D / 2);
    const int at = (group == 32 ? j : 0) * 2 * D + lane_parameter(2 * x);
    uint32_t scale;
    if (bytes) {
      const uint32_t two = *reinterpret_cast<const uint16_t*>(parameters + at);
      scale = ((two & 0xff) | (two >> 8) << 16) << 7;
    } else {
      scale = *reinterpret_cast<const uint32_t*>(parameters + at * 2);
    }
    const uint32_t part = multiply(scale, 0x2c002c00u);  // 1/16
    *reinterpret_cast<uint32_t*>(to + x / 32 * 1024 + j * kRowBytes + (x % 32 / 4 ^ j) * 16 +
                                 x % 4 * 4) = multiply(part, part);
  }
}

// The pages of this block, in order: one side of them, which begins `offset` bytes behind a block.
struct PageCursor {
  const DecodeLaunch& d;
  const int offset;
  Parts parts;
  const int32_t* entry = nullptr;  // of the page table
  const std::byte* base = nullptr;
  int left = 0;  // of the part

  __device__ PageCursor(const SharedLaunch& a, const GroupWork* groups, const PieceRange& range,
                        int side_offset)
      : d(a.decode), offset(side_offset), parts(a, groups, range) {
    enter();
  }
  __device__ __forceinline__ bool valid() const { return left > 0; }
  __device__ __forceinline__ void enter() {
    Part part;
    if (!parts.next(part)) return;
    entry = d.page_table + parts.groups[part.group].pages_begin + part.begin;
    base = d.pages + int64_t(part.head) * d.block_bytes + offset;
    left = part.end - part.begin;
  }
  __device__ __forceinline__ void advance() {
    ++entry;
    if (--left == 0) enter();
  }
  __device__ __forceinline__ const std::byte* data() const {
    return base + __ldg(entry) * d.page_stride;
  }
};

// Keys or values of all tiles of this block. Pages come as they are stored through a ring of their
// own; those of f16 go to tiles at once.
template <int D, bool ROWS, bool KEYS>
struct Producer {
  static constexpr int kSide = D / 64 * kPart;

  const SharedLaunch& a;
  std::byte* const memory;
  const GroupWork* const groups;
  const Barriers barriers;
  const PieceRange range;
  const int lane = threadIdx.x % 32;

  __device__ __forceinline__ std::byte* tile_of(int stage) const {
    return memory + a.at.tiles + (2 * stage + (KEYS ? 0 : 1)) * kSide;
  }

  __device__ __forceinline__ void run() {
    if constexpr (ROWS)
      run_rows();
    else
      run_codes();
  }

  __device__ __forceinline__ void run_rows() {
    const int thread = int(threadIdx.x) % kGroupThreads;
    Ring ring(a.at.stages), done(a.at.stages);
    int count = 0;
    for (PageCursor cursor(a, groups, range, KEYS ? 0 : a.decode.block_vc); cursor.valid();
         cursor.advance()) {
      const std::byte* from = cursor.data();
      barrier_wait(barriers.tile(KEYS ? kKeysEmpty : kValuesEmpty, ring.stage), ring.parity ^ 1);
      const uint32_t to = shared_address(tile_of(ring.stage));
#pragma unroll
      for (int i = thread; i < kTile * (D / 8); i += kGroupThreads) {
        const int row = i / (D / 8), chunk = i % (D / 8);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                         to + chunk / 8 * kPart + row * kRowBytes + chunk % 8 * 16),
                     "l"(from + i * 16)
                     : "memory");
      }
      asm volatile("cp.async.commit_group;" ::: "memory");
      ring.advance();
      if (++count > kLag) {
        asm volatile("cp.async.wait_group %0;" ::"n"(kLag) : "memory");
        announce(done);
      }
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    for (int i = max(0, count - kLag); i < count; ++i) announce(done);
  }
  __device__ __forceinline__ void announce(Ring& done) const {
    fence_before_async_copy();
    warp_arrive(barriers.tile(KEYS ? kKeysFull : kValuesFull, done.stage));
    done.advance();
  }

  __device__ __forceinline__ void run_codes() {
    const DecodeLaunch& d = a.decode;
    const int side = KEYS ? 0 : 1;
    const int raw_bytes = KEYS ? d.block_vc : d.block_bytes - d.block_vc;
    std::byte* const raw = memory + (KEYS ? a.at.raw_keys : a.at.raw_values);
    const bool copies = int(threadIdx.x) % kGroupThreads < 32;  // this warp starts copies
    Ring ring(a.at.stages), read(a.at.raw_stages), ahead(a.at.raw_stages);
    PageCursor next(a, groups, range, KEYS ? 0 : d.block_vc);
    const auto issue = [&] {
      barrier_wait(barriers.raw(side, kRawEmpty, ahead.stage), ahead.parity ^ 1);
      const WarpCopy copy{barriers.raw(side, kRawFull, ahead.stage), lane};
      copy.start_one(shared_address(raw + ahead.stage * raw_bytes), next.data(), raw_bytes);
      ahead.advance();
      next.advance();
    };
    if (copies)
      for (int i = 0; i + 1 < a.at.raw_stages && next.valid(); ++i) issue();
    const int halves = 1 << (d.page_shift - 6);
    for (int left = range.end - range.begin; left > 0; --left) {
      if (copies && next.valid()) issue();
      barrier_wait(barriers.raw(side, kRawFull, read.stage), read.parity);
      const std::byte* page = raw + read.stage * raw_bytes;
      for (int half = 0; half < halves; ++half) {
        barrier_wait(barriers.tile(KEYS ? kKeysEmpty : kValuesEmpty, ring.stage), ring.parity ^ 1);
        expand(page, half, ring.stage);
        fence_before_async_copy();
        warp_arrive(barriers.tile(KEYS ? kKeysFull : kValuesFull, ring.stage));
        ring.advance();
      }
      warp_arrive(barriers.raw(side, kRawEmpty, read.stage));
      read.advance();
    }
  }

  __device__ __forceinline__ void expand(const std::byte* page, int half, int stage) const {
    const DecodeLaunch& d = a.decode;
    const int bits = KEYS ? a.key_bits : a.value_bits, each = d.byte_parameters ? 1 : 2;
    const std::byte* codes = page + half * (kTile * D * bits / 8);
    const std::byte* parameters = page;
    if constexpr (KEYS)
      parameters += d.block_kp + (half * kTile >> d.group_shift) * 2 * D * each;
    else
      parameters += d.block_vp - d.block_vc + half * (D >> d.group_shift) * 128 * each;
    std::byte* const tile = tile_of(stage);
    if (bits == 2)
      expand_tile<D, 2, KEYS>(codes, parameters, d.group_shift, d.byte_parameters, tile);
    else if (bits == 4)
      expand_tile<D, 4, KEYS>(codes, parameters, d.group_shift, d.byte_parameters, tile);
    else
      expand_tile<D, 8, KEYS>(codes, parameters, d.group_shift, false, tile);
    if (KEYS && d.bias != 0)
      expand_squares<D>(parameters, d.group, d.byte_parameters,
                        memory + a.at.squares + stage * (D / 64 * 1024));
  }
};

// --- the warpgroups that multiply ---------------------------------------------------------------

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
  static constexpr int kRowsAtOnce = kConsumers * kGroupThreads / kChunks;

  const SharedLaunch& a;
  std::byte* const memory;
  const GroupWork* const groups;
  const Barriers barriers;
  const PieceRange range;
  const int wg;
  const int warp = int(threadIdx.x) % kGroupThreads / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;

  float o[D / 2], scores[kTile / 2], lift[4];
  uint32_t p[kTile / 4];

  // By both warpgroups.
  __device__ __forceinline__ void load_queries(const Part& part) const {
    const DecodeLaunch& d = a.decode;
    const GroupWork& group = groups[part.group];
    const int chunk = int(threadIdx.x) % kChunks, row0 = int(threadIdx.x) / kChunks;
    constexpr int kCount = kSharedRows / kRowsAtOnce;
    int64_t from[kCount];  // in q; -1: there is no such row
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int row = row0 + i * kRowsAtOnce, of_tile = row / a.unit_rows;
      const int unit = part.tile * a.units_tile + of_tile, member = unit / d.head_blocks;
      const int head =
          (unit - member * d.head_blocks) * a.heads_block + row - of_tile * a.unit_rows;
      from[i] = -1;
      if (of_tile >= a.units_tile || unit >= group.units || head >= d.ratio) continue;
      from[i] = a.plan->row[group.members_begin + member] * d.q_stride +
                (part.head * d.ratio + head) * D + chunk * 8;
    }
    wait_for_previous();  // which writes q
    uint4 x[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      x[i] = from[i] < 0 ? make_uint4(0, 0, 0, 0)
                         : __ldcg(reinterpret_cast<const uint4*>(d.q + from[i]));
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
  // Issues O += P V of the tile in `stage`.
  __device__ __forceinline__ void accumulate(int stage) {
    const SharedOperand values(shared_address(memory + a.at.tiles + (2 * stage + 1) * kSide),
                               ROWS ? kPart : 16, 8 * kRowBytes);
#pragma unroll
    for (int k = 0; k < kTile / 16; ++k) {
      if constexpr (ROWS)  // of tokens
        wgmma_registers(o, p + 4 * k, values.at(uint32_t(k * 16 * kRowBytes)));
      else  // of channels
        wgmma_registers_rows(o, p + 4 * k, values.at(uint32_t(k * 32)));
    }
  }
  // After the product S is there: the key bias of both token groups.
  __device__ __forceinline__ void add_lifts() {
    pin(scores);
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
  // This warpgroup's tiles of a part of `tiles`, from tile `first` on; `ring` is at the latter.
  __device__ __forceinline__ void multiply_tiles(int first, int tiles, Ring now, Softmax& softmax) {
    if (first >= tiles) return;
    const float scale_log2 = a.decode.scale_log2;
    barrier_wait(barriers.tile(kKeysFull, now.stage), now.parity);
    pin(scores);
    wgmma_begin();
    score(now.stage);
    wgmma_commit();
    wgmma_wait<0>();
    add_lifts();
    warp_arrive(barriers.tile(kKeysEmpty, now.stage));
    softmax.update(scores, scale_log2);
    pack(scores, p);
    Ring before = now;
    for (int i = first + kConsumers; i < tiles; i += kConsumers) {
      now.advance(), now.advance();
      barrier_wait(barriers.tile(kKeysFull, now.stage), now.parity);
      pin(o);
      wgmma_begin();
      score(now.stage);
      wgmma_commit();
      barrier_wait(barriers.tile(kValuesFull, before.stage), before.parity);
      wgmma_begin();
      accumulate(before.stage);
      wgmma_commit();
      wgmma_wait<1>();
      add_lifts();
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
    accumulate(before.stage);
    wgmma_commit();
    wgmma_wait<0>();
    pin(o);
    warp_arrive(barriers.tile(kValuesEmpty, before.stage));
  }

  // The states of both warpgroups as one, into the part's slot.
  __device__ __forceinline__ void store(const Part& part, Softmax& softmax) {
    float* other = reinterpret_cast<float*>(memory + a.at.other) + threadIdx.x % kGroupThreads;
    float2* sums = reinterpret_cast<float2*>(memory + a.at.sums);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      softmax.sum[i] += __shfl_xor_sync(0xffffffffu, softmax.sum[i], 1);
      softmax.sum[i] += __shfl_xor_sync(0xffffffffu, softmax.sum[i], 2);
    }
    if (wg == 1) {
#pragma unroll
      for (int i = 0; i < D / 2; ++i) other[i * kGroupThreads] = o[i];
      if (t == 0) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
          sums[warp * 16 + g + 8 * i] = make_float2(softmax.maximum[i], softmax.sum[i]);
      }
    }
    consumers_meet();
    if (wg == 1) return;
    const float scale_log2 = a.decode.scale_log2;
    float mine[2], others[2];
    float* slot = a.slots + part.slot * shared_slot_floats(D);
    const int left =
        min(a.units_tile, groups[part.group].units - part.tile * a.units_tile) * a.unit_rows;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = warp * 16 + g + 8 * i;
      const float2 s = sums[row];
      const float most = fmaxf(softmax.maximum[i], s.x) * scale_log2;  // one of them has a tile
      mine[i] = exp2_fast(fmaf(softmax.maximum[i], scale_log2, -most));
      others[i] = exp2_fast(fmaf(s.x, scale_log2, -most));
      if (t == 0 && row < left)
        reinterpret_cast<float2*>(slot + kSharedRows * D)[row] =
            make_float2(most, softmax.sum[i] * mine[i] + s.y * others[i]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = warp * 16 + g + 8 * i;
      if (row >= left) continue;
#pragma unroll
      for (int k = 0; k < D / 32; ++k)
#pragma unroll
        for (int e = 0; e < 2; ++e) {  // of this lane's two channels of each eight
          const auto merged = [&](int n) {
            const int at = 4 * (4 * k + n) + 2 * i + e;
            return o[at] * mine[i] + other[at * kGroupThreads] * others[i];
          };
          *reinterpret_cast<float4*>(slot + row * D + k * 32 + (2 * t + e) * 4) =
              make_float4(merged(0), merged(1), merged(2), merged(3));
        }
    }
  }

  __device__ __forceinline__ void run() {
    Parts parts(a, groups, range);
    Ring ring(a.at.stages);
    uint32_t tile = 0;  // of the block
    Part part;
    while (parts.next(part)) {
      consumers_meet();  // nobody reads the queries and the state of the part before any more
      load_queries(part);
      fence_before_async_copy();
      consumers_meet();
      Softmax softmax;
#pragma unroll
      for (int i = 0; i < D / 2; ++i) o[i] = 0;
      const int tiles = (part.end - part.begin) << (a.decode.page_shift - 6);
      const int first = int((uint32_t(wg) - tile) & 1);
      Ring now = ring;
      if (first == 1) now.advance();
      multiply_tiles(first, tiles, now, softmax);
      for (int i = 0; i < tiles; ++i) ring.advance();
      tile += uint32_t(tiles);
      store(part, softmax);
    }
  }
};

template <int D, bool ROWS>
__global__ void __launch_bounds__(kSharedThreads, 1)
    attend_shared_kernel(const __grid_constant__ SharedLaunch a) {
#if KIVI_WGMMA
  extern __shared__ __align__(1024) std::byte memory[];
  const int wg = __shfl_sync(0xffffffffu, int(threadIdx.x) / kGroupThreads, 0);  // uniform
  const Barriers barriers{shared_address(memory + a.at.barriers), a.at.stages, a.at.raw_stages};
  auto* groups = reinterpret_cast<GroupWork*>(memory + a.at.plan);
  let_next_start();
  const PieceRange range = range_of(*a.plan);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 4 * a.at.stages; ++i)
      barrier_init(barriers.base + uint32_t(i) * 8, kGroupThreads / 32);
    for (int side = 0; side < 2; ++side)
      for (int stage = 0; stage < a.at.raw_stages; ++stage) {
        barrier_init(barriers.raw(side, kRawFull, stage), 1);
        barrier_init(barriers.raw(side, kRawEmpty, stage), kGroupThreads / 32);
      }
  }
  for (int i = threadIdx.x; i < a.group_capacity * int(sizeof(GroupWork) / 4); i += kSharedThreads)
    reinterpret_cast<int32_t*>(groups)[i] = reinterpret_cast<const int32_t*>(a.plan->group)[i];
  fence_before_async_copy();
  __syncthreads();
  if (wg >= kConsumers) {
    registers_down<kProducerRegisters>();
    if (wg == kConsumers)
      Producer<D, ROWS, true>{a, memory, groups, barriers, range}.run();
    else
      Producer<D, ROWS, false>{a, memory, groups, barriers, range}.run();
  } else {
    registers_up<kConsumerRegisters>();
    Consumer<D, ROWS>{a, memory, groups, barriers, range, wg}.run();
  }
#endif
}

// --- once a step ---------------------------------------------------------------------------------

// As many pieces as make their borders those of items, or the other way round, if that leaves few
// blocks idle. Then an item has fewer states.
__device__ int pieces_of(int items, int work, int blocks) {
  const int each = (items + blocks - 1) / max(1, blocks);
  const int used = items >= blocks ? (items + each - 1) / each : blocks / max(1, items) * items;
  return max(1, min(work, used * 32 >= blocks * 31 ? used : blocks));
}

// Fills a.plan and a.where. One block.
__global__ void __launch_bounds__(kPlanThreads, 1)
    plan_shared_kernel(const __grid_constant__ SharedLaunch a, int blocks) {
  __shared__ GroupWork groups[kSharedGroupsMax];
  __shared__ int total, pieces;
  const DecodeLaunch& d = a.decode;
  for (int i = threadIdx.x; i < a.group_capacity; i += kPlanThreads) {
    const StepGroup s = a.groups[i];
    const int units = s.member_count * d.head_blocks;
    groups[i] = {0,
                 0,
                 (units + a.units_tile - 1) / a.units_tile,
                 s.pages,
                 s.pages_begin,
                 s.members_begin,
                 units,
                 0};
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int items = 0, work = 0;
    for (int i = 0; i < a.group_capacity; ++i) {
      GroupWork& g = groups[i];
      g.item_base = items, g.work_base = work;
      items += g.tiles * d.kv_heads;
      work += g.tiles * d.kv_heads * g.pages;
    }
    total = work, pieces = pieces_of(items, work, blocks);
    a.plan->total = total, a.plan->pieces = pieces;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < a.group_capacity; i += kPlanThreads) a.plan->group[i] = groups[i];
  const auto owner = [&](int x) {  // the piece that has place x of the line
    return int(((int64_t(x) + 1) * pieces - 1) / total);
  };
  for (int group = 0; group < a.group_capacity; ++group) {
    const GroupWork& g = groups[group];
    for (int i = threadIdx.x; i < g.units * d.kv_heads; i += kPlanThreads) {
      const int unit = i / d.kv_heads, head = i % d.kv_heads;
      const int member = unit / d.head_blocks, block = unit % d.head_blocks;
      const int sequence = a.members[g.members_begin + member];
      if (head == 0 && block == 0)
        a.plan->row[g.members_begin + member] = d.sequences[sequence].row_begin;
      const int item = head * g.tiles + unit / a.units_tile;
      const int begin = g.work_base + item * g.pages, first = owner(begin);
      const int parts = owner(begin + g.pages - 1) - first + 1;
      a.where[(int64_t(sequence) * d.kv_heads + head) * d.head_blocks + block] = make_int2(
          g.item_base + item + first, parts * kSharedRows + unit % a.units_tile * a.unit_rows);
    }
  }
}

template <int D>
cudaError_t launch(const SharedLaunch& a, int blocks, bool overlaps, cudaStream_t stream) {
  auto* kernel =
      a.decode.kind == KvKind::f16 ? attend_shared_kernel<D, true> : attend_shared_kernel<D, false>;
  if (const cudaError_t e =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, a.at.bytes);
      e != cudaSuccess)
    return e;
  const dim3 grid{unsigned(blocks)}, block(kSharedThreads);
  if (overlaps) return launch_overlapped(kernel, grid, block, size_t(a.at.bytes), stream, a);
  kernel<<<grid, block, size_t(a.at.bytes), stream>>>(a);
  return cudaGetLastError();
}

}  // namespace

size_t shared_plan_bytes(int sequences) {
  return sizeof(SharedPlan) + size_t(sequences) * sizeof(int32_t);
}

bool lay_out_shared(SharedLaunch& a, int shared_bytes_max) {
  const DecodeLaunch& d = a.decode;
  const int parts = a.head_dim / 64, side = parts * kPart;
  const bool bias = d.bias != 0, rows = d.kind == KvKind::f16;
  SharedOffsets& at = a.at;
  const auto lay_out = [&](int stages, int raw_stages) {
    at = {};
    at.stages = stages, at.raw_stages = raw_stages;
    int bytes = 0;
    const auto take = [&](int size) {
      const int begin = bytes;
      bytes += (size + 1023) / 1024 * 1024;
      return begin;
    };
    at.queries = take(side);
    at.squared = take(bias ? side : 0);
    at.other = take(a.head_dim / 2 * kGroupThreads * 4);
    at.squares = take(bias ? stages * parts * 1024 : 0);
    at.tiles = take(stages * 2 * side);
    at.raw_keys = take(raw_stages * d.block_vc);
    at.raw_values = take(raw_stages * (d.block_bytes - d.block_vc));
    at.sums = take(kSharedRows * 8);
    at.plan = take(a.group_capacity * int(sizeof(GroupWork)));
    at.barriers = take(8 * 4 * (stages + raw_stages));
    at.bytes = bytes;
    return bytes <= shared_bytes_max;
  };
  if (rows) return lay_out(5, 0) || lay_out(4, 0);
  for (const int stages : {4, 3})
    for (int raw_stages = 6; raw_stages >= 3; --raw_stages)
      if (lay_out(stages, raw_stages)) return true;
  return lay_out(3, 2);
}

cudaError_t plan_shared(const SharedLaunch& a, int blocks, cudaStream_t stream) {
  plan_shared_kernel<<<1, kPlanThreads, 0, stream>>>(a, blocks);
  return cudaGetLastError();
}

cudaError_t attend_shared(const SharedLaunch& a, int blocks, bool overlaps, cudaStream_t stream) {
  return a.head_dim == 128 ? launch<128>(a, blocks, overlaps, stream)
                           : launch<64>(a, blocks, overlaps, stream);
}

}  // namespace kivi::cuda
