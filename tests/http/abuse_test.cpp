// SPDX-License-Identifier: Apache-2.0
// What clients do that they should not: broken, hostile, slow and gone.
#include <catch2/catch.hpp>
#include <random>

#include "engine/limits.h"
#include "tests/http/http_fixture.h"

using namespace kivi;
using namespace kivi::testing;
using nlohmann::json;

namespace {

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

const std::string kHealth = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";

std::string stream_request(int max_tokens) {
  return Client::post_text(
      "/v1/completions",
      json{{"prompt", "a"}, {"max_tokens", max_tokens}, {"ignore_eos", true}, {"stream", true}}
          .dump());
}

}  // namespace

TEST_CASE("bodies that are not JSON objects are 400") {
  TestServer server;
  Client client = server.client();
  const std::string bombs[] = {
      "",
      "{",
      "[]",
      "null",
      "7",
      "\"a\"",
      "{\"prompt\":\"a\"}x",
      "{\"prompt\":\"a\",}",
      "{'prompt':'a'}",
      "{\"prompt\":\"\xff\xfe\"}",
      "{\"prompt\":\"\\ud800\"}",
      std::string("{\"prompt\":\"a\0b\"}", 16),
      std::string(100'000, '['),
      std::string(100'000, '[') + std::string(100'000, ']'),
      "{\"prompt\":" + std::string(65, '[') + std::string(65, ']') + "}",
      [] {
        std::string text;
        for (int i = 0; i < 100'000; ++i) text += "{\"a\":";
        return text;
      }(),
      "{\"prompt\":" + std::string(1000, '9') + "}",
      "{\"temperature\":" + std::string(100'000, '1') + "e" + std::string(1000, '9') + "}",
  };
  for (const std::string& body : bombs) {
    INFO(body.substr(0, 60));
    const Clock::time_point start = Clock::now();
    const auto reply = client.post("/v1/completions", body);
    REQUIRE(reply);
    CHECK(reply->status == 400);
    CHECK(reply->json()["error"]["type"] == "invalid_request_error");
    CHECK(reply->body.size() < 2000);
    CHECK(seconds_since(start) < 5);
  }
  CHECK(client.get("/health")->status == 200);  // one connection through all of it
}

TEST_CASE("a body over the limit is 413, announced or chunked, and is not read") {
  ServerOptions options = server_options();
  options.http.max_body_bytes = 100'000;
  TestServer server(options);
  Client announced = server.client();
  announced.send(
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: "
      "application/json\r\nContent-Length: 99999999999\r\n\r\n");
  const auto reply = announced.read_response();
  REQUIRE(reply);
  CHECK(reply->status == 413);
  CHECK(reply->json()["error"]["code"] == "body_too_large");
  CHECK(reply->header("connection") == "close");

  Client chunked = server.client();
  chunked.send(
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: "
      "application/json\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (int i = 0; i < 200; ++i)
    if (!chunked.send("400\r\n" + std::string(1024, 'a') + "\r\n")) break;
  CHECK(chunked.read_response()->status == 413);

  // Just under it is read, whole.
  const std::string fits = R"({"prompt":")" + std::string(99'000, 'a') + R"("})";
  CHECK(server.post("/tokenize", fits).status == 200);
}

TEST_CASE("a chunked body is read like any other") {
  TestServer server;
  Client client = server.client();
  client.send(
      "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: "
      "chunked\r\n\r\n");
  for (const char piece : std::string(R"({"prompt":"Once upon"})"))
    client.send("1\r\n" + std::string(1, piece) + "\r\n");
  client.send("0\r\n\r\n");
  CHECK(client.read_response()->json()["tokens"] == tales_tokenizer().encode("Once upon", true));
}

TEST_CASE("header bombs are 431, garbage is 400, and the server goes on") {
  TestServer server;
  Client big = server.client();
  big.send("GET /health HTTP/1.1\r\nHost: x\r\nX-Big: ");
  for (int i = 0; i < 100; ++i)
    if (!big.send(std::string(1024, 'a'))) break;
  auto reply = big.read_response();
  REQUIRE(reply);
  CHECK(reply->status == 431);
  // A head of exactly the limit is read, one byte more is not.
  for (const size_t more : {size_t(0), size_t(1)}) {
    const std::string begin = "GET /health HTTP/1.1\r\nHost: x\r\nX-Big: ", end = "\r\n\r\n";
    Client at_limit = server.client();
    at_limit.send(begin + std::string(kMaxHeaderBytes - begin.size() - end.size() + more, 'a') +
                  end);
    reply = at_limit.read_response();
    REQUIRE(reply);
    CHECK(reply->status == (more == 0 ? 200 : 431));
  }
  Client many = server.client();
  many.send("GET /health HTTP/1.1\r\nHost: x\r\n");
  for (int i = 0; i < 20'000; ++i)
    if (!many.send("a: b\r\n")) break;
  reply = many.read_response();
  REQUIRE(reply);
  CHECK(reply->status == 431);
  for (const char* text :
       {"garbage\r\n\r\n", "GET\r\n\r\n", "GET /health HTTP/9.9\r\n\r\n",
        "\x16\x03\x01\x02\r\n\r\n", "GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
        "1\r\nContent-Length: 2\r\n\r\nab",
        "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: "
        "application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"}) {
    INFO(text);
    Client client = server.client();
    client.send(text);
    reply = client.read_response();
    REQUIRE(reply);
    CHECK(reply->status == 400);
    CHECK(reply->json()["error"]["code"] == "malformed_request");
    CHECK(reply->header("connection") == "close");
  }
  std::mt19937 random(7);
  for (int i = 0; i < 50; ++i) {
    std::string noise(random() % 2000, '\0');
    for (char& c : noise) c = char(random());
    Client client = server.client();
    client.send(noise);
  }
  CHECK(server.get("/health").status == 200);
}

TEST_CASE("pipelined requests are answered in order, also behind a stream") {
  TestServer server;
  Client client = server.client();
  std::string all;
  for (int i = 0; i < 10; ++i) {
    all += "GET /v1/models/m" + std::to_string(i) + " HTTP/1.1\r\nHost: x\r\n\r\n";
    all += stream_request(3 + i);
    all += kHealth;
  }
  client.send(all);
  for (int i = 0; i < 10; ++i) {
    const auto model = client.read_response();
    REQUIRE(model);
    CHECK(model->body.find("m" + std::to_string(i) + "\\\"") != std::string::npos);
    const auto stream = client.read_response();
    REQUIRE(stream);
    CHECK(stream->body.ends_with("data: [DONE]\n\n"));
    const auto health = client.read_response();
    REQUIRE(health);
    CHECK(health->status == 200);
  }
}

TEST_CASE("a flood of pipelined bytes behind a stream is bounded and does no harm") {
  TestServer server;
  Client client = server.client();
  std::string flood = stream_request(400);
  const size_t first = flood.size();
  while (flood.size() < first + 300'000) flood += kHealth;
  const size_t count = (flood.size() - first) / kHealth.size();
  std::thread writer([&] { client.send(flood); });
  const auto stream = client.read_response();
  REQUIRE(stream);
  CHECK(stream->body.ends_with("data: [DONE]\n\n"));
  size_t answered = 0;
  while (answered < count && client.read_response()) ++answered;
  writer.join();
  CHECK(answered == count);
}

TEST_CASE("half a request and dribbled headers meet the deadline, silence the idle limit") {
  ServerOptions options = server_options();
  options.http.header_timeout = 1;
  options.http.idle_timeout = 1;
  TestServer server(options);
  for (const char* half : {"GET /heal", "GET /health HTTP/1.1\r\nHost:",
                           "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: "
                           "application/json\r\nContent-Length: 100\r\n\r\n{\"prompt\":"}) {
    INFO(half);
    const Clock::time_point start = Clock::now();
    Client client = server.client();
    client.send(half);
    const auto reply = client.read_response();
    REQUIRE(reply);
    CHECK(reply->status == 408);
    CHECK(reply->json()["error"]["code"] == "request_timeout");
    CHECK(seconds_since(start) > 0.7);
    CHECK(seconds_since(start) < 5);
  }
  const Clock::time_point start = Clock::now();
  Client slow = server.client();
  bool open = true;
  for (int i = 0; i < 100 && open; ++i) {
    open = slow.send(i == 0 ? "GET /health HTTP/1.1\r\nHost: x\r\n" : "a: b\r\n");
    open = open && !slow.fill(std::chrono::milliseconds(50));
  }
  CHECK(seconds_since(start) < 4);  // progress does not move the deadline
  Client silent = server.client();
  CHECK(silent.closed());
  Client kept = server.client();
  CHECK(kept.get("/health")->status == 200);
  CHECK(kept.closed());
}

TEST_CASE("a client that does not read is cut off, and its request ends") {
  ServerOptions options = server_options();
  options.http.write_timeout = 1;
  options.engine.max_model_len = 200'000;
  options.engine.runner.step_delay = std::chrono::microseconds(50);
  options.engine.pages = 8192;
  TestServer server(options);
  Client client(server.port(), /*receive_bytes=*/4096);
  client.send(stream_request(190'000));
  REQUIRE(client.read_head());
  CHECK(server.becomes_idle(std::chrono::seconds(60)));
  CHECK(server.engine().stats().generation_tokens < 190'000);
  CHECK(server.sample_becomes("kivi:requests_aborted_total{reason=\"slow_reader\"}", 1));
  CHECK(server.get("/health").status == 200);
}

TEST_CASE("a client that goes away frees its request within a step, by FIN and by RST") {
  ServerOptions options = server_options();
  options.engine.runner.step_delay = std::chrono::milliseconds(20);
  TestServer server(options);
  int gone = 0;
  for (const bool streaming : {true, false}) {
    for (const bool reset : {true, false}) {
      INFO("streaming " << streaming << " reset " << reset);
      Client client = server.client();
      json body = {
          {"prompt", "a"}, {"max_tokens", 2000}, {"ignore_eos", true}, {"stream", streaming}};
      client.send(Client::post_text("/v1/completions", body.dump()));
      const Clock::time_point begin = Clock::now();
      while (server.engine().stats().running == 0 && seconds_since(begin) < 10)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      REQUIRE(server.engine().stats().running == 1);
      const uint64_t steps = server.engine().stats().steps;
      if (reset)
        client.reset();
      else
        client.close();
      CHECK(server.becomes_idle());
      // The step that runs while the client goes, and one more before the io thread has noticed.
      CHECK(server.engine().stats().steps <= steps + 2);
      ++gone;
    }
  }
  CHECK(server.sample_becomes("kivi:requests_aborted_total{reason=\"client_disconnect\"}", gone));
  CHECK(server.sample("kivi:http_requests_total{handler=\"/v1/completions\",method=\"POST\","
                      "status=\"499\"}") == gone);
}

TEST_CASE("Expect: 100-continue is answered before the body, or refused without it") {
  TestServer server;
  Client client = server.client();
  const std::string body = R"({"prompt":"a"})";
  client.send(
      "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: "
      "100-continue\r\nContent-Length: " +
      std::to_string(body.size()) + "\r\n\r\n");
  CHECK(*client.read_until("\r\n\r\n") == "HTTP/1.1 100 Continue\r\n\r\n");
  client.send(body);
  CHECK(client.read_response()->status == 200);
  client.send(
      "POST /nothing HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
  const auto refused = client.read_response();
  CHECK(refused->status == 404);
  CHECK(refused->header("connection") == "close");
}

TEST_CASE("a refused request's small body is skipped and the connection kept") {
  TestServer server;
  Client client = server.client();
  CHECK(client.post("/nothing", std::string(1000, 'x'))->status == 404);
  CHECK(client.get("/health")->status == 200);
  client.send("GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  CHECK(client.read_response()->status == 200);
  CHECK(client.closed());
}

TEST_CASE("connections beyond the cap are told so") {
  ServerOptions options = server_options();
  options.http.max_connections = 8;  // at most half of them from one address
  TestServer server(options);
  std::vector<Client> open;
  for (int i = 0; i < 4; ++i) {
    open.push_back(server.client());
    REQUIRE(open.back().get("/health")->status == 200);
  }
  Client extra = server.client();
  const auto refused = extra.read_response();
  REQUIRE(refused);
  CHECK(refused->status == 503);
  CHECK(refused->json()["error"]["code"] == "too_many_connections");
  CHECK(refused->header("retry-after") == "1");
  open.pop_back();
  bool served = false;
  for (int i = 0; i < 500 && !served; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    const auto reply = server.client().get("/health");
    served = reply && reply->status == 200;
  }
  CHECK(served);
}
