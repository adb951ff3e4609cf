// SPDX-License-Identifier: Apache-2.0
// Every parameter wrong in each way: 400 (or 404) with the right `param`.
#include <catch2/catch.hpp>

#include "tests/http/http_fixture.h"

using namespace kivi;
using namespace kivi::testing;
using nlohmann::json;

namespace {

struct Case {
  const char* field;  // the parameter that is set, and what `param` must say unless `param` is set
  const char* value;  // JSON
  const char* param = nullptr;
};

// Wrong types and ranges, by parameter.
const Case kWrong[] = {
    {"prompt", "7"},
    {"prompt", "{}"},
    {"prompt", "[]"},
    {"prompt", "[[]]"},
    {"prompt", "[true]"},
    {"prompt", "[1.5]"},
    {"prompt", "[4096]"},
    {"prompt", "[-1]"},
    {"prompt", "[1,\"a\"]"},
    {"prompt", "[\"a\",7]"},
    {"prompt", "[[1],[2,99999]]"},
    {"prompt", "[[1,[2]]]"},
    {"model", "7"},
    {"max_tokens", "-1"},
    {"max_tokens", "1.5"},
    {"max_tokens", "\"5\""},
    {"max_tokens", "true"},
    {"max_tokens", "4294967297"},
    {"max_tokens", "18446744073709551615"},
    {"max_tokens", "1e300"},
    {"temperature", "-0.1"},
    {"temperature", "\"hot\""},
    {"temperature", "NaN"},
    {"temperature", "Infinity"},
    {"temperature", "1e999"},
    {"temperature", "1e300"},
    {"temperature", "[1]"},
    {"temperature", "true"},
    {"top_p", "0"},
    {"top_p", "1.01"},
    {"top_p", "-1"},
    {"top_p", "\"1\""},
    {"top_k", "-2"},
    {"top_k", "1.5"},
    {"top_k", "\"3\""},
    {"min_p", "-0.1"},
    {"min_p", "1"},
    {"min_p", "{}"},
    {"seed", "1.5"},
    {"seed", "\"1\""},
    {"seed", "18446744073709551615"},
    {"n", "0"},
    {"n", "129"},
    {"n", "-1"},
    {"n", "2.5"},
    {"best_of", "0"},
    {"best_of", "129"},
    {"best_of", "\"2\""},
    {"stop", "7"},
    {"stop", "\"\""},
    {"stop", "[\"\"]"},
    {"stop", "[1]"},
    {"stop", "{}"},
    {"stop_token_ids", "7"},
    {"stop_token_ids", "[\"a\"]"},
    {"stop_token_ids", "[-1]"},
    {"stop_token_ids", "[4096]"},
    {"stop_token_ids", "[1.25]"},
    {"include_stop_str_in_output", "1"},
    {"min_tokens", "-1"},
    {"min_tokens", "17"},  // more than max_tokens
    {"min_tokens", "0.5"},
    {"ignore_eos", "\"yes\""},
    {"presence_penalty", "2.1"},
    {"presence_penalty", "-2.1"},
    {"presence_penalty", "\"0\""},
    {"frequency_penalty", "2.1"},
    {"frequency_penalty", "-2.1"},
    {"frequency_penalty", "[]"},
    {"repetition_penalty", "0"},
    {"repetition_penalty", "-1"},
    {"repetition_penalty", "\"1\""},
    {"logit_bias", "[]"},
    {"logit_bias", "{\"a\":1}"},
    {"logit_bias", "{\"01\":1}"},
    {"logit_bias", "{\"4096\":1}"},
    {"logit_bias", "{\"-1\":1}"},
    {"logit_bias", "{\"1\":101}"},
    {"logit_bias", "{\"1\":-100.5}"},
    {"logit_bias", "{\"1\":\"5\"}"},
    {"logit_bias", "{\"1\":null}"},
    {"logprobs", "-1"},
    {"logprobs", "21"},
    {"logprobs", "true"},
    {"logprobs", "1.5"},
    {"echo", "1"},
    {"stream", "\"true\""},
    {"stream_options", "{\"include_usage\":true}"},  // without stream
    {"response_format", "\"json\""},
    {"response_format", "{}"},
    {"response_format", "{\"type\":\"xml\"}"},
    {"priority", "1.5"},
    {"priority", "\"high\""},
    {"user", "7"},
    {"request_id", "7"},
    {"request_id", "\"a b\""},
    {"request_id", "\"a\\u0000b\""},
    {"add_special_tokens", "0"},
    {"skip_special_tokens", "\"no\""},
    {"truncate_prompt_tokens", "0"},
    {"truncate_prompt_tokens", "-2"},
    {"truncate_prompt_tokens", "1.5"},
    {"return_token_ids", "1"},
    {"return_tokens_as_token_ids", "1"},
    {"allowed_token_ids", "[]"},
    {"allowed_token_ids", "[4096]"},
    {"allowed_token_ids", "[-1]"},
    {"allowed_token_ids", "7"},
    {"allowed_token_ids", "[1.5]"},
    {"bad_words", "[\"\"]"},
    {"bad_words", "[\"  \"]"},
    {"bad_words", "[7]"},
    {"bad_words", "{}"},
    {"truncation_side", "\"middle\""},
    {"truncation_side", "1"},
};

struct Unbuilt {
  const char* field;
  const char* value;  // JSON
};

// What no request may ask for.
const Unbuilt kUnbuilt[] = {
    {"prompt_logprobs", "1"},
    {"prompt_logprobs", "0"},
    {"logprob_token_ids", "[1]"},
    {"prompt_embeds", "\"AAAA\""},
    {"lora_request", "{}"},
    {"kv_transfer_params", "{}"},
    {"logits_processors", "[]"},
    {"vllm_xargs", "{}"},
    {"use_beam_search", "true"},
    {"length_penalty", "0.8"},
    {"early_stopping", "true"},
    {"typical_p", "0.9"},
    {"mirostat", "2"},
    {"mirostat_mode", "1"},
    {"mirostat_tau", "5"},
    {"mirostat_eta", "0.1"},
    {"dry_multiplier", "0.8"},
    {"dry_base", "1.75"},
    {"dry_sequence_breakers", "[]"},
    {"xtc_probability", "0.5"},
    {"xtc_threshold", "0.1"},
};

// What chats have, or a dialect of them has no name for.
const Unbuilt kUnbuiltOfCompletions[] = {
    {"response_format", R"({"type":"structural_tag"})"},
    {"guided_decoding_backend", R"("xgrammar")"},
    {"guided_whitespace_pattern", R"(" ")"},
    {"tools", "[]"},
    {"tool_choice", "\"auto\""},
    {"parallel_tool_calls", "true"},
    {"reasoning_effort", "\"low\""},
    {"suffix", "\"end\""},
};

std::string body_with(const std::string& field, const std::string& value) {
  std::string body = field == "prompt" ? "{" : "{\"prompt\":\"a\",";
  return body + "\"" + field + "\":" + value + "}";
}

}  // namespace

