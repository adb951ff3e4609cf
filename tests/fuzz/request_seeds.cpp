// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "kivi/v1/kivi.pb.h"
#include "tests/fuzz/seeds.h"

namespace kivi::fuzz {
namespace {

const char* const kCompletion =
    R"({"model":"fuzz","prompt":["king",[3,4]],"max_tokens":3,"min_tokens":1,"temperature":0.7,)"
    R"("top_p":0.9,"top_k":3,"min_p":0.1,"seed":1,"n":1,"best_of":2,"logprobs":2,"echo":true,)"
    R"("stop":["ab"],"stop_token_ids":[5],"ignore_eos":true,"presence_penalty":0.5,)"
    R"("frequency_penalty":0.5,"repetition_penalty":1.1,"logit_bias":{"7":-100},"user":"u",)"
    R"("truncate_prompt_tokens":5,"request_id":"r-1","priority":1,"return_token_ids":true})";
const char* const kStream =
    R"({"prompt":"a king","max_tokens":4,"stream":true,"stream_options":{"include_usage":true,)"
    R"("continuous_usage_stats":true}})";
const char* const kChat =
    R"({"messages":[{"role":"system","content":"ab"},{"role":"user","content":)"
    R"([{"type":"text","text":"king?"}]}],"max_completion_tokens":2,"logprobs":true,)"
    R"("top_logprobs":2,"add_generation_prompt":true,"response_format":{"type":"text"}})";
const char* const kMessages =
    R"({"max_tokens":2,"system":[{"type":"text","text":"ab"}],"tool_choice":{"type":"auto"},)"
    R"("tools":[{"name":"f","input_schema":{"type":"object"}}],"stop_sequences":["x"],"messages":[)"
    R"({"role":"user","content":"a"},{"role":"assistant","content":[{"type":"thinking",)"
    R"("thinking":"b"},{"type":"tool_use","id":"c","name":"f","input":{"x":1}}]},{"role":"user",)"
    R"("content":[{"type":"tool_result","tool_use_id":"c","content":[{"type":"text",)"
    R"("text":"d"}]},{"type":"text","text":"king?"}]}]})";
const char* const kResponses =
    R"({"instructions":"ab","max_output_tokens":2,"text":{"format":{"type":"text"}},"tools":[)"
    R"({"type":"function","name":"f","parameters":{"type":"object"}}],"metadata":{"a":"b"},"input":[)"
    R"({"role":"user","content":[{"type":"input_text","text":"a"}]},{"type":"function_call",)"
    R"("call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c",)"
    R"("output":"d"},{"type":"reasoning","content":[{"type":"reasoning_text","text":"e"}]}]})";
const char* const kTokenize = R"({"prompt":"a king","add_special_tokens":false})";
const char* const kDetokenize = R"({"tokens":[3,4,5]})";

std::string post(std::string_view path, std::string_view body, std::string_view more = "") {
  return fmt::format(
      "POST {} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{}Content-Length: "
      "{}\r\n\r\n{}",
      path, more, body.size(), body);
}

std::string chunked(std::string_view body) {
  const std::string_view first = body.substr(0, body.size() / 2), rest = body.substr(first.size());
  return fmt::format("{:x};a=b\r\n{}\r\n{:X}\r\n{}\r\n0\r\nTrailer: x\r\n\r\n", first.size(), first,
                     rest.size(), rest);
}

std::string chunked_post() {
  return "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
         "Transfer-Encoding: chunked\r\n\r\n" +
         chunked(kCompletion);
}

std::string get(std::string_view line, std::string_view more = "") {
  return fmt::format("{}\r\nHost: x\r\n{}\r\n", line, more);
}

// The first byte: into pieces of what size the bytes are cut (http_target.cpp).
std::vector<std::string> connections() {
  const std::string whole(1, '\0');
  return {
      whole + post("/v1/completions", kCompletion) + get("GET /health HTTP/1.1"),
      whole + post("/v1/completions", kStream, "X-Request-Id: r\r\nExpect: 100-continue\r\n"),
      whole + chunked_post() + get("HEAD /v1/models HTTP/1.1", "Origin: http://x\r\n"),
      "\x07" + post("/v1/chat/completions", kChat) + "\r\n" + post("/tokenize", kTokenize),
      whole + post("/v1/messages", kMessages) + post("/v1/responses", kResponses),
      whole + post("/v1/chat/completions/render", kChat) +
          post("/v1/messages/count_tokens", kMessages, "x-api-key: k\r\n"),
      "\x40" + post("/detokenize", kDetokenize) +
          get("GET http://x/v1/models/fuzz?a=%41 HTTP/1.1", "Connection: close\r\n"),
      whole + "GET /version HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" +
          get("OPTIONS /v1/completions HTTP/1.1", "Authorization: Bearer k\r\n"),
  };
}

// The first byte: of what kind the rest is (grammar_target.cpp).
std::vector<std::string> grammars() {
  const std::string schema(1, '\0'), regex = "\1", grammar = "\2";
  return {
      schema +
          R"({"type":"object","properties":{"name":{"type":"string","minLength":1,"maxLength":5},)"
          R"("age":{"type":"integer","minimum":0,"maximum":120},"kind":{"enum":["ab",1,null]},)"
          R"("list":{"type":"array","items":{"$ref":"#/$defs/x"},"minItems":1,"maxItems":3}},)"
          R"("required":["name","age"],"additionalProperties":false,)"
          R"("$defs":{"x":{"anyOf":[{"type":"boolean"},{"type":"array","items":{"$ref":"#/$defs/x"}}]}}})",
      schema +
          R"({"oneOf":[{"type":"string","pattern":"^[a-c]{2,4}$"},{"type":"number","exclusiveMinimum":-1.5},)"
          R"({"const":{"a":[1,"x"]}}]})",
      schema +
          R"({"allOf":[{"type":"object","patternProperties":{"^a":{"format":"date"}},"maxProperties":2},)"
          R"({"propertyNames":{"minLength":1},"minProperties":1}]})",
      schema +
          R"({"type":"array","prefixItems":[{"type":"integer","multipleOf":7},true],"items":{"type":"string",)"
          R"("format":"uuid"}})",
      regex + R"((?:ab|c+)?[^a-z\d]{1,3}(\w|\x41|\u{e9}).*?$)",
      grammar +
          "root ::= item (\",\" item)* # list\nitem ::= [a-z0-9]{1,4} | \"(\" root \")\" | tail\n"
          "tail ::= tail \"x\" | \"y\"\n",
      grammar +
          "start: \"a\" WORD (\",\" pair)* [\"!\"]\npair: NAME \":\" /[0-9]+/ -> p\n"
          "NAME: \"a\"..\"z\"\n%import common.WORD\n%ignore \" \"\n",
  };
}

// The first byte: how the model writes (setup_of in answer_target.cpp).
std::vector<std::string> answers() {
  const std::string calls =
      "Let me look.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": "
      "\"K\xc3\xb6ln "
      "}\\\"\", \"n\": [1, 2]}}\n</tool_call>\n<tool_call>[{\"name\": \"f\", \"arguments\": "
      "\"{\\\"a\\\": \\\"\\u00e9\\\"}\"}]</tool_call> done";
  return {
      char(8) + std::string("<think> so</think>\n\nYes."),
      char(1) + calls,
      char(1 + 8 + 128) + ("<think>I must</think> " + calls),
      char(2) + std::string(R"({"name": "f", "parameters": {"a": [1, "]"]}}; )"
                            R"({"name": "get_weather", "parameters": {}})"),
      char(3) + std::string(R"( [f( a =  'x, )]}', b=[')', "'"], c=-1, d=None, g={'k': (1, 2)}), )"
                            R"(get_weather(city='K\xf6ln\n')])"),
      char(4) + std::string(R"(Sure. [TOOL_CALLS] [{"arguments": {"a": ["]"]}, "name": "f"}])"),
      char(4 + 8 + 16) + std::string(R"(a thought</think>[TOOL_CALLS]get_weather{"city": "Nice"})"
                                     R"([TOOL_CALLS]f[ARGS]{})"),
      char(5) + std::string(R"([{"name": "f", "parameters": {"a": "\ud83d\ude00"}}, )"
                            R"({"name": "get_weather", "parameters": {}}])"),
      char(6) + std::string("{\"city\": \"Paris\", \"list\": [1.5e3, true, null]} and more"),
  };
}

