// SPDX-License-Identifier: Apache-2.0
// Requests and replies of every endpoint.
#include <catch2/catch.hpp>

#include "base/version.h"
#include "server/http/http_message.h"
#include "tests/http/http_fixture.h"

using namespace kivi;
using namespace kivi::testing;
using nlohmann::json;

namespace {

// Ids of "Once upon a time" with BOS, as the tokenizer gives them.
std::vector<int32_t> once_ids() { return tales_tokenizer().encode("Once upon a time", true); }

}  // namespace

TEST_CASE("a reply's date has the form of RFC 9110") {
  CHECK(http_date(784111777) == "Sun, 06 Nov 1994 08:49:37 GMT");
  CHECK(http_date(0) == "Thu, 01 Jan 1970 00:00:00 GMT");
  CHECK(http_date(1709251199) == "Thu, 29 Feb 2024 23:59:59 GMT");
  CHECK(http_date(1767225599) == "Wed, 31 Dec 2025 23:59:59 GMT");
  TestServer server;
  const std::time_t before = std::time(nullptr);
  const std::string date = server.get("/health/live").header("date");
  const std::time_t after = std::time(nullptr);
  INFO(date);
  bool is_between = false;
  for (std::time_t t = before; t <= after; ++t) is_between |= date == http_date(t);
  CHECK(is_between);
}

TEST_CASE("the health family tells loading, ready and draining apart") {
  ServerOptions options = server_options();
  options.loaded = false;
  TestServer server(options);
  for (const char* path : {"/health", "/health/ready", "/ping"}) {
    const Response loading = server.get(path);
    CHECK(loading.status == 503);
    CHECK(loading.json()["error"]["code"] == "loading");
    CHECK(loading.header("retry-after") == "5");
  }
  CHECK(server.get("/health/live").status == 200);
  CHECK(server.get("/v1/models").json()["error"]["code"] == "loading");
  CHECK(server.complete({{"prompt", "a"}}).status == 503);
  server.set_model();
  for (const char* path : {"/health", "/health/ready", "/ping", "/health/live"}) {
    const Response ready = server.get(path);
    CHECK(ready.status == 200);
    CHECK(ready.json() == json{{"status", "ok"}});
  }
  server.state().begin_leaving();
  CHECK(server.get("/health/ready").json()["error"]["code"] == "draining");
  CHECK(server.get("/health/live").status == 200);
  const Response taken = server.complete({{"prompt", "a"}});
  CHECK(taken.status == 200);
  CHECK(taken.header("connection") == "close");
  server.state().begin_drain();
  CHECK(server.get("/health/ready").json()["error"]["code"] == "draining");
  CHECK(server.get("/health/live").status == 200);
  const Response refused = server.complete({{"prompt", "a"}});
  CHECK(refused.status == 503);
  CHECK(refused.json()["error"]["code"] == "draining");
  CHECK(refused.header("retry-after") == "5");
  CHECK(refused.header("connection") == "close");
  CHECK(server.sample("kivi:admission_rejections_total{reason=\"draining\"}") == 1);
  CHECK(server.sample("kivi:admission_rejections_total{reason=\"loading\"}") == 2);
}

TEST_CASE("models are listed and found by name, others are not found") {
  TestServer server;
  const json card = {{"id", "tales"},        {"object", "model"}, {"created", 1700000000},
                     {"owned_by", "kivi"},   {"root", "tales"},   {"parent", nullptr},
                     {"max_model_len", 2048}};
  CHECK(server.get("/v1/models").json() == json{{"object", "list"}, {"data", json::array({card})}});
  CHECK(server.get("/v1/models/tales").json() == card);
  CHECK(server.get("/v1/models/t%61les?x=1").json() == card);
  for (const char* path : {"/v1/models/other", "/v1/models/tales/x"}) {
    const Response missing = server.get(path);
    CHECK(missing.status == 404);
    CHECK(missing.json()["error"]["code"] == "model_not_found");
    CHECK(missing.json()["error"]["param"] == "model");
  }
}

TEST_CASE("version and unknown paths answer as written") {
  TestServer server;
  CHECK(server.get("/version").json() == json{{"version", KIVI_VERSION}});
  const Response missing = server.get("/v1/nothing");
  CHECK(missing.status == 404);
  CHECK(missing.json() == json::parse(R"({"error":{"message":"no such path: \"/v1/nothing\"",
        "type":"invalid_request_error","param":null,"code":"not_found"}})"));
}

