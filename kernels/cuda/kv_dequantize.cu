// SPDX-License-Identifier: Apache-2.0
// kv_dequantize: the history of prompt chunks, one layer of it, from pages and slabs into scratch
// memory in 16 bits, so that prefill attention reads it like f16 pages.
//
// Mapping: a block of 8 warps writes one tile of 64 tokens of one KV head. Warps 0 to 3 take the
// codes of its keys apart, warps 4 to 7 those of its values, a 16-byte word of codes a lane at a
// time. A word holds one row of a fragment (kv_page.h): for keys a token's channels, for values a
// channel's tokens, which movmatrix turns. The tile is put together in shared memory, and leaves as
// whole rows. A code becomes min + scale * code in one fp16 multiply-add.
//
// Cost: reads the store's bytes once, writes 4 d bytes a token and KV head. For Llama-3-8B and 32k
// tokens 134 MB a layer, 40 us at 3.4 TB/s, against 3.7 ms of attention for a chunk of 4096 rows.
// Reference: kernels/cpu/kv_tile-inl.h. Test: tests/cuda/prefill_attend_test.cpp.
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "kernels/cuda/byte_parameters.cuh"
#include "kernels/cuda/prefill_attend.h"
#include "kernels/cuda/ptx.cuh"

namespace kivi::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSideThreads = kThreads / 2;  // keys, values

// The pair of codes in slot `s` of a word as two halves.
template <int kBits>
__device__ __forceinline__ uint32_t codes_of(uint32_t word, unsigned s) {
  if constexpr (kBits == 8) {
    const __half2_raw pair =
        __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(word >> (16 * s)), __NV_E4M3);
    return uint32_t(pair.x) | uint32_t(pair.y) << 16;
  } else {
    constexpr uint32_t kMask = ((1u << kBits) - 1) * 0x10001u, k1024 = 0x64006400u;
    const uint32_t numbers = ((word >> (kBits * s)) & kMask) | k1024;  // 1024 + code
    return as_u32(__hsub2(as_half2(numbers), as_half2(k1024)));
  }
}

// The regions of parameters of a tile: planes of scales, each with its minima behind it.
struct ParameterPlanes {
  const std::byte* data;
  int group;
  bool bytes;  // parameters have 8 bits

