// SPDX-License-Identifier: Apache-2.0
// kv_append writes a step's keys and values into the store (docs/design/kv-format.md, sections 2
// and 7). Every code, scale and minimum has the bits that kernels/kv_codec and
// CpuBackend::do_kv_append write.
//
// Decode (append_decodes). One launch serves all given layers, without a branch on the host. The
// last blocks have a warp for each head of a layer and sequence, or for up to eight of them. Of
// each head, the warp evicts the oldest value (it is quantized into its page) and writes the new
// rows over the residual's. The first blocks look for sequences whose token completes R keys, and
// share the groups of these keys among them (a flush). A flush is the longest chain of reads, so
// none waits for a place: where many are due, blocks that are done with rows help. Bytes a layer,
// sequence and head at d = 128 and 2 bits: 768 are read and 512 written of rows, and 32 sectors of
// codes are read and written. A flush reads 2 R d, and writes R d / 4 and the parameters.
//
// Chunks (append_chunks). Rows (f16 pages, staging, residual) are copied by one warp a token and
// head; quantized pages are written by one block a page and head: codes to shared memory, then
// whole words of them in page order, so that the stores are coalesced. The slab (sinks and
// residual) is written by a second launch, since the first reads what it overwrites.
// Test: tests/cuda/kv_append_test.cpp.
#include <algorithm>
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/kv_append.h"
#include "kernels/cuda/kv_quantize.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/kv_place.h"

namespace kivi::cuda {
namespace {

constexpr int kHeadDimMax = 256;
constexpr int kDecodeThreads = 256;
constexpr int kFlushBlocks = 528;     // share the flushes: four for each multiprocessor of an H100
constexpr int kFlushBlocksMin = 132;  // of these do nothing else
constexpr int kRowWarpsMin = 2112;    // of rows: half of what an H100 has room for at a time
constexpr int kHeadsEachMax = 8;      // that one of them stores
constexpr int kRowsMax = 128;         // rows of a block's tile: a group of keys, 64 values

struct Append {
  const __half* kv;
  int64_t kv_stride, kv_layer_stride;
  CacheArguments cache;
  int first_layer;

  __device__ int d() const { return cache.store.layout.shape.head_dim; }
};

// One head of one sequence in one layer.
struct Head {
  const Append& a;
  const StepSequence& s;
  int index;  // of the layers that the launch stores
  int head;

