// SPDX-License-Identifier: Apache-2.0
// Events of a stream: found under every split of the bytes, and read for what they say.
#include <catch2/catch.hpp>
#include <vector>

#include "bench/client/openai_body.h"
#include "bench/client/record.h"
#include "bench/client/sse_parser.h"

namespace kivi::load {
namespace {

std::vector<std::string> parse(std::initializer_list<std::string_view> pieces) {
  SseParser parser;
  std::vector<std::string> events;
  for (const std::string_view piece : pieces)
    parser.feed(piece, [&](std::string_view data) { events.emplace_back(data); });
  return events;
}

TEST_CASE("Events are the same under every split into three, and byte by byte") {
  const std::vector<std::string> streams = {
      "data: {\"a\":1}\n\n: ping\n\ndata: two\n\ndata: [DONE]\n\n",
      "data: {\"a\":1}\r\n\r\n: ping\r\n\r\ndata:two\r\n\r\nid: 4\r\nevent: x\r\ndata: "
      "[DONE]\r\n\r\n",
      "data: {\"a\":1}\r\r:\r\rdata: two\r\rretry: 3\rdata: [DONE]\r\r"};
  const std::vector<std::string> expected = {"{\"a\":1}", "two", "[DONE]"};
  for (const std::string& stream : streams) {
    const std::string_view all = stream;
    CHECK(parse({all}) == expected);
    for (size_t i = 0; i <= all.size(); ++i)
      for (size_t j = i; j <= all.size(); ++j)
        REQUIRE(parse({all.substr(0, i), all.substr(i, j - i), all.substr(j)}) == expected);
    SseParser parser;
    std::vector<std::string> events;
    for (const char c : stream)
      parser.feed(std::string_view(&c, 1), [&](std::string_view d) { events.emplace_back(d); });
    CHECK(events == expected);
  }
}

TEST_CASE("Data lines of an event are joined; an unfinished event is none") {
  CHECK(parse({"data: a\ndata: b\ndata:\ndata:  c\n\n"}) == std::vector<std::string>{"a\nb\n\n c"});
  CHECK(parse({"data: a\n"}).empty());
  CHECK(parse({"\n\n\ndatax: a\n\n"}).empty());
  CHECK(parse({"data: \n\n"}) == std::vector<std::string>{""});
}

TEST_CASE("Completion and chat chunks of several servers are read alike") {
  struct Case {
    const char* data;
    bool token, finished;
  };
  const Case cases[] = {
      {R"({"id":"c","choices":[{"index":0,"text":" a","finish_reason":null}],"usage":null})", true,
       false},
      {R"({"id": "c", "choices": [{"text": "x", "index": 0, "logprobs": null, "finish_reason": null}]})",
       true, false},
      // A token that is no text yet, and a last chunk that is none.
      {R"({"choices":[{"text":"","finish_reason":null}]})", true, false},
      {R"({"choices":[{"text":"","finish_reason":"length"}]})", false, true},
      {R"({"choices":[{"text":"b","finish_reason":"stop"}]})", true, true},
      // Keys that are a text's, not the chunk's.
      {R"({"choices":[{"text":"\"finish_reason\":\"stop\" \"usage\":{","finish_reason":null}]})",
       true, false},
      {R"({"choices":[{"text":"usage","finish_reason":null}],"x":"error"})", true, false},
      // Chats.
      {R"({"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]})", false,
       false},
      {R"({"choices":[{"delta":{"role":"assistant"},"finish_reason":null}]})", false, false},
      {R"({"choices":[{"delta":{"content":"hi"},"finish_reason":null}]})", true, false},
      {R"({"choices": [{"delta": {"reasoning_content": "hm", "content": null}}]})", true, false},
      {R"({"choices":[{"delta":{},"finish_reason":"stop"}]})", false, true},
      {R"({"choices":[],"usage":null})", false, false},
  };
  for (const Case& c : cases) {
    CAPTURE(c.data);
    const StreamEvent event = read_event(c.data);
    CHECK(event.token == c.token);
    CHECK(event.finished == c.finished);
    CHECK_FALSE(event.bad);
    CHECK_FALSE(event.done);
    CHECK_FALSE(event.has_usage);
    CHECK(event.error.empty());
  }
}

TEST_CASE("Usage, errors, the end and nonsense are told apart") {
  const StreamEvent usage = read_event(
      R"({"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":34,"total_tokens":46}})");
  CHECK(usage.has_usage);
  CHECK(usage.prompt_tokens == 12);
  CHECK(usage.completion_tokens == 34);
  CHECK_FALSE(usage.token);
  CHECK(read_event(R"({"error":{"message":"a step failed","type":"server_error"}})").error ==
        "a step failed");
  CHECK(read_event("[DONE]").done);
  for (const char* data : {"", "hello", "[1]", R"({"usage":{"a":)", R"({"error":{)"}) {
    CAPTURE(data);
    CHECK(read_event(data).bad);
  }
}

TEST_CASE("The message of an error reply is found in its usual places") {
  CHECK(error_message(R"({"error":{"message":"m","code":"c"}})") == "m");
  CHECK(error_message(R"({"error":"m"})") == "m");
  CHECK(error_message(R"({"detail":"m"})") == "m");
  CHECK(error_message(R"({"object":"error","message":"m"})") == "m");
  CHECK(error_message("<html>") == "<html>");
  CHECK(error_message("").empty());
}

TEST_CASE("Addresses are taken apart, or refused") {
  const auto plain = parse_url("http://example.org");
  REQUIRE(plain.ok());
  CHECK(plain->host == "example.org");
  CHECK(plain->port == "80");
  CHECK(plain->path.empty());
  const auto whole = parse_url("http://127.0.0.1:8080/a/b/");
  REQUIRE(whole.ok());
  CHECK(whole->port == "8080");
  CHECK(whole->path == "/a/b");
  const auto six = parse_url("http://[::1]:81");
  REQUIRE(six.ok());
  CHECK(six->host == "::1");
  CHECK(six->port == "81");
  CHECK(http_message(*six, "/v1/models", "", "").find("\r\nHost: [::1]:81\r\n") !=
        std::string::npos);
  for (const char* url : {"", "example.org", "https://example.org", "http://", "http://:80",
                          "http://a:", "http://a:x", "http://a:0", "http://a:70000"}) {
    CAPTURE(url);
    CHECK_FALSE(parse_url(url).ok());
  }
}

}  // namespace
}  // namespace kivi::load
