// SPDX-License-Identifier: Apache-2.0
// /openapi.json says what the readers of requests do: every path of the route table is in it, every
// field has a shape, and its words are kept. Also /docs, /load, /server_info.
#include <catch2/catch.hpp>
#include <set>

#include "server/http/http_routes.h"
#include "tests/http/http_fixture.h"

using namespace kivi;
using namespace kivi::testing;
using nlohmann::json;

namespace {

json document(TestServer& server) { return server.get("/openapi.json").json(); }

json fields_of(const json& api, const std::string& path) {
  return api["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
            ["properties"];
}

}  // namespace

TEST_CASE("the document has every path of the route table, with its method and access") {
  TestServer server;
  const json api = document(server);
  CHECK(api["openapi"] == "3.1.0");
  size_t methods = 0;
  for (const auto& [path, operations] : api["paths"].items()) methods += operations.size();
  CHECK(methods == all_routes().size());
  for (const Route& route : all_routes()) {
    std::string path(route.path);
    if (path.back() == '*') path = path.substr(0, path.size() - 1) + "{id}";
    INFO(path);
    const json& operation = api["paths"][path][route.method == "GET" ? "get" : "post"];
    REQUIRE(operation.is_object());
    CHECK_FALSE(operation["summary"].get<std::string>().empty());
    CHECK(operation.contains("requestBody") == (route.method == "POST"));
    CHECK(operation.contains("security") == (route.access == Access::open));
  }
}

TEST_CASE("every field of a request has a shape and a sentence") {
  TestServer server;
  const json api = document(server);
  size_t count = 0;
  for (const auto& [path, operations] : api["paths"].items()) {
    if (!operations.contains("post")) continue;
    const json fields = fields_of(api, path);
    for (const auto& [name, field] : fields.items()) {
      INFO(path << " " << name);
      CHECK((field.contains("type") || field.contains("anyOf") || field.contains("enum")));
      CHECK(field.contains("description"));
      ++count;
    }
  }
  CHECK(count > 150);
}

TEST_CASE("the fields are those that the readers take, and none that they refuse") {
  TestServer server;
  const json api = document(server);
  const json completion = fields_of(api, "/v1/completions"),
             chat = fields_of(api, "/v1/chat/completions");
  for (const char* name : {"prompt", "max_tokens", "logit_bias", "echo", "best_of", "guided_json"})
    CHECK(completion.contains(name));
  for (const char* name : {"messages", "tools", "top_logprobs", "stream_options", "seed"})
    CHECK(chat.contains(name));
  for (const char* name : {"prompt_logprobs", "typical_p", "mirostat", "mirostat_tau", "suffix"}) {
    CHECK_FALSE(completion.contains(name));
    CHECK_FALSE(chat.contains(name));
  }
  CHECK(completion["n"]["maximum"] == 128);
  CHECK(chat["logprobs"]["type"] == "boolean");
  CHECK(completion["logprobs"]["type"] == "integer");
  CHECK(fields_of(api, "/v1/messages").contains("stop_sequences"));
  CHECK(fields_of(api, "/v1/messages")["min_tokens"]["type"] == "integer");
  CHECK_FALSE(fields_of(api, "/v1/messages").contains("stop"));
  CHECK(fields_of(api, "/v1/responses").contains("input"));
  CHECK_FALSE(fields_of(api, "/v1/responses").contains("store"));
  // A server that knows no more takes each of them, but for its value.
  ServerOptions strict = server_options();
  strict.http.strict_params = true;
  TestServer judge(std::move(strict));
  for (const auto& [name, field] : completion.items()) {
    const Response reply =
        judge.complete({{"prompt", "x"}, {"max_tokens", 1}, {name, json::object()}});
    INFO(name << " " << reply.body);
    CHECK(reply.body.find("is not a known parameter") == std::string::npos);
  }
}

TEST_CASE("the page that shows the document is part of the program, under a strict policy") {
  TestServer server;
  const Response page = server.get("/docs");
  CHECK(page.status == 200);
  CHECK(page.header("content-security-policy").find("default-src 'none'") == 0);
  CHECK(page.body.find("src=\"/docs.js\"") != std::string::npos);
  CHECK(server.get("/docs.js").body.find("/openapi.json") != std::string::npos);
  ServerOptions off = server_options();
  off.http.playground = false;
  TestServer without(std::move(off));
  CHECK(without.get("/docs").status == 404);
  CHECK(without.get("/openapi.json").status == 200);
}

TEST_CASE("load and info say what the engine does, to those who have a key") {
  ServerOptions options = server_options();
  options.http.api_keys = {"k"};
  TestServer server(std::move(options));
  const std::string key = "Authorization: Bearer k\r\n";
  CHECK(server.get("/load").status == 401);
  CHECK(server.get("/server_info").status == 401);
  const json load = server.get("/load", key).json();
  CHECK(load == json{{"server_load", 0},
                     {"requests_running", 0},
                     {"requests_waiting", 0},
                     {"kv_cache_usage", 0}});
  const json info = server.get("/server_info", key).json();
  CHECK(info["model"] == "tales");
  CHECK(info["phase"] == "ready");
  CHECK(info["kv_cache_tokens_capacity"] > 0);
}
