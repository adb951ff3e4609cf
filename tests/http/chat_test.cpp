// SPDX-License-Identifier: Apache-2.0
// POST /v1/chat/completions and /tokenize with messages: replies to the byte, streams, errors, and
// that every parameter does something.
#include <catch2/catch.hpp>

#include "tests/http/http_fixture.h"

using namespace kivi;
using namespace kivi::testing;
using nlohmann::json;

namespace {

constexpr const char* kTemplate =
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if mood is defined %}{{ mood }} {% endif %}"
    "{% for d in documents or [] %}{{ d.text }} {% endfor %}"
    "{% for m in messages %}{% if m.role == 'developer' %}{{ raise_exception('no developers') }}"
    "{% endif %}{{ bos_token }}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments.q }}{% endfor %}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ bos_token }}assistant:{% endif %}";

ServerOptions chat_options() {
  ServerOptions options = server_options();
  options.chat_template = kTemplate;
  return options;
}

// A model that always says " there was a king".
ServerOptions king_chat_options() {
  ServerOptions options = chat_options();
  options.engine.runner.tokens = FakeRunnerOptions::Tokens::script;
  options.engine.runner.script = tales_tokenizer().encode("there was a king", false);
  return options;
}

json chat_request(const json& more = {}) {
  json body = {{"model", "tales"},
               {"messages", {{{"role", "user"}, {"content", "hi"}}}},
               {"max_tokens", king_tokens()}};
  if (more.is_object()) body.update(more);
  return body;
}

// What the template makes of a request.
std::string prompt_text(TestServer& server, json body) {
  body.erase("max_tokens");
  const Response reply = server.post("/tokenize", body.dump());
  INFO(reply.body);
  REQUIRE(reply.status == 200);
  return server.post("/detokenize", json{{"tokens", reply.json()["tokens"]}}.dump())
      .json()["prompt"];
}

const json kTool = {{"type", "function"}, {"function", {{"name", "look"}}}};

}  // namespace

TEST_CASE("a chat's reply has every field, in the order of the contract") {
  TestServer server(king_chat_options());
  const Response reply = chat(server, chat_request({{"request_id", "r1"}}));
  CHECK(reply.status == 200);
  json body = reply.json();
  const int prompt = body["usage"]["prompt_tokens"];
  CHECK(prompt > 5);
  body["created"] = 0;
  CHECK(
      body ==
      json{{"id", "chatcmpl-r1"},
           {"object", "chat.completion"},
           {"created", 0},
           {"model", "tales"},
           {"system_fingerprint", "fp_test"},
           {"choices",
            json::array(
                {{{"index", 0},
                  {"message",
                   {{"role", "assistant"}, {"content", " there was a king"}, {"refusal", nullptr}}},
                  {"logprobs", nullptr},
                  {"finish_reason", "length"},
                  {"stop_reason", nullptr}}})},
           {"usage",
            {{"prompt_tokens", prompt},
             {"completion_tokens", king_tokens()},
             {"total_tokens", prompt + king_tokens()},
             {"prompt_tokens_details", {{"cached_tokens", 0}}}}}});
  // OpenAI's order, to the byte.
  const size_t at = reply.body.find("\"choices\":");
  CHECK(
      reply.body.substr(at, reply.body.find("\"usage\"") - at) ==
      R"("choices":[{"index":0,"message":{"role":"assistant","content":" there was a king","refusal":null},)"
      R"("logprobs":null,"finish_reason":"length","stop_reason":null}],)");
}

TEST_CASE("a chat's stream begins with the role, says the same as the whole, and ends with DONE") {
  TestServer server(chat_options());  // invented tokens
  for (int seed = 0; seed < 10; ++seed) {
    INFO("seed " << seed);
    const json base =
        chat_request({{"seed", seed}, {"max_tokens", 40}, {"ignore_eos", true}, {"n", 2}});
    json streamed = base;
    streamed["stream"] = true;
    streamed["stream_options"] = {{"include_usage", true}};
    const json whole = chat(server, base).json();
    const Response stream = chat(server, streamed);
    CHECK(stream.header("content-type") == "text/event-stream; charset=utf-8");
    CHECK(stream.body.ends_with("\n\ndata: [DONE]\n\n"));
    const auto events = sse_events(stream.body);
    std::string text[2];
    int finished = 0;
    std::map<int, bool> begun;
    for (size_t i = 0; i + 2 < events.size(); ++i) {
      const json& event = events[i];
      CHECK(event["object"] == "chat.completion.chunk");
      CHECK(event["id"] == events[0]["id"]);
      CHECK(event["usage"] == nullptr);
      const json& choice = event["choices"][0];
      const int index = choice["index"];
      if (!begun[index]) {
        CHECK(choice["delta"] == json{{"role", "assistant"}, {"content", ""}});
        CHECK(choice["finish_reason"] == nullptr);
      } else {
        CHECK_FALSE(choice["delta"].contains("role"));
        text[index] += choice["delta"].value("content", "");
        finished += choice["finish_reason"] == "length";
      }
      begun[index] = true;
    }
    for (int i = 0; i < 2; ++i)
      CHECK(json(text[i]) == whole["choices"][size_t(i)]["message"]["content"]);
    CHECK(finished == 2);
    CHECK(events[events.size() - 2]["choices"] == json::array());
    CHECK(events[events.size() - 2]["usage"] == whole["usage"]);
  }
}

