// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv_codec.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/verify.h"

namespace kivi {
namespace {

// NaN -> 0, +-infinity -> +-65504: what the writer of a group sees of a bad element.
float finite(f16 x) {
  const float v = to_float(x);
  return v != v ? 0.0f : std::clamp(v, -kF16Max, kF16Max);
}

// One fp16 operation: fp32 keeps more than twice fp16's precision, so rounding its result once more
// gives the correctly rounded fp16 result. Overflow saturates.
float round_f16(float x) { return to_float(to_f16_saturated(x)); }

uint32_t read_word(const std::byte* codes, CodePosition p) {
  return reinterpret_cast<const uint32_t*>(codes)[p.word];
}

void write_code(std::byte* codes, CodePosition p, int bits, uint8_t code) {
  uint32_t& word = reinterpret_cast<uint32_t*>(codes)[p.word];
  const uint32_t mask = ((1u << bits) - 1) << p.bit;
  word = (word & ~mask) | ((uint32_t(code) << p.bit) & mask);
}

uint8_t read_code(const std::byte* codes, CodePosition p, int bits) {
  return uint8_t((read_word(codes, p) >> p.bit) & ((1u << bits) - 1));
}

float read_f16_row(const std::byte* rows, int token, int channel, int head_dim) {
  const f16* row = reinterpret_cast<const f16*>(rows) + int64_t(token) * head_dim;
  return to_float(row[swizzled_channel(token, channel, head_dim)]);
}

}  // namespace

GroupParameters group_parameters(float low, float high, int bits, int parameter_bits) {
  const float largest = float((1 << bits) - 1);
  const f16 scale = to_f16(round_f16(round_f16(high - low) / largest));
  if (parameter_bits == 16) return {scale, to_f16(low)};
  const float unit = byte_minimum_unit(bits);
  const f16 reach = to_f16(std::fabs(low) * (1.0f / (float(kByteMinimumMax) * unit)));
  const int byte =
      std::min(std::max(byte_scale_nearest(scale), byte_scale_above(reach)), kByteScaleMax);
  if (byte == 0) return {};
  const float step = unit * to_float(byte_scale_value(byte));
  // A minimum beyond the largest f16 would be infinite.
  const float most = std::min(float(kByteMinimumMax), std::floor(kF16Max / step));
  const float m = std::clamp(std::nearbyint(low / step), -most, most);
  return {byte_scale_value(byte), to_f16(m * step + 0.0f)};
}

ByteParameters to_byte_parameters(GroupParameters p, int bits) {
  const float scale = to_float(p.scale);
  if (scale == 0) return {};
  const float m = to_float(p.minimum) / (byte_minimum_unit(bits) * scale);
  return {uint8_t(p.scale.bits >> 7), uint8_t(int(std::nearbyint(m)) + 128)};
}

GroupParameters quantize_group(std::span<const f16> x, int bits, int parameter_bits,
                               std::span<uint8_t> codes) {
  KIVI_VERIFY(x.size() == codes.size() && !x.empty() && bits >= 1 && bits <= 8);
  float low = finite(x[0]), high = low;
  for (const f16 v : x) {
    low = std::min(low, finite(v));
    high = std::max(high, finite(v));
  }
  low += 0.0f;  // zeros are +0, whichever came first
  high += 0.0f;
  const float largest = float((1 << bits) - 1);
  const GroupParameters parameters = group_parameters(low, high, bits, parameter_bits);
  const float scale = to_float(parameters.scale), minimum = to_float(parameters.minimum);
  for (size_t i = 0; i < x.size(); ++i) {
    // A constant group (or one so narrow that the scale rounds to zero) has codes 0.
    const float q = scale == 0 ? 0.0f : round_f16(round_f16(finite(x[i]) - minimum) / scale);
    codes[i] = uint8_t(std::clamp(std::nearbyint(q), 0.0f, largest));
  }
  return parameters;
}

// The product of an 11-bit significand and a code of at most 8 bits is exact in fp32, so a separate
// multiplication and addition round as one fused operation does.
float dequantize(uint8_t code, GroupParameters p) {
  return to_float(p.scale) * float(code) + to_float(p.minimum);
}

uint8_t to_e4m3(float x) {
  if (!(x == x)) return 0;
  const uint8_t sign = std::signbit(x) ? 0x80 : 0;
  const float a = std::min(std::fabs(x), 448.0f);
  if (a < 0.015625f)  // below 2^-6: subnormal, steps of 2^-9; 8 steps are the smallest normal
    return uint8_t(sign | uint8_t(std::nearbyint(a * 512.0f)));
  int exponent = 0;
  const float m = std::frexp(a, &exponent);          // a = m 2^exponent, m in [0.5, 1)
  const int steps = int(std::nearbyint(m * 16.0f));  // 8..16
  return uint8_t(sign | (((exponent - 1 + 7) << 3) + (steps - 8)));  // 16 carries into the exponent
}

float from_e4m3(uint8_t x) {
  const int exponent = (x >> 3) & 15, mantissa = x & 7;
  float a = exponent == 0 ? std::ldexp(float(mantissa), -9)
                          : std::ldexp(float(8 + mantissa), exponent - 10);
  if ((x & 0x7f) == 0x7f) a = std::nanf("");
  return x & 0x80 ? -a : a;
}

void write_key_code(const KvLayout& layout, std::byte* block, int token, int channel,
                    uint8_t code) {
  write_code(block + layout.key_codes_offset(), layout.key_code(token, channel),
             layout.format.key_bits, code);
}

void write_value_code(const KvLayout& layout, std::byte* block, int token, int channel,
                      uint8_t code) {
  write_code(block + layout.value_codes_offset(), layout.value_code(token, channel),
             layout.format.value_bits, code);
}

uint8_t read_key_code(const KvLayout& layout, const std::byte* block, int token, int channel) {
  return read_code(block + layout.key_codes_offset(), layout.key_code(token, channel),
                   layout.format.key_bits);
}

uint8_t read_value_code(const KvLayout& layout, const std::byte* block, int token, int channel) {
  return read_code(block + layout.value_codes_offset(), layout.value_code(token, channel),
                   layout.format.value_bits);
}

namespace {

void write_parameters(const KvLayout& layout, std::byte* region, int scale, int minimum, int bits,
                      GroupParameters p) {
  if (layout.format.parameter_bits == 8) {
    const ByteParameters bytes = to_byte_parameters(p, bits);
    region[scale] = std::byte(bytes.scale);
    region[minimum] = std::byte(bytes.minimum);
    return;
  }
  f16* plane = reinterpret_cast<f16*>(region);
  plane[scale] = p.scale;
  plane[minimum] = p.minimum;
}

GroupParameters read_parameters(const KvLayout& layout, const std::byte* region, int scale,
                                int minimum, int bits) {
  if (layout.format.parameter_bits == 8)
    return to_group_parameters({uint8_t(region[scale]), uint8_t(region[minimum])}, bits);
  const f16* plane = reinterpret_cast<const f16*>(region);
  return {plane[scale], plane[minimum]};
}

}  // namespace

void write_key_parameters(const KvLayout& layout, std::byte* block, int token, int channel,
                          GroupParameters p) {
  write_parameters(layout, block + layout.key_parameters_offset(), layout.key_scale(token, channel),
                   layout.key_minimum(token, channel), layout.format.key_bits, p);
}

void write_value_parameters(const KvLayout& layout, std::byte* block, int token, int channel,
                            GroupParameters p) {
  write_parameters(layout, block + layout.value_parameters_offset(),
                   layout.value_scale(token, channel), layout.value_minimum(token, channel),
                   layout.format.value_bits, p);
}

GroupParameters read_key_parameters(const KvLayout& layout, const std::byte* block, int token,
                                    int channel) {
  return read_parameters(layout, block + layout.key_parameters_offset(),
                         layout.key_scale(token, channel), layout.key_minimum(token, channel),
                         layout.format.key_bits);
}

GroupParameters read_value_parameters(const KvLayout& layout, const std::byte* block, int token,
                                      int channel) {
  return read_parameters(layout, block + layout.value_parameters_offset(),
                         layout.value_scale(token, channel), layout.value_minimum(token, channel),
                         layout.format.value_bits);
}

float read_key(const KvLayout& layout, const std::byte* block, int token, int channel) {
  switch (layout.format.kind) {
    case KvKind::f16:
      return read_f16_row(block + layout.key_codes_offset(), token, channel, layout.shape.head_dim);
    case KvKind::f8:
      return from_e4m3(read_key_code(layout, block, token, channel));
    case KvKind::kivi:
      return dequantize(read_key_code(layout, block, token, channel),
                        read_key_parameters(layout, block, token, channel));
  }
  return 0;
}

float read_value(const KvLayout& layout, const std::byte* block, int token, int channel) {
  switch (layout.format.kind) {
    case KvKind::f16:
      return read_f16_row(block + layout.value_codes_offset(), token, channel,
                          layout.shape.head_dim);
    case KvKind::f8:
      return from_e4m3(read_value_code(layout, block, token, channel));
    case KvKind::kivi:
      return dequantize(read_value_code(layout, block, token, channel),
                        read_value_parameters(layout, block, token, channel));
  }
  return 0;
}

Status check_kv_format(const KvFormat& f, const KvShape& shape) {
  const auto invalid = [](std::string message, std::string field) {
    return Error{ErrorCode::invalid, std::move(message), std::move(field)};
  };
  if (shape.layers < 1 || shape.heads < 1)
    return invalid(fmt::format("KV shape has {} layers and {} heads, both must be at least 1",
                               shape.layers, shape.heads),
                   "model");
  const int d = shape.head_dim;
  if (f.kind != KvKind::kivi) {
    if (f.sinks != 0 || f.parameter_bits != 16 || f.key_bias || f.rotation)
      return invalid(
          "sinks, 8-bit parameters, key bias and rotation need a KIVI format, not fp16 "
          "or fp8",
          "kv_cache_dtype");
    const int bits = f.kind == KvKind::f16 ? 16 : 8;
    if (f.key_bits != bits || f.value_bits != bits || f.group != 0 || f.residual != 0)
      return invalid(fmt::format("{}-bit KV format has key bits {}, value bits {}, group {} and "
                                 "residual {}, must be {}, {}, 0 and 0",
                                 bits, f.key_bits, f.value_bits, f.group, f.residual, bits, bits),
                     "kv_cache_dtype");
    if (d < 16 || d > 256 || d % 16 != 0 || d % 64 == 48)
      return invalid(fmt::format("head_dim is {}, must be a multiple of 16, at most 256 and not 48 "
                                 "more than a multiple of 64",
                                 d),
                     "model");
    return ok_status();
  }
  for (const int bits : {f.key_bits, f.value_bits})
    if (bits != 2 && bits != 4)
      return invalid(fmt::format("KIVI bits are {} for keys and {} for values, must be 2 or 4",
                                 f.key_bits, f.value_bits),
                     "kv_cache_dtype");
  if (d != 64 && d != 96 && d != 128 && d != 256)
    return invalid(fmt::format("head_dim is {}, KIVI formats need 64, 96, 128 or 256", d),
                   "kv_cache_dtype");
  if (f.group != 32 && f.group != 64 && f.group != 128)
    return invalid(fmt::format("KIVI group size is {}, must be 32, 64 or 128", f.group),
                   "kivi_group_size");
  if (d % f.group != 0)
    return invalid(
        fmt::format("KIVI group size is {}, must divide the model's head_dim {}", f.group, d),
        "kivi_group_size");
  if (f.residual < 1 || f.residual > 1024 || f.residual % f.group != 0)
    return invalid(fmt::format("KIVI residual length is {}, must be a multiple of the group size "
                               "{}, at most 1024",
                               f.residual, f.group),
                   "kivi_residual_length");
  if (f.sinks < 0 || f.sinks > 1024 || f.sinks % f.group != 0)
    return invalid(fmt::format("KV sinks are {}, must be 0 or a multiple of the group size {}, at "
                               "most 1024",
                               f.sinks, f.group),
                   "kv_sinks");
  if (f.parameter_bits != 8 && f.parameter_bits != 16)
    return invalid(fmt::format("KV parameter bits are {}, must be 8 or 16", f.parameter_bits),
                   "kv_parameter_bits");
  if (f.rotation && (d & (d - 1)) != 0)
    return invalid(fmt::format("head_dim is {}, rotation needs a power of two", d), "kv_rotation");
  return ok_status();
}

KvBytes kv_bytes(const KvLayout& layout, int tokens) {
  if (tokens <= 0) return {};
  const int64_t pages = layout.pages_for(tokens), parameters = layout.page_parameters_bytes();
  const int64_t slot_bytes = layout.slot_bytes(), sinks = layout.slot_sinks_bytes();
  return {.codes = pages * (layout.page_bytes() - parameters),
          .parameters = pages * parameters,
          .residual = slot_bytes - sinks,
          .sinks = sinks};
}

}  // namespace kivi
