// The executable definition of the KV formats: quantize, pack, unpack and dequantize, scalar and
// plain. Every backend must write the same bits and read the same numbers
// (docs/design/kv-format.md, section 1).
#pragma once

#include <cstdint>
#include <span>

#include "base/result.h"
#include "kernels/kv_page.h"

namespace kivi {

// One group: codes, scale and minimum.
struct GroupParameters {
  f16 scale;
  f16 minimum;
};

// Quantizes `x` (f16, G values, stride 1) at `bits`, all in fp16 arithmetic:
//   scale = (max - min) / (2^b - 1);  code = clamp(round_half_even((x - min) / scale), 0, 2^b - 1).
// Each operation is rounded to fp16 by itself, to nearest even; a difference beyond 65504 is 65504.
// A constant group has scale 0 and codes 0; scales and minima of zero are +0. Non-finite x are
// taken as 0 (NaN) or +-65504.
GroupParameters quantize_group(std::span<const f16> x, int bits, std::span<uint8_t> codes);

// scale * code + minimum, in fp32 (one fused multiply-add).
float dequantize(uint8_t code, GroupParameters p);

// e4m3 (OCP, no infinities), round to nearest even, saturated to +-448; NaN becomes 0.
uint8_t to_e4m3(float x);
float from_e4m3(uint8_t x);

// Reads and writes single codes and parameters of one block (page x layer x head), by token (in the
// page) and channel. Slow; tests and references use them, and so does the CPU's append.
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
// The number a reader gets, for every format (f16 and f8 pages too).
float read_key(const KvLayout& layout, const std::byte* block, int token, int channel);
float read_value(const KvLayout& layout, const std::byte* block, int token, int channel);

// Error invalid, naming the values and what was expected, where format and shape do not fit:
// bits in {2, 4}; G in {32, 64, 128}, G divides head_dim; R a positive multiple of G, at most 1024;
// head_dim in {64, 96, 128} (f16 and f8: a multiple of 16, at most 256, head_dim % 64 != 48).
Status check_kv_format(const KvFormat& format, const KvShape& shape);

// Bytes that one sequence of `tokens` tokens holds. Whole pages count (that is what is reserved).
KvBytes kv_bytes(const KvLayout& layout, int tokens);

}  // namespace kivi
