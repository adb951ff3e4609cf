// SPDX-License-Identifier: Apache-2.0
// Host side of decode attention, and the kernel that cuts a step into pieces.
#include <algorithm>
#include <bit>
#include <iterator>
#include <numbers>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/decode_work.cuh"
#include "kernels/cuda/kv_attend_decode.h"
#include "kernels/cuda/kv_attend_decode_heads.h"
#include "kernels/cuda/kv_attend_decode_launch.h"
#include "kernels/cuda/kv_attend_shared.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/prefill_attend.h"
#include "kernels/cuda/ptx.cuh"

namespace kivi::cuda {
namespace {

constexpr int kWarpsMax = 16;          // of a block
constexpr int kBlocksMax = 4;          // a multiprocessor
constexpr int kBlockBytes = 1024;      // of a block's shared memory, which a multiprocessor keeps
constexpr int kCountersMax = 1 << 20;  // segments of a launch
constexpr int kWeightBytes = 512;      // what a weight of 1 stands for
constexpr int kPiecesMin = 4;          // of a block, where there are few
// More warps of a block than kWarpsFew have pieces if each of all warps gets this many pages. With
// fewer, states to merge and uneven pieces cost more than more warps gain.
constexpr int kWarpsFew = 12, kPagesMany = 6;
// With shared pages, blocks of this many warps run beside attend_shared, one a multiprocessor. Only
// these have pieces if each of their warps then has no more than kUnitsBeside units.
constexpr int kWarpsBeside = 4, kUnitsBeside = 24;
constexpr int kSegmentsBeside = 6;  // of a multiprocessor: with more, blocks have more warps
// Whole rests: a multiprocessor has three such blocks. A warp of the one beside attend_shared has
// twice as many segments as a warp of the others, so all of them have kSegmentsRound or a multiple.
constexpr int kBlocksWhole = 3, kSegmentsRound = (kBlocksWhole + 1) * kWarpsBeside;
// They are faster for one or two rounds that are filled at least so far, and for rests of up to so
// many tokens (docs/design/decisions/039-shared-pages-on-wgmma.md).
struct WholeRound {
  double filled;
  int tokens_max;
};
constexpr WholeRound kWholeRounds[] = {{0.8, 384}, {0.95, 128}};
constexpr int kPlanThreads = 1024;
constexpr int kSequencesMax = 1 << 16;  // of a launch
constexpr size_t kSharedStatesBytes = size_t(64) << 20;
constexpr int kPlans = 4 * kDecodeWindowsMax;  // of a step: one for each choice of bits and window
// Times a head's factor (DecodeWarp), this is -scale / 24, for squares of a sixteenth of a scale.
constexpr float kKeyBias = -256 * std::numbers::ln2_v<float> / 24;

// Floats of one partial state, at most: 72 heads (nine blocks of 8) of 64 channels, maxima and
// sums.
constexpr size_t kPartialFloatsMax = 9 * (8 * 64 + 16);
static_assert(kPartialFloatsMax >= 2 * (8 * 128 + 16));
static_assert(kPartialFloatsMax >=
              HeadsShared<kHeadsTilesAll, true>::kPartialBytes / sizeof(float));

DecodeLaunch describe(const DecodeArguments& s, int head_tiles) {
  const KvLayout& layout = s.cache.store.layout;
  const int d = layout.shape.head_dim, halves = layout.page_tokens() / kUnitTokens;
  DecodeLaunch a{};
  a.q = s.q, a.kv = s.kv, a.out = s.out;
  a.q_stride = s.q_stride, a.kv_stride = s.kv_stride, a.out_stride = s.out_stride;
  a.block_bytes = layout.block_bytes(), a.slab_bytes = layout.slab_bytes();
  a.page_stride = s.cache.store.page_bytes(), a.slot_stride = layout.slot_bytes();
  a.pages = s.cache.store.page_block(s.layer, 0, 0);
  if (s.cache.store.slots != nullptr) a.residual = s.cache.store.slab(s.layer, 0, 0);
  a.sinks = layout.format.sinks, a.sink_rows = layout.sinks_offset(Side::key);
  a.sequences = s.cache.sequences, a.page_table = s.cache.page_table;
  a.kind = layout.format.kind;
  a.group = std::max(1, layout.format.group);
  a.group_shift = std::countr_zero(unsigned(a.group));
  a.page_shift = std::countr_zero(unsigned(layout.page_tokens()));
  a.residual_rows = std::max(1, layout.format.residual);
  a.residual_inverse = 1.f / float(a.residual_rows);
  a.sequence_count = s.sequence_count, a.kv_heads = layout.shape.heads;
  a.ratio = s.heads_q / a.kv_heads;
  const int heads_block = 8 * head_tiles;
  a.head_blocks = (a.ratio + heads_block - 1) / heads_block;
  a.pair_shift = a.ratio <= 2 ? 0 : a.ratio <= 4 ? 1 : 2;
  a.window = s.window, a.scale_log2 = s.scale_log2, a.out_bf16 = s.out_type == DType::bf16;
  a.block_kp = layout.key_parameters_offset();
  a.block_vc = layout.value_codes_offset();
  a.block_vp = layout.value_parameters_offset();
  const bool kivi = layout.format.kind == KvKind::kivi;
  a.stage_kp = layout.key_codes_bytes() / halves;
  a.key_group_bytes = kivi ? layout.parameter_pair_bytes() * d : 0;
  const int key_groups = std::max(1, kUnitTokens / a.group);  // of a unit
  a.stage_vc = a.stage_kp + a.key_group_bytes * key_groups;
  a.stage_vp = a.stage_vc + layout.value_codes_bytes() / halves;
  a.unit_bytes = a.stage_vp + layout.value_parameters_bytes() / halves;
  const int tile_bytes = 4 * kTileTokens * d;  // also holds the step's own token
  a.stage_bytes =
      layout.format.kind == KvKind::f16 ? tile_bytes : std::max(a.unit_bytes, tile_bytes);
  a.byte_parameters = layout.format.parameter_bits == 8;
  a.bias = layout.format.key_bias ? kKeyBias : 0.f;
  a.page_weight = a.unit_bytes / kWeightBytes;
  a.tile_weight = tile_bytes / kWeightBytes;
  const int weight_max =
      layout.format.kind == KvKind::f16 ? a.tile_weight : std::max(a.page_weight, a.tile_weight);
  a.page_weight_inverse = 1.f / float(a.page_weight);
  a.tile_weight_inverse = 1.f / float(a.tile_weight);
  a.weight_max_inverse = 1.f / float(weight_max);
  return a;
}

size_t blocks_max(const CudaProperties& device) {
  return size_t(device.multiprocessors) * kBlocksMax;
}
size_t pieces_max(const CudaProperties& device) { return blocks_max(device) * kWarpsMax; }

// Sum of x over the threads before this one, the sum over all and the largest x. All threads.
struct Scan {
  int before, all, most;
};
__device__ Scan scan(int x) {
  __shared__ int sums[32], mosts[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int sum = x;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, sum, offset);
    if (lane >= offset) sum += other;
  }
  const int most = __reduce_max_sync(0xffffffffu, x);
  __syncthreads();  // the last call's reads
  if (lane == 31) sums[warp] = sum, mosts[warp] = most;
  __syncthreads();
  const int warps = blockDim.x / 32;
  const int of_warp = lane < warps ? sums[lane] : 0;
  return {sum - x + __reduce_add_sync(0xffffffffu, lane < warp ? of_warp : 0),
          __reduce_add_sync(0xffffffffu, of_warp),
          __reduce_max_sync(0xffffffffu, lane < warps ? mosts[lane] : 0)};
}

// How many of `blocks` blocks to use for `segments` of one length: as many as make every border of
// blocks a border of segments, or the other way round, if that leaves few idle. Then fewer states
// have to be merged across blocks.
__device__ int aligned_blocks(int segments, int blocks) {
  const int each = (segments + blocks - 1) / blocks;
  const int used = segments >= blocks ? (segments + each - 1) / each : blocks / segments * segments;
  return used * 32 >= blocks * 31 ? used : blocks;
}

// Where the plan of layers of this format and window lies. A unit's weight and a block's warps
// follow from the bits, and the units from the window, so layers that differ in them have plans of
// their own.
int plan_index(const KvFormat& f, int window_index) {
  KIVI_VERIFY(window_index >= 0 && window_index < kDecodeWindowsMax);
  const int bits = f.kind == KvKind::kivi ? int(f.key_bits == 4) * 2 + int(f.value_bits == 4) : 0;
  return window_index * 4 + bits;
}

// The segments of a warp, [begin, end), of `count`. A warp of the first `few_blocks`, which run
// beside attend_shared, has 2 `each`, one of the others `each`.
__device__ int2 whole_segments(int block, int warp, int warps, int few_blocks, int each,
                               int count) {
  const int shares = block < few_blocks ? 2 : 1;
  const int before = (block + min(block, few_blocks)) * warps + shares * warp;
  return {min(count, before * each), min(count, (before + shares) * each)};
}

// Fills a.prefix, a.extents, a.line, a.borders and a.pieces [all_blocks][warps]. Little work goes
// to the first `few_blocks`. `whole`: segments are not cut. One block.
__global__ void __launch_bounds__(kPlanThreads, 1)
    plan_decode_kernel(const __grid_constant__ DecodeLaunch a, int all_blocks, int few_blocks,
                       int warps, bool whole) {
  __shared__ Line line;
  __shared__ int segments, each;  // each: see whole_segments(); 0: segments are cut
  int total = 0, decodes = 0, most = 0;
  if (threadIdx.x == 0) a.prefix[0] = 0;
  for (int base = 0; base < a.sequence_count; base += kPlanThreads) {
    const int s = base + int(threadIdx.x);
    int weight = 0;
    if (s < a.sequence_count) {
      const StepSequence& sequence = a.sequences[s];
      if (sequence.is_decode()) {
        const Extent extent = extent_of(a, sequence);
        a.extents[s] = extent;
        weight = extent.weight(a) * a.kv_heads * a.head_blocks;
      }
    }
    const Scan sums = scan(weight);
    if (s < a.sequence_count) a.prefix[s + 1] = total + sums.before + weight;
    total += sums.all;
    most = max(most, sums.most);
    decodes += __syncthreads_count(weight > 0);
  }
  if (threadIdx.x == 0) {
    int blocks = all_blocks;
    const bool equal = decodes > 0 && int64_t(most) * decodes == total;
    segments = decodes * a.kv_heads * a.head_blocks;
    const int shares = (all_blocks + few_blocks) * warps;
    // Segments are counted through, so the sequences that have some must come first.
    each = whole && a.prefix[decodes] == total ? (segments + shares - 1) / shares : 0;
    line.prefix = a.prefix;
    line.total = total;
    const float units = float(total) * a.weight_max_inverse;
    if (few_blocks > 0 && units <= float(few_blocks * warps * kUnitsBeside)) blocks = few_blocks;
    if (equal) blocks = aligned_blocks(segments, blocks);
    // Every piece holds the beginning of at least one unit (so the estimate rounds down). Few
    // pieces are spread over the blocks, but not one by one: what one block has is merged in it.
    const int pieces = max(1, int(units * 0.9999f));
    const bool much = total / blocks >= kPagesMany * a.page_weight * warps;
    const int warps_most = much ? warps : min(warps, kWarpsFew);
    line.pieces_block = min(warps_most, max(kPiecesMin, pieces / blocks));
    line.pieces = min(pieces, blocks * line.pieces_block);
    line.quotient = total / line.pieces;
    line.rest = total - line.quotient * line.pieces;
    line.pieces_inverse = 1.f / float(line.pieces);
    line.quotient_inverse = float(line.pieces) / float(max(1, total));
    *a.line = line;
  }
  __syncthreads();
  const auto border = [&](int block) {
    return line.boundary(min(line.pieces, max(0, block) * line.pieces_block));
  };
  for (int block = threadIdx.x; block < all_blocks; block += kPlanThreads)
    a.borders[block] =
        make_int4(border(block - 1), border(block), border(block + 1), border(block + 2));
  for (int i = threadIdx.x; i < all_blocks * warps; i += kPlanThreads) {
    const int block = i / warps, warp = i % warps, piece = block * line.pieces_block + warp;
    bool has_piece = warp < line.pieces_block && piece < line.pieces;
    bool idle = block * line.pieces_block >= line.pieces;  // the block
    Piece p{};
    if (each > 0) {
      const int2 range = whole_segments(block, warp, warps, few_blocks, each, segments);
      const int heads = a.kv_heads * a.head_blocks;  // segments of a sequence
      has_piece = range.x < range.y;
      idle = whole_segments(block, 0, warps, few_blocks, each, segments).x >= segments;
      p.begin = {range.x / heads, range.x % heads, 0};
      p.end = {range.y / heads, range.y % heads, 0};
    } else if (has_piece) {
      p.begin = line.locate(a, line.boundary(piece));
      p.end = line.locate(a, line.boundary(piece + 1));
    }
    if (has_piece) {
      p.begin_start = line.segment_start(a, p.begin);
      p.end_start = line.segment_start(a, p.end);
      if (p.begin.sequence < a.sequence_count) {
        p.extent = a.extents[p.begin.sequence];
        p.entry = p.extent.entry(p.begin.unit, a.page_shift);
        if (p.entry < p.extent.entries(a.page_shift))
          p.page = a.page_table[p.extent.table + p.entry];
      }
    }
    if (block > 0 && idle) p.entry = -1;
    a.pieces[i] = p;
  }
}

using Launcher = cudaError_t (*)(const DecodeLaunch&, const DecodeGrid&, cudaStream_t);

template <int D, bool X>
Launcher launcher_of_codes(const KvFormat& f) {
  if (f.key_bits == 2 && f.value_bits == 2) return launch_decode<D, 2, 2, X>;
  if (f.key_bits == 4 && f.value_bits == 4) return launch_decode<D, 4, 4, X>;
  if (f.key_bits == 4 && f.value_bits == 2) return launch_decode<D, 4, 2, X>;
  if (f.key_bits == 2 && f.value_bits == 4) return launch_decode<D, 2, 4, X>;
  return nullptr;
}

template <int D>
Launcher launcher_of(const KvFormat& f) {
  if (f.kind == KvKind::f16) return launch_decode<D, 16, 16, false>;
  if (f.kind == KvKind::f8) return launch_decode<D, 8, 8, false>;
  return f.parameter_bits == 8 || f.key_bias ? launcher_of_codes<D, true>(f)
                                             : launcher_of_codes<D, false>(f);
}

// Many query heads a KV head go to the kernel that unpacks a page once for many of them. Returns
// the blocks of 8 query heads that it takes at once; 0 = it is not used.
int heads_tiles_of(const DecodeArguments& s, const CudaProperties& device,
                   const DecodeTuning& tuning) {
  const KvLayout& layout = s.cache.store.layout;
  const int segments = s.sequence_count * layout.shape.heads;
  if (device.major != 9 || !runs_hopper_code() || layout.shape.head_dim != kHeadsDim ||
      s.heads_q / layout.shape.heads <= kHeadsRatio || layout.format.kind != KvKind::kivi ||
      segments < kHeadsSegmentsMin || tuning.heads_apart)
    return 0;
  if (tuning.heads_tiles > 0) return tuning.heads_tiles;
  // Half of the heads with parameters of 8 bits or a key bias has spills, and was not measured.
  const bool extended = layout.format.parameter_bits == 8 || layout.format.key_bias;
  return segments < kHeadsSegmentsMany && !extended ? kHeadsTilesHalf : kHeadsTilesAll;
}

int head_tiles_of(const KvShape& shape, int heads_q) {
  return heads_q / shape.heads > 8 ? wide_head_tiles(shape.head_dim) : 1;
}

// The kernel for shared pages attends to a part of what this launch has.
bool shares_pages(const DecodeArguments& s, const DecodeWorkspace& workspace) {
  return s.group_count > 0 && s.window == 0 && workspace.shared_states != nullptr;
}

SharedLaunch describe_shared(const DecodeArguments& s, const DecodeLaunch& a, int head_tiles,
                             const DecodeGrid& grid, const CudaProperties& device,
                             const DecodeWorkspace& workspace) {
  SharedLaunch shared{};
  shared.decode = a;
  shared.key_bits = s.cache.store.layout.format.key_bits;
  shared.value_bits = s.cache.store.layout.format.value_bits;
  shared.groups = s.groups, shared.members = s.group_members;
  shared.group_capacity = s.group_count;
  shared.plan = reinterpret_cast<SharedPlan*>(workspace.shared_plan.get());
  shared.where = reinterpret_cast<int2*>(workspace.shared_where.get());
  shared.slots = reinterpret_cast<float*>(workspace.shared_states.get());
  shared.heads_block = 8 * head_tiles;
  shared.unit_rows = std::min(a.ratio, shared.heads_block);
  shared.units_tile = kSharedRows / shared.unit_rows;
  shared.sink_pages = (a.sinks + (1 << a.page_shift) - 1) >> a.page_shift;
  shared.head_dim = s.cache.store.layout.shape.head_dim;
  KIVI_VERIFY(shared.group_capacity <= kSharedGroupsMax);
  // A multiprocessor has room for a block of each kernel, and not for two of this one.
  const int room = device.shared_bytes_max + kBlockBytes;  // of a multiprocessor
  const bool fits = lay_out_shared(shared, room - int(grid.shared_bytes) - 2 * kBlockBytes);
  KIVI_VERIFY(fits);
  shared.at.bytes = std::max(shared.at.bytes, room / 2);
  return shared;
}

cudaError_t decode_attend_heads(const DecodeArguments& s, DecodeLaunch& a, int tiles,
                                DecodeLaunchKind kind, const CudaProperties& device,
                                const DecodeTuning& tuning, cudaStream_t stream) {
  a.stages = std::clamp(tuning.stages > 0 ? tuning.stages : kHeadsStagesMax, kHeadsStagesMin,
                        kHeadsStagesMax);
  const bool extended = a.byte_parameters || s.cache.store.layout.format.key_bias;
  while (heads_shared_bytes(a, tiles, extended) > device.shared_bytes_max) --a.stages;
  KIVI_VERIFY(a.stages >= kHeadsStagesMin);
  if (kind == DecodeLaunchKind::plan) {
    plan_decode_kernel<<<1, kPlanThreads, 0, stream>>>(a, device.multiprocessors, 0,
                                                       heads_groups(tiles), false);
    return cudaGetLastError();
  }
  return launch_decode_heads(a, tiles, s.cache.store.layout.format, device.multiprocessors,
                             kind == DecodeLaunchKind::next, stream);
}

// Whole rests can be faster.
bool may_be_whole(const KvLayout& layout, bool wide) {
  const KvFormat& f = layout.format;
  return layout.shape.head_dim == 128 && !wide && f.kind == KvKind::kivi && f.key_bits == 2 &&
         f.value_bits == 2;
}

// Nanoseconds of the whole device, measured (docs/design/decode-attention.md, section 10).
constexpr double kSharedFixed = 11000;  // of a launch with groups, over one without
constexpr double kSharedTile = 10;      // of 64 query rows and 64 tokens of a KV head
constexpr double kOwnUnit = 1.1;  // more, beside shared pages, for 64 tokens of a member's own
constexpr double kHead64 = 0.65;  // of the times for 128 channels, for 64 channels
// What kv_attend_decode takes for 64 tokens of one block of query heads.
double unit_time(const KvFormat& f) {
  if (f.kind != KvKind::kivi) return f.kind == KvKind::f16 ? 4.2 : 2.1;
  return f.key_bits + f.value_bits > 4 ? 1.9 : 1.55;
}

}  // namespace

