// SPDX-License-Identifier: Apache-2.0
// Tenants and the limits per tenant, with a clock of the test's own, and as HTTP replies.
#include "server/rate_limit.h"

#include <catch2/catch.hpp>
#include <thread>

#include "server/tenant.h"
#include "tests/http/http_fixture.h"

using namespace kivi;
using namespace kivi::testing;

namespace {

// Limits with a clock that stands still until it is moved.
struct Limits {
  explicit Limits(const RateLimits& limits, size_t tenants_max = RateLimiter::kTenantsMax)
      : limiter(RateLimiter::make(
            limits, [this] { return now; }, tenants_max)) {}
  // Seconds to wait; 0: admitted, and ended at once.
  int retry_after(const std::string& tenant, int64_t tokens = 0) {
    RateLimiter::Permit permit;
    const auto refusal = limiter->admit(tenant, permit);
    permit.used(tokens);
    return refusal ? refusal->retry_after : 0;
  }
  Clock::time_point now{};
  std::shared_ptr<RateLimiter> limiter;
};

}  // namespace

TEST_CASE("a key keeps its tenant however its header is written, and is not readable in it") {
  CHECK(tenant_of_key("Bearer secret") == tenant_of_key("bearer   secret"));
  CHECK(tenant_of_key("Bearer secret") != tenant_of_key("Bearer secret2"));
  CHECK(tenant_of_key("Bearer secret").find("secret") == std::string::npos);
  CHECK(tenant_of_key("") == tenant_of_key("Bearer "));
}

TEST_CASE("an address is a tenant, and an IPv6 network is one") {
  CHECK(tenant_of_address("192.0.2.7") == "address:192.0.2.7");
  CHECK(tenant_of_address("::ffff:192.0.2.7") == "address:192.0.2.7");
  CHECK(tenant_of_address("2001:db8:1:2:3:4:5:6") == tenant_of_address("2001:db8:1:2::1"));
  CHECK(tenant_of_address("2001:db8:1:2::1") != tenant_of_address("2001:db8:1:3::1"));
  CHECK(tenant_of_address("fe80::1%eth0") == tenant_of_address("fe80::2"));
}

TEST_CASE("without limits everything is admitted and nothing is remembered") {
  Limits limits({});
  for (int i = 0; i < 1000; ++i) CHECK(limits.retry_after(std::to_string(i), 1 << 20) == 0);
  CHECK(limits.limiter->tenants() == 0);
}

TEST_CASE("requests a minute: a burst of one minute's worth, then one at a time") {
  Limits limits({.requests_per_minute = 6});
  for (int i = 0; i < 6; ++i) CHECK(limits.retry_after("a") == 0);
  CHECK(limits.retry_after("a") == 10);
  CHECK(limits.retry_after("b") == 0);  // another tenant's bucket is its own
  limits.now += std::chrono::seconds(9);
  CHECK(limits.retry_after("a") == 1);
  limits.now += std::chrono::seconds(1);
  CHECK(limits.retry_after("a") == 0);
  CHECK(limits.retry_after("a") == 10);
  limits.now += std::chrono::hours(1);  // a bucket holds one minute's worth, not an hour's
  for (int i = 0; i < 6; ++i) CHECK(limits.retry_after("a") == 0);
  CHECK(limits.retry_after("a") == 10);
}

TEST_CASE("who waits for Retry-After is admitted, for every limit") {
  for (const int per_minute : {1, 7, 59, 60, 61, 1000}) {
    Limits limits({.requests_per_minute = per_minute, .tokens_per_minute = per_minute});
    int admitted = 0;
    for (int i = 0; i < 2 * per_minute; ++i) {
      const int wait = limits.retry_after("a", 1);
      if (wait > 0) {
        limits.now += std::chrono::seconds(wait);
        REQUIRE(limits.retry_after("a", 1) == 0);
      }
      ++admitted;
    }
    CHECK(admitted == 2 * per_minute);
  }
}

TEST_CASE("tokens a minute: what was used beyond the limit is waited for") {
  Limits limits({.tokens_per_minute = 600});
  CHECK(limits.retry_after("a", 599) == 0);
  CHECK(limits.retry_after("a", 1201) == 0);  // one token was left; the bucket is at -1200
  CHECK(limits.retry_after("a") == 121);
  limits.now += std::chrono::seconds(120);
  CHECK(limits.retry_after("a") == 1);
  limits.now += std::chrono::seconds(1);
  CHECK(limits.retry_after("a") == 0);
}

TEST_CASE("tokens are taken as they are used, each once") {
  Limits limits({.tokens_per_minute = 60});
  RateLimiter::Permit permit;
  REQUIRE_FALSE(limits.limiter->admit("a", permit));
  permit.used(30);
  permit.used(30);
  permit.used(10);
  CHECK(limits.retry_after("a") == 0);
  permit.used(60);
  CHECK(limits.retry_after("a") == 1);
}

TEST_CASE("requests at once: each place is given back once, by whoever holds the permit last") {
  Limits limits({.concurrent_requests = 2});
  RateLimiter::Permit first, second, third;
  REQUIRE_FALSE(limits.limiter->admit("a", first));
  REQUIRE_FALSE(limits.limiter->admit("a", second));
  CHECK(limits.limiter->admit("a", third)->retry_after == 1);
  CHECK_FALSE(limits.limiter->admit("b", third));
  RateLimiter::Permit moved = std::move(first);
  first.reset();
  CHECK(limits.limiter->admit("a", third));
  moved.reset();
  moved.reset();
  CHECK_FALSE(limits.limiter->admit("a", third));
  limits.limiter.reset();  // the permits may outlive the limiter
}