TEST_CASE("tokenize and detokenize are inverse, with and without BOS") {
  TestServer server;
  const std::vector<int32_t> ids = once_ids();
  const Response whole = server.post("/tokenize", R"({"prompt":"Once upon a time"})");
  CHECK(whole.json() == json{{"count", ids.size()},
                             {"max_model_len", 2048},
                             {"tokens", ids},
                             {"token_strs", nullptr}});
  const json plain =
      server
          .post("/v1/tokenize",
                R"({"model":"tales","prompt":"Once upon a time","add_special_tokens":false,)"
                R"("return_token_strs":true})")
          .json();
  CHECK(plain["tokens"] == std::vector<int32_t>(ids.begin() + 1, ids.end()));
  CHECK(plain["token_strs"].size() == ids.size() - 1);
  CHECK(plain["token_strs"][0] == tales_tokenizer().token_name(ids[1]));
  const Response back = server.post("/detokenize", json{{"tokens", plain["tokens"]}}.dump());
  CHECK(back.json() == json{{"prompt", "Once upon a time"}});
  CHECK(server.post("/v1/detokenize", R"({"tokens":[]})").json() == json{{"prompt", ""}});
  CHECK(server.post("/tokenize", R"({"prompt":""})").json()["count"] == 1);
}

TEST_CASE("a long prompt is tokenized away from the io thread, with the same result") {
  TestServer server;
  std::string text;
  while (text.size() < 200'000) text += "Once upon a time there was a king. ";
  const json tokens = server.post("/tokenize", json{{"prompt", text}}.dump()).json();
  CHECK(tokens["tokens"] == tales_tokenizer().encode(text, true));
}

TEST_CASE("tokenizer_info names the special tokens") {
  TestServer server;
  const json info = server.get("/tokenizer_info").json();
  CHECK(info == server.get("/v1/tokenizer_info").json());
  const Tokenizer& tokenizer = tales_tokenizer();
  CHECK(info["eos_token"] == tokenizer.token_name(*tokenizer.eos_id()));
  CHECK(info["eos_token_id"] == *tokenizer.eos_id());
  CHECK(info["bos_token"] == tokenizer.token_name(*tokenizer.bos_id()));
  CHECK(info["vocab_size"] == 4096);
}

TEST_CASE("HEAD answers like GET without a body, and POST paths refuse GET") {
  TestServer server;
  const size_t length = server.get("/v1/models").body.size();
  Client client = server.client();
  client.send("HEAD /v1/models HTTP/1.1\r\nHost: x\r\n\r\n");
  const auto head = client.read_response(/*head=*/true);
  REQUIRE(head);
  CHECK(head->status == 200);
  CHECK(head->header("content-length") == std::to_string(length));
  CHECK(client.get("/health")->status == 200);  // nothing of a body in between
  const auto wrong = client.get("/v1/completions");
  CHECK(wrong->status == 405);
  CHECK(wrong->header("allow") == "POST");
  CHECK(client.post("/v1/models", "{}")->header("allow") == "GET, HEAD");
  client.send("BREW /health HTTP/1.1\r\nHost: x\r\n\r\n");
  CHECK(client.read_response()->status == 405);
  CHECK(server.sample(
            "kivi:http_requests_total{handler=\"/health\",method=\"other\",status=\"405\"}") == 1);
}

TEST_CASE("only JSON is taken, uncompressed") {
  TestServer server;
  const auto status = [&](const std::string& headers) {
    Client client = server.client();
    client.send("POST /tokenize HTTP/1.1\r\nHost: x\r\n" + headers +
                "Content-Length: 14\r\n\r\n{\"prompt\":\"a\"}");
    return client.read_response()->status;
  };
  CHECK(status("") == 415);
  CHECK(status("Content-Type: application/json\r\n") == 200);
  CHECK(status("Content-Type: Application/JSON ; charset=utf-8\r\n") == 200);
  CHECK(status("Content-Type: text/plain\r\n") == 415);
  CHECK(status("Content-Type: application/x-www-form-urlencoded\r\n") == 415);
  CHECK(status("Content-Type: application/json\r\nContent-Encoding: gzip\r\n") == 415);
}

TEST_CASE("a usable X-Request-Id is echoed and becomes the reply's id, another is replaced") {
  TestServer server;
  const Response kept =
      server.post("/v1/completions", R"({"prompt":"a"})", "X-Request-Id: abc-1\r\n");
  CHECK(kept.header("x-request-id") == "abc-1");
  CHECK(kept.json()["id"] == "cmpl-abc-1");
  const Response body = server.post("/v1/completions", R"({"prompt":"a","request_id":"mine"})");
  CHECK(body.json()["id"] == "cmpl-mine");
  const Response made = server.get("/health", "X-Request-Id: a b\r\n");
  CHECK(made.header("x-request-id").size() == 32);
  CHECK(made.header("x-request-id") != server.get("/health").header("x-request-id"));
}

TEST_CASE("with a key every path needs it but the open ones") {
  ServerOptions options = server_options();
  options.http.api_keys = {"sesame", "second-key"};
  TestServer server(options);
  for (const char* path : {"/health", "/health/live", "/health/ready", "/ping", "/version",
                           "/metrics", "/", "/docs", "/openapi.json"})
    CHECK(server.get(path).status == 200);
  for (const char* path : {"/v1/models", "/v1/models/tales", "/tokenizer_info", "/load",
                           "/server_info", "/v1/nothing", "/health/", "/docs/"}) {
    INFO(path);
    const Response denied = server.get(path);
    CHECK(denied.status == 401);
    CHECK(denied.header("www-authenticate") == "Bearer");
    CHECK(denied.json()["error"]["type"] == "authentication_error");
    CHECK(denied.json()["error"]["code"] == "invalid_api_key");
  }
  for (const char* path :
       {"/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens",
        "/v1/responses", "/v1/completions/render", "/v1/chat/completions/render", "/tokenize",
        "/detokenize", "/v1/embeddings", "/v1/score", "/v1/rerank", "/pause"})
    CHECK(server.post(path, "{}").status == 401);
  for (const char* wrong : {"Bearer sesam", "Bearer sesamE", "Bearer ", "Bearer", "Basic sesame",
                            "sesame", "Bearer sesame second-key"})
    CHECK(server.get("/v1/models", std::string("Authorization: ") + wrong + "\r\n").status == 401);
  for (const char* right : {"Bearer sesame", "bearer second-key"})
    CHECK(server.get("/v1/models", std::string("Authorization: ") + right + "\r\n").status == 200);
}

TEST_CASE("metrics_require_key closes /metrics") {
  ServerOptions options = server_options();
  options.http.api_keys = {"sesame"};
  options.http.metrics_require_key = true;
  TestServer server(options);
  CHECK(server.get("/metrics").status == 401);
  CHECK(server.get("/metrics", "Authorization: Bearer sesame\r\n").status == 200);
}

TEST_CASE("CORS answers only configured origins, and is off by default") {
  const std::string preflight =
      "OPTIONS /v1/completions HTTP/1.1\r\nHost: x\r\nOrigin: https://a.example\r\n"
      "Access-Control-Request-Method: POST\r\n\r\n";
  {
    TestServer server;
    Client client = server.client();
    client.send(preflight);
    const auto reply = client.read_response();
    CHECK(reply->status == 405);
    CHECK(reply->header("access-control-allow-origin").empty());
  }
  ServerOptions options = server_options();
  options.http.allowed_origins = {"https://a.example"};
  options.http.api_keys = {"sesame"};
  TestServer server(options);
  Client client = server.client();
  client.send(preflight);
  const auto reply = client.read_response();
  CHECK(reply->status == 204);
  CHECK(reply->header("access-control-allow-origin") == "https://a.example");
  CHECK(reply->header("access-control-allow-methods") == "POST, OPTIONS");
  CHECK(reply->header("access-control-allow-headers") ==
        "Authorization, Content-Type, X-Request-Id");
  const auto asking_for = [&](const std::string& names) {
    std::string more = preflight;
    more.insert(more.size() - 2, "Access-Control-Request-Headers: " + names + "\r\n");
    Client other = server.client();
    other.send(more);
    return other.read_response()->header("access-control-allow-headers");
  };
  CHECK(asking_for("authorization,x-stainless-os, x-stainless-lang") ==
        "Authorization, Content-Type, X-Request-Id, authorization,x-stainless-os, "
        "x-stainless-lang");
  for (const std::string& bad : {std::string("a;b"), std::string(3000, 'x'), std::string("\"a\"")})
    CHECK(asking_for(bad) == "Authorization, Content-Type, X-Request-Id");
  CHECK(server.get("/health", "Origin: https://a.example\r\n")
            .header("access-control-allow-origin") == "https://a.example");
  CHECK(server.get("/health", "Origin: https://b.example\r\n")
            .header("access-control-allow-origin")
            .empty());
  options.http.api_keys.clear();
  TestServer keyless(options);
  CHECK(keyless.get("/health", "Origin: https://a.example\r\n").status == 200);
  CHECK(keyless.get("/health", "Origin: https://b.example\r\n").status == 403);
  options.http.allowed_origins = {"*"};
  TestServer open(options);
  const Response any = open.get("/health", "Origin: https://b.example\r\n");
  CHECK(any.status == 200);
  CHECK(any.header("access-control-allow-origin") == "*");
  CHECK(open.get("/health").header("access-control-allow-origin").empty());
}
