// SPDX-License-Identifier: Apache-2.0
// The warps of attend_shared that unpack pages (kv_attend_shared.cu): keys or values of a block's
// pages, as they are stored, become tiles of 64 tokens in f16.
#pragma once

#include "kernels/cuda/byte_parameters.cuh"
#include "kernels/cuda/decode_codes.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/shared_pages_work.cuh"

namespace kivi::cuda::shared_pages {

inline constexpr int kLag = 2;  // tiles of f16 pages on their way besides the newest one

// Parameters of four chunks of 8 positions, of those that this lane has.
template <int BITS, bool BYTES>
__device__ __forceinline__ void read_parameters(const std::byte* plane, int columns, int at,
                                                uint32_t (&scale)[4], uint32_t (&minimum)[4]) {
  if constexpr (BYTES) {
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
// A lane takes four words at a time, if it can words with the same columns, so that it reads the
// parameters of these once. A warp stores four chunks of eight rows at once.
template <int D, int BITS, bool KEYS, bool BYTES>
__device__ __forceinline__ void expand_tile(const std::byte* codes, const std::byte* parameters,
                                            int group_shift, std::byte* tile) {
  constexpr int kSlots = 16 / BITS;  // pairs of a word
  constexpr int kColumns = KEYS ? D : kTile;
  constexpr int kRowWords = (kColumns / 8 + kSlots - 1) / kSlots;
  constexpr int kLaneWords = (KEYS ? kTile : D) / 16 * 2 * kRowWords;
  constexpr bool kPairs = KEYS && kRowWords > 1;           // words of two tiles of 16 rows
  constexpr int kSets = kRowWords == 1 || kPairs ? 1 : 2;  // of words with the same columns
  static_assert(kLaneWords % 4 == 0 && kSlots >= 4);
  const int lane = threadIdx.x % 32, t = lane % 4;
  const int warp = int(threadIdx.x) % kSideThreads / 32;
  // Where this lane's row of the first four chunks of rows 0 to 7 lies.
  const uint32_t mine = shared_address(tile) + lane % 8 * kRowBytes + (lane / 8 ^ lane % 8) * 16;
#pragma unroll 1
  for (int i4 = warp * 4; i4 < kLaneWords; i4 += kSideThreads / 8) {
    uint32_t words[4];
    int tile16, column;  // the first word's
    if constexpr (kPairs) {
      column = i4 / 4 % kRowWords, tile16 = i4 / 4 / kRowWords * 2;
      const auto word_at = [&](int i) {
        return *reinterpret_cast<const uint2*>(codes + (i / 4 * 32 + lane) * 16 + i % 4 * 4);
      };
      const uint2 first = word_at(tile16 * 2 * kRowWords + column * 2);
      const uint2 second = word_at((tile16 + 1) * 2 * kRowWords + column * 2);
      words[0] = first.x, words[1] = first.y, words[2] = second.x, words[3] = second.y;
    } else {
      const uint4 four = *reinterpret_cast<const uint4*>(codes + (i4 * 32 + lane * 4) * 4);
      words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
      tile16 = i4 / (2 * kRowWords), column = 0;
    }
    const std::byte* plane =
        parameters + (tile16 * 16 >> group_shift) * (2 * kColumns) * (BYTES ? 1 : 2);
    uint32_t scale[kSets][kSlots / 4][4], minimum[kSets][kSlots / 4][4];
#pragma unroll
    for (int set = 0; set < kSets; ++set)
#pragma unroll
      for (int i = 0; i < kSlots / 4; ++i)
        read_parameters<BITS, BYTES>(plane, kColumns, ((column + set) * kSlots + 4 * i) * 8 + t * 8,
                                     scale[set][i], minimum[set][i]);
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const int set = kSets == 1 ? 0 : q % 2;
      const int rows = kSets == 1 ? tile16 * 2 + q : tile16 * 2 + q / 2;  // in eights
#pragma unroll
      for (int i = 0; i < kSlots / 4; ++i) {
        const int chunk = (column + set) * kSlots + 4 * i;
        uint32_t pairs[4];
#pragma unroll
        for (int s = 0; s < 4; ++s)
          pairs[s] = numbers<BITS>(words[q], 4 * i + s, scale[set][i][s], minimum[set][i][s]);
        store_matrices((mine ^ chunk % 8 * 16) + chunk / 8 * kPart + rows * (8 * kRowBytes), pairs);
      }
    }
  }
}

// The same for e4m3, which has no parameters.
template <int D, bool KEYS>
__device__ __forceinline__ void expand_e4m3(const std::byte* codes, std::byte* tile) {
  constexpr int kRowWords = (KEYS ? D : kTile) / 16;
  constexpr int kLaneWords = (KEYS ? kTile : D) / 16 * 2 * kRowWords;
  static_assert(kLaneWords % (kSideThreads / 8) == 0 && kRowWords % 4 == 0);
  const int lane = threadIdx.x % 32, warp = int(threadIdx.x) % kSideThreads / 32;
  const uint32_t mine = shared_address(tile) + lane % 8 * kRowBytes + (lane / 8 ^ lane % 8) * 16;
#pragma unroll 2
  for (int i4 = warp * 4; i4 < kLaneWords; i4 += kSideThreads / 8) {
    const uint4 four = *reinterpret_cast<const uint4*>(codes + (i4 * 32 + lane * 4) * 4);
    const uint32_t words[4] = {four.x, four.y, four.z, four.w};
    const int tile16 = i4 / (2 * kRowWords), rest = i4 % (2 * kRowWords);
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // two words of a row have four chunks
      const int half = KEYS ? i : rest / kRowWords;
      const int chunk = KEYS ? rest : (rest % kRowWords + 2 * i) * 2;
      uint32_t pairs[4];
#pragma unroll
      for (int s = 0; s < 4; ++s)
        pairs[s] = fragment<8>(words[KEYS ? i + s / 2 * 2 : 2 * i + s / 2], s % 2);
      store_matrices(
          (mine ^ chunk % 8 * 16) + chunk / 8 * kPart + (tile16 * 2 + half) * (8 * kRowBytes),
          pairs);
    }
  }
}

// Squares of a sixteenth of the keys' scales: row j of operand B is token group j of two.
template <int D>
__device__ __forceinline__ void expand_squares(const std::byte* parameters, int group, bool bytes,
                                               std::byte* to) {
  for (int i = int(threadIdx.x) % kSideThreads; i < D; i += kSideThreads) {
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

// Starts to copy sinks to a tile as they lie in a slab, in rows: the first `count` of its 64
// tokens. The others are zeros.
template <int D>
__device__ __forceinline__ void copy_sinks(const std::byte* rows, int count, std::byte* tile) {
  const uint32_t to = shared_address(tile);
#pragma unroll 2
  for (int i = int(threadIdx.x) % kSideThreads; i < kTile * (D / 8); i += kSideThreads) {
    const int row = i / (D / 8), chunk = i % (D / 8);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     to + chunk / 8 * kPart + row * kRowBytes + chunk % 8 * 16),
                 "l"(rows + (row < count ? i * 16 : 0)), "r"(row < count ? 16 : 0)
                 : "memory");
  }
}
// A tile of sinks has no key bias.
template <int D>
__device__ __forceinline__ void clear_squares(std::byte* to) {
  for (int i = int(threadIdx.x) % kSideThreads; i < D; i += kSideThreads) {
    const int j = i / (D / 2), x = i % (D / 2);
    *reinterpret_cast<uint32_t*>(to + x / 32 * 1024 + j * kRowBytes + x % 32 * 4) = 0;
  }
}

// The pages of this block, in order: one side of them, which begins `offset` bytes behind a block.
// Sinks are left out.
struct PageCursor {
  const DecodeLaunch& d;
  const int offset, sink_pages;
  Parts parts;
  const int32_t* entry = nullptr;  // of the page table
  const std::byte* base = nullptr;
  int left = 0;  // of the part

