// The quantizer on the device, and the words of codes that it fills: values and keys of one page
// and head. Every code, scale and minimum has the bits that kernels/kv_codec writes. What takes
// `rows` or `codes` works on [tokens][d] halves in shared memory, by all threads of a block of 256.
#pragma once

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "kernels/kv_page.h"

namespace kivi::cuda {

// Slices of 32 channels: head_dim of quantized formats is at most 128.
inline constexpr int kSlicesMax = 4;

__device__ inline float finite(__half x) {
  const float v = __half2float(x);
  return v != v ? 0.f : fminf(fmaxf(v, -kF16Max), kF16Max);
}
// One fp16 operation: fp32, then one more rounding; overflow saturates.
__device__ inline float round_f16(float x) {
  return __half2float(__float2half_rn(fminf(fmaxf(x, -kF16Max), kF16Max)));
}

// One group's parameters, and codes by them.
//
// A code is rint of the fp16 quotient of fp16 numbers. One correction of x * (1 / scale) gives the
// correctly rounded fp32 quotient: the residual is exact, since scale has 11 bits, and what is left
// of the error (2^-23 of a unit in the last place) cannot cross a border between two roundings, as
// such a border times scale would be a number of at least 25 bits, not one of 11. Quotients beyond
// the largest code may be infinite: they are clamped.
struct Quantizer {
  float low, scale, inverse, largest;

  __device__ Quantizer(float least, float most, int bits)
      : low(least), largest(float((1 << bits) - 1)) {
    scale = round_f16(__fdiv_rn(round_f16(most - low), largest));
    inverse = scale == 0 ? 0.f : __frcp_rn(scale);  // a constant group has codes 0
  }
  __device__ uint32_t code(float x) const {
    const float distance = __half2float(__float2half_rn(fminf(x - low, kF16Max)));
    const float estimate = distance * inverse;
    const float q = fmaf(fmaf(-estimate, scale, distance), inverse, estimate);
    const float rounded = fminf(__half2float(__float2half_rn(q)), largest);
    constexpr float kInteger = 0x1p23f;  // added, the last bits are rint's
    return __float_as_uint(rounded + kInteger) & 0xffu;
  }
};

__device__ inline uint32_t e4m3_of(__half x) {
  const float v = __half2float(x);
  return v != v ? 0 : __nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3);
}
// Zeros are +0, as the codec writes them.
__device__ inline uint16_t bits_of(float x) { return __half_as_ushort(__float2half_rn(x + 0.f)); }

// Where in its word pair `slot` lies: the bits of its first and second code.
__device__ inline int pair_bit(int bits, int slot, int half) {
  return bits == 8 ? slot * 16 + half * 8 : half * 16 + slot * bits;
}

// Codes [rows][d] (one a half, in shared memory) of the tokens [first, first + count) of a page to
// the page's key words. Both are multiples of 32 for 2 and 4 bits, of 1 for 8 bits.
__device__ inline void store_key_words(const KvLayout& layout, std::byte* block, int first,
                                       int count, const uint16_t* codes) {
  const int d = layout.shape.head_dim, bits = layout.format.key_bits, pairs = 16 / bits;
  const int row_words = 2 * layout.key_words_per_row();  // of a lane and tile
  auto* words = reinterpret_cast<uint32_t*>(block + layout.key_codes_offset());
  const int begin = first / 16 * row_words * 32;
  const int end = (first + count + 15) / 16 * row_words * 32;
  for (int index = begin + threadIdx.x; index < end; index += blockDim.x) {
    const int lane = index / 4 % 32, i = index / 128 * 4 + index % 4;
    const int row = i / row_words * 16 + i % 2 * 8 + lane / 4 - first;
    if (row < 0 || row >= count) continue;
    const int j = i % row_words / 2;
    uint32_t word = 0;
    for (int slot = 0; slot < pairs; ++slot) {
      const int pair = j * pairs + slot;
      const int c = pair / 2 * 16 + pair % 2 * 8 + lane % 4 * 2;
      if (c >= d) break;
      word |= uint32_t(codes[row * d + c]) << pair_bit(bits, slot, 0) |
              uint32_t(codes[row * d + c + 1]) << pair_bit(bits, slot, 1);
    }
    words[index] = word;
  }
}