  __device__ int layer() const { return a.first_layer + index; }
  __device__ KvLocator locator() const { return a.cache.locator(s, layer(), head); }
  __device__ std::byte* page(int i) const { return locator().page_block(i); }
  // The 16-bit rows among which a place lies.
  __device__ __half* rows(const KvPlace& place, Side side) const {
    return reinterpret_cast<__half*>(locator().rows(place, side));
  }
  // Channel c (a multiple of 8 for 16-byte reads) of a token's key or value that is in 16 bits
  // before this step's writes.
  __device__ const __half* source(int token, Side side, int c) const {
    const KvLayout& layout = a.cache.store.layout;
    if (token >= s.past)
      return a.kv + index * a.kv_layer_stride + (s.row_begin + token - s.past) * a.kv_stride +
             ((side == Side::key ? 0 : layout.shape.heads) + head) * a.d() + c;
    const KvMode mode = s.mode == KvMode::append ? KvMode::append : KvMode::stage;
    const KvPlace place = arrival_place(layout, mode, token);
    return rows(place, side) + place.row * a.d() + swizzled_channel(place.row, c, a.d());
  }
};

// The same arguments, with numbers of KIVI pages that the kernel is compiled for: head_dim, the
// group, the bits of keys and of values. Places in pages are then computed without divisions.
template <int D, int GROUP, int KB, int VB>
__device__ __forceinline__ Append with_known(Append a) {
  KvLayout& layout = a.cache.store.layout;
  layout.format.kind = KvKind::kivi;
  layout.format.group = GROUP;
  layout.shape.head_dim = D;
  layout.format.key_bits = KB;
  layout.format.value_bits = VB;
  return a;
}

// --- decode -----------------------------------------------------------------------------------

// Rows of `count` tokens from `first` on into shared memory, [count][d].
__device__ void load_rows(const Head& h, Side side, int first, int count, __half* rows) {
  const int d = h.a.d(), chunks = d / 8;
  for (int i = threadIdx.x; i < count * chunks; i += blockDim.x) {
    const int row = i / chunks, c = i % chunks * 8;
    *reinterpret_cast<uint4*>(rows + row * d + c) =
        *reinterpret_cast<const uint4*>(h.source(first + row, side, c));
  }
}

// The new rows of one sequence and head, and the eviction that makes room for them. One warp. All
// reads come first: each store would otherwise hold up the reads behind it.
template <int kSlices>
__device__ void append_rows(const Head& h) {
  const KvLayout& layout = h.a.cache.store.layout;
  const int token = h.s.past, residual = layout.format.residual, d = h.a.d();
  const int lane = threadIdx.x % 32, oldest_position = token - layout.format.sinks - residual;
  const KvPlace place = arrival_place(layout, KvMode::append, token);
  const int row = place.row;
  const bool evicts = oldest_position >= h.s.values_from;  // 0 or more
  Eviction<kSlices> eviction;
  if (evicts) {
    eviction.token = oldest_position % layout.page_tokens();
    eviction.block = h.page(oldest_position / layout.page_tokens());
    eviction.first = layout.value_code(eviction.token, lane);
  }
  __half* keys = h.rows(place, Side::key) + row * d;
  __half* values = h.rows(place, Side::value) + row * d;
  if (evicts) read_words(layout, eviction);
  const __half* new_key = h.source(token, Side::key, lane);
  const __half* new_value = h.source(token, Side::value, lane);
  __half key[kSlices], value[kSlices], oldest[kSlices];
#pragma unroll
  for (int i = 0; i < kSlices; ++i) {
    const int c = lane + 32 * i;
    key[i] = value[i] = oldest[i] = 0.f;
    if (c >= d) continue;
    key[i] = new_key[32 * i], value[i] = new_value[32 * i];
    if (evicts) oldest[i] = values[swizzled_channel(row, c, d)];
  }
  if (evicts) evict_value(layout, eviction, oldest);
#pragma unroll
  for (int i = 0; i < kSlices; ++i) {
    const int c = lane + 32 * i;
    if (c >= d) continue;
    const int at = swizzled_channel(row, c, d);
    keys[at] = key[i], values[at] = value[i];
  }
}

// Groups of keys of all sequences that complete R tokens, shared by `blocks` blocks.
template <int GROUP>
__device__ void flush_keys(const Append& a, int sequences, int layers, int block, int blocks,
                           uint16_t* codes) {
  __shared__ int found[kDecodeThreads];
  const KvLayout& layout = a.cache.store.layout;
  const int residual = layout.format.residual, sinks = layout.format.sinks;
  const int heads = layout.shape.heads, groups = residual / GROUP;
  for (int base = 0; base < sequences; base += kDecodeThreads) {
    // A list in the order of the sequences: each block must see the same.
    const int index = base + threadIdx.x;
    const int paged = index < sequences ? a.cache.sequences[index].past + 1 - sinks : 0;
    const bool flushes = paged > 0 && paged % residual == 0 && a.cache.sequences[index].is_decode();
    __shared__ uint32_t votes[kDecodeThreads / 32];
    const uint32_t vote = __ballot_sync(0xffffffffu, flushes);
    __syncthreads();
    if (threadIdx.x % 32 == 0) votes[threadIdx.x / 32] = vote;
    __syncthreads();
    int before = __popc(vote & ((1u << (threadIdx.x % 32)) - 1)), count = 0;
    for (int w = 0; w < kDecodeThreads / 32; ++w) {
      if (w < int(threadIdx.x / 32)) before += __popc(votes[w]);
      count += __popc(votes[w]);
    }
    if (flushes) found[before] = index;
    __syncthreads();
    const int of_sequence = layers * heads * groups;
    for (int item = block; item < count * of_sequence; item += blocks) {
      const StepSequence& s = a.cache.sequences[found[item / of_sequence]];
      const int part = item % of_sequence;
      const Head h{a, s, part / groups / heads, part / groups % heads};
      const int first = s.past + 1 - sinks - residual + part % groups * GROUP;
      quantize_keys<GROUP>(layout, h.page(first / layout.page_tokens()),
                           first % layout.page_tokens(), codes,
                           [&](int i, int c) { return h.source(sinks + first + i, Side::key, c); });
      __syncthreads();
    }
  }
}

// 4-bit codes of a value lie in twice as many sectors, and append_rows is as fast for them.
constexpr bool has_append_heads(int head_dim, int value_bits) {
  return head_dim == 128 && value_bits == 2;
}

// Heads of one sequence and layer, from `first` up to `head_end`, of 128 channels and 2-bit values.
// Stores of each what append_rows does. One warp. What does not depend on the head is computed
// once, and a vector of 16 bytes takes the place of four words: lane 8 q + r has channels 32 q + 8
// m + r of the evicted value, m = 0 to 3, whose codes lie side by side. Of the new rows it has 8
// channels of the key (lanes 0 to 15) or of the value.
template <int GROUP>
__device__ __forceinline__ void append_heads(const Head& first, int head_end) {
  constexpr int kD = 128, kBits = 2, kAtOnce = 2;
  const KvLayout& layout = first.a.cache.store.layout;
  const int token = first.s.past, lane = threadIdx.x % 32, group = lane / 8, r = lane % 8;
  const int oldest = token - layout.format.sinks - layout.format.residual;  // paged position
  const bool evicts = oldest >= first.s.values_from;                        // 0 or more
  const KvPlace place = arrival_place(layout, KvMode::append, token);
  const Side side = lane < 16 ? Side::key : Side::value;
  const __half* from = first.source(token, side, lane % 16 * 8);
  __half* to =
      first.rows(place, side) + place.row * kD + swizzled_channel(place.row, lane % 16 * 8, kD);
  const __half* value = first.rows(place, Side::value) + place.row * kD;
  int channel[4];  // where they are in that row
#pragma unroll
  for (int m = 0; m < 4; ++m) channel[m] = swizzled_channel(place.row, 32 * group + 8 * m + r, kD);
  const int page_token = evicts ? oldest % layout.page_tokens() : 0;
  std::byte* block = evicts ? first.page(oldest / layout.page_tokens()) : nullptr;
  const CodePosition code = layout.value_code(page_token, 32 * group + r);
  const uint32_t mask = ((1u << kBits) - 1) << code.bit;
  // Lanes 0 and 1 of a group store its scale and its minimum.
  const bool stores_parameter = r < 2 && group % (GROUP / 32) == 0;
  const int parameter = r == 0 ? layout.value_scale(page_token, 32 * group)
                               : layout.value_minimum(page_token, 32 * group);
  const auto codes_of = [&](int head) {
    return reinterpret_cast<uint4*>(block + head * layout.block_bytes() +
                                    layout.value_codes_offset() + code.word * 4);
  };
  const int slab = layout.slab_bytes() / 2;  // halves
  for (int left = head_end - first.head; left > 0; left -= kAtOnce) {
    uint4 fresh[kAtOnce], words[kAtOnce];
    __half2 x[kAtOnce][2];
    // All reads come first: each store would otherwise hold up the reads behind it. Where one head
    // is left, it is read twice.
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u)
      fresh[u] = *reinterpret_cast<const uint4*>(from + min(u, left - 1) * kD);
    if (evicts) {
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int head = min(u, left - 1);
        words[u] = *codes_of(head);
        const __half* row = value + head * slab;
        x[u][0] = __halves2half2(row[channel[0]], row[channel[1]]);
        x[u][1] = __halves2half2(row[channel[2]], row[channel[3]]);
      }
    }
    __syncwarp();  // all lanes have read the oldest value before another one takes its place
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u)
      if (u < left) *reinterpret_cast<uint4*>(to + u * slab) = fresh[u];
    if (evicts) {
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        if (u >= left) break;
        x[u][0] = finite2(x[u][0]), x[u][1] = finite2(x[u][1]);
        const __half2 low = __hmin2(x[u][0], x[u][1]), high = __hmax2(x[u][0], x[u][1]);
        // The least of a lane's four, and minus the largest: one shuffle for both.
        __half2 extremes = __halves2half2(__hmin(__low2half(low), __high2half(low)),
                                          __hneg(__hmax(__low2half(high), __high2half(high))));
#pragma unroll
        for (int offset = 1; offset < GROUP / 4; offset *= 2)
          extremes = __hmin2(extremes, __shfl_xor_sync(0xffffffffu, extremes, offset));
        const Quantizer quantizer(__low2float(extremes), -__high2float(extremes), kBits,
                                  layout.format.parameter_bits);
        const float2 v = __half22float2(x[u][0]), w = __half22float2(x[u][1]);
        const auto changed = [&](uint32_t word, float y) {
          return (word & ~mask) | quantizer.code(y) << code.bit;
        };
        *codes_of(u) = make_uint4(changed(words[u].x, v.x), changed(words[u].y, v.y),
                                  changed(words[u].z, w.x), changed(words[u].w, w.y));
        if (!stores_parameter) continue;
        std::byte* region = block + u * layout.block_bytes() + layout.value_parameters_offset();
        if (layout.format.parameter_bits == 8)
          region[parameter] = std::byte(r == 0 ? quantizer.bytes.scale : quantizer.bytes.minimum);
        else
          reinterpret_cast<uint16_t*>(region)[parameter] =
              bits_of(r == 0 ? quantizer.scale : quantizer.low);
      }
    }
    from += kAtOnce * kD;
    to += kAtOnce * slab, value += kAtOnce * slab;
    block += kAtOnce * layout.block_bytes();
  }
}

