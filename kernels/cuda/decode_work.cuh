// SPDX-License-Identifier: Apache-2.0
// How decode attention is cut into work: units, segments, and each warp's share of the line.
//
// A *segment* is the attention of one sequence, one KV head and one block of query heads. It is a
// row of *units*: first pages (64 quantized tokens), then tiles (16 tokens whose values, and mostly
// keys, are 16-bit rows): those of sinks, then those of the residual. The last tile ends with the
// step's own token. A unit's weight is about its bytes. All segments one after the other form a
// line, which is cut into equal *pieces*, one a warp; the warps of a block have neighboring
// pieces. A unit belongs to the piece in which it begins. So the grid is fixed, whatever the
// lengths are, and no warp has more than one unit above its share.
//
// Tokens are counted in paged positions here (kv_page.h): sinks have negative ones.
//
// The cut depends on lengths and shapes alone, so it is made once a step (plan_decode, in
// kv_attend_decode.cu) and read by the launches of all layers.
#pragma once

#include "kernels/cuda/kv_attend_decode.h"
#include "kernels/kv_page.h"

namespace kivi::cuda {

inline constexpr int kUnitTokens = 64;
inline constexpr int kSharedRows = 64;  // query rows of a slot
inline constexpr int kTileTokens = 16;

// A slot: O of 64 rows, then 64 pairs of maximum (log2) and sum. In a row, channels 32 k + 16 j + 8
// i + g lie at 32 k + 4 g + 2 j + i, as lanes of kv_attend_decode want them.
KIVI_HOST_DEVICE constexpr int64_t shared_slot_floats(int head_dim) {
  return kSharedRows * (head_dim + 2);
}

// x / y for 0 <= x and quotients below 2^22, given about 1 / y: an integer division is some 30
// instructions in a row, and the prologue would have a dozen of them.
__device__ __forceinline__ int quotient_of(int x, int y, float inverse) {
  int quotient = int(float(x) * inverse);
  const int rest = x - quotient * y;
  if (rest < 0) --quotient;
  if (rest >= y) ++quotient;
  return quotient;
}

struct Cursor {
  int sequence;
  int segment;  // of the sequence: kv head * head_blocks + head block
  int unit;

  __device__ bool operator==(const Cursor& o) const {
    return sequence == o.sequence && segment == o.segment && unit == o.unit;
  }
};

struct Piece;
struct Extent;
struct Line;

// Offsets in a block's shared memory: barriers [warps][stages] first, then a row of ones a warp,
// the line, the ids of partial states and two counters, one partial state a warp, the rings.
struct DecodeShared {
  int ones, line, slots, arrived, partials, partial_bytes, ring;
};
// What a word of DecodeLaunch::given holds until its state is written. No state has it: arithmetic
// makes another NaN.
constexpr uint32_t kNotGiven = 0xFFFFFFFFu;

// Everything a launch knows; passed by value.
struct DecodeLaunch {
  const __half* q;
  const __half* kv;
  void* out;
  int64_t q_stride, kv_stride, out_stride;  // elements
  const std::byte* pages;                   // of this layer
  const std::byte* residual;                // of this layer
  int64_t page_stride, slot_stride;         // bytes, all layers and heads
  int block_bytes, slab_bytes;
  const StepSequence* sequences;
  const int32_t* page_table;
  Line* line;       // the step's plan
  Piece* pieces;    // [blocks][warps]
  Extent* extents;  // [sequences]
  int* prefix;      // [sequences + 1]
  int4* borders;    // [blocks]: where the block before, it and the two behind it begin on the line
  float* partials;
  float4* given;  // [blocks] states for the next block; kNotGiven where there is none
  int* counters;
  KvKind kind;
  int group_shift, page_shift;  // log2 of G and of the tokens of a page
  int residual_rows;            // R; 1 where there is none
  float residual_inverse;       // 1 / R
  int sinks;                    // S
  int sink_rows;                // where a slab's sinks begin, in bytes
  int group;
  int sequence_count, kv_heads, ratio, head_blocks;
  int window;
  float scale_log2;
  bool out_bf16;
  // Offsets in a block of keys' parameters, values' codes and values' parameters; the same in a
  // stage, which holds 64 tokens; and the bytes of a 64-token unit.
  int block_kp, block_vc, block_vp;
  int stage_kp, stage_vc, stage_vp, unit_bytes;
  int key_group_bytes;  // of the parameters of one group of keys
  DecodeShared at;
  int stages, stage_bytes, ring_bytes;
  uint64_t policy;     // of level-2 cache for pages (kKeepShortly)
  uint64_t* timeline;  // [blocks][warps][kDecodeFields], of launches that are timed
  // With parameters of 8 bits or a key bias, those of a unit are expanded to f16: at planes_base +
  // stage * planes_stride of a warp's ring.
  bool byte_parameters;
  int planes_base, planes_stride;
  float bias;  // of quantized keys, over the factor of a head; 0: none
  int page_weight, tile_weight;
  int pair_shift;  // log2 of the pairs of query heads that a state in memory has room for
  float page_weight_inverse, tile_weight_inverse, weight_max_inverse;
  // What attend_shared has computed for sequences with shared pages (kv_attend_shared.h): states in
  // slots, and for each segment its first slot and 64 times the number of slots plus the row of its
  // first head. Null: shared pages are pages like others.
  const float* shared_slots;
  const int2* shared_where;

