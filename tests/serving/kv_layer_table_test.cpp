// SPDX-License-Identifier: Apache-2.0
// The file of --kv-layer-bits: what it may hold, and what it makes of the store.
#include "engine/serving/kv_layer_table.h"

#include <catch2/catch.hpp>

#include "engine/serving/memory_plan.h"
#include "tests/model/temporary_folder.h"

namespace kivi {

namespace {

constexpr KvShape kShape = {3, 2, 64};
constexpr const char* kMixed = R"({"key_bits": [4, 4, 2], "value_bits": [2, 2, 4]})";

std::string message_of(const std::string& text, int layers = 3) {
  const auto bits = parse_kv_layer_bits(text, "t.json", layers);
  if (bits.ok()) return "";
  CHECK(bits.error().code == ErrorCode::invalid);
  CHECK(bits.error().field == "kv_layer_bits");
  return bits.error().message;
}

Result<KvLayout> layout_with(const std::string& text, const std::string& format) {
  const TemporaryFolder folder;
  folder.write("t.json", text);
  EngineConfig config;
  config.kv_cache_dtype = format;
  config.kv_layer_bits = folder.path() + "/t.json";
  return kv_layout_of(config, kShape, 4);
}

}  // namespace

TEST_CASE("A table of layers is read as it is written") {
  const auto bits = parse_kv_layer_bits(kMixed, "t.json", 3);
  REQUIRE(bits.ok());
  CHECK(describe(*bits) == "0-1 k4v2, 2 k2v4");
  CHECK_FALSE(bits->uniform());
  const auto again = parse_kv_layer_bits(kv_layer_bits_text(*bits), "t.json", 3);
  REQUIRE(again.ok());
  CHECK(*again == *bits);
}

TEST_CASE("A wrong table of layers is refused, naming the file, the value and what it must be") {
  const auto says = [](const std::string& text, const std::string& part, int layers = 3) {
    INFO(text);
    CHECK_THAT(message_of(text, layers), Catch::Contains(part));
    CHECK_THAT(message_of(text, layers), Catch::Contains("t.json"));
  };
  says("", "one JSON object");
  says("[4, 4, 2]", "one JSON object");
  says(R"({"key_bits": [4, 4, 2]})", "value_bits is missing or no list");
  says(R"({"key_bits": 4, "value_bits": [2, 2, 4]})", "key_bits is missing or no list");
  says(R"({"key_bits": [4, 4], "value_bits": [2, 2, 4]})", "key_bits has 2 numbers, must have 3");
  says(kMixed, "key_bits has 3 numbers, must have 4", 4);
  says(R"({"key_bits": [4, 3, 2], "value_bits": [2, 2, 4]})", "key_bits[1] is 3, must be 2 or 4");
  says(R"({"key_bits": [4, 4, 2], "value_bits": [2, 2, "4"]})", "value_bits[2] is \"4\"");
  says(R"({"key_bits": [4, 4, 2], "value_bits": [2, 2, 4], "bits": 3})", "unknown key \"bits\"");
  says(kMixed, "at most 256", 257);
}

TEST_CASE("A table needs a KIVI format and a file that can be read") {
  for (const char* format : {"fp16", "fp8"}) {
    const auto layout = layout_with(kMixed, format);
    REQUIRE_FALSE(layout.ok());
    CHECK(layout.error().field == "kv_layer_bits");
    CHECK_THAT(layout.error().message, Catch::Contains(std::string("cache format is ") + format));
  }
  EngineConfig config;
  config.kv_layer_bits = "/nowhere/t.json";
  const auto layout = kv_layout_of(config, kShape, 4);
  REQUIRE_FALSE(layout.ok());
  CHECK(layout.error().field == "kv_layer_bits");
  CHECK_THAT(layout.error().message, Catch::Contains("/nowhere/t.json"));
}

TEST_CASE("The base format gives all but the bits, and a table of equal layers is a plain format") {
  const auto mixed = layout_with(kMixed, "kivi2.5");
  REQUIRE(mixed.ok());
  CHECK(describe(*mixed) == "kivi4.5+layers G32 R128 S32");
  // 64 tokens of 2 heads of 64 channels: three layers of 3.5 bits a value.
  CHECK(mixed->page_bytes() == 64 * 2 * 64 * 2 * 3 * 7 / 2 / 8);
  const auto same = layout_with(kMixed, "kivi4.5");
  REQUIRE(same.ok());
  CHECK(same->page_bytes() == mixed->page_bytes());
  CHECK(describe(*same) == describe(*mixed));

  const auto equal = layout_with(R"({"key_bits": [4, 4, 4], "value_bits": [2, 2, 2]})", "kivi2.5");
  EngineConfig config;
  config.kv_cache_dtype = "kivi3.5";
  const auto plain = kv_layout_of(config, kShape, 4);
  REQUIRE((equal.ok() && plain.ok()));
  CHECK(*equal == *plain);
}

TEST_CASE("The memory plan counts a mixed store's pages and prints its table") {
  const auto layout = layout_with(kMixed, "kivi4.5");
  REQUIRE(layout.ok());
  const auto plan = plan_store(EngineConfig{}, *layout, 2048, 64 << 20);
  REQUIRE(plan.ok());
  CHECK(plan->pages == plan->capacity.pages * layout->page_bytes());
  CHECK(plan->bytes_per_token == 2 * 64 * 2 * 3 * 3.5 / 8);
  CHECK_THAT(plan->text(), Catch::Contains("bits of layers: 0-1 k4v2, 2 k2v4"));
}

}  // namespace kivi