TEST_CASE("continuous usage stands in every event of a chat") {
  TestServer server(king_chat_options());
  const auto events = sse_events(
      chat(server, chat_request({{"stream", true},
                                 {"stream_options",
                                  {{"include_usage", true}, {"continuous_usage_stats", true}}}}))
          .body);
  int before = 0;
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    const int tokens = events[i]["usage"]["completion_tokens"];
    CHECK(tokens >= before);
    before = tokens;
  }
  CHECK(events[0]["usage"]["completion_tokens"] == 0);
  CHECK(before == king_tokens());
}

TEST_CASE("a chat's logprobs have token, bytes and exactly the top ones, streamed as well") {
  TestServer server(king_chat_options());
  const json body =
      chat_request({{"logprobs", true}, {"top_logprobs", 2}, {"return_token_ids", true}});
  const json choice = chat(server, body).json()["choices"][0];
  const json content = choice["logprobs"]["content"];
  REQUIRE(int(content.size()) == king_tokens());
  REQUIRE(choice["logprobs"].contains("refusal"));
  CHECK(choice["logprobs"]["refusal"].is_null());
  std::string bytes;
  for (const json& token : content) {
    CHECK(token["logprob"] == -1);
    CHECK(token["top_logprobs"].size() == 2);
    for (const json& byte : token["bytes"]) bytes += char(byte.get<int>());
  }
  CHECK(bytes == " there was a king");
  CHECK(int(choice["token_ids"].size()) == king_tokens());
  CHECK(chat(server, body).json()["prompt_token_ids"][0] == 1);
  CHECK_FALSE(choice.contains("prompt_token_ids"));
  json none = body;
  none.erase("top_logprobs");
  CHECK(chat(server, none).json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"].empty());
  json streamed = body;
  streamed["stream"] = true;
  json joined = json::array();
  for (const json& event : sse_events(chat(server, streamed).body))
    if (event.is_object() && event["choices"][0]["logprobs"].is_object()) {
      CHECK(event["choices"][0]["logprobs"].contains("refusal"));
      for (const json& token : event["choices"][0]["logprobs"]["content"]) joined.push_back(token);
    }
  CHECK(joined == content);
}

TEST_CASE("what a chat's prompt is made of: messages, tools, documents, variables, its end") {
  TestServer server(chat_options());
  CHECK(prompt_text(server, chat_request()) == "<s>user: hi</s><s>assistant:");
  CHECK(prompt_text(server, chat_request({{"add_generation_prompt", false}})) == "<s>user: hi</s>");
  CHECK(prompt_text(server, chat_request({{"chat_template_kwargs", {{"mood", "Glad"}}}})) ==
        "Glad <s>user: hi</s><s>assistant:");
  CHECK(prompt_text(server, chat_request({{"documents", {{{"text", "Facts"}}}}})) ==
        "Facts <s>user: hi</s><s>assistant:");
  // Members stay in the order in which they were sent.
  CHECK(server
            .post("/tokenize", R"({"messages":[{"role":"user","content":"hi"}],
                      "tools":[{"type":"function","function":{"name":"f","z":1,"a":2.0}}],
                      "return_token_strs":true})")
            .status == 200);
  const json tools = json::array({kTool});
  CHECK(prompt_text(server, chat_request({{"tools", tools}})).find("look") != std::string::npos);
  CHECK(
      prompt_text(server, chat_request({{"tools", tools}, {"tool_choice", "auto"}})).find("look") !=
      std::string::npos);
  CHECK(prompt_text(server, chat_request({{"tools", tools}, {"tool_choice", "none"}})) ==
        "<s>user: hi</s><s>assistant:");
  const json parts = {
      {{"role", "system"}, {"content", "S"}},
      {{"role", "user"},
       {"content", {{{"type", "text"}, {"text", "a"}}, {{"type", "text"}, {"text", "b"}}}}},
      {{"role", "assistant"},
       {"content", nullptr},
       {"tool_calls",
        {{{"id", "1"},
          {"type", "function"},
          {"function", {{"name", "look"}, {"arguments", R"({"q":"Q"})"}}}}}}},
      {{"role", "tool"}, {"tool_call_id", "1"}, {"content", "T"}}};
  CHECK(prompt_text(server, chat_request({{"messages", parts}})) ==
        "<s>system: S</s><s>user: a\nb</s><s>assistant: Q</s><s>tool: T</s><s>assistant:");
  const json begun = {{{"role", "user"}, {"content", "hi"}},
                      {{"role", "assistant"}, {"content", "I am"}}};
  CHECK(prompt_text(server, chat_request({{"messages", begun},
                                          {"add_generation_prompt", false},
                                          {"continue_final_message", true}})) ==
        "<s>user: hi</s><s>assistant: I am");
  const auto count = [&](const json& more) {
    return chat(server, chat_request(more)).json()["usage"]["prompt_tokens"].get<int>();
  };
  CHECK(count({{"add_special_tokens", true}}) == count({}) + 1);
  CHECK(count({{"truncate_prompt_tokens", 3}}) == 3);
}

