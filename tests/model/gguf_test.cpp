// SPDX-License-Identifier: Apache-2.0
// GGUF files as such: what is read of right ones, and that wrong ones give an error that says what
// and where. Their models are in gguf_model_test.
#include "engine/model/files/gguf.h"

#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "engine/model/files/gguf_blocks.h"
#include "kernels/weight_codec.h"
#include "tests/model/gguf_writer.h"
#include "tests/model/temporary_folder.h"

namespace kivi {

namespace {

std::string error_of(const std::string& bytes) {
  // A copy of exactly this size, so that AddressSanitizer sees any read beyond it.
  const std::vector<char> exact(bytes.begin(), bytes.end());
  const auto header =
      GgufHeader::parse(reinterpret_cast<const std::byte*>(exact.data()), exact.size(), "x.gguf");
  return header.ok() ? "no error" : header.error().message;
}

GgufHeader parsed(const std::string& bytes) {
  auto header =
      GgufHeader::parse(reinterpret_cast<const std::byte*>(bytes.data()), bytes.size(), "x.gguf");
  if (!header.ok()) FAIL(header.error().message);
  return std::move(*header);
}

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2)
    bytes += char(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

// How many floats lie between two.
int64_t steps_between(float a, float b) {
  const auto order = [](float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits < 0 ? int64_t(INT32_MIN) - bits : int64_t(bits);
  };
  return std::abs(order(a) - order(b));
}

}  // namespace

TEST_CASE("A good GGUF file gives its metadata and tensors, in versions 2 and 3") {
  GgufWriter writer;
  writer.string("name", "caf\xC3\xA9");
  writer.boolean("flag", true);
  writer.u32("count", 4'000'000'000u);
  writer.pair("small", 1, GgufWriter::raw(int8_t(-3)));
  writer.pair("huge", 10, GgufWriter::raw(UINT64_MAX));
  writer.strings("words", {"a", "", "bc"});
  writer.i32s("types", {1, -2});
  writer.f32s("scores", {0.5f});
  writer.strings("empty", {});
  writer.tensor("m", 8, {2, 64}, std::string(2 * 2 * 34, '\1'));
  writer.tensor("v", 0, {3}, std::string(12, '\2'));
  const uint32_t version = GENERATE(2u, 3u);
  const std::string bytes = writer.bytes(version);
  const GgufHeader header = parsed(bytes);
  CHECK(**header.string("name") == "caf\xC3\xA9");
  CHECK(**header.boolean("flag"));
  CHECK(**header.integer("count") == 4'000'000'000);
  CHECK(**header.integer("small") == -3);
  CHECK(**header.strings("words") == std::vector<std::string>{"a", "", "bc"});
  CHECK(**header.integers("types") == std::vector<int64_t>{1, -2});
  CHECK(**header.floats("scores") == std::vector<float>{0.5f});
  CHECK((**header.strings("empty")).empty());
  CHECK_FALSE(header.string("absent")->has_value());
  CHECK(header.integer("huge").error().message == "x.gguf: huge is a u64, must be an integer");
  CHECK(header.integer("name").error().message ==
        "x.gguf: name is the string 'caf?\?', must be an integer");
  CHECK(header.string("words").error().message ==
        "x.gguf: words is an array of 3 string, must be a string");
  REQUIRE(header.tensors().size() == 2);
  CHECK(describe(header.tensors().at("m")) == "[2, 64] Q8_0");
  CHECK(header.tensors().at("v").dtype == DType::f32);
  CHECK(header.tensors().at("v").data[0] == std::byte(2));
}

TEST_CASE("Every prefix of a GGUF file is refused") {
  GgufWriter writer;
  writer.strings("words", {"a", "bc"});
  writer.f32("x", 1);
  writer.tensor("v", 0, {8}, std::string(32, '\2'));
  const std::string bytes = writer.bytes();
  REQUIRE(error_of(bytes) == "no error");
  for (size_t length = 0; length < bytes.size(); ++length) {
    CAPTURE(length);
    CHECK(error_of(bytes.substr(0, length)) != "no error");
  }
}

TEST_CASE("Wrong GGUF files are refused with what is wrong") {
  const auto with = [](const auto& change) {
    GgufWriter writer;
    change(writer);
    return error_of(writer.bytes());
  };
  using W = GgufWriter;
  CHECK(contains(error_of("GGML" + std::string(60, '\0')), "x.gguf: is no GGUF file"));
  CHECK(contains(error_of(W().bytes(1)), "GGUF version is 1, supported are 2 and 3"));
  CHECK(contains(error_of(W().bytes(0x03000000)), "(this looks big-endian)"));
  CHECK(contains(with([](W& w) { w.pair("k", 13, "xxxx"); }), "type is 13, must be at most 12"));
  CHECK(contains(with([](W& w) { w.pair("k", 7, "\2"); }), "a bool is neither 0 nor 1"));
  CHECK(contains(with([](W& w) { w.array("k", 9, 1, W::raw(uint64_t(0))); }), "array of arrays"));
  CHECK(contains(with([](W& w) { w.array("k", 4, UINT64_MAX / 4 + 1, "xxxx"); }),
                 "an array's length is 4611686018427387904, more than fit"));
  CHECK(contains(with([](W& w) { w.pair("k", 8, W::raw(UINT64_MAX) + "xxxx"); }),
                 "a string of 18446744073709551615 bytes does not fit"));
  CHECK(contains(with([](W& w) { w.u32("", 1); }), "a key is 0 bytes long"));
  CHECK(contains(with([](W& w) {
                   w.u32("k", 1);
                   w.u32("k", 1);
                 }),
                 "x.gguf: k stands twice"));
  CHECK(contains(with([](W& w) { w.u32("general.alignment", 24); }), "alignment is 24, must be"));
  CHECK(contains(with([](W& w) { w.u32("general.alignment", 0); }), "alignment is 0, must be"));
  CHECK(contains(with([](W& w) { w.string("general.alignment", "x"); }), "must be an integer"));

  const auto tensor = [&](uint32_t type, std::vector<uint64_t> shape, uint64_t offset) {
    return with([&](W& w) {
      w.tensor("room", 0, {16}, std::string(64, '\0'));
      w.tensor_at("w", type, shape, offset);
    });
  };
  CHECK(tensor(0, {16}, 0) == "no error");  // tensors may share bytes
  CHECK(contains(tensor(0, {17}, 0), "tensor 'w': 68 bytes at offset 0 lie outside"));
  CHECK(contains(tensor(0, {8}, 64), "32 bytes at offset 64 lie outside of the file's 64"));
  CHECK(contains(tensor(0, {1}, UINT64_MAX - 31), "lie outside"));
  CHECK(contains(tensor(0, {1}, 8), "offset is 8, must be a multiple of 32"));
  CHECK(contains(tensor(0, {}, 0), "has 0 dimensions"));
  CHECK(contains(tensor(0, {1, 1, 1, 1, 1}, 0), "has 5 dimensions"));
  CHECK(contains(tensor(0, {0}, 0), "dimension 0 is 0"));
  CHECK(contains(tensor(0, {1ull << 32, 1ull << 32}, 0), "out of range"));
  CHECK(contains(tensor(0, {1ull << 62}, 0), "whole blocks"));  // its bytes overflow
  CHECK(contains(tensor(2, {33}, 0), "rows of 33 Q4_0 are not whole blocks of 32"));
  CHECK(contains(tensor(23, {256}, 0), "its type is IQ4_XS, supported are F32, F16, BF16, Q8_0"));
  CHECK(contains(tensor(99, {256}, 0), "its type is 99, supported are"));
  CHECK(contains(with([](W& w) {
                   w.tensor("w", 0, {8}, std::string(32, '\0'));
                   w.tensor("w", 0, {8}, std::string(32, '\0'));
                 }),
                 "tensor 'w': stands twice"));
}

TEST_CASE("Blocks of every quantized type read as the gguf package reads them") {
  std::ifstream file(std::string(KIVI_SOURCE_DIR) + "/tests/data/gguf/blocks.json");
  const auto golden = nlohmann::json::parse(file);
  int types = 0;
  for (uint32_t id = 0; id < 64; ++id) {
    const GgufTensorType* type = find_gguf_tensor_type(id);
    if (type == nullptr || type->dequantize == nullptr) continue;
    ++types;
    CAPTURE(type->name);
    const std::string blocks = from_hex(golden.at(type->name).at("blocks").get<std::string>());
    const std::string bytes = from_hex(golden.at(type->name).at("values").get<std::string>());
    std::vector<float> expected(bytes.size() / sizeof(float));
    std::memcpy(expected.data(), bytes.data(), bytes.size());
    REQUIRE(expected.size() == blocks.size() / size_t(type->bytes) * size_t(type->values));
    std::vector<float> values(expected.size());
    type->dequantize(reinterpret_cast<const std::byte*>(blocks.data()), int64_t(values.size()),
                     values.data());
    for (size_t i = 0; i < values.size(); ++i) {
      // One step: a compiler may fuse the multiplication with the addition.
      if (steps_between(values[i], expected[i]) > 1) {
        CAPTURE(i, values[i], expected[i]);
        FAIL_CHECK("differs");
        break;
      }
    }
  }
  CHECK(types == int(golden.size()));
}

TEST_CASE("Blocks of every quantized type keep their numbers as codes and records") {
  std::ifstream file(std::string(KIVI_SOURCE_DIR) + "/tests/data/gguf/blocks.json");
  const auto golden = nlohmann::json::parse(file);
  for (const auto& [name, blocks_and_values] : golden.items()) {
    CAPTURE(name);
    const GgufTensorType* type = nullptr;
    for (uint32_t id = 0; id < 64 && type == nullptr; ++id)
      if (const auto* found = find_gguf_tensor_type(id); found && found->name == name) type = found;
    REQUIRE(type != nullptr);
    const std::string blocks = from_hex(blocks_and_values.at("blocks").get<std::string>());
    const size_t count = blocks.size() / size_t(type->bytes) * size_t(type->values);
    const WeightFormat format{type->kind};
    REQUIRE(name_of(format) == name);
    std::vector<float> expected(count), got(count);
    std::vector<uint8_t> codes(count);
    std::vector<std::byte> records(
        size_t(record_count(format, int64_t(count)) * layout_of(format.kind).record_bytes));
    const auto* at = reinterpret_cast<const std::byte*>(blocks.data());
    type->dequantize(at, int64_t(count), expected.data());
    type->split(at, int64_t(count), codes.data(), records.data());
    dequantize_row(format, {codes, records}, got);
    int different = 0;
    for (size_t i = 0; i < count; ++i) different += steps_between(got[i], expected[i]) > 1;
    CHECK(different == 0);
  }
}

TEST_CASE("A model's path names a GGUF file, or a folder with exactly one") {
  const TemporaryFolder folder;
  CHECK_FALSE(find_gguf(folder.path())->has_value());
  CHECK_FALSE(find_gguf(folder.path() + "/absent")->has_value());
  CHECK(**find_gguf("absent.gguf") == "absent.gguf");
  folder.write("a.gguf", "x");
  folder.write("config.json", "{}");
  CHECK(**find_gguf(folder.path()) == folder.path() + "/a.gguf");
  folder.write("b.gguf", "x");
  const auto several = find_gguf(folder.path());
  REQUIRE_FALSE(several.ok());
  CHECK(contains(several.error().message, "a.gguf, "));
  CHECK(several.error().field == "model");
}

}  // namespace kivi