// The last `row_blocks` blocks: rows. A warp has `heads_each` heads of one layer and sequence, or
// those that are left; one head where append_heads cannot store it. The first `flush_blocks`:
// flushes. Where these overlap, a block's rows come first.
struct DecodeBlocks {
  int sequences, layers, heads_each, row_blocks, flush_blocks;
};

template <int GROUP, int kSlices, int D, int VB>
__device__ __forceinline__ void append_decode(const Append& a, const DecodeBlocks& grid,
                                              uint16_t* codes) {
  const int block = int(blockIdx.x), blocks = int(gridDim.x);
  if (block >= blocks - grid.row_blocks) {
    const int index = (blocks - 1 - block) * (kDecodeThreads / 32) + int(threadIdx.x / 32);
    const int heads = a.cache.store.layout.shape.heads;
    const int of_sequence = (heads + grid.heads_each - 1) / grid.heads_each;
    const int of_layer = grid.sequences * of_sequence;
    if (index < grid.layers * of_layer) {
      const StepSequence& s = a.cache.sequences[index % of_layer / of_sequence];
      const int head = index % of_sequence * grid.heads_each;
      if (s.is_decode()) {
        const Head h{a, s, index / of_layer, head};
        if constexpr (has_append_heads(D, VB))
          append_heads<GROUP>(h, min(head + grid.heads_each, heads));
        else
          append_rows<kSlices>(h);
      }
    }
  }
  if (block < grid.flush_blocks)
    flush_keys<GROUP>(a, grid.sequences, grid.layers, block, grid.flush_blocks, codes);
}

