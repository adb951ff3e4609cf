// SPDX-License-Identifier: Apache-2.0
// What the headers of an inference gateway change, and when they count.
#include "server/gateway.h"

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "tests/http/http_fixture.h"

using namespace kivi;
using namespace kivi::testing;

namespace {

constexpr const char* kBody = R"({"model": "tales", "prompt": "Once", "max_tokens": 1})";

// The status of a second completion with this fairness id, if one client may send one a minute.
int second_status(bool trusted, const std::string& first_id, const std::string& second_id) {
  ServerOptions options = server_options();
  options.http.limit_requests_per_minute = 1;
  options.http.gateway_headers = trusted;
  TestServer server(options);
  Client client(server.port());
  const auto send = [&](const std::string& id) {
    const auto reply =
        client.post("/v1/completions", kBody,
                    id.empty() ? "" : "X-Gateway-Inference-Fairness-Id: " + id + "\r\n");
    REQUIRE(reply);
    return reply->status;
  };
  REQUIRE(send(first_id) == 200);
  return send(second_id);
}

}  // namespace

TEST_CASE("the fairness id of a trusted gateway is the tenant") {
  CHECK(second_status(true, "a", "b") == 200);
  CHECK(second_status(true, "a", "a") == 429);
  CHECK(second_status(true, "a", "") == 200);
}

TEST_CASE("without trust a client cannot choose its tenant") {
  CHECK(second_status(false, "a", "b") == 429);
  CHECK(second_status(true, "a b", "c d") == 429);  // not printable as one word: no id
}

TEST_CASE("an objective has the priority that the operator gave it") {
  ServerConfig config;
  config.gateway_headers = true;
  config.objective_priorities = {"premium=-10", "batch=10"};
  CHECK(priority_of_objective(config, "premium") == -10);
  CHECK(priority_of_objective(config, "batch") == 10);
  CHECK_FALSE(priority_of_objective(config, "prem"));
  CHECK_FALSE(priority_of_objective(config, ""));
  config.gateway_headers = false;
  CHECK_FALSE(priority_of_objective(config, "premium"));
}

TEST_CASE("an objective without a priority is refused by its flag and value") {
  for (const char* entry : {"premium", "=3", "a=", "a=x", "a=1.5", "a=99999999999"}) {
    ServerConfig config;
    config.gateway_headers = true;
    config.objective_priorities = {entry};
    const Status status = check_gateway(config);
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().field == "objective-priority");
    CHECK(status.error().message.find(entry) != std::string::npos);
  }
  ServerConfig untrusted;
  untrusted.objective_priorities = {"a=1"};
  CHECK_FALSE(check_gateway(untrusted).ok());
}

TEST_CASE("calls for LoRA adapters are refused and say what to do") {
  TestServer server;
  Client client(server.port());
  for (const char* path : {"/v1/load_lora_adapter", "/v1/unload_lora_adapter"}) {
    const auto reply = client.post(path, R"({"lora_name": "x", "lora_path": "/x"})");
    REQUIRE(reply);
    CHECK(reply->status == 400);
    const auto error = nlohmann::json::parse(reply->body).at("error");
    CHECK(error.at("code") == "unsupported_parameter");
    CHECK(error.at("param") == "lora_name");
    CHECK(error.at("message").get<std::string>().find("merge the adapter") != std::string::npos);
  }
}
