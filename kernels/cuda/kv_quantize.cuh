// SPDX-License-Identifier: Apache-2.0
// The quantizer on the device, and the words of codes that it fills: values and keys of one page
// and head. Every code, scale and minimum has the bits that kernels/kv_codec writes. What takes
// `rows` or `codes` works on [tokens][d] halves in shared memory, by all threads of a block of 256.
#pragma once

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "kernels/kv_page.h"
#include "kernels/kv_parameters.h"

namespace kivi::cuda {

// Slices of 32 channels that a lane of a warp has one channel of each: of heads of at most 128
// channels, and of those of 256.
inline constexpr int kUsualSlices = 4, kWideSlices = 8;

// Channels that the 256 threads of a block quantize at a time.
inline constexpr int kChannelsAtOnce = 128;

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
// the largest code may be infinite: they are clamped. Below a minimum of 8 bits codes are 0.
struct Quantizer {
  float low, scale, inverse, largest;
  ByteParameters bytes;  // where parameters have 8 bits

  __device__ Quantizer(float least, float most, int bits, int parameter_bits)
      : low(least), largest(float((1 << bits) - 1)) {
    scale = round_f16(__fdiv_rn(round_f16(most - low), largest));
    if (parameter_bits == 8) narrow_scale(bits);
    inverse = scale == 0 ? 0.f : __frcp_rn(scale);  // a constant group has codes 0
    if (parameter_bits == 8) narrow_minimum(bits);
  }
  __device__ Quantizer(float minimum, float step, float step_inverse, float code_largest)
      : low(minimum), scale(step), inverse(step_inverse), largest(code_largest) {}
  __device__ uint32_t code(float x) const {
    const float distance = __half2float(__float2half_rn(fminf(fmaxf(x - low, 0.f), kF16Max)));
    const float q = quotient(distance, scale, inverse);
    const float rounded = fminf(__half2float(__float2half_rn(q)), largest);
    constexpr float kInteger = 0x1p23f;  // added, the last bits are rint's
    return __float_as_uint(rounded + kInteger) & 0xffu;
  }

 private:
  __device__ static float quotient(float x, float y, float inverse_y) {
    const float estimate = x * inverse_y;
    return fmaf(fmaf(-estimate, y, x), inverse_y, estimate);
  }

  // Both as group_parameters of kernels/kv_codec.cpp.
  __device__ void narrow_scale(int bits) {
    constexpr float k2 = 1.f / (float(kByteMinimumMax) * byte_minimum_unit(2));
    constexpr float k4 = 1.f / (float(kByteMinimumMax) * byte_minimum_unit(4));
    const f16 reach{__half_as_ushort(__float2half_rn(__fmul_rn(fabsf(low), bits == 2 ? k2 : k4)))};
    const f16 wanted{__half_as_ushort(__float2half_rn(scale))};
    const int byte =
        min(max(byte_scale_nearest(wanted), byte_scale_above(reach)), int(kByteScaleMax));
    bytes.scale = uint8_t(byte);
    scale = __half2float(__ushort_as_half(byte_scale_value(byte).bits));
  }
  __device__ void narrow_minimum(int bits) {
    const float step = byte_minimum_unit(bits) * scale;
    const float inverse_step = inverse * (bits == 2 ? 4.f : 2.f);
    static_assert(byte_minimum_unit(2) == 0.25f && byte_minimum_unit(4) == 0.5f);
    float most = float(kByteMinimumMax);
    if (most * step > kF16Max) most = floorf(__fdiv_rn(kF16Max, step));  // seldom
    // Of a scale of 0, the inverse and so the minimum is 0.
    const float m = fminf(fmaxf(rintf(quotient(low, step, inverse_step)), -most), most);
    low = m * step;
    bytes.minimum = uint8_t(int(m) + 128);
  }
};

__device__ inline uint32_t e4m3_of(__half x) {
  const float v = __half2float(x);
  return v != v ? 0 : __nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3);
}
// Zeros are +0, as the codec writes them.
__device__ inline uint16_t bits_of(float x) { return __half_as_ushort(__float2half_rn(x + 0.f)); }

// A group's parameters into a region of them. `scale`, `minimum`: in parameters from its start.
__device__ inline void store_parameters(const KvLayout& layout, std::byte* region, int scale,
                                        int minimum, const Quantizer& quantizer) {
  if (layout.format.parameter_bits == 8) {
    region[scale] = std::byte(quantizer.bytes.scale);
    region[minimum] = std::byte(quantizer.bytes.minimum);
    return;
  }
  auto* plane = reinterpret_cast<uint16_t*>(region);
  plane[scale] = bits_of(quantizer.scale);
  plane[minimum] = bits_of(quantizer.low);
}

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

// `finite` of two.
__device__ inline __half2 finite2(__half2 x) {
  const uint32_t numbers = *reinterpret_cast<const uint32_t*>(&x) & __heq2_mask(x, x);
  const __half2 largest = __floats2half2_rn(kF16Max, kF16Max);
  return __hmax2(__hmin2(*reinterpret_cast<const __half2*>(&numbers), largest), __hneg2(largest));
}