// D, KB, VB: with_known(); 0: nothing is known. A warp's time is that of the arithmetic of places
// in pages.
template <int GROUP, int kSlices, int D, int KB, int VB>
__global__ void __launch_bounds__(kDecodeThreads, GROUP == 32   ? 4
                                                  : GROUP == 64 ? 3
                                                                : 2)
    append_decode_kernel(const __grid_constant__ Append a, DecodeBlocks grid) {
  extern __shared__ __align__(16) uint16_t codes[];  // [G][d] of a flush
  let_next_start();
  if constexpr (D > 0)
    append_decode<GROUP, kSlices, D, VB>(with_known<D, GROUP, KB, VB>(a), grid, codes);
  else
    append_decode<GROUP, kSlices, 0, 0>(a, grid, codes);
}

// f16 and f8: the token goes to its page at once. Grid (heads, sequences, layers), d threads.
__global__ void append_decode_plain_kernel(const __grid_constant__ Append a) {
  let_next_start();
  const StepSequence& s = a.cache.sequences[blockIdx.y];
  if (!s.is_decode()) return;
  const KvLayout& layout = a.cache.store.layout;
  const Head h{a, s, int(blockIdx.z), int(blockIdx.x)};
  const int token = s.past, c = threadIdx.x;
  const int t = token % layout.page_tokens();
  const __half key = *h.source(token, Side::key, c), value = *h.source(token, Side::value, c);
  std::byte* block = h.page(token / layout.page_tokens());
  std::byte* keys = block + layout.key_codes_offset();
  std::byte* values = block + layout.value_codes_offset();
  if (layout.format.kind == KvKind::f16) {
    const int at = t * a.d() + swizzled_channel(t, c, a.d());
    reinterpret_cast<__half*>(keys)[at] = key;
    reinterpret_cast<__half*>(values)[at] = value;
    return;
  }
  const CodePosition k = layout.key_code(t, c), v = layout.value_code(t, c);
  keys[k.word * 4 + k.bit / 8] = std::byte(e4m3_of(key));
  values[v.word * 4 + v.bit / 8] = std::byte(e4m3_of(value));
}

