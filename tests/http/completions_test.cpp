// SPDX-License-Identifier: Apache-2.0
// POST /v1/completions: replies to the byte, streams, usage, and that every parameter does
// something.
#include <catch2/catch.hpp>
#include <fstream>
#include <thread>

#include "tests/http/http_fixture.h"

using namespace kivi;
using namespace kivi::testing;
using nlohmann::json;

namespace {

// A model that always says " there was a king".
ServerOptions king_options() {
  ServerOptions options = server_options();
  options.engine.runner.tokens = FakeRunnerOptions::Tokens::script;
  options.engine.runner.script = tales_tokenizer().encode("there was a king", false);
  return options;
}

json request(const json& more = {}) {
  json body = {{"model", "tales"}, {"prompt", "Once upon a time"}, {"max_tokens", king_tokens()}};
  if (more.is_object()) body.update(more);
  return body;
}

json usage_json(int prompt, int completion) {
  return {{"prompt_tokens", prompt},
          {"completion_tokens", completion},
          {"total_tokens", prompt + completion},
          {"prompt_tokens_details", {{"cached_tokens", 0}}}};
}

}  // namespace

TEST_CASE("a completion's reply has every field, in the order of the contract") {
  TestServer server(king_options());
  const Response reply = server.complete(request({{"request_id", "r1"}}));
  CHECK(reply.status == 200);
  CHECK(reply.header("content-type") == "application/json");
  json body = reply.json();
  CHECK(body["created"].get<int64_t>() > 1700000000);
  body["created"] = 0;
  CHECK(body ==
        json{{"id", "cmpl-r1"},
             {"object", "text_completion"},
             {"created", 0},
             {"model", "tales"},
             {"system_fingerprint", "fp_test"},
             {"choices", json::array({{{"index", 0},
                                       {"text", " there was a king"},
                                       {"logprobs", nullptr},
                                       {"finish_reason", "length"},
                                       {"stop_reason", nullptr}}})},
             {"usage", usage_json(int(tales_tokenizer().encode("Once upon a time", true).size()),
                                  king_tokens())}});
}

TEST_CASE("a stream says the same as the whole reply, one line an event, and ends with DONE") {
  TestServer server;  // invented tokens: bytes of all kinds
  for (int seed = 0; seed < 20; ++seed) {
    INFO("seed " << seed);
    const json base = request({{"seed", seed}, {"max_tokens", 60}, {"ignore_eos", true}});
    json streamed = base;
    streamed["stream"] = true;
    const Response stream = server.complete(streamed);
    CHECK(stream.status == 200);
    CHECK(stream.header("content-type") == "text/event-stream; charset=utf-8");
    CHECK(stream.header("cache-control") == "no-cache");
    CHECK(stream.header("x-accel-buffering") == "no");
    CHECK(stream.body.ends_with("\n\ndata: [DONE]\n\n"));
    CHECK(stream.body.find("\n\n\n") == std::string::npos);
    for (size_t at = 0; at < stream.body.size(); at = stream.body.find("\n\n", at) + 2)
      CHECK(stream.body.substr(at, 6) == "data: ");
    const auto events = sse_events(stream.body);
    const json whole = server.complete(base).json();
    CHECK(json(sse_text(events)) == whole["choices"][0]["text"]);
    // Exactly one event has a finish reason, and it is the last before DONE.
    CHECK(events[events.size() - 2]["choices"][0]["finish_reason"] == "length");
    for (size_t i = 0; i + 2 < events.size(); ++i)
      CHECK(events[i]["choices"][0]["finish_reason"] == nullptr);
    for (size_t i = 0; i + 1 < events.size(); ++i) {
      CHECK(events[i]["id"] == events[0]["id"]);
      CHECK_FALSE(events[i].contains("usage"));
    }
  }
}

TEST_CASE("stream_options decide where usage stands") {
  TestServer server(king_options());
  const int prompt = int(tales_tokenizer().encode("Once upon a time", true).size());
  const auto events_of = [&](const json& options) {
    return sse_events(
        server.complete(request({{"stream", true}, {"stream_options", options}})).body);
  };
  const auto once = events_of({{"include_usage", true}});
  REQUIRE(once.size() >= 3);
  CHECK(once[once.size() - 2]["choices"] == json::array());
  CHECK(once[once.size() - 2]["usage"] == usage_json(prompt, king_tokens()));
  for (size_t i = 0; i + 2 < once.size(); ++i) CHECK(once[i].at("usage") == nullptr);

  const auto each = events_of({{"include_usage", true}, {"continuous_usage_stats", true}});
  int before = 0;
  for (size_t i = 0; i + 1 < each.size(); ++i) {
    const int tokens = each[i]["usage"]["completion_tokens"];
    CHECK(tokens >= before);
    CHECK(each[i]["usage"] == usage_json(prompt, tokens));
    before = tokens;
  }
  CHECK(before == king_tokens());
  const auto off = events_of({{"include_usage", false}});
  CHECK_FALSE(off[0].contains("usage"));
  CHECK(off[off.size() - 2]["choices"].size() == 1);
}

