// SPDX-License-Identifier: Apache-2.0
// The executable definition of the cache formats: plain scalar functions that quantize, pack,
// unpack and dequantize. Every backend must write the same bits and read the same numbers
// (docs/design/kv-format.md, section 1).
#pragma once

#include <cstdint>
#include <span>

#include "base/result.h"
#include "kernels/kv_page.h"
#include "kernels/kv_parameters.h"

namespace kivi {

// Quantizes `x` (f16, G values, stride 1) at `bits`, all in fp16 arithmetic:
//   scale = (max - min) / (2^b - 1);  code = clamp(round_half_even((x - min) / scale), 0, 2^b - 1).
// Each operation is rounded to fp16 by itself, to nearest even. A difference beyond 65504 becomes
// 65504. A constant group has scale 0 and codes 0. Scales and minima of zero are +0. A NaN is read
// as 0, an infinity as +-65504.
//
// With `parameter_bits` 8, scale and minimum are the nearest numbers that 8 bits each can say
// (kernels/kv_parameters.h), and codes refer to these. The scale grows where its minimum would
// otherwise be out of reach.
GroupParameters quantize_group(std::span<const f16> x, int bits, int parameter_bits,
                               std::span<uint8_t> codes);

// Returns the parameters of a group whose least and largest numbers are `low` and `high` (finite
// f16 values, zeros +0).
GroupParameters group_parameters(float low, float high, int bits, int parameter_bits);

// Returns the 8-bit form of parameters that have one.
ByteParameters to_byte_parameters(GroupParameters p, int bits);

// Returns scale * code + minimum in fp32, as one fused multiply-add.
float dequantize(uint8_t code, GroupParameters p);

// Convert to and from e4m3 (OCP, without infinities). to_e4m3 rounds to nearest even, saturates to
// +-448, and turns NaN into 0.
uint8_t to_e4m3(float x);
float from_e4m3(uint8_t x);

// Read and write single codes and parameters of one block (page x layer x head). `token` counts
// from the start of the page. These functions are slow. Tests, references and the CPU's append use
// them.
void write_key_code(const KvLayout& layout, std::byte* block, int token, int channel, uint8_t code);
void write_value_code(const KvLayout& layout, std::byte* block, int token, int channel,
                      uint8_t code);
uint8_t read_key_code(const KvLayout& layout, const std::byte* block, int token, int channel);
uint8_t read_value_code(const KvLayout& layout, const std::byte* block, int token, int channel);
void write_key_parameters(const KvLayout& layout, std::byte* block, int token, int channel,
                          GroupParameters p);
void write_value_parameters(const KvLayout& layout, std::byte* block, int token, int channel,
                            GroupParameters p);
GroupParameters read_key_parameters(const KvLayout& layout, const std::byte* block, int token,
                                    int channel);
GroupParameters read_value_parameters(const KvLayout& layout, const std::byte* block, int token,
                                      int channel);
// Return the number that a reader gets. They work for every format, f16 and f8 pages included.
float read_key(const KvLayout& layout, const std::byte* block, int token, int channel);
float read_value(const KvLayout& layout, const std::byte* block, int token, int channel);

// Checks that format and shape fit. Returns `invalid`, naming the values and what is allowed,
// unless bits are 2 or 4; G is 32, 64 or 128 and divides head_dim; R is a positive multiple of G,
// at most 1024; S is 0 or a multiple of G, at most 1024; parameter bits are 8 or 16; head_dim is
// 64, 96, 128 or 256, and with rotation not 96 (f16 and f8: a multiple of 16, at most 256, head_dim
// % 64 != 48).
Status check_kv_format(const KvFormat& format, const KvShape& shape);

// Returns the bytes that one sequence of `tokens` tokens holds. Whole pages count, because whole
// pages are reserved.
KvBytes kv_bytes(const KvLayout& layout, int tokens);

}  // namespace kivi