// --- chunks -----------------------------------------------------------------------------------

enum class Rows { pages, staging, slab };

// Sequences with chunks that a launch stores: a step may have hundreds of others, whose blocks
// would have nothing to do.
struct ChunkList {
  static constexpr int kMost = 128;
  int count = 0;
  int32_t sequences[kMost] = {};
};

// Copies the rows of new tokens. Grid (tokens / 8, heads, chunks), 8 warps: a token each. Of those
// that go to the slab, sinks come first, then the last R.
__global__ void append_rows_kernel(const __grid_constant__ Append a,
                                   const __grid_constant__ ChunkList chunks, int layer,
                                   Rows target) {
  const StepSequence& s = a.cache.sequences[chunks.sequences[blockIdx.z]];
  const bool staged = s.mode == KvMode::stage;
  if (staged != (target == Rows::staging)) return;
  const KvLayout& layout = a.cache.store.layout;
  const Head h{a, s, layer, int(blockIdx.y)};
  const int end = s.past + s.row_count, first = s.mode == KvMode::seal ? 0 : s.past;
  int token = first + blockIdx.x * 8 + threadIdx.x / 32;
  if (target == Rows::slab && token >= layout.format.sinks) {
    const int sinks = max(0, min(layout.format.sinks, end) - first);
    token += max(first + sinks, end - layout.format.residual) - (first + sinks);
  }
  if (token >= end) return;
  const KvPlace place = arrival_place(layout, staged ? KvMode::stage : KvMode::append, token);
  const int pieces = a.d() / 8;
  for (int i = threadIdx.x % 32; i < 2 * pieces; i += 32) {
    const Side side = i < pieces ? Side::key : Side::value;
    const int c = i % pieces * 8;
    *reinterpret_cast<uint4*>(h.rows(place, side) + place.row * a.d() +
                              swizzled_channel(place.row, c, a.d())) =
        *reinterpret_cast<const uint4*>(h.source(token, side, c));
  }
}