TEST_CASE("usage in every event needs no usage at the end") {
  TestServer server(king_options());
  const auto events =
      sse_events(server
                     .complete(request({{"stream", true},
                                        {"stream_options", {{"continuous_usage_stats", true}}}}))
                     .body);
  CHECK(events[events.size() - 2]["usage"]["completion_tokens"] == king_tokens());
  CHECK(events[events.size() - 2]["choices"].size() == 1);
}

TEST_CASE("return_tokens_as_token_ids names the tokens of logprobs by their ids") {
  TestServer server(king_options());
  const std::vector<int32_t> ids = tales_tokenizer().encode("there was a king", false);
  const json choice =
      server.complete(request({{"logprobs", 2}, {"return_tokens_as_token_ids", true}}))
          .json()["choices"][0];
  CHECK(choice["text"] == " there was a king");
  const json& logprobs = choice["logprobs"];
  REQUIRE(logprobs["tokens"].size() == ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    const std::string name = "token_id:" + std::to_string(ids[i]);
    CHECK(logprobs["tokens"][i] == name);
    CHECK(logprobs["top_logprobs"][i].contains(name));
    CHECK(logprobs["top_logprobs"][i].size() >= 2);
    for (const auto& [key, value] : logprobs["top_logprobs"][i].items())
      CHECK(key.starts_with("token_id:"));
  }
}

TEST_CASE("truncation_side decides which end of a prompt stays") {
  TestServer server(king_options());
  const auto kept = [&](const json& more) {
    json body = request({{"prompt", {11, 12, 13, 14, 15}}, {"return_token_ids", true}});
    body.update(more);
    return server.complete(body).json()["choices"][0]["prompt_token_ids"];
  };
  CHECK(kept({{"truncate_prompt_tokens", 2}}) == json({14, 15}));
  CHECK(kept({{"truncate_prompt_tokens", 2}, {"truncation_side", "left"}}) == json({14, 15}));
  CHECK(kept({{"truncate_prompt_tokens", 2}, {"truncation_side", "right"}}) == json({11, 12}));
  CHECK(kept({{"truncation_side", "right"}}) == json({11, 12, 13, 14, 15}));
}

TEST_CASE("prompts may be a string, strings, ids, lists of ids, and mixed") {
  TestServer server(king_options());
  const std::vector<int32_t> ids = tales_tokenizer().encode("Once upon a time", true);
  const int n = int(ids.size());
  const auto prompt_tokens = [&](const json& prompt, size_t choices) {
    const json reply = server.complete(request({{"prompt", prompt}})).json();
    CHECK(reply["choices"].size() == choices);
    for (size_t i = 0; i < choices; ++i) CHECK(reply["choices"][i]["index"] == i);
    return reply["usage"]["prompt_tokens"].get<int>();
  };
  CHECK(prompt_tokens("Once upon a time", 1) == n);
  CHECK(prompt_tokens({"Once upon a time", "Once upon a time"}, 2) == 2 * n);
  CHECK(prompt_tokens(ids, 1) == n);
  CHECK(prompt_tokens({ids, ids, ids}, 3) == 3 * n);
  CHECK(prompt_tokens({"Once upon a time", ids}, 2) == 2 * n);
  CHECK(prompt_tokens({7}, 1) == 1);  // ids never get a BOS
}

TEST_CASE("n gives n choices of each prompt, best_of the likeliest of them") {
  TestServer server;
  const json reply =
      server.complete(request({{"n", 3}, {"seed", 1}, {"prompt", {"a", "b"}}})).json();
  CHECK(reply["choices"].size() == 6);
  CHECK(reply["choices"][0]["text"] != reply["choices"][1]["text"]);
  CHECK(reply["usage"]["completion_tokens"] == 6 * king_tokens());
  const json best = server.complete(request({{"n", 1}, {"best_of", 4}, {"seed", 1}})).json();
  CHECK(best["choices"].size() == 1);
  CHECK(best["usage"]["completion_tokens"] == 4 * king_tokens());
  // A stream of several choices carries each of them whole.
  const auto events = sse_events(
      server.complete(request({{"n", 3}, {"seed", 1}, {"prompt", {"a", "b"}}, {"stream", true}}))
          .body);
  for (int i = 0; i < 6; ++i)
    CHECK(json(sse_text(events, i)) == reply["choices"][size_t(i)]["text"]);
}