DecodeLaunch describe_decode(const DecodeArguments& s, const CudaProperties& device,
                             const DecodeWorkspace& workspace, const DecodeTuning& tuning,
                             DecodeGrid& grid) {
  const KvLayout& layout = s.cache.store.layout;
  const int d = layout.shape.head_dim;
  grid.wide = s.heads_q / layout.shape.heads > 8;
  const bool shares = shares_pages(s, workspace);
  grid.heads_tiles = shares ? 0 : heads_tiles_of(s, device, tuning);
  const int head_tiles = grid.heads_tiles > 0 ? grid.heads_tiles
                         : grid.wide          ? wide_head_tiles(d)
                                              : 1;
  DecodeLaunch a = describe(s, head_tiles);
  const size_t plan = size_t(plan_index(s.cache.store.layout.format, s.window_index));
  a.line = reinterpret_cast<Line*>(workspace.line.get()) + plan;
  a.pieces = reinterpret_cast<Piece*>(workspace.pieces.get()) + plan * pieces_max(device);
  a.prefix = reinterpret_cast<int*>(workspace.prefix.get()) + plan * (kSequencesMax + 1);
  // Bits do not matter here: plans of one window have the same.
  a.extents =
      reinterpret_cast<Extent*>(workspace.extents.get()) + size_t(s.window_index) * kSequencesMax;
  a.borders = reinterpret_cast<int4*>(workspace.borders.get()) + plan * blocks_max(device);
  a.partials = reinterpret_cast<float*>(workspace.partials.get());
  a.given = reinterpret_cast<float4*>(workspace.given.get());
  a.counters = reinterpret_cast<int*>(workspace.counters.get());
  if (shares) {
    a.shared_slots = reinterpret_cast<const float*>(workspace.shared_states.get());
    a.shared_where = reinterpret_cast<const int2*>(workspace.shared_where.get());
  }
  a.policy = kKeepNormal;
  KIVI_VERIFY(a.sequence_count <= kSequencesMax);
  KIVI_VERIFY(int64_t(a.sequence_count) * a.kv_heads * a.head_blocks <= workspace.counters_count);
  if (grid.heads_tiles > 0) return a;
  const bool extended = a.byte_parameters || layout.format.key_bias;
  // Time goes with instructions, and a page whose parameters become planes takes more of them a
  // byte.
  if (extended) a.tile_weight = std::max(1, a.page_weight * 4 / 5);
  if (tuning.tile_weight > 0) a.tile_weight = tuning.tile_weight;
  const int weight_max =
      layout.format.kind != KvKind::f16 ? std::max(a.page_weight, a.tile_weight) : a.tile_weight;
  a.tile_weight_inverse = 1.f / float(a.tile_weight);
  a.weight_max_inverse = 1.f / float(weight_max);

  // Codes take instructions, and so more warps.
  const bool codes = layout.format.kind == KvKind::kivi;
  const int warps_most = decode_warps_max(d, head_tiles, codes);
  // Expanded parameters lie behind their unit where a stage has room for them, else behind the
  // ring.
  const int planes = extended ? planes_bytes(d) : 0;
  const bool in_stage = !extended || planes_in_stage(a.unit_bytes, d);
  const auto shared_bytes = [&] {
    a.ring_bytes = a.stages * a.stage_bytes + (in_stage ? 0 : planes);
    a.planes_base = in_stage ? a.unit_bytes : a.stages * a.stage_bytes;
    a.planes_stride = in_stage ? a.stage_bytes : 0;
    a.at = decode_shared(grid.warps, a.stages, d, head_tiles, a.pair_shift);
    return a.at.ring + grid.warps * a.ring_bytes;
  };
  int per_multiprocessor = 1;
  const int all = device.shared_bytes_max + kBlockBytes;  // of a multiprocessor
  const auto room = [&] {
    const int each = all / std::min(per_multiprocessor, 3) - kBlockBytes;
    return shares ? std::min(each, all - 2 * kBlockBytes - shared_bytes_min(a, d)) : each;
  };
  const auto lay_out = [&](bool beside) {
    grid.beside = beside;
    const int blocks_default = beside && codes ? kBlocksWhole : shares ? 2 : 1;
    const int warps_default =
        beside ? kWarpsBeside
               : std::max(1, (codes ? warps_most : std::min(8, warps_most)) / (shares ? 2 : 1));
    const int blocks = tuning.blocks_per_multiprocessor;
    per_multiprocessor = std::clamp(blocks > 0 ? blocks : blocks_default, 1, kBlocksMax);
    grid.warps = tuning.warps > 0 ? std::min(tuning.warps, warps_most) : warps_default;
    a.stages = tuning.stages > 0 ? tuning.stages : 2;
    while (shared_bytes() > room() && a.stages > 2) --a.stages;
    while (beside && shared_bytes() > room() && per_multiprocessor > 1) --per_multiprocessor;
    while (shared_bytes() > room() && grid.warps > 1) --grid.warps;
  };
  // With shared pages, blocks are smaller: those of few segments run beside attend_shared, and
  // where there are more, the next layer's attend_shared has room as soon as one has ended.
  const int64_t segments = int64_t(a.sequence_count) * a.kv_heads * a.head_blocks;
  const bool few =
      shares && !grid.wide && segments <= int64_t(kSegmentsBeside) * device.multiprocessors;
  grid.whole_rests = shares && s.whole_rests && may_be_whole(layout, grid.wide);
  lay_out(few || grid.whole_rests);
  // A key bias over parameters of 16 bits leaves no room for three such blocks.
  if (grid.whole_rests && (grid.warps != kWarpsBeside || per_multiprocessor != kBlocksWhole)) {
    grid.whole_rests = false;
    lay_out(few);
  }
  // A page is read once, and a short launch gains if what all blocks read stays in the cache. Where
  // warps have many segments it loses 1.5 %.
  a.policy =
      segments <= int64_t(2 * kWarpsFew) * device.multiprocessors ? kKeepShortly : kKeepNormal;
  grid.blocks = device.multiprocessors * per_multiprocessor;
  grid.shared_bytes = size_t(shared_bytes());
  return a;
}