TEST_CASE("a parameter of a wrong type or range is 400 and names itself") {
  TestServer server;
  Client client = server.client();
  for (const Case& c : kWrong) {
    INFO(c.field << " = " << c.value);
    const auto reply = client.post("/v1/completions", body_with(c.field, c.value));
    REQUIRE(reply);
    CHECK(reply->status == 400);
    const json error = reply->json()["error"];
    CHECK(error["type"] == "invalid_request_error");
    CHECK(error["code"] == "invalid_value");
    CHECK(error["param"] == c.field);
    CHECK(error["message"].get<std::string>().size() > 10);
  }
  CHECK(server.engine().stats().steps == 0);
  CHECK(server.complete({{"prompt", {5, 4096}}}).json()["error"]["message"] ==
        "prompt[1] is 4096 (integer), must be a token id in [0, 4095]");
}

TEST_CASE("values that switch off what is not built are taken") {
  TestServer server;
  for (const char* body :
       {R"({"prompt":"a","use_beam_search":false,"length_penalty":1.0,"early_stopping":false})",
        R"({"prompt":"a","typical_p":1,"mirostat_mode":0})",
        R"({"prompt":"a","mirostat":0,"mirostat_tau":5.0,"mirostat_eta":0.1})",
        R"({"prompt":"a","dry_multiplier":0.0,"dry_base":1.75,"dry_sequence_breakers":["\n"]})",
        R"({"prompt":"a","xtc_probability":0,"xtc_threshold":0.1})"}) {
    INFO(body);
    CHECK(server.post("/v1/completions", body).status == 200);
  }
  const Response both = server.post(
      "/v1/completions", R"({"prompt":"a","allowed_token_ids":[5],"guided_choice":["a"]})");
  CHECK(both.status == 400);
  CHECK(both.json()["error"]["param"] == "allowed_token_ids");
}