TEST_CASE("a limited number of tenants is remembered, those with running requests first of all") {
  Limits limits({.requests_per_minute = 1}, 3);
  RateLimiter::Permit running;
  REQUIRE_FALSE(limits.limiter->admit("running", running));
  for (int i = 0; i < 1000; ++i) {
    CHECK(limits.retry_after(std::to_string(i)) == 0);
    CHECK(limits.limiter->tenants() <= 3);
  }
  CHECK(limits.retry_after("999") > 0);  // seen last, not forgotten
  CHECK(limits.retry_after("running") > 0);
  RateLimiter::Permit second, third, fourth;
  CHECK_FALSE(limits.limiter->admit("x", second));
  CHECK_FALSE(limits.limiter->admit("y", third));
  CHECK(limits.limiter->admit("z", fourth));  // all three have running requests
}

TEST_CASE("a limiter counts right from many threads") {
  Limits limits({.requests_per_minute = 1000, .concurrent_requests = 4});
  std::atomic<int> admitted{0}, running{0}, most{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        RateLimiter::Permit permit;
        if (limits.limiter->admit("a", permit)) continue;
        ++admitted;
        const int now = ++running;
        int seen = most;
        while (now > seen && !most.compare_exchange_weak(seen, now)) {
        }
        --running;
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(admitted <= 1000);
  CHECK(most <= 4);
  RateLimiter::Permit permit;
  if (admitted < 1000) CHECK_FALSE(limits.limiter->admit("a", permit));
}

TEST_CASE("a client over its limit gets 429 with Retry-After, and another key does not") {
  ServerOptions options = server_options();
  options.http.api_keys = {"one", "two"};
  options.http.limit_requests_per_minute = 2;
  TestServer server(options);
  const std::string body = R"({"prompt":"Once","max_tokens":2})";
  const auto send = [&](const char* key, const char* path = "/v1/completions") {
    return server.post(path, body, std::string("Authorization: Bearer ") + key + "\r\n");
  };
  CHECK(send("one").status == 200);
  CHECK(send("one").status == 200);
  const Response refused = send("one");
  CHECK(refused.status == 429);
  CHECK(refused.json()["error"]["code"] == "rate_limit_exceeded");
  CHECK(refused.json()["error"]["type"] == "rate_limit_error");
  const int wait = std::stoi(refused.header("retry-after"));
  CHECK((wait >= 1 && wait <= 30));
  CHECK(send("one", "/v1/chat/completions").status == 429);  // both share the limit
  CHECK(send("two").status == 200);
  CHECK(send("wrong").status == 401);
  CHECK(server.get("/v1/models", "Authorization: Bearer one\r\n").status == 200);
  CHECK(server.sample("kivi:admission_rejections_total{reason=\"rate_limit\"}") == 2);
}

TEST_CASE("tokens of a reply count against the limit of its key") {
  ServerOptions options = server_options();
  options.http.limit_tokens_per_minute = 50;
  TestServer server(options);
  const nlohmann::json body = {{"prompt", "Once"}, {"max_tokens", 60}, {"ignore_eos", true}};
  CHECK(server.complete(body).status == 200);
  const Response refused = server.complete(body);
  CHECK(refused.status == 429);
  const int wait = std::stoi(refused.header("retry-after"));
  CHECK((wait >= 10 && wait <= 30));  // about 12 tokens beyond zero, 50 a minute
}

TEST_CASE("requests at once: a place is free when its reply is out or its client is gone") {
  ServerOptions options = server_options();
  options.http.limit_concurrent_requests = 1;
  options.engine.runner.step_delay = std::chrono::milliseconds(2);
  TestServer server(options);
  const nlohmann::json quick = {{"prompt", "Once"}, {"max_tokens", 2}};
  Client client = server.client();
  client.send(Client::post_text(
      "/v1/completions", R"({"prompt":"Once","max_tokens":1500,"ignore_eos":true,"stream":true})"));
  REQUIRE(client.read_head());
  CHECK(server.complete(quick).status == 429);
  client.reset();
  REQUIRE(server.becomes_idle());
  const auto end = Clock::now() + std::chrono::seconds(5);
  int status = 429;
  while (status == 429 && Clock::now() < end) status = server.complete(quick).status;
  CHECK(status == 200);
  // A reply that is out has given its place back: no reply on a fresh connection is refused.
  for (int i = 0; i < 50; ++i) REQUIRE(server.complete(quick).status == 200);
}

TEST_CASE("a key that fills the queue waits behind itself, not in front of another key") {
  ServerOptions options = server_options();
  options.http.api_keys = {"one", "two"};
  options.engine.config.max_num_seqs = 4;
  TestServer server(options);
  Client flood = server.client();
  flood.send(Client::post_text(
      "/v1/completions",
      R"({"prompt":["a","b","c","d"],"n":64,"max_tokens":1500,"ignore_eos":true,"stream":true})",
      "Authorization: Bearer one\r\n"));
  REQUIRE(flood.read_head());
  const uint64_t before = server.engine().stats().steps;
  const Response reply =
      server.post("/v1/completions", R"({"prompt":"Once","max_tokens":10,"ignore_eos":true})",
                  "Authorization: Bearer two\r\n");
  CHECK(reply.status == 200);
  // 256 requests of 1500 tokens, four at a time, take 96,000 steps.
  const uint64_t steps = server.engine().stats().steps - before;
  INFO(steps << " steps");
  CHECK(steps < 1000);
  flood.reset();
  CHECK(server.becomes_idle());
}