// The same for values of the tokens [first, first + count) of the 64 from `base` on (positions in
// the page); codes' row 0 is token `first`. Other tokens' codes in the same words stay.
__device__ inline void store_value_words(const KvLayout& layout, std::byte* block, int base,
                                         int first, int count, const uint16_t* codes) {
  const int d = layout.shape.head_dim, bits = layout.format.value_bits, pairs = 16 / bits;
  const int row_words = layout.value_words_per_row();
  auto* words = reinterpret_cast<uint32_t*>(block + layout.value_codes_offset());
  const int tile_words = 2 * row_words, all = d / 16 * tile_words * 32;
  words += base / 64 * all;
  for (int index = threadIdx.x; index < all; index += blockDim.x) {
    const int lane = index / 4 % 32, i = index / 128 * 4 + index % 4;
    const int j = i % row_words;
    const int c = i / tile_words * 16 + i % tile_words / row_words * 8 + lane / 4;
    uint32_t word = 0, mask = 0;
    for (int slot = 0; slot < pairs; ++slot)
      for (int half = 0; half < 2; ++half) {
        const int pair = j * pairs + slot;
        const int row = base + pair / 2 * 16 + pair % 2 * 8 + lane % 4 * 2 + half - first;
        if (row < 0 || row >= count) continue;
        const int bit = pair_bit(bits, slot, half);
        mask |= ((1u << bits) - 1) << bit;
        word |= uint32_t(codes[row * d + c]) << bit;
      }
    if (mask == 0) continue;
    words[index] = mask == ~0u ? word : (words[index] & ~mask) | word;
  }
}

// One group of keys: `rows` [G][d] in shared memory become codes there, then words of the page.
// `token` is the group's first, in the page. All 256 threads; several share a channel.
__device__ inline void quantize_keys(const KvLayout& layout, std::byte* block, int token,
                                     __half* rows) {
  __shared__ float lows[256], highs[256];  // [part][d]
  const int d = layout.shape.head_dim, bits = layout.format.key_bits;
  const int parts = 256 / d > 2 ? 4 : 256 / d, count = layout.format.group / parts;
  const int c = threadIdx.x % d, part = threadIdx.x / d;
  const bool active = part < parts;
  __half* mine = rows + part * count * d + c;
  if (active) {
    float low = finite(mine[0]), high = low;
    for (int i = 1; i < count; ++i) {
      const float v = finite(mine[i * d]);
      low = fminf(low, v), high = fmaxf(high, v);
    }
    lows[part * d + c] = low, highs[part * d + c] = high;
  }
  __syncthreads();
  if (active) {
    float low = lows[c], high = highs[c];
    for (int i = 1; i < parts; ++i)
      low = fminf(low, lows[i * d + c]), high = fmaxf(high, highs[i * d + c]);
    const Quantizer quantizer(low, high, bits);
#pragma unroll 4
    for (int i = 0; i < count; ++i)
      reinterpret_cast<uint16_t*>(mine)[i * d] = uint16_t(quantizer.code(finite(mine[i * d])));
    if (part == 0) {
      auto* parameters = reinterpret_cast<uint16_t*>(block + layout.key_parameters_offset());
      parameters[layout.key_scale(token, c)] = bits_of(quantizer.scale);
      parameters[layout.key_minimum(token, c)] = bits_of(quantizer.low);
    }
  }
  __syncthreads();
  store_key_words(layout, block, token, layout.format.group,
                  reinterpret_cast<const uint16_t*>(rows));
}

// --- one value, by a warp ------------------------------------------------------------------------

// A value on its way out of the residual, one warp: where its codes go, and the words that they
// share with other tokens, which are read long before they are needed. Channel lane + 32 i is the
// i-th of a lane; two channel tiles are 64 words for each bit.
struct Eviction {
  std::byte* block;
  int token;  // in the page
  CodePosition first;
  uint32_t words[kSlicesMax];