TEST_CASE("an integer may be written as 2.0 or 2e0, as JSON Schema has it") {
  TestServer server;
  for (const char* two : {"2", "2.0", "2e0", "0.2e1"}) {
    INFO(two);
    const Response reply = server.post("/v1/completions", body_with("max_tokens", two));
    REQUIRE(reply.status == 200);
    CHECK(reply.json()["usage"]["completion_tokens"] == 2);
  }
  CHECK(server.post("/detokenize", R"({"tokens":[5.0,6]})").json() ==
        server.post("/detokenize", R"({"tokens":[5,6]})").json());
}

TEST_CASE("combinations that mean nothing are 400") {
  TestServer server;
  const std::pair<const char*, const char*> wrong[] = {
      {R"({"prompt":"a","n":3,"best_of":2})", "best_of"},
      {R"({"prompt":"a","best_of":2,"stream":true})", "best_of"},
      {R"({"prompt":"a","stream":true,"stream_options":7})", "stream_options"},
      {R"({"prompt":"a","stream":true,"stream_options":{"include_usage":1}})",
       "stream_options.include_usage"},
      {R"({"max_tokens":1})", "prompt"},
      {R"({"prompt":null})", "prompt"},
      {R"({"prompt":"a","n":1,"n":2})", "n"},
      {R"({"prompt":"a","logit_bias":{"5":1,"5":2}})", "5"},
  };
  for (const auto& [body, param] : wrong) {
    INFO(body);
    const Response reply = server.post("/v1/completions", body);
    CHECK(reply.status == 400);
    CHECK(reply.json()["error"]["param"] == param);
  }
}

TEST_CASE("parameters that are not built are 400 with a code of their own") {
  TestServer server;
  const auto check = [&](const Unbuilt& c) {
    INFO(c.field);
    const Response reply = server.post("/v1/completions", body_with(c.field, c.value));
    CHECK(reply.status == 400);
    CHECK(reply.json()["error"]["code"] == "unsupported_parameter");
    CHECK(reply.json()["error"]["param"] == c.field);
    CHECK(server.post("/v1/completions", body_with(c.field, "null")).status == 200);
  };
  for (const Unbuilt& c : kUnbuilt) check(c);
  for (const Unbuilt& c : kUnbuiltOfCompletions) check(c);
}

TEST_CASE("parameters that are not built are refused in every dialect of chats") {
  ServerOptions options = server_options();
  options.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}";
  TestServer server(std::move(options));
  const std::pair<const char*, const char*> dialects[] = {
      {"/v1/chat/completions", R"({"messages":[{"role":"user","content":"a"}],"max_tokens":1)"},
      {"/v1/responses", R"({"input":"a","max_output_tokens":1)"},
      {"/v1/messages", R"({"messages":[{"role":"user","content":"a"}],"max_tokens":1)"},
  };
  for (const auto& dialect : dialects) {
    const std::string path = dialect.first, begin = dialect.second;
    REQUIRE(server.post(path, begin + "}").status == 200);
    for (const Unbuilt& c : kUnbuilt) {
      INFO(path << " " << c.field);
      const auto with = [&](const char* value) {
        return begin + ",\"" + c.field + "\":" + value + "}";
      };
      const Response reply = server.post(path, with(c.value));
      CHECK(reply.status == 400);
      const json error = reply.json()["error"];
      CHECK(error["message"].get<std::string>().starts_with(c.field));
      if (error.contains("param")) {  // Anthropic's errors have neither
        CHECK(error["param"] == c.field);
        CHECK(error["code"] == "unsupported_parameter");
      } else {
        CHECK(path == "/v1/messages");
      }
      CHECK(server.post(path, with("null")).status == 200);
    }
    for (const char* off : {R"("use_beam_search":false)", R"("mirostat":0,"mirostat_tau":5.0)",
                            R"("typical_p":1)", R"("xtc_probability":0,"xtc_threshold":0.1)"}) {
      INFO(path << " " << off);
      CHECK(server.post(path, begin + "," + off + "}").status == 200);
    }
  }
}