cudaError_t decode_attend(const DecodeArguments& s, DecodeLaunchKind kind,
                          const CudaProperties& device, const DecodeWorkspace& workspace,
                          cudaStream_t stream, const DecodeTuning& tuning) {
  const int d = s.cache.store.layout.shape.head_dim;
  const Launcher launch = d == 128  ? launcher_of<128>(s.cache.store.layout.format)
                          : d == 64 ? launcher_of<64>(s.cache.store.layout.format)
                                    : nullptr;
  if (launch == nullptr) return cudaErrorInvalidValue;
  DecodeGrid grid{};
  DecodeLaunch a = describe_decode(s, device, workspace, tuning, grid);
  if (grid.heads_tiles > 0)
    return decode_attend_heads(s, a, grid.heads_tiles, kind, device, tuning, stream);
  const bool plans = kind == DecodeLaunchKind::plan;
  grid.overlaps = kind == DecodeLaunchKind::next;
  if (a.shared_slots != nullptr) {
    const SharedLaunch shared = describe_shared(
        s, a, head_tiles_of(s.cache.store.layout.shape, s.heads_q), grid, device, workspace);
    const cudaError_t error =
        plans ? plan_shared(shared, device.multiprocessors, stream)
              : attend_shared(shared, device.multiprocessors, grid.overlaps, stream);
    if (error != cudaSuccess) return error;
    grid.overlaps = true;
  }
  if (!plans) return launch(a, grid, stream);
  plan_decode_kernel<<<1, kPlanThreads, 0, stream>>>(
      a, grid.blocks, grid.beside ? device.multiprocessors : 0, grid.warps, grid.whole_rests);
  return cudaGetLastError();
}