TEST_CASE("lengths, stops and sampling of a chat are those of a completion") {
  TestServer server(king_chat_options());
  const auto tokens = [&](json body) {
    return chat(server, body).json()["usage"]["completion_tokens"].get<int>();
  };
  json free = chat_request({{"ignore_eos", true}});
  free.erase("max_tokens");
  const json whole = chat(server, free).json();  // the rest of the context
  CHECK(whole["usage"]["total_tokens"] == server_options().engine.max_model_len);
  CHECK(whole["choices"][0]["finish_reason"] == "length");
  free["max_completion_tokens"] = 2;
  CHECK(tokens(free) == 2);
  free["max_tokens"] = 2;
  CHECK(tokens(free) == 2);
  const json stopped = chat(server, chat_request({{"stop", " was"}})).json()["choices"][0];
  CHECK(stopped["message"]["content"] == " there");
  CHECK(stopped["finish_reason"] == "stop");
  CHECK(stopped["stop_reason"] == " was");
  CHECK(chat(server, chat_request({{"n", 3}})).json()["choices"].size() == 3);
}

TEST_CASE("a role that the template names is taken, and reasoning_effort if it knows that") {
  const json body = chat_request({{"messages", {{{"role", "ipython"}, {"content", "x"}}}}});
  {
    TestServer server(chat_options());
    const Response reply = chat(server, body);
    CHECK(reply.status == 400);
    CHECK(reply.json()["error"]["param"] == "messages");
    const Response effort = chat(server, chat_request({{"reasoning_effort", "low"}}));
    CHECK(effort.status == 400);
    CHECK(effort.json()["error"]["code"] == "unsupported_parameter");
    CHECK(effort.json()["error"]["param"] == "reasoning_effort");
  }
  ServerOptions options = chat_options();
  options.chat_template +=
      "{% if messages[0].role == 'ipython' %}I{% endif %}{{ reasoning_effort or '' }}";
  TestServer server(std::move(options));
  CHECK(prompt_text(server, body).ends_with("assistant:I"));
  CHECK(
      prompt_text(server, chat_request({{"reasoning_effort", "low"}})).ends_with("assistant:low"));
  CHECK(chat(server, body).status == 200);
  CHECK(chat(server, chat_request({{"modalities", {"text"}}, {"store", false}})).status == 200);
  for (const json& more : {json{{"modalities", {"text", "audio"}}}, json{{"store", true}}})
    CHECK(chat(server, chat_request(more)).status == 400);
}