  __device__ PageCursor(const SharedLaunch& a, const GroupWork* groups, const PieceRange& range,
                        int side_offset)
      : d(a.decode), offset(side_offset), sink_pages(a.sink_pages), parts(a, groups, range) {
    enter();
  }
  __device__ __forceinline__ bool valid() const { return left > 0; }
  __device__ __forceinline__ void enter() {
    Part part;
    while (left == 0 && parts.next(part)) {
      const int first = max(part.begin, sink_pages);
      entry = d.page_table + parts.groups[part.group].pages_begin + (first - sink_pages);
      base = d.pages + int64_t(part.head) * d.block_bytes + offset;
      left = max(0, part.end - first);
    }
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
    const int thread = int(threadIdx.x) % kSideThreads;
    Ring ring(a.at.stages), done(a.at.stages);
    int count = 0;
    for (PageCursor cursor(a, groups, range, KEYS ? 0 : a.decode.block_vc); cursor.valid();
         cursor.advance()) {
      const std::byte* from = cursor.data();
      barrier_wait(barriers.tile(KEYS ? kKeysEmpty : kValuesEmpty, ring.stage), ring.parity ^ 1);
      const uint32_t to = shared_address(tile_of(ring.stage));
#pragma unroll
      for (int i = thread; i < kTile * (D / 8); i += kSideThreads) {
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
    const bool copies = int(threadIdx.x) % kSideThreads < 32;  // this warp starts copies
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
    const auto fill = [&](const auto& write) {
      barrier_wait(barriers.tile(KEYS ? kKeysEmpty : kValuesEmpty, ring.stage), ring.parity ^ 1);
      write(ring.stage);
      fence_before_async_copy();
      warp_arrive(barriers.tile(KEYS ? kKeysFull : kValuesFull, ring.stage));
      ring.advance();
    };
    Parts parts(a, groups, range);
    Part part;
    while (parts.next(part)) {
      int i = part.begin;
      for (; i < min(part.end, a.sink_pages); ++i)
        for (int half = 0; half < halves; ++half)
          fill([&](int stage) { expand_sinks(part, (i * halves + half) * kTile, stage); });
      for (; i < part.end; ++i) {
        if (copies && next.valid()) issue();
        barrier_wait(barriers.raw(side, kRawFull, read.stage), read.parity);
        const std::byte* page = raw + read.stage * raw_bytes;
        for (int half = 0; half < halves; ++half)
          fill([&](int stage) { expand(page, half, stage); });
        warp_arrive(barriers.raw(side, kRawEmpty, read.stage));
        read.advance();
      }
    }
  }

  // Sinks from the one numbered `first` on.
  __device__ __forceinline__ void expand_sinks(const Part& part, int first, int stage) const {
    const DecodeLaunch& d = a.decode;
    const std::byte* rows = d.residual + groups[part.group].slot * d.slot_stride +
                            (int64_t(part.head) * d.slab_bytes + d.sink_rows) +
                            ((KEYS ? 0 : d.sinks) + first) * (2 * D);
    copy_sinks<D>(rows, d.sinks - first, tile_of(stage));
    wait_for_chunks();
    if (KEYS && d.bias != 0) clear_squares<D>(memory + a.at.squares + stage * (D / 64 * 1024));
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
    if (bits == 8)
      expand_e4m3<D, KEYS>(codes, tile);
    else if (d.byte_parameters)
      expand_codes<true>(bits, codes, parameters, tile);
    else
      expand_codes<false>(bits, codes, parameters, tile);
    if (KEYS && d.bias != 0)
      expand_squares<D>(parameters, d.group, d.byte_parameters,
                        memory + a.at.squares + stage * (D / 64 * 1024));
  }
  template <bool BYTES>
  __device__ __forceinline__ void expand_codes(int bits, const std::byte* codes,
                                               const std::byte* parameters, std::byte* tile) const {
    const int shift = a.decode.group_shift;
    if (bits == 2)
      expand_tile<D, 2, KEYS, BYTES>(codes, parameters, shift, tile);
    else
      expand_tile<D, 4, KEYS, BYTES>(codes, parameters, shift, tile);
  }
};

}  // namespace kivi::cuda::shared_pages
