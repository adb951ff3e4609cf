// SPDX-License-Identifier: Apache-2.0
#include "engine/model/files/gguf_blocks.h"

#include <array>
#include <cstddef>
#include <cstring>

#include "kernels/half.h"

namespace kivi {

namespace {

constexpr int kSmall = 32;   // values of a block of Q4_0 ... Q8_0
constexpr int kSuper = 256;  // values of a block of Q4_K ... Q6_K

uint8_t u8(const std::byte* at) { return std::to_integer<uint8_t>(*at); }

float half(const std::byte* at) {
  uint16_t bits;
  std::memcpy(&bits, at, sizeof(bits));
  return to_float(f16{bits});
}

// Calls `read_block` for each block of `count` values.
template <int kValues, int kBytes, class ReadBlock>
void each_block(const std::byte* blocks, int64_t count, float* out, const ReadBlock& read_block) {
  for (int64_t i = 0; i < count; i += kValues) {
    read_block(blocks, out + i);
    blocks += kBytes;
  }
}

// Nibbles: value i < 16 is the low half of byte i, value 16 + i its high half.
int nibble(const std::byte* packed, int i) {
  return i < 16 ? u8(packed + i) & 0xF : u8(packed + i - 16) >> 4;
}

// The fifth bits of 32 values, bit i for value i.
uint32_t fifth_bits(const std::byte* at) {
  uint32_t bits;
  std::memcpy(&bits, at, sizeof(bits));
  return bits;
}

// f16 scale, 16 bytes of nibbles; values are nibble - 8.
void read_q4_0(const std::byte* blocks, int64_t count, float* out) {
  each_block<kSmall, 18>(blocks, count, out, [](const std::byte* b, float* y) {
    const float scale = half(b);
    for (int i = 0; i < kSmall; ++i) y[i] = float(nibble(b + 2, i) - 8) * scale;
  });
}

// f16 scale, f16 minimum, nibbles.
void read_q4_1(const std::byte* blocks, int64_t count, float* out) {
  each_block<kSmall, 20>(blocks, count, out, [](const std::byte* b, float* y) {
    const float scale = half(b), minimum = half(b + 2);
    for (int i = 0; i < kSmall; ++i) y[i] = float(nibble(b + 4, i)) * scale + minimum;
  });
}

// f16 scale, fifth bits, nibbles; values are five bits - 16.
void read_q5_0(const std::byte* blocks, int64_t count, float* out) {
  each_block<kSmall, 22>(blocks, count, out, [](const std::byte* b, float* y) {
    const float scale = half(b);
    const uint32_t high = fifth_bits(b + 2);
    for (int i = 0; i < kSmall; ++i)
      y[i] = float((nibble(b + 6, i) | int(high >> i & 1) << 4) - 16) * scale;
  });
}

// f16 scale, f16 minimum, fifth bits, nibbles.
void read_q5_1(const std::byte* blocks, int64_t count, float* out) {
  each_block<kSmall, 24>(blocks, count, out, [](const std::byte* b, float* y) {
    const float scale = half(b), minimum = half(b + 2);
    const uint32_t high = fifth_bits(b + 4);
    for (int i = 0; i < kSmall; ++i)
      y[i] = float(nibble(b + 8, i) | int(high >> i & 1) << 4) * scale + minimum;
  });
}

// f16 scale, 32 signed bytes.
void read_q8_0(const std::byte* blocks, int64_t count, float* out) {
  each_block<kSmall, 34>(blocks, count, out, [](const std::byte* b, float* y) {
    const float scale = half(b);
    for (int i = 0; i < kSmall; ++i) y[i] = float(int8_t(u8(b + 2 + i))) * scale;
  });
}

// Scale and minimum of 32 values, six bits each.
struct SixBits {
  int scale, minimum;
};

// Eight pairs are packed into 12 bytes: of the first four pairs the low six bits of bytes 0-3
// (scales) and 4-7 (minima); of the last four, low and high nibbles of bytes 8-11 under the two
// bits that are left of bytes 0-3 and 4-7.
SixBits six_bits(const std::byte* packed, int i) {
  if (i < 4) return {u8(packed + i) & 63, u8(packed + i + 4) & 63};
  const int last = u8(packed + i + 4);
  return {(last & 0xF) | u8(packed + i - 4) >> 6 << 4, last >> 4 | u8(packed + i) >> 6 << 4};
}

// f16 scale of scales, f16 scale of minima, 12 bytes of both, 128 bytes of nibbles: of each 64
// values the first 32 are the low halves of 32 bytes, the others the high halves.
void read_q4_k(const std::byte* blocks, int64_t count, float* out) {
  each_block<kSuper, 144>(blocks, count, out, [](const std::byte* b, float* y) {
    const float scale = half(b), minimum = half(b + 2);
    for (int group = 0; group < 8; ++group) {
      const SixBits own = six_bits(b + 4, group);
      const float s = scale * float(own.scale), m = minimum * float(own.minimum);
      const std::byte* nibbles = b + 16 + group / 2 * 32;
      for (int i = 0; i < 32; ++i) *y++ = s * float(u8(nibbles + i) >> group % 2 * 4 & 0xF) - m;
    }
  });
}

// As Q4_K, with 32 bytes of fifth bits before the nibbles: bit g of byte i for value i of group g.
void read_q5_k(const std::byte* blocks, int64_t count, float* out) {
  each_block<kSuper, 176>(blocks, count, out, [](const std::byte* b, float* y) {
    const float scale = half(b), minimum = half(b + 2);
    const std::byte* high = b + 16;
    for (int group = 0; group < 8; ++group) {
      const SixBits own = six_bits(b + 4, group);
      const float s = scale * float(own.scale), m = minimum * float(own.minimum);
      const std::byte* nibbles = b + 48 + group / 2 * 32;
      for (int i = 0; i < 32; ++i) {
        const int low = u8(nibbles + i) >> group % 2 * 4 & 0xF;
        *y++ = s * float(low | (u8(high + i) >> group & 1) << 4) - m;
      }
    }
  });
}

// 128 bytes of low nibbles, 64 bytes of high pairs of bits, 16 signed scales (of 16 values each),
// f16 scale of scales; values are six bits - 32. Of each 128 values, the quarters of 32: low and
// low, then high and high halves of 64 bytes; their high bits are the four pairs of 32 bytes.
void read_q6_k(const std::byte* blocks, int64_t count, float* out) {
  each_block<kSuper, 210>(blocks, count, out, [](const std::byte* b, float* y) {
    const float scale = half(b + 208);
    for (int group = 0; group < 8; ++group) {
      const int part = group / 4, quarter = group % 4;
      const std::byte* low = b + part * 64 + quarter % 2 * 32;
      const std::byte* high = b + 128 + part * 32;
      for (int i = 0; i < 32; ++i) {
        const int bits = (u8(low + i) >> quarter / 2 * 4 & 0xF) | (u8(high + i) >> 2 * quarter & 3)
                                                                      << 4;
        const auto own = int8_t(u8(b + 192 + group * 2 + i / 16));
        *y++ = scale * float(own) * float(bits - 32);
      }
    }
  });
}

// The same blocks as codes and records (kernels/weight_codec.h), number for number.

// Calls `split_block` for each block of `kValues` values.
template <int kValues, int kBytes, int kRecord, class SplitBlock>
void split_blocks(const std::byte* blocks, int64_t count, uint8_t* codes, std::byte* records,
                  const SplitBlock& split_block) {
  for (int64_t i = 0; i < count; i += kValues) {
    split_block(blocks, codes + i, records);
    blocks += kBytes;
    records += kRecord;
  }
}

void split_q4_0(const std::byte* blocks, int64_t count, uint8_t* codes, std::byte* records) {
  split_blocks<kSmall, 18, 2>(blocks, count, codes, records,
                              [](const std::byte* b, uint8_t* c, std::byte* r) {
                                std::memcpy(r, b, 2);
                                for (int i = 0; i < kSmall; ++i) c[i] = uint8_t(nibble(b + 2, i));
                              });
}

void split_q4_1(const std::byte* blocks, int64_t count, uint8_t* codes, std::byte* records) {
  split_blocks<kSmall, 20, 4>(blocks, count, codes, records,
                              [](const std::byte* b, uint8_t* c, std::byte* r) {
                                std::memcpy(r, b, 4);
                                for (int i = 0; i < kSmall; ++i) c[i] = uint8_t(nibble(b + 4, i));
                              });
}

void split_q5_0(const std::byte* blocks, int64_t count, uint8_t* codes, std::byte* records) {
  split_blocks<kSmall, 22, 2>(blocks, count, codes, records,
                              [](const std::byte* b, uint8_t* c, std::byte* r) {
                                std::memcpy(r, b, 2);
                                const uint32_t high = fifth_bits(b + 2);
                                for (int i = 0; i < kSmall; ++i)
                                  c[i] = uint8_t(nibble(b + 6, i) | int(high >> i & 1) << 4);
                              });
}

void split_q5_1(const std::byte* blocks, int64_t count, uint8_t* codes, std::byte* records) {
  split_blocks<kSmall, 24, 4>(blocks, count, codes, records,
                              [](const std::byte* b, uint8_t* c, std::byte* r) {
                                std::memcpy(r, b, 4);
                                const uint32_t high = fifth_bits(b + 4);
                                for (int i = 0; i < kSmall; ++i)
                                  c[i] = uint8_t(nibble(b + 8, i) | int(high >> i & 1) << 4);
                              });
}

void split_q8_0(const std::byte* blocks, int64_t count, uint8_t* codes, std::byte* records) {
  split_blocks<kSmall, 34, 2>(blocks, count, codes, records,
                              [](const std::byte* b, uint8_t* c, std::byte* r) {
                                std::memcpy(r, b, 2);
                                for (int i = 0; i < kSmall; ++i) c[i] = u8(b + 2 + i) ^ 0x80;
                              });
}

// d, dmin, and the six-bit pairs as bytes: 8 scales, then 8 minima.
void split_k_scales(const std::byte* block, std::byte* record) {
  std::memcpy(record, block, 4);
  for (int group = 0; group < 8; ++group) {
    const SixBits own = six_bits(block + 4, group);
    record[4 + group] = std::byte(own.scale);
    record[12 + group] = std::byte(own.minimum);
  }
}

void split_q4_k(const std::byte* blocks, int64_t count, uint8_t* codes, std::byte* records) {
  split_blocks<kSuper, 144, 20>(
      blocks, count, codes, records, [](const std::byte* b, uint8_t* c, std::byte* r) {
        split_k_scales(b, r);
        for (int i = 0; i < kSuper; ++i)
          c[i] = u8(b + 16 + i / 64 * 32 + i % 32) >> i / 32 % 2 * 4 & 0xF;
      });
}

void split_q5_k(const std::byte* blocks, int64_t count, uint8_t* codes, std::byte* records) {
  split_blocks<kSuper, 176, 20>(
      blocks, count, codes, records, [](const std::byte* b, uint8_t* c, std::byte* r) {
        split_k_scales(b, r);
        for (int i = 0; i < kSuper; ++i) {
          const int low = u8(b + 48 + i / 64 * 32 + i % 32) >> i / 32 % 2 * 4 & 0xF;
          c[i] = uint8_t(low | (u8(b + 16 + i % 32) >> i / 32 & 1) << 4);
        }
      });
}

void split_q6_k(const std::byte* blocks, int64_t count, uint8_t* codes, std::byte* records) {
  split_blocks<kSuper, 210, 18>(
      blocks, count, codes, records, [](const std::byte* b, uint8_t* c, std::byte* r) {
        std::memcpy(r, b + 208, 2);
        std::memcpy(r + 2, b + 192, 16);
        for (int i = 0; i < kSuper; ++i) {
          const int part = i / 128, quarter = i / 32 % 4;
          const int low = u8(b + part * 64 + quarter % 2 * 32 + i % 32) >> quarter / 2 * 4 & 0xF;
          const int high = u8(b + 128 + part * 32 + i % 32) >> 2 * quarter & 3;
          c[i] = uint8_t(low | high << 4);
        }
      });
}

constexpr GgufTensorType plain(uint32_t id, const char* name, DType dtype) {
  return {id, name, 1, int64_t(size_of(dtype)), dtype, nullptr, WeightKind::plain, nullptr};
}
constexpr GgufTensorType blocks(uint32_t id, const char* name, int64_t values, int64_t bytes,
                                Dequantize dequantize, WeightKind kind, SplitBlocks split) {
  return {id, name, values, bytes, std::nullopt, dequantize, kind, split};
}
constexpr GgufTensorType unread(uint32_t id, const char* name) {
  return {id, name, 1, 0, std::nullopt, nullptr, WeightKind::plain, nullptr};
}

constexpr std::array kTypes = {
    plain(0, "F32", DType::f32),
    plain(1, "F16", DType::f16),
    plain(30, "BF16", DType::bf16),
    blocks(8, "Q8_0", kSmall, 34, read_q8_0, WeightKind::q8_0, split_q8_0),
    blocks(2, "Q4_0", kSmall, 18, read_q4_0, WeightKind::q4_0, split_q4_0),
    blocks(3, "Q4_1", kSmall, 20, read_q4_1, WeightKind::q4_1, split_q4_1),
    blocks(6, "Q5_0", kSmall, 22, read_q5_0, WeightKind::q5_0, split_q5_0),
    blocks(7, "Q5_1", kSmall, 24, read_q5_1, WeightKind::q5_1, split_q5_1),
    blocks(12, "Q4_K", kSuper, 144, read_q4_k, WeightKind::q4_k, split_q4_k),
    blocks(13, "Q5_K", kSuper, 176, read_q5_k, WeightKind::q5_k, split_q5_k),
    blocks(14, "Q6_K", kSuper, 210, read_q6_k, WeightKind::q6_k, split_q6_k),
    unread(9, "Q8_1"),
    unread(10, "Q2_K"),
    unread(11, "Q3_K"),
    unread(15, "Q8_K"),
    unread(16, "IQ2_XXS"),
    unread(17, "IQ2_XS"),
    unread(18, "IQ3_XXS"),
    unread(19, "IQ1_S"),
    unread(20, "IQ4_NL"),
    unread(21, "IQ3_S"),
    unread(22, "IQ2_S"),
    unread(23, "IQ4_XS"),
    unread(24, "I8"),
    unread(25, "I16"),
    unread(26, "I32"),
    unread(27, "I64"),
    unread(28, "F64"),
    unread(29, "IQ1_M"),
    unread(34, "TQ1_0"),
    unread(35, "TQ2_0"),
    unread(39, "MXFP4"),
};

}  // namespace

const GgufTensorType* find_gguf_tensor_type(uint32_t id) {
  for (const GgufTensorType& type : kTypes)
    if (type.id == id) return &type;
  return nullptr;
}

std::string readable_gguf_tensor_types() {
  std::string names;
  for (const GgufTensorType& type : kTypes)
    if (type.bytes != 0) names += (names.empty() ? "" : ", ") + std::string(type.name);
  return names;
}

}  // namespace kivi