KeptGroups keep_groups(const KvLayout& layout, int heads_q, const GroupRests& rests,
                       const CudaProperties& device, const DecodeWorkspace& workspace,
                       std::vector<StepGroup>& groups) {
  const size_t found = groups.size();
  const int d = layout.shape.head_dim, heads = layout.shape.heads, ratio = heads_q / heads;
  // With groups, a step does without the kernel for very many query heads.
  if (workspace.shared_states == nullptr || (d != 64 && d != 128) || ratio > kHeadsRatio)
    groups.clear();
  const int head_tiles = head_tiles_of(layout.shape, heads_q);
  const int head_blocks = (ratio + 8 * head_tiles - 1) / (8 * head_tiles);
  const int units_tile = kSharedRows / std::min(ratio, 8 * head_tiles);
  const int units_page = layout.page_tokens() / kUnitTokens;
  const double size = d == 64 ? kHead64 : 1;
  const auto tiles_of = [&](const StepGroup& g) {
    return (int64_t(g.member_count) * head_blocks + units_tile - 1) / units_tile;
  };
  const auto spared = [&](const StepGroup& g) {
    const double before = double(g.member_count) * head_blocks * unit_time(layout.format);
    return (before - double(tiles_of(g)) * kSharedTile) * size * heads * g.pages * units_page;
  };
  std::erase_if(groups, [&](const StepGroup& g) { return spared(g) <= 0; });
  std::ranges::stable_sort(groups, std::greater{}, spared);
  // As many as there is room for.
  int64_t items = 0;
  double total = 0;
  size_t count = 0;
  while (count < groups.size() && count < kSharedGroupsMax) {
    items += tiles_of(groups[count]) * heads;
    const size_t slots = size_t(items + device.multiprocessors);
    const size_t bytes = slots * size_t(shared_slot_floats(d)) * sizeof(float);
    if (bytes > workspace.shared_states_bytes) break;
    total += spared(groups[count++]);
  }
  const double own = kOwnUnit * size * double(rests.pages * units_page * heads * head_blocks);
  groups.resize(total > kSharedFixed + own ? count : 0);
  KeptGroups kept{kSharedGroupsMax};
  if (groups.empty() || groups.size() < found || !may_be_whole(layout, ratio > 8) ||
      rests.tokens < 0)
    return kept;
  int64_t segments = 0;
  for (const StepGroup& g : groups) segments += int64_t(g.member_count) * heads * head_blocks;
  const int64_t round = int64_t(kSegmentsRound) * device.multiprocessors;
  const size_t rounds = size_t((segments + round - 1) / round);
  if (rounds > std::size(kWholeRounds)) return kept;
  const WholeRound& most = kWholeRounds[rounds - 1];
  kept.whole_rests = rests.tokens <= most.tokens_max &&
                     double(segments) >= most.filled * double(int64_t(rounds) * round);
  return kept;
}

