// SPDX-License-Identifier: Apache-2.0
// Reading a body's JSON: against the library's own parser, and its limits.
#include "server/openai/json_reader.h"

#include <fmt/format.h>

#include <algorithm>
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

// Long lists and texts do not go through the library's lexer.
TEST_CASE("long values are read as the library reads them") {
  std::string ids, text;
  for (int i = 0; i < 400; ++i) ids += (i % 7 == 0 ? " " : "") + std::to_string(i * 321) + ",\n ";
  ids += "999999999 ";
  for (int i = 0; i < 900; ++i) text += R"(a \"b\" \\ \/\b\f\n\r\t é\u00e9\uD83D\ude00\u0000 [1,2)";
  const std::string list = "[" + ids + "]", quoted = "\"" + text + "\"";
  const std::string decoded = json::parse(quoted).get<std::string>();
  for (const std::string& body :
       {"{\"prompt\":" + list + "}", "{\"a\":[[],[1,2]," + list + ",{\"b\":" + list + "}],\"c\":3}",
        "{\"p\":" + quoted + ",\"q\":[" + quoted + ",\"\"," + list + "," + quoted + "]}",
        "{\"" + decoded.substr(0, 2) + "\":[" + ids + ",1.5]," + quoted + ":" + list + "}",
        "{\"a\":[" + ids + ",-1],\"b\":[" + ids + ",1000000000],\"c\":" + list + "}",
        "{\"a\":[" + ids + ",[" + ids + "],\"" + std::string(9'000, '[') + "\"]}"}) {
    CAPTURE(body.substr(0, 200));
    const auto read = parse_request_json(body);
    REQUIRE(read.ok());
    CHECK(**read == json::parse(body));
    CHECK((*read)->dump() == json::parse(body).dump());
  }
}

TEST_CASE("what is wrong with a body that has long values is said as for a short one") {
  std::string ids = "1";
  for (int i = 0; i < 400; ++i) ids += ",2";
  const std::string list = "[" + ids + "]", text = std::string(9'000, 'x');
  const auto message = [](const std::string& body) {
    const auto read = parse_request_json(body);
    CAPTURE(body.substr(0, 100), body.substr(std::max<size_t>(body.size(), 60) - 60));
    REQUIRE_FALSE(read.ok());
    return read.error().message;
  };
  // The library's message names the column.
  const auto library = [](const std::string& body) {
    try {
      return json::parse(body).dump();
    } catch (const json::exception& e) {
      return std::string(e.what());
    }
  };
  for (const std::string& body :
       {"{\"a\":" + list + ",}", "{\"a\":" + list, "{\"a\":[" + ids + ",]}",
        "{\"a\":[" + ids + ",01]}", "{\"a\":[" + ids + ",1 2]}", "{\"a\":\"" + text + "\\x\"}",
        "{\"a\":\"" + text + "\n\"}", "{\"a\":\"" + text + "\xC3\"}",
        "{\"a\":\"" + text + "\\ud800\"}", "{\"a\":\"" + text + "\\udc00\"}",
        "{\"a\":\"" + text + "\\u12g4\"}", "{\"a\":\"" + text + "\\", "{\"a\":\"" + text,
        "{\"a\":\"" + text + "\"} 1", list + list}) {
    const std::string ours = message(body), theirs = library(body);
    REQUIRE(theirs.size() > 60);
    CHECK(ours.find(theirs.substr(theirs.find("] ") + 2, 40)) != std::string::npos);
  }
  CHECK(message("{\"a\":" + list + ",\"a\":1}").find("twice") != std::string::npos);
  // A name may be as long as the body, but errors show its beginning alone.
  const std::string name = "\"" + std::string(100'000, 'n') + "\":1";
  const auto twice = parse_request_json("{" + name + "," + name + "}");
  REQUIRE_FALSE(twice.ok());
  CHECK(twice.error().message.size() < 200);
  CHECK(twice.error().field.size() < 200);
  CHECK(message(list).find("must be an object") != std::string::npos);
}

TEST_CASE("Benchmark: bodies of 32,000 tokens", "[.benchmark]") {
  std::string ids = "7", text;
  for (int i = 1; i < 32'000; ++i) ids += ", " + std::to_string((i * 7919) % 100'000);
  while (text.size() < 130'000) text += "Once upon a time, there was a \\\"miller\\\".\\n";
  const std::string tail = ",\"max_tokens\":4,\"stream\":true}";
  for (const auto& [name, body] :
       {std::pair("ids", "{\"prompt\": [" + ids + "]" + tail),
        std::pair("ids for the library alone", "{\"prompt\": [" + ids + ",-1]" + tail),
        std::pair("text", "{\"prompt\": \"" + text + "\"" + tail)}) {
    const double begin = cpu_seconds();
    constexpr int kRounds = 50;
    for (int i = 0; i < kRounds; ++i) REQUIRE(parse_request_json(body).ok());
    const double between = cpu_seconds();
    for (int i = 0; i < kRounds; ++i) REQUIRE(json::parse(body).is_object());
    fmt::print("{}: {} bytes, {:.2f} ms; the library {:.2f} ms\n", name, body.size(),
               (between - begin) * 1e3 / kRounds, (cpu_seconds() - between) * 1e3 / kRounds);
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