std::string grpc_message(char kind, const google::protobuf::Message& message) {
  return kind + message.SerializeAsString();
}

std::vector<std::string> grpc_messages() {
  v1::GenerateRequest whole;
  whole.set_text("a king");
  whole.set_max_tokens(3);
  whole.set_temperature(0.5F);
  whole.set_top_p(0.9F);
  whole.set_top_k(3);
  whole.set_seed(1);
  whole.set_logprobs(2);
  whole.set_n(1);
  whole.set_best_of(2);
  whole.set_echo(true);
  (*whole.mutable_logit_bias())[7] = -1;
  whole.add_stop("ab");
  whole.add_stop_token_ids(5);
  whole.set_request_id("r-1");
  v1::GenerateRequest stream;
  stream.set_model("fuzz");
  for (const int id : {3, 4, 5}) stream.mutable_token_ids()->add_ids(id);
  stream.set_truncate_prompt_tokens(2);
  stream.set_max_tokens(4);
  stream.set_n(2);
  v1::TokenizeRequest tokenize;
  tokenize.set_text("a king");
  tokenize.set_return_token_strings(true);
  v1::DetokenizeRequest detokenize;
  for (const int id : {3, 4, 5}) detokenize.add_token_ids(id);
  v1::AbortRequest abort;
  abort.set_request_id("r-1");
  return {grpc_message('\0', whole), grpc_message('\1', stream), grpc_message('\2', tokenize),
          grpc_message('\3', detokenize), grpc_message('\4', abort)};
}

}  // namespace