// kChannelsAtOnce channels, from `channel` on, of one group of keys, by 256 threads: row_of(i, c)
// is where 8 channels of its i-th token lie. `token` is the group's first, in the page. A thread
// has 8 channels of every 16th row in registers.
template <int GROUP, class RowOf>
__device__ inline void quantize_key_channels(const KvLayout& layout, std::byte* block, int token,
                                             int channel, uint16_t* codes, RowOf row_of) {
  constexpr int kRows = 16, kWarps = 8, kMost = GROUP / kRows, kChannels = kChannelsAtOnce;
  __shared__ uint4 extremes[2][kWarps][kChannels / 8];  // least, largest; 8 channels each
  __shared__ float4 parameters_of[3][kChannels / 4];    // low, scale, inverse
  const int d = layout.shape.head_dim;
  const int chunk = threadIdx.x % 16, first = threadIdx.x / 16, warp = threadIdx.x / 32;
  const bool active = channel + chunk * 8 < d;
  alignas(16) __half2 x[kMost][4];
  alignas(16) __half2 low[4], high[4];
#pragma unroll
  for (int i = 0; i < kMost; ++i)
    if (active)
      *reinterpret_cast<uint4*>(x[i]) =
          *reinterpret_cast<const uint4*>(row_of(first + i * kRows, channel + chunk * 8));
#pragma unroll
  for (int i = 0; i < kMost; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x[i][j] = finite2(x[i][j]);
      low[j] = i == 0 ? x[i][j] : __hmin2(low[j], x[i][j]);
      high[j] = i == 0 ? x[i][j] : __hmax2(high[j], x[i][j]);
    }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    low[j] = __hmin2(low[j], __shfl_xor_sync(0xffffffffu, low[j], 16));
    high[j] = __hmax2(high[j], __shfl_xor_sync(0xffffffffu, high[j], 16));
  }
  if (threadIdx.x % 32 < 16) {
    extremes[0][warp][chunk] = *reinterpret_cast<const uint4*>(low);
    extremes[1][warp][chunk] = *reinterpret_cast<const uint4*>(high);
  }
  __syncthreads();
  if (threadIdx.x < kChannels && channel + int(threadIdx.x) < d) {
    const int i = threadIdx.x, c = channel + i;
    const auto* lows = reinterpret_cast<const __half*>(extremes[0]) + i;
    const auto* highs = reinterpret_cast<const __half*>(extremes[1]) + i;
    __half least = lows[0], largest = highs[0];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) {
      least = __hmin(least, lows[w * kChannels]);
      largest = __hmax(largest, highs[w * kChannels]);
    }
    const Quantizer quantizer(__half2float(least), __half2float(largest), layout.format.key_bits,
                              layout.format.parameter_bits);
    store_parameters(layout, block + layout.key_parameters_offset(), layout.key_scale(token, c),
                     layout.key_minimum(token, c), quantizer);
    reinterpret_cast<float*>(parameters_of[0])[i] = quantizer.low;
    reinterpret_cast<float*>(parameters_of[1])[i] = quantizer.scale;
    reinterpret_cast<float*>(parameters_of[2])[i] = quantizer.inverse;
  }
  __syncthreads();
  if (active) {
    alignas(16) float of[3][8];
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      *reinterpret_cast<float4*>(of[i]) = parameters_of[i][chunk * 2];
      *reinterpret_cast<float4*>(of[i] + 4) = parameters_of[i][chunk * 2 + 1];
    }
    const float largest = float((1 << layout.format.key_bits) - 1);
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      uint32_t word[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 v = __half22float2(x[i][j]);
        const Quantizer even{of[0][2 * j], of[1][2 * j], of[2][2 * j], largest};
        const Quantizer odd{of[0][2 * j + 1], of[1][2 * j + 1], of[2][2 * j + 1], largest};
        word[j] = even.code(v.x) | odd.code(v.y) << 16;
      }
      *reinterpret_cast<uint4*>(codes + (first + i * kRows) * d + channel + chunk * 8) =
          make_uint4(word[0], word[1], word[2], word[3]);
    }
  }
  __syncthreads();
}

// A group of keys: codes go through shared memory, [G][d], into words of the page.
template <int GROUP, class RowOf>
__device__ inline void quantize_keys(const KvLayout& layout, std::byte* block, int token,
                                     uint16_t* codes, RowOf row_of) {
  for (int channel = 0; channel < layout.shape.head_dim; channel += kChannelsAtOnce)
    quantize_key_channels<GROUP>(layout, block, token, channel, codes, row_of);
  store_key_words(layout, block, token, GROUP, codes);
}

// --- one value, by a warp ------------------------------------------------------------------------

// A value on its way out of the residual, one warp: where its codes go, and the words that they
// share with other tokens, which are read long before they are needed. Channel lane + 32 i is the
// i-th of a lane; two channel tiles are 64 words for each bit.
template <int kSlices>
struct Eviction {
  std::byte* block;
  int token;  // in the page
  CodePosition first;
  uint32_t words[kSlices];

  __device__ uint32_t* codes(const KvLayout& layout, int i) const {
    return reinterpret_cast<uint32_t*>(block + layout.value_codes_offset()) + first.word +
           i * 64 * layout.format.value_bits;
  }
};

