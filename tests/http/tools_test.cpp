// SPDX-License-Identifier: Apache-2.0
// Tool calls over HTTP: a model that always says the same text, which holds calls.
#include <catch2/catch.hpp>

#include "tests/http/http_fixture.h"

namespace kivi::testing {
namespace {

using nlohmann::json;

constexpr const char* kCalls =
    " Let me look. <tool_call>{\"name\": \"look\", \"arguments\": {\"at\": \"the "
    "king\"}}</tool_call>"
    "<tool_call>{\"name\": \"ask\", \"arguments\": {}}</tool_call>";

int tokens_of(const std::string& text) {
  return int(tales_tokenizer().encode_after_special(text).size());
}

const json kTools = json::parse(R"([
  {"type": "function", "function": {"name": "look", "parameters":
    {"type": "object", "properties": {"at": {"type": "string"}}}}},
  {"type": "function", "function": {"name": "ask"}}])");

json tool_request(const std::string& text, json more = json::object()) {
  json body = {{"messages", {{{"role", "user"}, {"content", "hi"}}}},
               {"tools", kTools},
               {"max_tokens", tokens_of(text)}};
  body.update(more);
  return body;
}

// What the deltas of a stream say together.
struct Streamed {
  std::string content;
  std::vector<std::pair<std::string, std::string>> calls;  // name, arguments
  std::vector<std::string> ids, reasons;
};

Streamed read_stream(const Response& reply) {
  Streamed out;
  for (const json& event : sse_events(reply.body)) {
    if (!event.is_object() || event["choices"].empty()) continue;
    const json& choice = event["choices"][0];
    if (choice["finish_reason"].is_string()) out.reasons.push_back(choice["finish_reason"]);
    const json& delta = choice["delta"];
    out.content += delta.value("content", "");
    for (const json& call : delta.value("tool_calls", json::array())) {
      const json& function = call["function"];
      if (call.contains("id")) {
        CHECK(call["index"] == out.calls.size());
        CHECK(call["type"] == "function");
        out.ids.push_back(call["id"]);
        out.calls.emplace_back(function["name"], "");
      }
      CHECK(call["index"] == out.calls.size() - 1);
      out.calls.back().second += function["arguments"].get<std::string>();
    }
  }
  return out;
}

}  // namespace

TEST_CASE("calls in the text become tool_calls, and the rest stays content") {
  TestServer server(saying(kCalls));
  const json choice = chat(server, tool_request(kCalls)).json()["choices"][0];
  // The text ends by max_tokens: the reason stays length.
  CHECK(choice["finish_reason"] == "length");
  const json& message = choice["message"];
  CHECK(message["content"] == " Let me look. ");
  REQUIRE(message["tool_calls"].size() == 2);
  CHECK(message["tool_calls"][0]["type"] == "function");
  CHECK(message["tool_calls"][0]["function"] ==
        json{{"name", "look"}, {"arguments", "{\"at\": \"the king\"}"}});
  CHECK(message["tool_calls"][1]["function"] == json{{"name", "ask"}, {"arguments", "{}"}});
  CHECK(message["tool_calls"][0]["id"] != message["tool_calls"][1]["id"]);
  CHECK(message["tool_calls"][0]["id"].get<std::string>().starts_with("call_"));
}

TEST_CASE("an answer that ends by itself with calls has the reason tool_calls") {
  const int32_t end = *tales_tokenizer().eos_id();
  ServerOptions options = saying(kCalls);
  options.engine.runner.script.push_back(end);
  TestServer server(std::move(options));
  const json stop = {{"stop_token_ids", {end}}, {"max_tokens", tokens_of(kCalls) + 1}};
  CHECK(chat(server, tool_request(kCalls, stop)).json()["choices"][0]["finish_reason"] ==
        "tool_calls");
  json streamed = tool_request(kCalls, stop);
  streamed["stream"] = true;
  CHECK(read_stream(chat(server, streamed)).reasons == std::vector<std::string>{"tool_calls"});
}

TEST_CASE("a stream says the same calls as the whole reply, names whole and arguments in pieces") {
  TestServer server(saying(kCalls));
  for (const json& more : {json::object(), json{{"logprobs", true}}, json{{"n", 1}}}) {
    json body = tool_request(kCalls, more);
    body["stream"] = true;
    const Response reply = chat(server, body);
    const Streamed streamed = read_stream(reply);
    CHECK(streamed.content == " Let me look. ");
    REQUIRE(streamed.calls.size() == 2);
    CHECK(streamed.calls[0] ==
          std::pair<std::string, std::string>("look", "{\"at\": \"the king\"}"));
    CHECK(streamed.calls[1] == std::pair<std::string, std::string>("ask", "{}"));
    CHECK(streamed.ids[0] != streamed.ids[1]);
    CHECK(streamed.reasons == std::vector<std::string>{"length"});
  }
  // The arguments do not wait for their end.
  json body = tool_request(kCalls);
  body["stream"] = true;
  int pieces = 0;
  for (const json& event : sse_events(chat(server, body).body))
    if (event.is_object() && event["choices"][0]["delta"].contains("tool_calls")) ++pieces;
  CHECK(pieces > 4);
}

TEST_CASE("parallel_tool_calls false gives the first call alone") {
  TestServer server(saying(kCalls));
  json body = tool_request(kCalls, {{"parallel_tool_calls", false}});
  const json message = chat(server, body).json()["choices"][0]["message"];
  REQUIRE(message["tool_calls"].size() == 1);
  CHECK(message["tool_calls"][0]["function"]["name"] == "look");
  body["stream"] = true;
  CHECK(read_stream(chat(server, body)).calls.size() == 1);
}

TEST_CASE("without tools, with tool_choice none or without a parser, calls stay text") {
  {
    TestServer server(saying(kCalls));
    json no_tools = tool_request(kCalls);
    no_tools.erase("tools");
    for (const json& body : {no_tools, tool_request(kCalls, {{"tool_choice", "none"}})}) {
      const json message = chat(server, body).json()["choices"][0]["message"];
      CHECK(message["content"] == kCalls);
      CHECK_FALSE(message.contains("tool_calls"));
    }
  }
  ServerOptions options = saying(kCalls);
  options.http.tool_call_parser = "none";
  TestServer server(std::move(options));
  CHECK(chat(server, tool_request(kCalls)).json()["choices"][0]["message"]["content"] == kCalls);
}

TEST_CASE("the flag chooses the parser, whatever the template says") {
  const std::string text = "[look(at='the king'), ask()]";
  ServerOptions options = saying(text);
  options.http.tool_call_parser = "pythonic";
  TestServer server(std::move(options));
  const json message = chat(server, tool_request(text)).json()["choices"][0]["message"];
  CHECK(message["content"] == nullptr);
  REQUIRE(message["tool_calls"].size() == 2);
  CHECK(message["tool_calls"][0]["function"] ==
        json{{"name", "look"}, {"arguments", "{\"at\": \"the king\"}"}});
}

TEST_CASE("members of a message that are null are as absent ones") {
  TestServer server(saying("ok"));
  json body = tool_request("ok");
  body["messages"].push_back({{"role", "assistant"},
                              {"content", "yes"},
                              {"refusal", nullptr},
                              {"tool_calls", nullptr},
                              {"function_call", nullptr}});
  CHECK(chat(server, body).status == 200);
  body["messages"][1]["tool_calls"] = json::array();
  CHECK(chat(server, body).status == 200);
  body["messages"][1]["content"] = nullptr;  // neither content nor calls
  CHECK(chat(server, body).status == 400);
}

}  // namespace kivi::testing
