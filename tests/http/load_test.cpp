// SPDX-License-Identifier: Apache-2.0
// Many clients at once: limits, cancels, sums.
#include <atomic>
#include <catch2/catch.hpp>

#include "server/http/http_server.h"
#include "tests/http/http_fixture.h"

using namespace kivi;
using namespace kivi::testing;
using nlohmann::json;

namespace {

json stream_body(int seed, int max_tokens) {
  return {{"prompt", "Once upon a time"},
          {"seed", seed},
          {"max_tokens", max_tokens},
          {"ignore_eos", true},
          {"stream", true},
          {"stream_options", {{"include_usage", true}}}};
}

}  // namespace

TEST_CASE("200 streams, half of them cancelled midway, leave nothing behind") {
  ServerOptions options = server_options();
  options.engine.config.max_num_seqs = 64;
  TestServer server(options);
  constexpr int kStreams = 200, kThreads = 20;
  std::atomic<int> whole{0}, cancelled{0}, failed{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&, t] {
      // All of a thread's streams are under way before the first is read.
      std::vector<Client> clients;
      constexpr int kEach = kStreams / kThreads;
      for (int i = 0; i < kEach; ++i) {
        clients.push_back(server.client());
        clients.back().send(
            Client::post_text("/v1/completions", stream_body(t * kEach + i, 50).dump()));
      }
      for (int i = 0; i < kEach; ++i) {
        Client& client = clients[size_t(i)];
        if (i % 2 == 0) {
          const bool begun = client.read_head() && client.read_chunk();
          if (i % 4 == 0)
            client.reset();
          else
            client.close();
          ++(begun ? cancelled : failed);
          continue;
        }
        const auto reply = client.read_response();
        const bool good = reply && reply->status == 200 &&
                          sse_events(reply->body).rbegin()[1]["usage"]["completion_tokens"] == 50;
        ++(good ? whole : failed);
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(whole == kStreams / 2);
  CHECK(cancelled == kStreams / 2);
  CHECK(failed == 0);
  REQUIRE(server.becomes_idle());
  CHECK(server.sample("kivi:num_requests_running") == 0);
  CHECK(server.sample("kivi:num_requests_waiting") == 0);
  CHECK(server.sample("kivi:kv_cache_usage_perc") == 0);
  for (const char* part : {"codes", "scales", "residual"})
    CHECK(server.sample("kivi:kv_cache_bytes{part=\"" + std::string(part) + "\"}") == 0);
}

TEST_CASE("the clients' token counts and the counters agree exactly") {
  TestServer server;
  constexpr int kClients = 24;
  std::atomic<int64_t> prompt{0}, generated{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kClients; ++t)
    threads.emplace_back([&, t] {
      Client client = server.client();
      for (int i = 0; i < 5; ++i) {
        json body = stream_body(t * 5 + i, 1 + (t * 7 + i) % 40);
        if (i % 2 == 1) {
          body.erase("stream");
          body.erase("stream_options");
          body["n"] = 1 + i;
        }
        const auto reply = client.post("/v1/completions", body.dump());
        if (!reply || reply->status != 200) return;
        const json usage =
            i % 2 == 1 ? reply->json()["usage"] : sse_events(reply->body).rbegin()[1]["usage"];
        prompt += usage["prompt_tokens"].get<int64_t>();
        generated += usage["completion_tokens"].get<int64_t>();
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(generated > 0);
  CHECK(server.sample("kivi:prompt_tokens_total") == double(prompt));
  CHECK(server.sample("kivi:generation_tokens_total") == double(generated));
  CHECK(server.sample("kivi:request_generation_tokens_sum") == double(generated));
  CHECK(server.sample("kivi:request_prompt_tokens_count") == kClients * 5);
  CHECK(server.sample("kivi:time_to_first_token_seconds_count") == kClients * 5);
  // Choices: 3 streams and one of 2, one of 4 a client.
  CHECK(server.sample("kivi:request_success_total{finished_reason=\"length\"}") ==
        kClients * (3 + 2 + 4));
  CHECK(server.sample("kivi:e2e_request_latency_seconds_count") == kClients * (3 + 2 + 4));
  CHECK(server.sample("kivi:http_requests_total{handler=\"/v1/completions\",method=\"POST\","
                      "status=\"200\"}") == kClients * 5);
}

TEST_CASE("a full queue is 503 with Retry-After, by requests and by tokens") {
  ServerOptions options = server_options();
  options.engine.config.max_num_seqs = 1;
  options.engine.config.max_num_queued_reqs = 2;
  options.engine.config.max_num_queued_tokens = 1000;
  options.engine.runner.step_delay = std::chrono::milliseconds(20);
  TestServer server(options);
  std::vector<Client> running;
  // Sends a long request and waits until `in_all` are known, one of them running: as long as that
  // one still waits, the queue is full one request too early.
  const auto start = [&](int in_all) {
    running.push_back(server.client());
    running.back().send(Client::post_text("/v1/completions", stream_body(1, 2000).dump()));
    const auto end = Clock::now() + std::chrono::seconds(10);
    const auto known = [&] {
      const EngineStats stats = server.engine().stats();
      return stats.running == 1 && stats.running + stats.waiting >= in_all;
    };
    while (!known() && Clock::now() < end)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  start(1);
  start(2);
  const std::vector<int> long_prompt(1001, 5);
  const Response tokens = server.complete({{"prompt", long_prompt}});
  CHECK(tokens.status == 503);
  start(3);
  const Response refused = server.complete({{"prompt", "a"}});
  CHECK(refused.status == 503);
  CHECK(refused.header("retry-after") == "1");
  CHECK(refused.json()["error"]["code"] == "queue_full");
  CHECK(server.sample("kivi:admission_rejections_total{reason=\"queue_full\"}") == 2);
  running.clear();
  CHECK(server.becomes_idle());
}

TEST_CASE("a stopped server ends open streams and joins its threads") {
  ServerOptions options = server_options();
  options.engine.runner.step_delay = std::chrono::milliseconds(5);
  std::vector<Client> clients;
  {
    TestServer server(options);
    for (int i = 0; i < 20; ++i) {
      clients.push_back(server.client());
      clients.back().send(Client::post_text("/v1/completions", stream_body(i, 1000).dump()));
      REQUIRE(clients.back().read_head());
    }
    clients.push_back(server.client());  // idle
  }
  for (Client& client : clients) {
    while (client.fill()) {
    }
    CHECK_FALSE(client.read_response());
  }
}

TEST_CASE("draining lets running streams finish, and aborts what is left with a finish reason") {
  ServerOptions options = server_options();
  options.engine.runner.step_delay = std::chrono::milliseconds(2);
  TestServer server(options);
  Client quick = server.client(), slow = server.client();
  quick.send(Client::post_text("/v1/completions", stream_body(1, 30).dump()));
  slow.send(Client::post_text("/v1/completions", stream_body(2, 2000).dump()));
  REQUIRE(quick.read_head());
  REQUIRE(slow.read_head());
  server.state().begin_drain();
  CHECK_FALSE(server.engine().drain(std::chrono::milliseconds(500)));
  const auto reason = [](Client& client) {
    std::string body;
    while (const auto chunk = client.read_chunk()) {
      if (chunk->empty()) break;
      body += *chunk;
    }
    return sse_events(body).rbegin()[2]["choices"][0]["finish_reason"].get<std::string>();
  };
  CHECK(reason(quick) == "length");
  CHECK(reason(slow) == "abort");
  CHECK(server.http().wait_idle(std::chrono::seconds(5)));
  CHECK(server.sample("kivi:requests_aborted_total{reason=\"shutdown\"}") == 1);
}