template <int kSlices>
__device__ inline void read_words(const KvLayout& layout, Eviction<kSlices>& e) {
#pragma unroll
  for (int i = 0; i < kSlices; ++i)
    e.words[i] = i * 32 < layout.shape.head_dim ? *e.codes(layout, i) : 0;
}

// Quantizes the value x; x[i] is channel lane + 32 i.
template <int kSlices>
__device__ inline void evict_value(const KvLayout& layout, const Eviction<kSlices>& e,
                                   const __half (&x)[kSlices]) {
  const int lane = threadIdx.x % 32, slices = layout.shape.head_dim / 32;
  const int bits = layout.format.value_bits, group_slices = layout.format.group / 32;
  std::byte* parameters = e.block + layout.value_parameters_offset();
  float value[kSlices];
  __half2 least[kSlices];  // of x and of -x: one shuffle for both
#pragma unroll
  for (int i = 0; i < kSlices; ++i) {
    value[i] = finite(x[i]);
    least[i] = __floats2half2_rn(value[i], -value[i]);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
      least[i] = __hmin2(least[i], __shfl_xor_sync(0xffffffffu, least[i], offset));
  }
#pragma unroll
  for (int i = 0; i < kSlices; ++i) {
    if (i >= slices) break;
    __half2 group = least[i];
#pragma unroll
    for (int j = 0; j < kSlices; ++j)
      if (j < slices && j / group_slices == i / group_slices) group = __hmin2(group, least[j]);
    const Quantizer quantizer(__low2float(group), -__high2float(group), bits,
                              layout.format.parameter_bits);
    const uint32_t mask = ((1u << bits) - 1) << e.first.bit;
    *e.codes(layout, i) = (e.words[i] & ~mask) | (quantizer.code(value[i]) << e.first.bit);
    const int c = lane + 32 * i;
    if (c % layout.format.group != 0) continue;
    store_parameters(layout, parameters, layout.value_scale(e.token, c),
                     layout.value_minimum(e.token, c), quantizer);
  }
}

// --- many values, by a block ---------------------------------------------------------------------

// Values of the tokens [first, first + count) (count <= 64, in one run of 64), kChannelsAtOnce
// channels from `channel` on, by 256 threads: row_of(i, c) is where 8 channels of the i-th lie;
// codes go to [count][d] in shared memory, parameters to the page. A thread has 8 channels of a
// row, so a group is 4, 8 or 16 threads.
template <class RowOf>
__device__ inline void quantize_value_channels(const KvLayout& layout, std::byte* block, int first,
                                               int count, int channel, uint16_t* codes,
                                               RowOf row_of) {
  constexpr int kRows = 16;  // at a time
  const int d = layout.shape.head_dim, group = layout.format.group, bits = layout.format.value_bits;
  const int c = channel + threadIdx.x % 16 * 8;
  std::byte* parameters = block + layout.value_parameters_offset();
  for (int base = 0; base < count; base += kRows) {
    const int i = base + int(threadIdx.x) / 16;
    const bool active = i < count && c < d;
    alignas(16) __half2 x[4] = {};
    if (active) *reinterpret_cast<uint4*>(x) = *reinterpret_cast<const uint4*>(row_of(i, c));
    __half2 low, high;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x[j] = finite2(x[j]);
      low = j == 0 ? x[j] : __hmin2(low, x[j]);
      high = j == 0 ? x[j] : __hmax2(high, x[j]);
    }
    // The least of both halves, and minus the largest: one shuffle for both.
    __half2 extremes = __halves2half2(__hmin(__low2half(low), __high2half(low)),
                                      __hneg(__hmax(__low2half(high), __high2half(high))));
    for (int offset = 1; offset < group / 8; offset *= 2)
      extremes = __hmin2(extremes, __shfl_xor_sync(0xffffffffu, extremes, offset));
    if (!active) continue;
    const Quantizer quantizer(__low2float(extremes), -__high2float(extremes), bits,
                              layout.format.parameter_bits);
    uint32_t word[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 v = __half22float2(x[j]);
      word[j] = quantizer.code(v.x) | quantizer.code(v.y) << 16;
    }
    *reinterpret_cast<uint4*>(codes + i * d + c) = make_uint4(word[0], word[1], word[2], word[3]);
    if (c % group != 0) continue;
    store_parameters(layout, parameters, layout.value_scale(first + i, c),
                     layout.value_minimum(first + i, c), quantizer);
  }
}

template <class RowOf>
__device__ inline void quantize_values(const KvLayout& layout, std::byte* block, int first,
                                       int count, uint16_t* codes, RowOf row_of) {
  for (int channel = 0; channel < layout.shape.head_dim; channel += kChannelsAtOnce)
    quantize_value_channels(layout, block, first, count, channel, codes, row_of);
}

__device__ inline void convert_e4m3(int count, __half* rows) {
  for (int i = threadIdx.x; i < count; i += blockDim.x)
    reinterpret_cast<uint16_t*>(rows)[i] = uint16_t(e4m3_of(rows[i]));
}

}  // namespace kivi::cuda