  // The first unit that is a sequence's own.
  __device__ __forceinline__ int first_unit(const StepSequence& s) const {
    return shared_slots != nullptr ? s.shared_pages << (page_shift - 6) : 0;
  }
  // position % R.
  __device__ __forceinline__ int residual_row(int position) const {
    return position - quotient_of(position, residual_rows, residual_inverse) * residual_rows;
  }
};

// What the parameters of a unit take where they are expanded to f16.
__host__ __device__ constexpr int planes_bytes(int head_dim) { return 20 * head_dim; }
// A stage has room for a unit, and for a tile with 16-bit rows. Expanded parameters lie behind
// their unit if there is room for them as well.
__host__ __device__ constexpr bool planes_in_stage(int unit_bytes, int head_dim) {
  const int tile_bytes = 4 * kTileTokens * head_dim;
  return unit_bytes + planes_bytes(head_dim) <= (unit_bytes < tile_bytes ? tile_bytes : unit_bytes);
}

// Where the parts of a page lie in a stage, and what else its format decides. With G32 these are
// constants (DecodeWarp), and the host has made a launch of exactly that format.
template <int D, int KB, int VB, bool X, bool G32>
struct DecodeStage {
  static constexpr int kKeyCodes = kUnitTokens * D * KB / 8, kValueCodes = kUnitTokens * D * VB / 8;
  static constexpr int kGroupBytes = (X ? 2 : 4) * D;  // of one group of keys
  static constexpr int kUnit =
      kKeyCodes + 2 * kGroupBytes + kValueCodes + kUnitTokens * (X ? 2 : 4) * D / 32;
  static __device__ __forceinline__ int unit_bytes(const DecodeLaunch& a) {
    return G32 ? kUnit : a.unit_bytes;
  }
  static __device__ __forceinline__ int key_parameters(const DecodeLaunch& a) {
    return G32 ? kKeyCodes : a.stage_kp;
  }
  static __device__ __forceinline__ int value_codes(const DecodeLaunch& a) {
    return G32 ? kKeyCodes + 2 * kGroupBytes : a.stage_vc;
  }
  static __device__ __forceinline__ int value_parameters(const DecodeLaunch& a) {
    return G32 ? kKeyCodes + 2 * kGroupBytes + kValueCodes : a.stage_vp;
  }
  static __device__ __forceinline__ int group_shift(const DecodeLaunch& a) {
    return G32 ? 5 : a.group_shift;
  }
  // Bytes from a page's first group of keys to its second; 0: there is one.
  static __device__ __forceinline__ int second_group(const DecodeLaunch& a) {
    if constexpr (G32) return kGroupBytes;
    return a.group == 32 ? a.key_group_bytes : 0;
  }
  static __device__ __forceinline__ bool has_bytes(const DecodeLaunch& a) {
    return G32 ? X : a.byte_parameters;
  }
  // Room for the expanded parameters of the unit in stage `stage`, whose data lies at `data`.
  static __device__ __forceinline__ std::byte* planes(const DecodeLaunch& a, std::byte* ring,
                                                      std::byte* data, int stage) {
    if constexpr (G32 && planes_in_stage(kUnit, D)) return data + kUnit;
    return ring + a.planes_base + stage * a.planes_stride;
  }
};

inline DecodeShared decode_shared(int warps, int stages, int head_dim, int head_tiles,
                                  int pair_shift) {
  DecodeShared s{};
  s.ones = (warps * stages * 8 + 15) / 16 * 16;
  s.line = s.ones + warps * 16;
  s.slots = s.line + 64;  // a BlockLine
  s.arrived = s.slots + 2 * warps * 32;
  s.partials = (s.arrived + 32 + 127) / 128 * 128;
  s.partial_bytes = head_tiles * ((head_dim * 8 << pair_shift) + 64);
  s.ring = (s.partials + warps * s.partial_bytes + 127) / 128 * 128;
  return s;
}

// Blocks of 8 query heads that a warp takes at once, where a KV head has more than 8.
__host__ __device__ constexpr int wide_head_tiles(int head_dim) { return head_dim == 64 ? 3 : 2; }

// What registers allow: 128 a thread at 16 warps, 168 at 12, 255 at 8 or 4. `codes`: of 2 or 4
// bits.
__host__ __device__ constexpr int decode_warps_max(int head_dim, int head_tiles, bool codes) {
  if (head_tiles > 1) return head_dim == 64 ? 8 : 4;
  return head_dim == 64 && codes ? 16 : 12;
}

// What each warp of a launch that is timed notes: when it came to these places, in nanoseconds of
// the device's clock, and then for each DecodeCount cycles (0 for pages and tiles) and how often.
enum class DecodePlace {
  started,        // the first instruction
  planned,        // the piece and the line were read
  copied,         // the first copy has started
  previous_done,  // the kernel ahead has ended
  arrived,        // the first unit is there
  computed,       // the last unit was computed
  met,            // so were those of all warps of the block
  block_merged,   // the states of the block are merged
  counted,        // it is known which segments this block merges
  done,           // the last instruction
};
inline constexpr int kDecodePlaces = 10;
enum class DecodeCount { waiting = 0, pages = 2, tiles = 4, ends = 6 };
inline constexpr int kDecodeCounts = 8;
inline constexpr int kDecodeFields = kDecodePlaces + kDecodeCounts;

// Ranges of paged positions of one sequence, equal for all of its segments, and where its rows and
// pages are. The plan has one for each sequence, so that no warp has to compute it again.
struct alignas(16) Extent {
  int past;          // of the step's own token
  int low;           // the first inside the sliding window
  int keys_end;      // keys [0, keys_end) are quantized
  int values_end;    // values [0, values_end) are read from page units
  int values_begin;  // the first of the residual's tiles, which end with `past`
  int page_first, pages;
  int sinks, tiles;      // 16-token tiles of both
  int row, slot, table;  // row_begin, slot and pages_begin of StepSequence