std::vector<std::string> request_seeds_of(std::string_view target) {
  if (target == "http_connection") return connections();
  if (target == "http_head")
    return {post("/v1/completions?x=1#y", "", "Expect: 100-continue\r\nX-A: b\r\n"), chunked_post(),
            get("GET http://x:8000/health HTTP/1.1", "Connection: close\r\n"),
            get("GET htTp:// HTTP/1.1")};  // read a byte too far
  if (target == "chunked_body")
    return {std::string(1, '\0') + chunked("abcdefghijklm") + "GET /", "\x03" + chunked(kStream)};
  if (target == "json")
    return {kCompletion, kStream, kChat, kMessages, kResponses, kTokenize, kDetokenize};
  if (target == "grpc_message") return grpc_messages();
  if (target == "grammar") return grammars();
  if (target == "answer") return answers();
  return {};
}

std::vector<std::string> dictionary_of(std::string_view target) {
  if (target == "json")
    return {"model",
            "prompt",
            "messages",
            "role",
            "content",
            "max_tokens",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "n",
            "best_of",
            "logprobs",
            "top_logprobs",
            "echo",
            "stop",
            "stop_token_ids",
            "logit_bias",
            "stream",
            "stream_options",
            "include_usage",
            "tools",
            "tool_choice",
            "documents",
            "suffix",
            "ignore_eos",
            "min_tokens",
            "response_format",
            "type",
            "text",
            "user",
            "request_id",
            "priority",
            "prompt_token_ids",
            "add_generation_prompt",
            "continue_final_message",
            "add_special_tokens",
            "truncate_prompt_tokens",
            "return_token_ids",
            "tokens",
            "max_completion_tokens",
            "chat_template_kwargs",
            "\\ud800",
            "\\u0000"};
  if (target == "answer")
    return {"<tool_call>",
            "</tool_call>",
            "<think>",
            "</think>",
            "[TOOL_CALLS]",
            "[ARGS]",
            "\"name\": \"f\"",
            "\"arguments\": {",
            "\"parameters\": ",
            "f(a=",
            "\\u00e9",
            "\\x41",
            "None",
            "; "};
  if (target == "grammar")
    return {"\"type\":",
            "\"enum\":[",
            "\"$ref\":\"#\"",
            "\"anyOf\":[",
            "\"oneOf\":[",
            "\"allOf\":[",
            "\"required\":[",
            "\"properties\":{",
            "\"items\":",
            "\"prefixItems\":[",
            "\"pattern\":\"",
            "\"patternProperties\":{",
            "\"minItems\":",
            "\"maxItems\":",
            "\"minLength\":",
            "\"maxLength\":",
            "\"minimum\":",
            "\"multipleOf\":",
            "\"format\":\"uri",
            "\"maxProperties\":",
            "{0,9999}",
            "{20000}",
            "[^\\]]",
            "(?:",
            "(a*)*",
            "|",
            "~1..9",
            "::=",
            "root ",
            "start:",
            "%import common.",
            "%ignore",
            "?",
            "+",
            "*",
            "\n"};
  if (target == "http_connection" || target == "http_head" || target == "chunked_body")
    return {"\r\n",
            "\r\n\r\n",
            "HTTP/1.1",
            "HTTP/1.0",
            "Host: x\r\n",
            "Content-Length: ",
            "Transfer-Encoding: chunked\r\n",
            "Expect: 100-continue\r\n",
            "Connection: close\r\n",
            "Connection: keep-alive\r\n",
            "Content-Type: application/json\r\n",
            "Content-Encoding: gzip\r\n",
            "GET ",
            "POST ",
            "HEAD ",
            "/v1/completions",
            "/health",
            "/metrics",
            "0\r\n\r\n",
            "ffffffffffffffff",
            "; a=b\r\n",
            "\n",
            "\t",
            " ",
            ":",
            "\x0b"};
  return {};
}

}  // namespace kivi::fuzz