TEST_CASE("stop strings and stop ids end the text and say why") {
  TestServer server(king_options());
  const json by_text = server.complete(request({{"stop", " was"}})).json()["choices"][0];
  CHECK(by_text["text"] == " there");
  CHECK(by_text["finish_reason"] == "stop");
  CHECK(by_text["stop_reason"] == " was");
  const json kept =
      server.complete(request({{"stop", {"zzz", "a k"}}, {"include_stop_str_in_output", true}}))
          .json()["choices"][0];
  CHECK(kept["text"] == " there was a k");
  CHECK(kept["stop_reason"] == "a k");
  const int32_t id = tales_tokenizer().encode("there was", false).back();
  const json by_id = server.complete(request({{"stop_token_ids", {id}}})).json()["choices"][0];
  CHECK(by_id["finish_reason"] == "stop");
  CHECK(by_id["stop_reason"] == id);
  const json none = server.complete(request({{"stop", nullptr}})).json()["choices"][0];
  CHECK(none["text"] == " there was a king");
}

TEST_CASE("EOS ends a text unless it is ignored or comes too early") {
  ServerOptions options = server_options();
  options.engine.runner.tokens = FakeRunnerOptions::Tokens::script;
  options.engine.runner.script = tales_tokenizer().encode("there", false);
  options.engine.runner.script.push_back(2);  // EOS
  TestServer server(options);
  const auto tokens = [&](const json& more) {
    return server.complete(request(more)).json()["usage"]["completion_tokens"].get<int>();
  };
  const int there = int(options.engine.runner.script.size());
  CHECK(tokens({{"max_tokens", 12}}) == there);
  CHECK(tokens({{"max_tokens", 12}, {"ignore_eos", true}}) == 12);
  CHECK(tokens({{"max_tokens", 12}, {"min_tokens", 7}}) >= 7);
}

TEST_CASE("echo puts the prompt in front, logprobs cover it, and max_tokens 0 scores it alone") {
  TestServer server(king_options());
  const std::vector<int32_t> ids = tales_tokenizer().encode("Once upon a time", true);
  const json reply =
      server.complete(request({{"echo", true}, {"logprobs", 2}, {"return_token_ids", true}}))
          .json();
  const json choice = reply["choices"][0];
  CHECK(choice["text"] == "Once upon a time there was a king");
  CHECK(choice["prompt_token_ids"] == ids);
  CHECK(choice["token_ids"] == tales_tokenizer().encode("there was a king", false));
  const json logprobs = choice["logprobs"];
  const size_t tokens = ids.size() + size_t(king_tokens());
  for (const char* field : {"tokens", "token_logprobs", "top_logprobs", "text_offset"})
    CHECK(logprobs[field].size() == tokens);
  CHECK(logprobs["token_logprobs"][0] == nullptr);
  CHECK(logprobs["top_logprobs"][0] == nullptr);
  for (size_t i = 1; i < tokens; ++i) {
    CHECK(logprobs["token_logprobs"][i] == -1);
    CHECK(logprobs["top_logprobs"][i][logprobs["tokens"][i].get<std::string>()] == -1);
  }
  const json scored =
      server.complete(request({{"echo", true}, {"logprobs", 0}, {"max_tokens", 0}})).json();
  CHECK(scored["choices"][0]["text"] == "Once upon a time");
  CHECK(scored["choices"][0]["finish_reason"] == "length");
  CHECK(scored["choices"][0]["logprobs"]["tokens"].size() == ids.size());
  CHECK(scored["usage"]["completion_tokens"] == 0);
}

TEST_CASE("a stream's logprobs and ids, joined, are those of the whole reply") {
  TestServer server;
  const json base = request({{"echo", true},
                             {"logprobs", 3},
                             {"return_token_ids", true},
                             {"seed", 5},
                             {"max_tokens", 40},
                             {"ignore_eos", true}});
  json streamed = base;
  streamed["stream"] = true;
  const json whole = server.complete(base).json()["choices"][0];
  json joined = {{"tokens", json::array()},
                 {"token_logprobs", json::array()},
                 {"top_logprobs", json::array()},
                 {"text_offset", json::array()}};
  json ids = json::array();
  int with_prompt_ids = 0;
  for (const json& event : sse_events(server.complete(streamed).body)) {
    if (!event.is_object()) continue;
    const json& choice = event["choices"][0];
    for (const auto& item : joined.items())
      for (const json& value : choice["logprobs"][item.key()]) joined[item.key()].push_back(value);
    for (const json& id : choice["token_ids"]) ids.push_back(id);
    with_prompt_ids += choice.contains("prompt_token_ids");
  }
  CHECK(joined == whole["logprobs"]);
  CHECK(ids == whole["token_ids"]);
  CHECK(with_prompt_ids == 1);
}

