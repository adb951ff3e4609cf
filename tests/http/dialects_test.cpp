// SPDX-License-Identifier: Apache-2.0
// /v1/messages and /v1/responses in this process: a model that always says the same text, which
// holds calls. tests/e2e/dialects_test.py compares both with chats.
#include <catch2/catch.hpp>
#include <ctime>
#include <regex>
#include <tuple>

#include "tests/http/http_fixture.h"

namespace kivi::testing {
namespace {

using nlohmann::json;

constexpr const char* kTwoCalls =
    " Look. <tool_call>{\"name\": \"look\", \"arguments\": {\"at\": \"it\"}}</tool_call>\n"
    "<tool_call>{\"name\": \"ask\", \"arguments\": {}}</tool_call>";

int calls_tokens() { return int(tales_tokenizer().encode_after_special(kTwoCalls).size()); }

Response messages(TestServer& server, const json& more) {
  json body = {{"model", "tales"},
               {"messages", {{{"role", "user"}, {"content", "hi"}}}},
               {"max_tokens", calls_tokens()}};
  body.update(more);
  return server.post("/v1/messages", body.dump());
}

Response responses(TestServer& server, const json& more) {
  json body = {{"model", "tales"}, {"input", "hi"}, {"max_output_tokens", calls_tokens()}};
  body.update(more);
  return server.post("/v1/responses", body.dump());
}

json tools_with(const char* schema) {
  json tools = json::array();
  for (const char* name : {"look", "ask"})
    tools.push_back({{"type", "function"}, {"name", name}, {schema, {{"type", "object"}}}});
  return tools;
}

}  // namespace

TEST_CASE("a message holds its text and each call as a block") {
  TestServer server(saying(kTwoCalls));
  json tools = tools_with("input_schema");
  for (json& tool : tools) tool.erase("type");
  const json content = messages(server, {{"tools", tools}}).json()["content"];
  REQUIRE(content.size() == 3);
  CHECK(content[0] == json{{"type", "text"}, {"text", " Look. "}});
  CHECK(content[1]["input"] == json{{"at", "it"}});
  CHECK(content[2]["name"] == "ask");
}

TEST_CASE("a message takes back thinking, calls and null members") {
  TestServer server(saying("ok"));
  const json turns = json::parse(R"([
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": [
      {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "yes"},
      {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}]},
    {"role": "user", "content": [
      {"type": "tool_result", "tool_use_id": "toolu_1", "content": "it"}]}])");
  CHECK(messages(server, {{"messages", turns}}).status == 200);
  CHECK(messages(server, {{"output_config", {{"format", nullptr}}}}).status == 200);
  const Response wrong = messages(server, {{"output_config", {{"format", 7}}}});
  CHECK(wrong.status == 400);
  CHECK(wrong.json()["error"]["type"] == "invalid_request_error");
  CHECK(messages(server, {{"messages", {"hi"}}}).json()["error"]["message"] ==
        "messages[0] is \"hi\" (string), must be an object");
}

TEST_CASE("messages of one role in a row become one, in time that grows with their bytes",
          "[long]") {
  TestServer server(saying("ok"));
  const auto tokens = [&](const json& turns) {
    const json body = {{"model", "tales"}, {"messages", turns}};
    return server.post("/v1/messages/count_tokens", body.dump());
  };
  const auto turn = [](const char* role, const std::string& text) {
    return json{{"role", role}, {"content", text}};
  };
  CHECK(tokens({turn("user", "a"), turn("user", "b"), turn("assistant", "c"), turn("assistant", ""),
                turn("assistant", "d"), turn("user", "")})
            .json()["input_tokens"] ==
        tokens({turn("user", "a\nb"), turn("assistant", "c\nd"), turn("user", "")})
            .json()["input_tokens"]);
  // Each of these bodies took minutes when every message copied those before it.
  for (const char* role : {"user", "assistant"}) {
    json turns = {turn("user", "a")};
    for (int i = 0; i < 20'000; ++i) turns.push_back(turn(role, std::string(300, 'a')));
    const std::clock_t before = std::clock();
    CHECK(tokens(turns).json()["error"]["message"].get<std::string>().find(
              "--max-tokenize-bytes") != std::string::npos);
    CHECK(double(std::clock() - before) / CLOCKS_PER_SEC < 10);
  }
}

TEST_CASE("what is wrong in a chat is told with its place, its value and what it must be") {
  TestServer server(saying("ok"));
  const json hi = {{{"role", "user"}, {"content", "hi"}}};
  const std::tuple<const char*, json, const char*> cases[] = {
      {"/v1/chat/completions",
       {{"messages", json::array()}},
       "messages is a list of 0 values, must be a list of at least one message"},
      {"/v1/chat/completions",
       {{"messages", {1}}},
       "messages[0] is 1 (integer), must be an object"},
      {"/v1/chat/completions",
       {{"messages", {{{"role", "user"}, {"content", {"a"}}}}}},
       "messages[0].content[0] is \"a\" (string), must be an object with a type"},
      {"/v1/chat/completions",
       {{"messages", hi}, {"tools", {{{"type", "function"}}}}},
       "tools[0].function is missing, must be an object"},
      {"/v1/chat/completions",
       {{"messages", hi}, {"tools", {{{"function", {{"name", ""}}}}}}},
       "tools[0].function.name is \"\" (string), must be a string that is not empty"},
      {"/v1/chat/completions",
       {{"messages", hi}, {"stop", {1}}},
       "stop[0] is 1 (integer), must be a string"},
      {"/v1/chat/completions",
       {{"messages", hi}, {"request_id", "a b"}},
       "request_id is \"a b\" (string), must be 1 to 128 printable ASCII characters without "
       "blanks"},
      {"/v1/chat/completions",
       {{"messages", hi}, {"guided_choice", json::array()}},
       "guided_choice is a list of 0 values, must be a list of 1 to 4096 texts that are not empty"},
      {"/v1/chat/completions",
       {{"messages", hi}, {"model", "other"}},
       "model is \"other\" (string), which does not exist: this server has \"tales\""},
      {"/v1/messages",
       {{"messages", hi}, {"max_tokens", 1}, {"tools", {{{"name", "f"}}}}},
       "tools[0].input_schema is missing, must be an object"},
      {"/v1/messages",
       {{"messages", hi}, {"max_tokens", 1}, {"metadata", 7}},
       "metadata is 7 (integer), must be an object"},
      {"/v1/responses",
       {{"input", json::array()}},
       "input is a list of 0 values, must be a string or a list of at least one item"},
      {"/v1/rerank",
       {{"query", "a"}, {"documents", json::array()}},
       "documents is a list of 0 values, must be a list of 1 to 2047 texts"},
  };
  for (const auto& [path, body, message] : cases) {
    INFO(path << " " << body.dump());
    const Response reply = server.post(path, body.dump());
    CHECK((reply.status == 400 || reply.status == 404));
    CHECK(reply.json()["error"]["message"] == message);
  }
}

TEST_CASE("a response takes back reasoning, calls and their results") {
  TestServer server(saying("ok"));
  json items = json::parse(R"([
    {"role": "user", "content": "hi"},
    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "it"}])");
  CHECK(responses(server, {{"input", items}}).status == 200);
  items[2].erase("name");
  CHECK(responses(server, {{"input", items}}).json()["error"]["message"] ==
        "input[2].name is missing, must be a string");
}