  __device__ uint32_t* codes(const KvLayout& layout, int i) const {
    return reinterpret_cast<uint32_t*>(block + layout.value_codes_offset()) + first.word +
           i * 64 * layout.format.value_bits;
  }
};

__device__ inline void read_words(const KvLayout& layout, Eviction& e) {
#pragma unroll
  for (int i = 0; i < kSlicesMax; ++i)
    e.words[i] = i * 32 < layout.shape.head_dim ? *e.codes(layout, i) : 0;
}

// Quantizes the value x; x[i] is channel lane + 32 i.
__device__ inline void evict_value(const KvLayout& layout, const Eviction& e,
                                   const __half (&x)[kSlicesMax]) {
  const int lane = threadIdx.x % 32, slices = layout.shape.head_dim / 32;
  const int bits = layout.format.value_bits, group_slices = layout.format.group / 32;
  auto* parameters = reinterpret_cast<uint16_t*>(e.block + layout.value_parameters_offset());
  float value[kSlicesMax];
  __half2 least[kSlicesMax];  // of x and of -x: one shuffle for both
#pragma unroll
  for (int i = 0; i < kSlicesMax; ++i) {
    value[i] = finite(x[i]);
    least[i] = __floats2half2_rn(value[i], -value[i]);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
      least[i] = __hmin2(least[i], __shfl_xor_sync(0xffffffffu, least[i], offset));
  }
#pragma unroll
  for (int i = 0; i < kSlicesMax; ++i) {
    if (i >= slices) break;
    __half2 group = least[i];
#pragma unroll
    for (int j = 0; j < kSlicesMax; ++j)
      if (j < slices && j / group_slices == i / group_slices) group = __hmin2(group, least[j]);
    const Quantizer quantizer(__low2float(group), -__high2float(group), bits);
    const uint32_t mask = ((1u << bits) - 1) << e.first.bit;
    *e.codes(layout, i) = (e.words[i] & ~mask) | (quantizer.code(value[i]) << e.first.bit);
    const int c = lane + 32 * i;
    if (c % layout.format.group != 0) continue;
    parameters[layout.value_scale(e.token, c)] = bits_of(quantizer.scale);
    parameters[layout.value_minimum(e.token, c)] = bits_of(quantizer.low);
  }
}

// --- many values, by a block ---------------------------------------------------------------------

// Values of the tokens [first, first + count) (count <= 64, in one run of 64): rows in shared
// memory become codes there, parameters go to the page. A warp a token.
__device__ inline void quantize_values(const KvLayout& layout, std::byte* block, int first,
                                       int count, __half* rows) {
  const int d = layout.shape.head_dim, group = layout.format.group, bits = layout.format.value_bits;
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  auto* parameters = reinterpret_cast<uint16_t*>(block + layout.value_parameters_offset());
  for (int i = threadIdx.x / 32; i < count; i += warps)
    for (int begin = 0; begin < d; begin += group) {
      float low = INFINITY, high = -INFINITY;
      for (int c = begin + lane; c < begin + group; c += 32) {
        const float v = finite(rows[i * d + c]);
        low = fminf(low, v), high = fmaxf(high, v);
      }
#pragma unroll
      for (int offset = 16; offset > 0; offset /= 2) {
        low = fminf(low, __shfl_xor_sync(0xffffffffu, low, offset));
        high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, offset));
      }
      const Quantizer quantizer(low, high, bits);
      for (int c = begin + lane; c < begin + group; c += 32)
        reinterpret_cast<uint16_t*>(rows)[i * d + c] =
            uint16_t(quantizer.code(finite(rows[i * d + c])));
      if (lane == 0) {
        parameters[layout.value_scale(first + i, begin)] = bits_of(quantizer.scale);
        parameters[layout.value_minimum(first + i, begin)] = bits_of(quantizer.low);
      }
    }
}

__device__ inline void convert_e4m3(int count, __half* rows) {
  for (int i = threadIdx.x; i < count; i += blockDim.x)
    reinterpret_cast<uint16_t*>(rows)[i] = uint16_t(e4m3_of(rows[i]));
}

}  // namespace kivi::cuda