  // Those of the pairs of a lane, four chunks of 8 positions at a time (lane_parameter), of group
  // `i` of `columns` positions.
  template <int kBits>
  __device__ __forceinline__ void read(unsigned i, unsigned columns, unsigned chunk, unsigned t,
                                       uint4& scale, uint4& minimum) const {
    const unsigned at = i * 2 * columns + ((chunk / 4) * 4 + t) * 8;
    if (bytes) {
      const uint2 u = *reinterpret_cast<const uint2*>(data + at);
      const uint2 v = *reinterpret_cast<const uint2*>(data + at + columns);
      uint32_t s[4], m[4];
      expand_parameters(u.x, v.x, kBits == 2, s, m);
      expand_parameters(u.y, v.y, kBits == 2, s + 2, m + 2);
      scale = make_uint4(s[0], s[1], s[2], s[3]);
      minimum = make_uint4(m[0], m[1], m[2], m[3]);
      return;
    }
    scale = *reinterpret_cast<const uint4*>(data + at * 2);
    minimum = *reinterpret_cast<const uint4*>(data + (at + columns) * 2);
  }
};
__device__ __forceinline__ uint32_t word_of(const uint4& v, unsigned i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// The pair of channels 8 `channels` + 2 t of token `tokens` + g, where `tokens` is a multiple of 8.
// Rows that are whole runs of 128 bytes begin at multiples of 128, so the swizzle is one XOR.
template <int kDim>
__device__ __forceinline__ uint32_t* pair_place(unsigned char* rows, unsigned tokens,
                                                unsigned channels, unsigned g, unsigned t) {
  if constexpr (kDim % 64 == 0) {
    const unsigned base = g * (kDim * 2 + 16) + t * 4;  // of token g, channels 0
    return reinterpret_cast<uint32_t*>(
        rows + ((base ^ (channels % 8 * 16)) + channels / 8 * 128 + tokens * kDim * 2));
  }
  const int row = int(tokens + g);
  return reinterpret_cast<uint32_t*>(
      rows + (row * kDim + swizzled_channel(row, int(channels) * 8, kDim) + 2 * int(t)) * 2);
}

// The codes of one side of a tile into `rows` [64][d] f16, swizzled. 128 threads. `codes` and
// `parameters` are those of the tile's first token.
template <int kDim, int kBits, bool kKeys>
__device__ void dequantize_side(const uint32_t* codes, const ParameterPlanes& parameters,
                                unsigned char* rows) {
  constexpr unsigned kSlots = kBits == 8 ? 2 : 16 / kBits;  // pairs in a word
  constexpr unsigned kColumns = kKeys ? kDim : kHistoryTile;
  constexpr unsigned kRowTiles = (kKeys ? kHistoryTile : kDim) / 16;
  constexpr unsigned kRowWords = (kColumns / 8 + kSlots - 1) / kSlots;
  constexpr unsigned kLaneWords = kRowTiles * 2 * kRowWords;
  static_assert(kLaneWords % 4 == 0);
  const unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (unsigned i4 = threadIdx.x % kSideThreads / 32 * 4; i4 < kLaneWords;
       i4 += kSideThreads / 32 * 4) {
    const uint4 four = *reinterpret_cast<const uint4*>(codes + (i4 * 32 + lane * 4));
#pragma unroll
    for (unsigned q = 0; q < 4; ++q) {
      const unsigned i = i4 + q, tile = i / (2 * kRowWords), rest = i % (2 * kRowWords);
      const unsigned half = kKeys ? rest % 2 : rest / kRowWords;
      const unsigned j = kKeys ? rest / 2 : rest % kRowWords;  // word of the row
      const unsigned row_chunk = tile * 2 + half;              // 8 rows: this lane's is g
      const uint32_t word = word_of(four, q);
#pragma unroll
      for (unsigned s0 = 0; s0 < kSlots; s0 += 4) {
        uint4 scale{}, minimum{};
        const unsigned chunk0 = j * kSlots + s0;
        if (chunk0 * 8 >= kColumns) break;
        if constexpr (kBits != 8)
          parameters.read<kBits>(row_chunk * 8 / unsigned(parameters.group), kColumns, chunk0, t,
                                 scale, minimum);
#pragma unroll
        for (unsigned s = s0; s < s0 + 4 && s < kSlots; ++s) {
          const unsigned chunk = j * kSlots + s;  // 8 columns: this lane's are 2 t and 2 t + 1
          uint32_t pair = codes_of<kBits>(word, s);
          if constexpr (kBits != 8)
            pair = as_u32(__hfma2(as_half2(word_of(scale, s - s0)), as_half2(pair),
                                  as_half2(word_of(minimum, s - s0))));
          if constexpr (!kKeys) pair = transpose(pair);
          const unsigned tokens = (kKeys ? row_chunk : chunk) * 8;
          const unsigned channels = kKeys ? chunk : row_chunk;
          *pair_place<kDim>(rows, tokens, channels, g, t) = pair;
        }
      }
    }
  }
}

template <int kDim, bool kKeys>
__device__ __forceinline__ void dequantize_side(int bits, const uint32_t* codes,
                                                const ParameterPlanes& parameters,
                                                unsigned char* rows) {
  if constexpr (kDim % 32 == 0) {  // groups are of 32 channels at least
    if (bits == 2) return dequantize_side<kDim, 2, kKeys>(codes, parameters, rows);
    if (bits == 4) return dequantize_side<kDim, 4, kKeys>(codes, parameters, rows);
  }
  dequantize_side<kDim, 8, kKeys>(codes, parameters, rows);
}

// Grid (KV heads, tiles, work).
template <int kDim>
__global__ void __launch_bounds__(kThreads, kDim > 128 ? 3 : 4)
    kv_dequantize_kernel(const __grid_constant__ PrefillArguments a) {
  constexpr int kChunks = kDim / 8, kSideBytes = kHistoryTile * kDim * 2;
  extern __shared__ __align__(128) unsigned char memory[];
  auto* rows = reinterpret_cast<unsigned char(*)[kSideBytes]>(memory);  // keys, values
  const PrefillWork& work = a.work[blockIdx.z];
  const int tile = work.tile_begin + int(blockIdx.y), head = int(blockIdx.x);
  if (work.block < 0 || tile >= work.tile_end) return;
  const StepSequence s = a.cache.sequences[work.sequence];
  const KvLayout& layout = a.cache.store.layout;
  const KvLocator locator = a.cache.locator(s, a.layer, head);
  const int shift = place_shift(layout.format, s.mode), token_first = tile * kHistoryTile - shift;
  const int first = token_first - layout.format.sinks;  // paged position
  const int keys_quantized = keys_paged(layout.format, s.past);
  const int values_quantized = values_paged(layout.format, s.past);

  const bool values = threadIdx.x >= kSideThreads;
  if (first >= 0 && first < (values ? values_quantized : keys_quantized)) {
    const int half = first % layout.page_tokens() / kHistoryTile;  // of a page of 128 tokens
    const std::byte* page = locator.page_block(first / layout.page_tokens());
    const int group = layout.format.group, each = layout.format.parameter_bits / 8;
    const bool kivi = layout.format.kind == KvKind::kivi;
    ParameterPlanes parameters{page, group, layout.format.parameter_bits == 8};
    if (!values) {
      const int bytes = 8 * layout.key_words_per_row() * 32 * 4;
      parameters.data += layout.key_parameters_offset();
      if (kivi) parameters.data += half * kHistoryTile / group * 2 * kDim * each;
      dequantize_side<kDim, true>(
          layout.format.key_bits,
          reinterpret_cast<const uint32_t*>(page + layout.key_codes_offset() + half * bytes),
          parameters, rows[0]);
    } else {
      const int bytes = kHistoryTile * kDim * layout.format.value_bits / 8;
      parameters.data += layout.value_parameters_offset();
      if (kivi) parameters.data += half * layout.value_groups() * 128 * each;
      dequantize_side<kDim, false>(
          layout.format.value_bits,
          reinterpret_cast<const uint32_t*>(page + layout.value_codes_offset() + half * bytes),
          parameters, rows[1]);
    }
  }
  __syncthreads();

  const int64_t block = work.block + int64_t(tile - work.tile_begin);
  auto* target = reinterpret_cast<__half*>(a.cache.store.scratch) +
                 (block * layout.shape.heads + head) * 2 * kHistoryTile * kDim;
  // Nothing but codes:
  if (first >= 0 && first + kHistoryTile <= min(keys_quantized, values_quantized)) {
    for (int i = threadIdx.x; i < 2 * kHistoryTile * kChunks; i += kThreads)
      reinterpret_cast<uint4*>(target)[i] = reinterpret_cast<const uint4*>(rows)[i];
    return;
  }
  for (int i = threadIdx.x; i < 2 * kHistoryTile * kChunks; i += kThreads) {
    const int side = i / (kHistoryTile * kChunks), row = i / kChunks % kHistoryTile;
    const int c = i % kChunks * 8, token = token_first + row, position = first + row;
    const int at = row * kDim + swizzled_channel(row, c, kDim);
    uint4 x{};
    if (position >= 0 && position < (side == 0 ? keys_quantized : values_quantized)) {
      x = *reinterpret_cast<const uint4*>(rows[side] + at * 2);
    } else if (token >= 0 && token < s.past) {
      const KvPlace place = arrival_place(layout, KvMode::append, token);
      const auto* of_slab =
          reinterpret_cast<const __half*>(locator.rows(place, side == 0 ? Side::key : Side::value));
      x = *reinterpret_cast<const uint4*>(of_slab + place.row * kDim +
                                          swizzled_channel(place.row, c, kDim));
    }
    *reinterpret_cast<uint4*>(target + side * kHistoryTile * kDim + at) = x;
  }
}

}  // namespace

cudaError_t kv_dequantize(const PrefillArguments& a, int head_dim, int tiles_max,
                          cudaStream_t stream) {
  const dim3 grid(unsigned(a.cache.store.layout.shape.heads), unsigned(tiles_max),
                  unsigned(a.work_count));
  const int bytes = 2 * kHistoryTile * head_dim * 2;
  const auto launch = [&](auto* kernel) {
    if (bytes > 48 * 1024) {
      const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
      if (error != cudaSuccess) return error;
    }
    kernel<<<grid, kThreads, size_t(bytes), stream>>>(a);
    return cudaGetLastError();
  };
  switch (head_dim) {
    case 64:
      return launch(kv_dequantize_kernel<64>);
    case 80:
      return launch(kv_dequantize_kernel<80>);
    case 96:
      return launch(kv_dequantize_kernel<96>);
    case 128:
      return launch(kv_dequantize_kernel<128>);
    case 256:
      return launch(kv_dequantize_kernel<256>);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace kivi::cuda
