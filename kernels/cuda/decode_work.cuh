// How decode attention is cut into work: units, segments, and each warp's share of the line.
//
// A *segment* is the attention of one sequence, one KV head and one block of query heads. It is a
// row of *units*: first pages (64 quantized tokens), then tiles (16 tokens whose values, and mostly
// keys, are 16-bit rows), last the step's own token. A unit's weight is about its bytes. All
// segments one after the other form a line; the warps of the grid cut the line into equal pieces,
// and a unit belongs to the warp in whose piece it begins. So the grid is fixed, whatever the
// lengths are, and no warp has more than one unit above its share.
#pragma once

#include "kernels/cuda/kv_attend_decode.h"
#include "kernels/kv_page.h"

namespace kivi::cuda {

inline constexpr int kUnitTokens = 64;
inline constexpr int kTileTokens = 16;

// Everything a launch knows; passed by value.
struct DecodeLaunch {
  const __half* q;
  const __half* kv;
  void* out;
  int64_t q_stride, kv_stride, out_stride;  // elements
  const std::byte* pages;                   // of this layer
  const std::byte* residual;                // of this layer
  int64_t page_stride, slot_stride;         // bytes, all heads
  int block_bytes, slab_bytes;
  const StepSequence* sequences;
  const int32_t* page_table;
  float* partials;
  int* counters;
  KvFormat format;
  int page_tokens;
  int sequence_count, kv_heads, ratio, head_blocks;
  int window;
  float scale_log2;
  bool out_bf16;
  // Offsets in a block of keys' parameters, values' codes and values' parameters; the same in a
  // stage, which holds 64 tokens; and the bytes of a 64-token unit.
  int block_kp, block_vc, block_vp;
  int stage_kp, stage_vc, stage_vp, unit_bytes;
  int stages, stage_bytes;
  int page_weight, tile_weight, weight_max;
};

struct Cursor {
  int sequence;
  int segment;  // of the sequence: kv head * head_blocks + head block
  int unit;

  __device__ bool operator==(const Cursor& o) const {
    return sequence == o.sequence && segment == o.segment && unit == o.unit;
  }
};

// Token ranges of one sequence; equal for all of its segments.
struct Extent {
  int past;          // T: tokens cached
  int low;           // first token inside the sliding window
  int keys_end;      // keys [0, keys_end) are quantized
  int values_end;    // values [0, values_end) are read from page units
  int values_begin;  // first token of the tiles
  int page_first, pages;
  int tile_first, tiles;

  __device__ int units() const { return pages + tiles + 1; }
  __device__ int weight(const DecodeLaunch& a) const {
    return pages * a.page_weight + tiles * a.tile_weight + 1;
  }
};

__device__ __forceinline__ Extent extent_of(const DecodeLaunch& a, int past) {
  Extent e;
  e.past = past;
  e.low = a.window > 0 ? max(0, past - a.window + 1) : 0;
  e.keys_end = key_tokens_quantized(a.format, past);
  e.values_end = a.format.kind == KvKind::f16 ? 0 : value_tokens_quantized(a.format, past);
  e.values_begin = max(e.values_end, e.low);
  e.page_first = e.low / kUnitTokens;
  e.pages = max(0, (e.values_end + kUnitTokens - 1) / kUnitTokens - e.page_first);
  e.tile_first = e.values_begin / kTileTokens;
  e.tiles = e.values_begin < past ? (past + kTileTokens - 1) / kTileTokens - e.tile_first : 0;
  return e;
}

// The line of work: `prefix[s]` is where sequence s begins. In shared memory.
struct Line {
  const int* prefix;  // [sequence_count + 1]
  int total;
  int warps;  // that share the line

  __device__ int boundary(int warp) const { return int(int64_t(warp) * total / warps); }
  // The warp in whose piece position x lies.
  __device__ int owner(int x) const {
    return int((int64_t(x + 1) * warps + total - 1) / total) - 1;
  }

  __device__ Cursor next_segment(const DecodeLaunch& a, Cursor c) const {
    if (++c.segment == a.kv_heads * a.head_blocks) {
      c.segment = 0;
      do ++c.sequence;
      while (c.sequence < a.sequence_count && prefix[c.sequence + 1] == prefix[c.sequence]);
    }
    c.unit = 0;
    return c;
  }

  // The first unit that begins at or after x.
  __device__ Cursor locate(const DecodeLaunch& a, int x) const {
    if (x >= total) return {a.sequence_count, 0, 0};
    int low = 0, high = a.sequence_count;  // prefix[low] <= x < prefix[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (prefix[middle] <= x)
        low = middle;
      else
        high = middle;
    }
    const Extent e = extent_of(a, a.sequences[low].past);
    const int weight = e.weight(a);
    const int segment = (x - prefix[low]) / weight;
    const int rest = x - prefix[low] - segment * weight;
    Cursor c{low, segment, 0};
    if (rest <= e.pages * a.page_weight) {
      c.unit = (rest + a.page_weight - 1) / a.page_weight;
    } else {
      const int tiles = rest - e.pages * a.page_weight;
      c.unit = e.pages + (tiles + a.tile_weight - 1) / a.tile_weight;
    }
    return c;
  }
};

// Fills prefix[0 .. sequence_count] (shared memory) and returns the line. All threads of the block.
__device__ __forceinline__ Line make_line(const DecodeLaunch& a, int* prefix) {
  for (int s = threadIdx.x; s < a.sequence_count; s += blockDim.x) {
    const StepSequence& sequence = a.sequences[s];
    const bool decodes = sequence.row_count == 1 && sequence.mode == KvMode::store;
    prefix[s + 1] =
        decodes ? extent_of(a, sequence.past).weight(a) * a.kv_heads * a.head_blocks : 0;
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    const int lane = threadIdx.x;
    int before = 0;
    if (lane == 0) prefix[0] = 0;
    for (int base = 0; base < a.sequence_count; base += 32) {
      const int s = base + lane;
      int sum = s < a.sequence_count ? prefix[s + 1] : 0;
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, sum, offset);
        if (lane >= offset) sum += other;
      }
      if (s < a.sequence_count) prefix[s + 1] = before + sum;
      before += __shfl_sync(0xffffffffu, sum, 31);
    }
  }
  __syncthreads();
  Line line;
  line.prefix = prefix;
  line.total = prefix[a.sequence_count];
  // Every piece but the last holds the beginning of at least one unit.
  line.warps = min(int(gridDim.x * blockDim.x / 32), max(1, line.total / a.weight_max));
  return line;
}

}  // namespace kivi::cuda
