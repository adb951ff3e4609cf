// SPDX-License-Identifier: Apache-2.0
// Reading a body's JSON: against the library's own parser, and its limits.
#include "server/openai/json_reader.h"

#include <catch2/catch.hpp>

#include "engine/limits.h"
#include "tests/cpu_time.h"

using namespace kivi;
using nlohmann::json;

namespace {

std::string repeated(const std::string& piece, size_t count) {
  std::string text = "{\"x\":[" + piece;
  for (size_t i = 1; i < count; ++i) text += "," + piece;
  return text + "]}";
}

}  // namespace

TEST_CASE("a body is read as the library reads it") {
  for (const std::string text :
       {R"({})", R"({"a":[1,-2,3.5,1e3,true,false,null,"s\u00e9"],"b":{"c":{},"d":[[],[{}]]}})",
        R"({"":"","a":18446744073709551615,"b":-9223372036854775808,"c":[[1,[2]],3]})"}) {
    const auto read = parse_request_json(text);
    REQUIRE(read.ok());
    CHECK(**read == json::parse(text));
  }
}

TEST_CASE("every shape of a long body is read in linear time, or refused", "[long]") {
  for (const std::string piece : {"{}", "[]", "{\"a\":1}", "1", "\"\"", "null", "[[[[]]]]"}) {
    INFO(piece);
    const std::string text = repeated(piece, (16 << 20) / (piece.size() + 1));
    const double begin = cpu_seconds();
    const auto read = parse_request_json(text);
    // Under 1 s in a release build; twice as long here, and more beside other work. Time that grows
    // with the square of the length would be minutes.
    CHECK(cpu_seconds() - begin < 6);
    if (!read.ok()) CHECK(read.error().field == "x");
  }
}

TEST_CASE("values and allocations of a body are bounded") {
  CHECK(parse_request_json(repeated("1", kMaxJsonValues - 2)).ok());
  CHECK_FALSE(parse_request_json(repeated("1", kMaxJsonValues - 1)).ok());
  CHECK(parse_request_json(repeated("{}", kMaxJsonNodes - 3)).ok());
  CHECK_FALSE(parse_request_json(repeated("{}", kMaxJsonNodes - 2)).ok());
}

TEST_CASE("duplicates, depth and numbers are judged") {
  const auto error = [](const std::string& text) {
    const auto read = parse_request_json(text);
    REQUIRE_FALSE(read.ok());
    return read.error();
  };
  CHECK(error(R"({"a":1,"a":2})").field == "a");
  CHECK(error(R"({"b":[{"a":1,"a":2}]})").field == "a");
  CHECK(error(R"({"t":1e999})").field == "t");
  CHECK(error(R"({"t":NaN})").field == "t");
  CHECK(error(R"({"t":1,})").field.empty());
  CHECK(error("{\"a\":" + std::string(64, '[') + std::string(64, ']') + "}")
            .message.find("deeper than 64") != std::string::npos);
  CHECK(parse_request_json("{\"a\":" + std::string(63, '[') + std::string(63, ']') + "}").ok());
}

TEST_CASE("an abandoned body is not read to its end") {
  std::stop_source stop;
  CHECK(parse_request_json(repeated("1", 10'000), stop.get_token()).ok());
  stop.request_stop();
  const auto read = parse_request_json(repeated("1", 10'000), stop.get_token());
  REQUIRE_FALSE(read.ok());
  CHECK(read.error().code == ErrorCode::cancelled);
}