// Writes what a step quantizes of a sequence into one page. All threads of a block.
template <int GROUP>
__device__ __forceinline__ void append_page(const Append& a, const StepSequence& s, int layer,
                                            __half* rows) {
  const KvLayout& layout = a.cache.store.layout;
  const KvFormat& format = layout.format;
  const Head h{a, s, layer, int(blockIdx.y)};
  const int before = s.mode == KvMode::seal ? 0 : s.past;
  const int after = s.past + s.row_count, tokens = layout.page_tokens(), sinks = format.sinks;
  // Paged positions whose keys (values) leave 16 bits in this step.
  const int keys_begin = keys_paged(format, before);
  const int keys_end = keys_paged(format, after);
  const int values_begin = max(values_paged(format, before), s.values_from);
  const int values_end = max(values_paged(format, after), s.values_to);
  const int page = min(keys_begin, values_begin) / tokens + blockIdx.x, first = page * tokens;
  if (first >= max(keys_end, values_end)) return;
  std::byte* block = h.page(page);

  const bool kivi = format.kind == KvKind::kivi;
  const int step = kivi ? format.group : 64;
  for (int t = 0; t < tokens; t += step) {
    const int begin = max(first + t, keys_begin), end = min(first + t + step, keys_end);
    if (begin >= end) continue;  // kivi: groups are whole
    if (kivi) {
      quantize_keys<GROUP>(layout, block, t, reinterpret_cast<uint16_t*>(rows),
                           [&](int i, int c) { return h.source(sinks + begin + i, Side::key, c); });
    } else {
      load_rows(h, Side::key, begin, end - begin, rows);
      __syncthreads();
      convert_e4m3((end - begin) * a.d(), rows);
      __syncthreads();
      store_key_words(layout, block, begin - first, end - begin,
                      reinterpret_cast<const uint16_t*>(rows));
    }
    __syncthreads();
  }
  for (int t = 0; t < tokens; t += 64) {
    const int begin = max(first + t, values_begin), end = min(first + t + 64, values_end);
    if (begin >= end) continue;
    if (kivi) {
      quantize_values(layout, block, begin - first, end - begin, reinterpret_cast<uint16_t*>(rows),
                      [&](int i, int c) { return h.source(sinks + begin + i, Side::value, c); });
    } else {
      load_rows(h, Side::value, begin, end - begin, rows);
      __syncthreads();
      convert_e4m3((end - begin) * a.d(), rows);
    }
    __syncthreads();
    store_value_words(layout, block, t, begin - first, end - begin,
                      reinterpret_cast<const uint16_t*>(rows));
    __syncthreads();
  }
}

// Grid (pages, heads, chunks), 256 threads. D, KB, VB: with_known(); 0: nothing is known.
template <int GROUP, int D, int KB, int VB>
__global__ void append_page_kernel(const __grid_constant__ Append a,
                                   const __grid_constant__ ChunkList chunks, int layer) {
  extern __shared__ __align__(16) __half rows[];  // [kRowsMax][d]
  const StepSequence& s = a.cache.sequences[chunks.sequences[blockIdx.z]];
  if (s.mode == KvMode::stage) return;
  if constexpr (D > 0)
    append_page<GROUP>(with_known<D, GROUP, KB, VB>(a), s, layer, rows);
  else
    append_page<GROUP>(a, s, layer, rows);
}

// Calls f.operator()<G>(); f8 has no groups and takes any.
template <class F>
cudaError_t with_group(const KvFormat& format, F&& f) {
  return format.group == 128  ? f.template operator()<128>()
         : format.group == 64 ? f.template operator()<64>()
                              : f.template operator()<32>();
}

