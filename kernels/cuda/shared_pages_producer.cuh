// SPDX-License-Identifier: Apache-2.0
// The warpgroups of attend_shared that take pages apart (kv_attend_shared.cu): keys or values of a
// block's pages, as they are stored, into tiles of 64 tokens in f16.
#pragma once

#include "kernels/cuda/byte_parameters.cuh"
#include "kernels/cuda/decode_codes.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/shared_pages_work.cuh"

namespace kivi::cuda::shared_pages {

inline constexpr int kLag = 2;  // tiles of f16 pages on their way besides the newest one

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

}  // namespace kivi::cuda::shared_pages