  // The first tile of sinks, a negative one, and the first tile of the residual.
  __device__ int sink_first() const { return low >> 4; }
  __device__ int tile_first() const { return values_begin / kTileTokens; }
  __device__ int units() const { return pages + sinks + tiles; }
  __device__ int weight(const DecodeLaunch& a) const {
    return pages * a.page_weight + (sinks + tiles) * a.tile_weight;
  }
  // The entry of the sequence's part of the page table that a unit needs, if it needs one.
  __device__ __forceinline__ int entry(int unit, int page_shift) const {
    const int position = unit < pages ? (page_first + unit) * kUnitTokens : tile_position(unit);
    return max(0, position) >> page_shift;
  }
  __device__ __forceinline__ int entries(int page_shift) const {
    return (max(keys_end, values_end) + (1 << page_shift) - 1) >> page_shift;
  }
  // The first position of a unit that is a tile.
  __device__ __forceinline__ int tile_position(int unit) const {
    const int i = unit - pages;
    return (i + (i < sinks ? sink_first() : tile_first() - sinks)) * kTileTokens;
  }
  // The first position that counts, of the tile that begins at `position`.
  __device__ __forceinline__ int tile_low(int position) const {
    return max(position, position < 0 ? low : values_begin);
  }
  __device__ __forceinline__ bool is_coded(int position) const {
    return position >= 0 && position < keys_end;
  }
};
static_assert(sizeof(Extent) == 48);

// What one warp does: the units from `begin` up to `end`; nothing where they are equal.
struct alignas(16) Piece {
  Cursor begin;
  int begin_start;  // where begin's segment starts on the line
  Cursor end;
  int end_start;
  // Of begin's sequence, and the entry of its page table that the first unit needs: the first copy
  // depends on no other read. An entry of -1: no warp of this block has a piece, and it is not the
  // first block.
  Extent extent;
  int entry, page;
};
static_assert(sizeof(Piece) == 96);

// As keys_paged and values_paged say, without the units that the kernel for shared pages reads:
// these pages and the sinks.
__device__ __forceinline__ Extent extent_of(const DecodeLaunch& a, const StepSequence& s) {
  Extent e;
  const int tokens = s.past, first = a.first_unit(s);
  e.past = tokens - a.sinks;
  e.low = (a.window > 0 ? max(0, tokens - a.window + 1) : 0) - a.sinks;
  const bool kivi = a.kind == KvKind::kivi;
  e.keys_end = kivi ? e.past > 0 ? e.past - a.residual_row(e.past) : 0 : e.past;
  e.values_end = a.kind == KvKind::f16 ? 0 : kivi ? max(0, e.past - a.residual_rows) : e.past;
  e.page_first = max(max(0, e.low) / kUnitTokens, first);
  e.values_begin = max(max(e.values_end, e.low), first * kUnitTokens);
  e.pages = max(0, (e.values_end + kUnitTokens - 1) / kUnitTokens - e.page_first);
  static_assert(kTileTokens == 1 << 4);  // shifts round down
  const int tile_end = (e.past >> 4) + 1;
  e.sinks = first > 0 ? 0 : max(0, min(0, tile_end) - e.sink_first());
  e.tiles = max(0, tile_end - e.tile_first());
  e.row = s.row_begin, e.slot = s.slot, e.table = s.pages_begin;
  return e;
}

// What the plan has of a sequence.
__device__ __forceinline__ Extent read_extent(const Extent* extent) {
  const auto* from = reinterpret_cast<const int4*>(extent);
  const int4 u = __ldg(from), v = __ldg(from + 1), w = __ldg(from + 2);
  return {u.x, u.y, u.z, u.w, v.x, v.y, v.z, v.w, w.x, w.y, w.z, w.w};
}
__device__ __forceinline__ Extent read_extent(const DecodeLaunch& a, int sequence) {
  return read_extent(a.extents + sequence);
}
// All reads are under way at once.
__device__ __forceinline__ Piece read_piece(const Piece* piece) {
  const auto* from = reinterpret_cast<const int4*>(piece);
  const int4 u = __ldg(from), v = __ldg(from + 1), w = __ldg(from + 5);
  const Extent e = read_extent(&piece->extent);
  return {{u.x, u.y, u.z}, u.w, {v.x, v.y, v.z}, v.w, e, w.x, w.y};
}

// The query heads of a segment: how many, and the first one's first channel in a row of q.
struct Heads {
  int count, channel;
};
template <int D, int NT>
__device__ __forceinline__ Heads heads_of(const DecodeLaunch& a, int segment) {
  const int head = NT == 1 ? segment : segment / a.head_blocks;
  const int first = NT == 1 ? 0 : segment % a.head_blocks * 8 * NT;
  return {min(8 * NT, a.ratio - first), (head * a.ratio + first) * D};
}

// The number of c's segment among those of all sequences.
__device__ __forceinline__ int segment_id(const DecodeLaunch& a, const Cursor& c) {
  return c.sequence * (a.kv_heads * a.head_blocks) + c.segment;
}

// The segment after c's.
__device__ __forceinline__ Cursor next_segment(const DecodeLaunch& a, Cursor c) {
  if (++c.segment == a.kv_heads * a.head_blocks) {
    c.segment = 0;
    do ++c.sequence;
    while (c.sequence < a.sequence_count && a.prefix[c.sequence + 1] == a.prefix[c.sequence]);
  }
  c.unit = 0;
  return c;
}

// The line of work: `prefix[s]` is where sequence s begins.
struct alignas(16) Line {
  const int* prefix;  // [sequence_count + 1]
  int total;
  int pieces;
  int pieces_block;    // of one block: 1..its warps
  int quotient, rest;  // total / pieces, total % pieces
  float pieces_inverse, quotient_inverse;