// Calls f.operator()<D, KB, VB>() with what kernels of these pages may take as known.
template <int GROUP, class F>
cudaError_t with_known_bits(const KvLayout& layout, F&& f) {
  const int keys = layout.format.key_bits, values = layout.format.value_bits;
  const bool known = layout.format.kind == KvKind::kivi && layout.shape.head_dim == 128 &&
                     layout.format.group == GROUP;
  if (known && keys == 2 && values == 2) return f.template operator()<128, 2, 2>();
  if (known && keys == 4 && values == 2) return f.template operator()<128, 4, 2>();
  if (known && keys == 4 && values == 4) return f.template operator()<128, 4, 4>();
  return f.template operator()<0, 0, 0>();
}

template <class Kernel>
cudaError_t allow_shared(Kernel* kernel, size_t bytes) {
  if (bytes <= 32 * 1024) return cudaSuccess;  // with what is static, less than 48 KiB
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
}

Append device_arguments(const AppendArguments& a) {
  return {a.kv, a.kv_stride, a.kv_layer_stride, a.cache, a.layer};
}

}  // namespace

cudaError_t append_decodes(const AppendArguments& a, cudaStream_t stream) {
  const KvLayout& layout = a.cache.store.layout;
  const int d = layout.shape.head_dim;
  const bool kivi = layout.format.kind == KvKind::kivi;
  if (d > kHeadDimMax) return cudaErrorInvalidValue;
  if (!kivi) {
    const dim3 grid(unsigned(layout.shape.heads), unsigned(a.sequence_count), unsigned(a.layers));
    append_decode_plain_kernel<<<grid, unsigned(d), 0, stream>>>(device_arguments(a));
    return cudaGetLastError();
  }
  const int heads = a.layers * a.sequence_count * layout.shape.heads;
  const int heads_each = has_append_heads(d, layout.format.value_bits)
                             ? std::clamp(heads / kRowWarpsMin, 1, kHeadsEachMax)
                             : 1;
  const int row_warps =
      a.layers * a.sequence_count * ((layout.shape.heads + heads_each - 1) / heads_each);
  const int row_blocks = (row_warps + kDecodeThreads / 32 - 1) / (kDecodeThreads / 32);
  const int groups = layout.format.residual / layout.format.group;
  const int most = heads * groups;  // groups of keys to flush
  const int others = std::min(std::max(kFlushBlocks - row_blocks, kFlushBlocksMin), most);
  const int blocks = row_blocks + others;
  const int flush_blocks = others == most ? others : std::min(blocks, kFlushBlocks);
  const size_t shared = size_t(layout.format.group * d) * sizeof(uint16_t);
  return with_group(layout.format, [&]<int GROUP>() {
    const auto launch = [&](auto* kernel) {
      if (const cudaError_t failed = allow_shared(kernel, shared); failed != cudaSuccess)
        return failed;
      // In order, not overlapping with attention: with it, the kernel after this one was under way
      // with both, and a step of one row took 7.7 ms instead of 6.0.
      kernel<<<unsigned(blocks), kDecodeThreads, shared, stream>>>(
          device_arguments(a),
          DecodeBlocks{a.sequence_count, a.layers, heads_each, row_blocks, flush_blocks});
      return cudaGetLastError();
    };
    const auto usual = [&]<int D, int KB, int VB>() {
      return launch(append_decode_kernel<GROUP, kUsualSlices, D, KB, VB>);
    };
    if (d > 32 * kUsualSlices) return launch(append_decode_kernel<GROUP, kWideSlices, 0, 0, 0>);
    return with_known_bits<GROUP>(layout, usual);
  });
}