TEST_CASE("a response counts its tokens, and a stream with tools has the text beside the calls") {
  TestServer server(saying(kTwoCalls));
  const json tools = {{"tools", tools_with("parameters")}};
  const json whole = responses(server, tools).json();
  CHECK(whole["usage"]["output_tokens"] == calls_tokens());
  REQUIRE(whole["output"].size() == 3);
  CHECK(whole["output"][0]["content"][0]["text"] == " Look. ");
  json streamed = tools;
  streamed["stream"] = true;
  std::string text, arguments;
  std::vector<std::string> items;
  json first, last;
  const std::string body = responses(server, streamed).body;
  for (const json& event : sse_events(std::regex_replace(body, std::regex("event: .*\n"), ""))) {
    const std::string type = event["type"];
    if (type == "response.created") first = event["response"];
    if (type == "response.output_text.delta") text += event["delta"];
    if (type == "response.function_call_arguments.delta") arguments += event["delta"];
    if (type == "response.output_item.done") items.push_back(event["item"]["type"]);
    if (event.contains("response")) last = event["response"];
  }
  CHECK(first["usage"] == nullptr);
  CHECK(last["usage"] == whole["usage"]);
  // The blank before a call is written where it comes in one piece with the word.
  CHECK((text == " Look." || text == " Look. "));
  CHECK(arguments == "{\"at\": \"it\"}{}");
  // The blanks between the calls are no item.
  CHECK(items == std::vector<std::string>{"message", "function_call", "function_call"});
}

TEST_CASE("members of a response's request that are null or the default are taken") {
  TestServer server(saying("ok"));
  for (const json& good :
       {json{{"text", {{"verbosity", "medium"}}}}, json{{"text", {{"format", nullptr}}}},
        json{{"reasoning", {{"effort", nullptr}}}}, json{{"reasoning", nullptr}}})
    CHECK(responses(server, good).status == 200);
  const std::pair<json, const char*> wrong[] = {
      {{{"text", {{"verbosity", "low"}}}}, "text.verbosity"}, {{{"reasoning", 7}}, "reasoning"}};
  for (const auto& [body, param] : wrong) {
    INFO(body.dump());
    const Response reply = responses(server, body);
    CHECK(reply.status == 400);
    CHECK(reply.json()["error"]["param"] == param);
  }
}

TEST_CASE("a call of an earlier turn must have a name") {
  TestServer server(saying("ok"));
  for (const json& function : {json{{"arguments", "{}"}}, json{{"name", 7}}, json{{"name", "f"}}}) {
    INFO(function.dump());
    const json body = {
        {"messages",
         {{{"role", "user"}, {"content", "hi"}},
          {{"role", "assistant"},
           {"content", ""},
           {"tool_calls", {{{"id", "c"}, {"type", "function"}, {"function", function}}}}}}},
        {"max_tokens", 1}};
    const int status = server.post("/v1/chat/completions", body.dump()).status;
    CHECK(status == (function.value("name", json()) == "f" ? 200 : 400));
  }
}

}  // namespace kivi::testing
