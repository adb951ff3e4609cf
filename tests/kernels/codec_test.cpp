// SPDX-License-Identifier: Apache-2.0
// One group, one number: the scalar codec against the page, and 16-bit conversions.
#include <catch2/catch.hpp>
#include <limits>

#include "kernels/kv_codec.h"
#include "tests/kernels/kivi_reference.h"
#include "tests/kernels/support.h"

using namespace kivi;
using namespace kivi::test;

namespace {

void check_group(const std::vector<f16>& x, int bits, int parameter_bits) {
  std::vector<double> numbers;
  for (const f16 v : x) numbers.push_back(double(to_float(v)));
  const ReferenceGroup want = reference_quantize(numbers, bits, parameter_bits);
  std::vector<uint8_t> codes(x.size());
  const GroupParameters got = quantize_group(x, bits, parameter_bits, codes);
  REQUIRE(double(to_float(got.scale)) == want.scale);
  REQUIRE(double(to_float(got.minimum)) == want.minimum);
  for (size_t i = 0; i < x.size(); ++i) REQUIRE(int(codes[i]) == want.codes[i]);
}

}  // namespace

TEST_CASE("A group's codes, scale and minimum equal the page's formula in fp16") {
  const uint32_t seed = 20261124;
  CAPTURE(seed);
  std::mt19937 random(seed);
  for (int repeat = 0; repeat < 2000; ++repeat) {
    const int bits = repeat % 2 ? 2 : 4;
    const size_t n = repeat % 3 ? 32 : 64;
    // Sizes from fp16's subnormals to its largest numbers; some groups are far from zero.
    std::normal_distribution<float> normal(repeat % 5 ? 0.0f : 3.0f, 1.0f);
    const float size = std::exp2(float(repeat % 41) - 25.0f);
    std::vector<f16> x;
    for (size_t i = 0; i < n; ++i) x.push_back(to_f16_saturated(normal(random) * size));
    check_group(x, bits, 16);
    check_group(x, bits, 8);
  }
}

TEST_CASE("Every pair of 8-bit parameters is an exact pair of f16 and comes back") {
  int wrong = 0;
  for (const int bits : {2, 4})
    for (int scale = 1; scale <= kByteScaleMax; ++scale)
      for (int m = -127; m <= 127; ++m) {
        const ByteParameters bytes{uint8_t(scale), uint8_t(m + 128)};
        const GroupParameters p = to_group_parameters(bytes, bits);
        const double exact = double(m) * (bits == 2 ? 0.25 : 0.5) * double(to_float(p.scale));
        if (std::abs(exact) > 65504) continue;  // no group of finite numbers has such a minimum
        wrong += double(to_float(p.minimum)) != exact;
        wrong += !(to_byte_parameters(p, bits) == bytes);
      }
  CHECK(wrong == 0);
}

TEST_CASE("8-bit parameters cover groups far from zero, with a scale that grows") {
  for (const int bits : {2, 4}) {
    std::vector<f16> x;
    for (int i = 0; i < 32; ++i) x.push_back(to_f16(100.0f + float(i) / 32));  // range 1 at 100
    std::vector<uint8_t> codes(32);
    const GroupParameters p = quantize_group(x, bits, 8, codes);
    for (size_t i = 0; i < x.size(); ++i)
      CHECK(std::abs(dequantize(codes[i], p) - to_float(x[i])) <= to_float(p.scale) * 0.75f);
    CHECK(to_float(p.scale) < (bits == 2 ? 4 : 2));
  }
}

TEST_CASE("A constant group has scale 0 and codes 0 and is read back exactly") {
  for (const float value : {0.0f, -1.5f, 65504.0f, 6e-8f})
    for (const int bits : {2, 4}) {
      const std::vector<f16> x(32, to_f16(value));
      std::vector<uint8_t> codes(32, 9);
      const GroupParameters p = quantize_group(x, bits, 16, codes);
      CHECK(to_float(p.scale) == 0);
      for (const uint8_t code : codes) {
        CHECK(code == 0);
        CHECK(dequantize(code, p) == to_float(x[0]));
      }
    }
}

TEST_CASE("Non-finite elements become numbers and leave the others of their group readable") {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {infinity, -infinity, std::nanf("")})
    for (const int bits : {2, 4}) {
      std::vector<f16> x;
      for (int i = 0; i < 32; ++i) x.push_back(to_f16(float(i) * 0.25f));
      x[7] = to_f16(bad);
      check_group(x, bits, 16);
      check_group(x, bits, 8);
      std::vector<uint8_t> codes(32);
      const GroupParameters p = quantize_group(x, bits, 16, codes);
      for (const uint8_t code : codes) CHECK(std::isfinite(dequantize(code, p)));
    }
  // The widest group there is: the difference of its ends is no fp16 number.
  std::vector<f16> x(32, to_f16(0));
  x[0] = to_f16(-65504);
  x[1] = to_f16(65504);
  check_group(x, 2, 16);
  check_group(x, 4, 16);
}

TEST_CASE("fp16: every number survives a round trip, halves round to even, all ties are checked") {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const f16 h{uint16_t(bits)};
    const float x = to_float(h);
    if (std::isnan(x)) {
      REQUIRE(std::isnan(to_float(to_f16(x))));
      REQUIRE(to_f16_saturated(x).bits == 0);
      continue;
    }
    REQUIRE(to_f16(x).bits == h.bits);
    if (std::isinf(x)) continue;
    REQUIRE(double(x) == fp16(double(x)));
    const f16 next{uint16_t(bits + 1)};
    if (std::isinf(to_float(next))) continue;
    const float middle = (x + to_float(next)) / 2;  // exact in fp32
    REQUIRE(double(to_float(to_f16(middle))) == fp16(double(middle)));
    for (const float y : {std::nextafter(middle, x), std::nextafter(middle, to_float(next))})
      REQUIRE(double(to_float(to_f16(y))) == fp16(double(y)));
  }
  CHECK(std::isinf(to_float(to_f16(65520))));
  CHECK(to_float(to_f16_saturated(1e30f)) == 65504);
  CHECK(to_float(to_f16_saturated(-std::numeric_limits<float>::infinity())) == -65504);
}