namespace {

// One layer, the `index`-th.
cudaError_t append_chunks_of_layer(const AppendArguments& a, const ChunkList& chunks, int index,
                                   const ChunkExtents& extents, cudaStream_t stream) {
  const KvLayout& layout = a.cache.store.layout;
  const unsigned heads = unsigned(layout.shape.heads), sequences = unsigned(chunks.count);
  const Append arguments = device_arguments(a);
  const auto copy_rows = [&](Rows target, int tokens) {
    append_rows_kernel<<<dim3(unsigned(tokens + 7) / 8, heads, sequences), 256, 0, stream>>>(
        arguments, chunks, index, target);
    return cudaGetLastError();
  };
  cudaError_t error = cudaSuccess;
  if (extents.stages) error = copy_rows(Rows::staging, extents.rows_max);
  if (error != cudaSuccess || !extents.quantizes) return error;
  if (layout.format.kind == KvKind::f16)
    return copy_rows(Rows::pages, extents.pages_max * layout.page_tokens());
  const size_t shared = size_t(kRowsMax * layout.shape.head_dim) * sizeof(__half);
  // Where everything stays in the residual, no page is touched.
  if (extents.pages_max > 0)
    error = with_group(layout.format, [&]<int GROUP>() {
      const auto launch = [&](auto* kernel) {
        const cudaError_t failed = allow_shared(kernel, shared);
        if (failed != cudaSuccess) return failed;
        kernel<<<dim3(unsigned(extents.pages_max), heads, sequences), 256, shared, stream>>>(
            arguments, chunks, index);
        return cudaGetLastError();
      };
      return with_known_bits<GROUP>(layout, [&]<int D, int KB, int VB>() {
        return launch(append_page_kernel<GROUP, D, KB, VB>);
      });
    });
  if (error != cudaSuccess || layout.format.kind != KvKind::kivi) return error;
  return copy_rows(Rows::slab, layout.format.sinks + layout.format.residual);
}

}  // namespace

cudaError_t append_chunks(const AppendArguments& a, std::span<const int32_t> chunks,
                          const ChunkExtents& extents, cudaStream_t stream) {
  for (size_t begin = 0; begin < chunks.size(); begin += ChunkList::kMost) {
    ChunkList list;
    list.count = int(std::min<size_t>(chunks.size() - begin, ChunkList::kMost));
    std::ranges::copy(chunks.subspan(begin, size_t(list.count)), list.sequences);
    for (int index = 0; index < a.layers; ++index)
      if (const cudaError_t error = append_chunks_of_layer(a, list, index, extents, stream);
          error != cudaSuccess)
        return error;
  }
  return cudaSuccess;
}

}  // namespace kivi::cuda

namespace kivi {

// Decode rows and chunks are appended by launches of their own; each leaves the other's alone.
void CudaBackend::do_kv_append(const Tensor& kv, const KvView& store, const StepView& step,
                               int layer, int layers) {
  const cuda::AppendArguments a{.kv = kv.as<__half>(),
                                .kv_stride = kv.row_stride,
                                .kv_layer_stride = int64_t(step.rows) * kv.row_stride,
                                .cache = cuda::cache_arguments(store, step),
                                .sequence_count = int(step.sequences.size()),
                                .layer = layer,
                                .layers = layers};
  bool decodes = false;
  std::vector<int32_t> chunk_sequences;
  cuda::ChunkExtents chunks;
  const KvLayout& layout = store.layout;
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    const StepSequence& s = step.sequences[i];
    if (s.row_count == 0) continue;  // padding
    if (s.is_decode()) {
      decodes = true;
      continue;
    }
    chunk_sequences.push_back(int32_t(i));
    chunks.rows_max = std::max(chunks.rows_max, s.row_count);
    if (s.mode == KvMode::stage) {
      chunks.stages = true;
      continue;
    }
    chunks.quantizes = true;
    const int before = s.mode == KvMode::seal ? 0 : s.past;
    const int first =
        std::min(keys_paged(layout.format, before), values_paged(layout.format, before));
    const int pages = layout.pages_for(s.past + s.row_count) - first / layout.page_tokens();
    chunks.pages_max = std::max(chunks.pages_max, pages);
  }
  if (decodes) KIVI_CUDA_VERIFY(cuda::append_decodes(a, stream_.get()));
  if (chunks.stages || chunks.quantizes)
    KIVI_CUDA_VERIFY(cuda::append_chunks(a, chunk_sequences, chunks, stream_.get()));
}

}  // namespace kivi