  __device__ __forceinline__ int boundary(int piece) const {
    return piece * quotient + quotient_of(piece * rest, pieces, pieces_inverse);
  }
  // The piece in which position x lies.
  __device__ __forceinline__ int owner(int x) const {
    int piece = min(pieces - 1, int(float(x) * quotient_inverse));
    while (boundary(piece) > x) --piece;
    while (boundary(piece + 1) <= x) ++piece;
    return piece;
  }
  __device__ __forceinline__ int block_of(int piece) const {
    return quotient_of(piece, pieces_block, 1.f / float(pieces_block));
  }

  // The first unit that begins at or after x.
  __device__ __forceinline__ Cursor locate(const DecodeLaunch& a, int x) const {
    if (x >= total) return {a.sequence_count, 0, 0};
    int low = 0, high = a.sequence_count;  // prefix[low] <= x < prefix[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (prefix[middle] <= x)
        low = middle;
      else
        high = middle;
    }
    const Extent e = extent_of(a, a.sequences[low]);
    const int weight = e.weight(a);
    const int segment = quotient_of(x - prefix[low], weight, __frcp_rn(float(weight)));
    const int rest = x - prefix[low] - segment * weight;
    const int in_tiles = rest - e.pages * a.page_weight;
    const int unit =
        in_tiles <= 0 ? quotient_of(rest + a.page_weight - 1, a.page_weight, a.page_weight_inverse)
                      : e.pages + quotient_of(in_tiles + a.tile_weight - 1, a.tile_weight,
                                              a.tile_weight_inverse);
    if (unit == e.units()) return next_segment(a, {low, segment, unit});  // x is in the last one
    return {low, segment, unit};
  }
  __device__ __forceinline__ int segment_start(const DecodeLaunch& a, Cursor c) const {
    if (c.sequence >= a.sequence_count) return total;
    return prefix[c.sequence] + c.segment * extent_of(a, a.sequences[c.sequence]).weight(a);
  }
};

// What a block has of the line in shared memory.
struct BlockLine {
  Line line;
  int4 borders;  // DecodeLaunch::borders
};
static_assert(sizeof(BlockLine) == 64);

// Byte `at` of a block's BlockLine in global memory, a multiple of 4.
__device__ __forceinline__ const std::byte* block_line(const DecodeLaunch& a, unsigned at) {
  return at < sizeof(Line)
             ? reinterpret_cast<const std::byte*>(a.line) + at
             : reinterpret_cast<const std::byte*>(a.borders + blockIdx.x) + (at - sizeof(Line));
}

static_assert(sizeof(Line) <= 64);

}  // namespace kivi::cuda