TEST_CASE("another model's name is 404 everywhere") {
  TestServer server;
  for (const auto& [path, body] : {std::pair{"/v1/completions", R"({"model":"gpt","prompt":"a"})"},
                                   std::pair{"/tokenize", R"({"model":"gpt","prompt":"a"})"},
                                   std::pair{"/detokenize", R"({"model":"gpt","tokens":[]})"}}) {
    const Response reply = server.post(path, body);
    CHECK(reply.status == 404);
    CHECK(reply.json()["error"]["code"] == "model_not_found");
    CHECK(reply.json()["error"]["param"] == "model");
  }
}

TEST_CASE("a prompt that does not fit is 400 context_length_exceeded") {
  TestServer server;
  std::vector<int> ids(2048, 5);
  const Response reply = server.complete({{"prompt", ids}});
  CHECK(reply.status == 400);
  CHECK(reply.json()["error"]["code"] == "context_length_exceeded");
  // LiteLLM and other clients know this error by the words with which OpenAI's begins.
  const std::string begin = "This model's maximum context length is 2048 tokens. ";
  const auto message = [](const Response& r) {
    return r.json()["error"]["message"].get<std::string>();
  };
  CHECK(message(reply).starts_with(begin));
  CHECK(message(reply).find("2048 tokens and must leave room") != std::string::npos);
  CHECK(server.sample("kivi:admission_rejections_total{reason=\"context_length\"}") == 1);
  // A text of so many bytes that no tokens could be few enough, where nothing is submitted.
  const Response rendered =
      server.post("/v1/completions/render", json{{"prompt", std::string(200'000, 'a')}}.dump());
  CHECK(rendered.status == 400);
  CHECK(rendered.json()["error"]["code"] == "context_length_exceeded");
  CHECK(message(rendered).starts_with(begin));
  ids.resize(2047);
  const json fits = server.complete({{"prompt", ids}, {"ignore_eos", true}}).json();
  CHECK(fits["usage"]["completion_tokens"] == 1);  // cut to what the context holds
}

TEST_CASE("tokenize and detokenize name what is wrong") {
  TestServer server;
  const std::tuple<const char*, const char*, const char*> wrong[] = {
      {"/tokenize", "{}", "prompt"},
      {"/tokenize", R"({"prompt":7})", "prompt"},
      {"/tokenize", R"({"prompt":"a","add_special_tokens":1})", "add_special_tokens"},
      {"/tokenize", R"({"prompt":"a","return_token_strs":1})", "return_token_strs"},
      {"/detokenize", "{}", "tokens"},
      {"/detokenize", R"({"tokens":"a"})", "tokens"},
      {"/detokenize", R"({"tokens":[4096]})", "tokens"},
      {"/detokenize", R"({"tokens":[-1]})", "tokens"},
      {"/detokenize", R"({"tokens":[1.5]})", "tokens"},
  };
  for (const auto& [path, body, param] : wrong) {
    INFO(path << " " << body);
    const Response reply = server.post(path, body);
    CHECK(reply.status == 400);
    CHECK(reply.json()["error"]["param"] == param);
  }
  CHECK(server.post("/tokenize", R"({"messages":[]})").status == 400);
  CHECK(server.post("/tokenize", R"({"messages":[],"prompt":"x"})").status == 400);
}

TEST_CASE("strict_params makes unknown fields errors") {
  ServerOptions options = server_options();
  options.http.strict_params = true;
  TestServer server(options);
  CHECK(server.complete({{"prompt", "a"}}).status == 200);
  const Response reply = server.complete({{"prompt", "a"}, {"tempreature", 1}});
  CHECK(reply.status == 400);
  CHECK(reply.json()["error"]["param"] == "tempreature");
  const Response nested = server.complete(
      {{"prompt", "a"}, {"stream", true}, {"stream_options", {{"include_usages", true}}}});
  CHECK(nested.json()["error"]["param"] == "stream_options.include_usages");
  CHECK(server.post("/tokenize", R"({"prompt":"a","x":1})").status == 400);
  CHECK(server.post("/detokenize", R"({"tokens":[],"x":1})").status == 400);
}