TEST_CASE("truncation, special tokens and seeds change the reply as they should") {
  TestServer server;
  const auto prompt_tokens = [&](const json& more) {
    return server.complete(request(more)).json()["usage"]["prompt_tokens"].get<int>();
  };
  const int whole = prompt_tokens({});
  CHECK(prompt_tokens({{"add_special_tokens", false}}) == whole - 1);
  CHECK(prompt_tokens({{"truncate_prompt_tokens", 2}}) == 2);
  CHECK(prompt_tokens({{"truncate_prompt_tokens", -1}}) == whole);
  const auto text = [&](const json& more) {
    return server.complete(request(more)).json()["choices"][0]["text"].get<std::string>();
  };
  CHECK(text({{"seed", 3}}) == text({{"seed", 3}}));
  CHECK(text({{"seed", 3}}) != text({{"seed", 4}}));
  CHECK(text({{"seed", -3}}) != text({{"seed", 3}}));
}

TEST_CASE("what the client needs not know does not fail: user, unknown fields, null fields") {
  TestServer server(king_options());
  CHECK(server
            .complete(request({{"user", "u"},
                               {"priority", -3},
                               {"some_new_field", {{"a", 1}}},
                               {"temperature", nullptr},
                               {"stream", nullptr},
                               {"logit_bias", nullptr},
                               {"response_format", {{"type", "text"}}},
                               {"stream_options", nullptr}}))
            .status == 200);
}

TEST_CASE("a failing step costs its requests, with 500, and not the server") {
  ServerOptions options = server_options();
  options.engine.runner.fail_at_step = 0;
  {
    TestServer server(options);
    const Response failed = server.complete(request());
    CHECK(failed.status == 500);
    CHECK(failed.json()["error"]["type"] == "server_error");
    CHECK(failed.json()["error"]["code"] == "internal_error");
    CHECK(server.complete(request()).status == 200);
  }
  {
    TestServer server(options);
    CHECK(server.complete(request({{"stream", true}})).status == 500);  // before the first event
  }
  // After the first event, on a busy machine too.
  options.engine.runner.fail_at_step = 5;
  options.engine.runner.step_delay = std::chrono::milliseconds(100);
  TestServer server(options);
  const Response late = server.complete(request({{"stream", true}, {"max_tokens", 50}}));
  CHECK(late.status == 200);
  const auto events = sse_events(late.body);
  REQUIRE(events.size() >= 3);
  CHECK(events[events.size() - 2]["error"]["code"] == "internal_error");
  CHECK(events.back() == "[DONE]");
  CHECK(server.becomes_idle());
}

TEST_CASE("a client that is silent at first has the whole time of a request") {
  ServerOptions options = server_options();
  options.http.request_timeout = 1;
  TestServer server(options);
  Client early = server.client();
  std::this_thread::sleep_for(std::chrono::milliseconds(1500));
  const auto reply = early.post("/v1/completions", request({{"max_tokens", 2}}).dump());
  REQUIRE(reply);
  CHECK(reply->status == 200);
}

TEST_CASE("a request that takes too long answers 408, a late one with an error event") {
  ServerOptions options = server_options();
  options.http.request_timeout = 1;
  options.engine.runner.step_delay = std::chrono::milliseconds(30);
  TestServer server(options);
  const Response whole = server.complete(request({{"max_tokens", 1000}, {"ignore_eos", true}}));
  CHECK(whole.status == 408);
  CHECK(whole.json()["error"]["code"] == "deadline_exceeded");
  const auto events = sse_events(
      server.complete(request({{"max_tokens", 1000}, {"ignore_eos", true}, {"stream", true}}))
          .body);
  REQUIRE(events.size() >= 3);
  CHECK(events[events.size() - 2]["error"]["code"] == "deadline_exceeded");
  CHECK(server.becomes_idle());
  CHECK(server.sample("kivi:requests_aborted_total{reason=\"deadline\"}") == 2);
}

TEST_CASE("HTTP/1.0 clients get streams that end with the connection") {
  TestServer server(king_options());
  const std::string body = request({{"stream", true}}).dump();
  Client client = server.client();
  client.send(
      "POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: " +
      std::to_string(body.size()) + "\r\n\r\n" + body);
  const auto reply = client.read_response();
  REQUIRE(reply);
  CHECK(reply->header("transfer-encoding").empty());
  CHECK(reply->header("connection") == "close");
  CHECK(sse_text(sse_events(reply->body)) == " there was a king");
}