TEST_CASE("wrong chats are refused with the field at fault") {
  TestServer server(chat_options());
  const auto role = [](const char* name) {
    return json{{"messages", {{{"role", name}, {"content", "x"}}}}};
  };
  const auto text_part = [](const json& part) {
    return json{{"messages", {{{"role", "user"}, {"content", json::array({part})}}}}};
  };
  const std::tuple<json, int, std::string> cases[] = {
      {{{"messages", nullptr}}, 400, "messages"},
      {{{"messages", json::array()}}, 400, "messages"},
      {{{"messages", "hi"}}, 400, "messages"},
      {{{"messages", {"hi"}}}, 400, "messages"},
      {role("nobody"), 400, "messages"},
      {role("developer"), 400, "messages"},  // the template raises
      {{{"messages", {{{"role", "user"}}}}}, 400, "messages"},
      {{{"messages", {{{"role", "user"}, {"content", 5}}}}}, 400, "messages"},
      {{{"messages", {{{"role", "user"}, {"content", {{{"type", "image_url"}}}}}}}},
       400,
       "messages"},
      {{{"messages", {{{"role", "user"}, {"content", {{{"text", "x"}}}}}}}}, 400, "messages"},
      {text_part({{"type", "text"}}), 400, "messages"},
      {text_part({{"type", "text"}, {"text", 5}}), 400, "messages"},
      {{{"messages", {{{"role", "assistant"}, {"tool_calls", {{{"id", "x"}}}}}}}}, 400, "messages"},
      {{{"messages",
         {{{"role", "assistant"},
           {"tool_calls", {{{"function", {{"name", "f"}, {"arguments", "{"}}}}}}}}}},
       400,
       "messages"},
      {{{"tools", {"x"}}}, 400, "tools"},
      {{{"tools", {{{"type", "function"}}}}}, 400, "tools"},
      {{{"documents", "x"}}, 400, "documents"},
      {{{"tools", {{{"function", {{"name", 5}}}}}}}, 400, "tools"},
      {{{"tool_choice", "required"}}, 400, "tool_choice"},
      {{{"tool_choice", {{"type", "function"}}}}, 400, "tool_choice"},
      {{{"tool_choice", "maybe"}}, 400, "tool_choice"},
      {{{"functions", json::array()}}, 400, "functions"},
      {{{"chat_template", "x"}}, 400, "chat_template"},
      {{{"echo", true}}, 400, "echo"},
      {{{"best_of", 2}}, 400, "best_of"},
      {{{"response_format", {{"type", "structural_tag"}}}}, 400, "response_format"},
      {{{"chat_template_kwargs", 5}}, 400, "chat_template_kwargs"},
      {{{"chat_template_kwargs", {{"messages", 1}}}}, 400, "chat_template_kwargs.messages"},
      {{{"continue_final_message", true}}, 400, "continue_final_message"},
      {{{"add_generation_prompt", "yes"}}, 400, "add_generation_prompt"},
      {{{"max_tokens", 0}}, 400, "max_tokens"},
      {{{"max_tokens", 4}, {"max_completion_tokens", 5}}, 400, "max_tokens"},
      {{{"logprobs", 1}}, 400, "logprobs"},
      {{{"top_logprobs", 2}}, 400, "top_logprobs"},
      {{{"logprobs", true}, {"top_logprobs", 21}}, 400, "top_logprobs"},
      {{{"temperature", -1}}, 400, "temperature"},
      {{{"stream_options", {{"include_usage", true}}}}, 400, "stream_options"},
      {{{"model", "other"}}, 404, "model"},
      {{{"messages", {{{"role", "user"}, {"content", std::string(30000, 'x')}}}}}, 400, "messages"},
  };
  for (const auto& [more, status, field] : cases) {
    const Response reply = chat(server, chat_request(more));
    INFO(more.dump().substr(0, 300) << " -> " << reply.body);
    CHECK(reply.status == status);
    CHECK(reply.json()["error"]["param"] == field);
  }
  json wide = chat_request();
  for (int i = 0; i < 2000; ++i) wide["chat_template_kwargs"]["k" + std::to_string(i)] = i;
  CHECK(chat(server, wide).status == 400);
  CHECK(server.becomes_idle());
}

TEST_CASE("a model without a chat template takes no chats, and says what to do") {
  TestServer server;
  for (const char* path : {"/v1/chat/completions", "/tokenize"}) {
    json body = chat_request();
    body.erase("max_tokens");
    const Response reply = server.post(path, body.dump());
    CHECK(reply.status == 400);
    CHECK(reply.json()["error"]["message"].get<std::string>().find("--chat-template") !=
          std::string::npos);
  }
  CHECK(server.get("/tokenizer_info").json()["chat_template"] == nullptr);
  TestServer with(chat_options());
  CHECK(with.get("/tokenizer_info").json()["chat_template"] == kTemplate);
}

TEST_CASE("a long chat goes by the worker, and chats are counted as completions are") {
  TestServer server(king_chat_options());
  json many = chat_request();
  for (int i = 0; i < 3000; ++i) many["messages"].push_back({{"role", "user"}, {"content", ""}});
  many["truncate_prompt_tokens"] = 8;
  CHECK(many.dump().size() > (48u << 10));
  const Response reply = chat(server, many);
  CHECK(reply.status == 200);
  CHECK(reply.json()["usage"]["prompt_tokens"] == 8);
  CHECK(server.sample("kivi:generation_tokens_total") == king_tokens());
  CHECK(server.sample("kivi:prompt_tokens_total") == 8);
  CHECK(server.sample("kivi:request_success_total{finished_reason=\"length\"}") == 1);
  CHECK(chat(server, chat_request({{"messages", 5}})).status == 400);
}