TEST_CASE("e4m3: every number survives a round trip and every other rounds to the nearest") {
  for (int bits = 0; bits < 256; ++bits) {
    if ((bits & 0x7f) == 0x7f) continue;  // NaN
    REQUIRE(int(to_e4m3(from_e4m3(uint8_t(bits)))) == bits);
  }
  CHECK(from_e4m3(0x7e) == 448);
  CHECK(from_e4m3(0x01) == 0.001953125f);
  CHECK(from_e4m3(0x38) == 1);
  CHECK(std::isnan(from_e4m3(0x7f)));
  CHECK(to_e4m3(1e9f) == 0x7e);
  CHECK(to_e4m3(-std::numeric_limits<float>::infinity()) == 0xfe);
  CHECK(to_e4m3(std::nanf("")) == 0);
  for (int bits = 0; bits < 0x7e; ++bits) {
    const float low = from_e4m3(uint8_t(bits)), high = from_e4m3(uint8_t(bits + 1));
    const float middle = (low + high) / 2;
    REQUIRE(int(to_e4m3(std::nextafter(middle, low))) == bits);
    REQUIRE(int(to_e4m3(std::nextafter(middle, high))) == bits + 1);
    REQUIRE(int(to_e4m3(middle)) == (bits % 2 ? bits + 1 : bits));
    REQUIRE(int(to_e4m3(-middle)) == (bits % 2 ? bits + 1 : bits) + 0x80);
  }
}

TEST_CASE("Codes and parameters are read where they were written, neighbors stay") {
  const uint32_t seed = 5;
  CAPTURE(seed);
  std::mt19937 random(seed);
  const KvLayout layout{{KvKind::kivi, 2, 4, 32, 32}, {1, 1, 96}};
  std::vector<std::byte> block(size_t(layout.block_bytes()), std::byte{0xFF});
  std::vector<int> codes;
  for (int t = 0; t < 64; ++t)
    for (int c = 0; c < 96; ++c) {
      codes.push_back(int(random() % 4));
      codes.push_back(int(random() % 16));
      write_key_code(layout, block.data(), t, c, uint8_t(codes[codes.size() - 2]));
      write_value_code(layout, block.data(), t, c, uint8_t(codes.back()));
    }
  write_key_parameters(layout, block.data(), 40, 5, {to_f16(2), to_f16(-3)});
  write_value_parameters(layout, block.data(), 63, 70, {to_f16(0.5f), to_f16(7)});
  size_t i = 0;
  for (int t = 0; t < 64; ++t)
    for (int c = 0; c < 96; ++c, i += 2) {
      REQUIRE(int(read_key_code(layout, block.data(), t, c)) == codes[i]);
      REQUIRE(int(read_value_code(layout, block.data(), t, c)) == codes[i + 1]);
    }
  CHECK(read_key(layout, block.data(), 63, 5) ==
        2.0f * float(read_key_code(layout, block.data(), 63, 5)) - 3.0f);
  CHECK(read_value(layout, block.data(), 63, 95) ==
        0.5f * float(read_value_code(layout, block.data(), 63, 95)) + 7.0f);
}

TEST_CASE("A format that does not fit its model is refused with the values in the message") {
  const auto error = [](KvFormat f, int head_dim) {
    const Status status = check_kv_format(f, {2, 2, head_dim});
    return status.ok() ? std::string() : status.error().field + ": " + status.error().message;
  };
  CHECK(error({KvKind::kivi, 2, 4, 32, 128}, 96) == "");
  CHECK(error({KvKind::kivi, 2, 4, 128, 128}, 256) == "");
  CHECK(error({KvKind::kivi, 2, 2, 32, 32}, 160).find("head_dim is 160") != std::string::npos);
  CHECK(error({KvKind::f16, 16, 16, 0, 0}, 80) == "");
  CHECK(error({KvKind::f8, 8, 8, 0, 0}, 256) == "");
  CHECK(error({KvKind::kivi, 2, 2, 128, 128}, 64).find("128, must divide") != std::string::npos);
  CHECK(error({KvKind::kivi, 2, 2, 64, 96}, 64).find("kivi_residual_length: ") == 0);
  CHECK(error({KvKind::kivi, 3, 2, 32, 32}, 64).find("3 for keys") != std::string::npos);
  CHECK(error({KvKind::kivi, 2, 2, 48, 96}, 96).find("48, must be 32, 64 or 128") !=
        std::string::npos);
  CHECK(error({KvKind::kivi, 2, 2, 32, 2048}, 64).find("2048") != std::string::npos);
  CHECK(error({KvKind::kivi, 2, 2, 32, 0}, 64).find("is 0") != std::string::npos);
  CHECK(error({KvKind::kivi, 2, 2, 32, 32}, 80).find("head_dim is 80") != std::string::npos);
  CHECK(error({KvKind::f16, 16, 16, 0, 0}, 112).find("112") != std::string::npos);
  CHECK(error({KvKind::f16, 16, 16, 0, 0}, 272).find("272") != std::string::npos);
  CHECK(error({KvKind::f16, 8, 16, 0, 0}, 64).find("key bits 8") != std::string::npos);
}