DecodeWorkspace make_decode_workspace(const CudaProperties& device, cudaStream_t stream) {
  DecodeWorkspace w;
  const size_t blocks = blocks_max(device),
               given_bytes = blocks * kPartialFloatsMax * sizeof(float);
  w.partials = make_device_memory(2 * given_bytes);
  w.given = make_device_memory(given_bytes);
  static_assert(kNotGiven == 0xFFFFFFFFu);
  KIVI_CUDA_VERIFY(cudaMemsetAsync(w.given.get(), 0xFF, given_bytes, stream));
  w.line = make_device_memory(kPlans * sizeof(Line));
  w.borders = make_device_memory(kPlans * blocks * sizeof(int4));
  w.pieces = make_device_memory(kPlans * pieces_max(device) * sizeof(Piece));
  w.prefix = make_device_memory(kPlans * (kSequencesMax + 1) * sizeof(int));
  w.extents = make_device_memory(size_t(kDecodeWindowsMax) * kSequencesMax * sizeof(Extent));
  if (has_prefill_hopper(128)) {  // wgmma
    w.shared_plan = make_device_memory(shared_plan_bytes(kSequencesMax));
    w.shared_states_bytes = kSharedStatesBytes;
    w.shared_states = make_device_memory(kSharedStatesBytes);
    w.shared_where = make_device_memory(size_t(kCountersMax) * sizeof(int2));
  }
  w.counters_count = kCountersMax;
  w.counters = make_device_memory(size_t(kCountersMax) * sizeof(int));
  KIVI_CUDA_VERIFY(
      cudaMemsetAsync(w.counters.get(), 0, size_t(kCountersMax) * sizeof(int), stream));
  return w;
}

}  // namespace kivi::cuda
