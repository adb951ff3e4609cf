// SPDX-License-Identifier: Apache-2.0
// Calls that end before their tokens: cancelled, late, aborted, not read, cut off by a shutdown.
#include <atomic>
#include <future>
#include <iterator>
#include <random>

#include "server/grpc/waiting_calls.h"
#include "tests/grpc/grpc_fixture.h"

using namespace kivi;
using namespace kivi::testing;
using std::chrono::milliseconds;

namespace {

GrpcTestOptions slow_engine(milliseconds step) {
  GrpcTestOptions options;
  options.engine.runner.step_delay = step;
  return options;
}

bool scraped(const Metrics& metrics, const std::string& line) {
  return metrics.scrape().find(line) != std::string::npos;
}

}  // namespace

TEST_CASE("a cancelled stream frees what it held within two steps") {
  GrpcTest t(slow_engine(milliseconds(20)));
  grpc::ClientContext context;
  auto reader = t.stub->Generate(&context, text_request("a tale", 1000));
  v1::GenerateResponse message;
  REQUIRE(reader->Read(&message));
  REQUIRE_FALSE(t.engine_is_empty());
  const uint64_t steps_before = t.engine->stats().steps;
  context.TryCancel();
  CHECK(eventually([&] { return t.engine_is_empty(); }, milliseconds(2000)));
  // One step may be under way when the cancel arrives.
  CHECK(t.engine->stats().steps - steps_before <= 3);
  while (reader->Read(&message)) {
  }
  CHECK(reader->Finish().error_code() == grpc::StatusCode::CANCELLED);
  CHECK(eventually([&] { return t.server->running() == 0; }));
  CHECK(scraped(t.metrics,
                "kivi:requests_aborted_total{model_name=\"tales\",reason=\"client_"
                "disconnect\"} 1"));
  CHECK(scraped(t.metrics, "grpc_code=\"CANCELLED\""));
}

TEST_CASE("a client that drops its connection frees what its calls held") {
  GrpcTest t(slow_engine(milliseconds(5)));
  {
    auto channel = t.connect();
    auto stub = v1::Kivi::NewStub(channel);
    auto context = std::make_unique<grpc::ClientContext>();
    auto reader = stub->Generate(context.get(), text_request("a tale", 1000));
    v1::GenerateResponse message;
    REQUIRE(reader->Read(&message));
    // Destroying the call without reading it to its end resets the stream.
    reader.reset();
    context.reset();
  }
  CHECK(eventually([&] { return t.engine_is_empty() && t.server->running() == 0; }));
}

TEST_CASE("a deadline ends a stream and a unary call, and leaves the engine empty") {
  GrpcTest t(slow_engine(milliseconds(10)));
  {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + milliseconds(150));
    auto reader = t.stub->Generate(&context, text_request("a tale", 1000));
    v1::GenerateResponse message;
    int messages = 0;
    while (reader->Read(&message)) ++messages;
    CHECK(messages > 0);
    CHECK(reader->Finish().error_code() == grpc::StatusCode::DEADLINE_EXCEEDED);
    CHECK(eventually([&] { return t.engine_is_empty(); }, milliseconds(1000)));
  }
  {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + milliseconds(100));
    v1::CompleteResponse response;
    const auto status = t.stub->Complete(&context, text_request("a tale", 1000), &response);
    CHECK(status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED);
    CHECK(eventually([&] { return t.engine_is_empty(); }, milliseconds(1000)));
  }
  CHECK(eventually([&] { return scraped(t.metrics, "reason=\"deadline\"} 2"); }));
}

TEST_CASE("request_timeout is a deadline of the server's own") {
  GrpcTestOptions options = slow_engine(milliseconds(10));
  options.server.request_timeout = 1;
  GrpcTest t(options);
  const Streamed out = generate(*t.stub, text_request("a tale", 1000));
  CHECK(out.status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED);
  CHECK(details_of(out.status).detail.code() == "deadline_exceeded");
  CHECK(out.messages > 0);
  CHECK(t.engine_is_empty());
}

TEST_CASE("Abort ends the calls of an id with finish_reason ABORT") {
  GrpcTest t(slow_engine(milliseconds(5)));
  v1::GenerateRequest request = text_request("a tale", 1000);
  request.set_request_id("tale-7");
  request.set_n(2);
  grpc::ClientContext context;
  auto reader = t.stub->Generate(&context, request);
  v1::GenerateResponse message;
  REQUIRE(reader->Read(&message));
  Streamed out;
  join(message, out);
  CHECK(out.request_id == "tale-7");
  v1::AbortRequest abort;
  v1::AbortResponse aborted;
  abort.set_request_id("tale-7");
  grpc::ClientContext abort_context;
  REQUIRE(t.stub->Abort(&abort_context, abort, &aborted).ok());
  CHECK(aborted.aborted() == 1);
  while (reader->Read(&message)) join(message, out);
  CHECK(reader->Finish().ok());
  CHECK(out.well_formed);
  REQUIRE(out.choices.size() == 2);
  for (const v1::Choice& choice : out.choices)
    CHECK(choice.finish_reason() == v1::FINISH_REASON_ABORT);
  CHECK(out.usage.completion_tokens() ==
        out.choices[0].token_ids_size() + out.choices[1].token_ids_size());
  CHECK(eventually([&] { return t.engine_is_empty() && t.server->running() == 0; }));
  grpc::ClientContext again;
  const grpc::Status status = t.stub->Abort(&again, abort, &aborted);
  CHECK(status.error_code() == grpc::StatusCode::NOT_FOUND);
  CHECK(details_of(status).detail.field() == "request_id");
}

TEST_CASE("a slow reader gets the same text in fewer messages") {
  GrpcTest t;
  v1::GenerateRequest request = text_request("a tale", 600);
  request.set_logprobs(20);  // large messages: the connection's window fills
  const Streamed fast = generate(*t.stub, request);
  REQUIRE(fast.status.ok());
  grpc::ClientContext context;
  auto reader = t.stub->Generate(&context, request);
  // The engine is done long before the first message is read.
  REQUIRE(eventually([&] { return t.engine->stats().generation_tokens == 1200; }));
  std::this_thread::sleep_for(milliseconds(50));
  Streamed slow;
  v1::GenerateResponse message;
  while (reader->Read(&message)) join(message, slow);
  REQUIRE(reader->Finish().ok());
  CHECK(slow.choices.at(0).SerializeAsString() == fast.choices.at(0).SerializeAsString());
  CHECK(slow.well_formed);
  CHECK(slow.messages < 600);
}

TEST_CASE("a reader that never reads is dropped after write_timeout") {
  GrpcTestOptions options;
  options.server.write_timeout = 1;
  GrpcTest t(options);
  v1::GenerateRequest request = text_request("a tale", 2000);
  request.set_n(8);  // more than the windows of a connection hold
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // which would make them larger
  const auto stub =
      v1::Kivi::NewStub(grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(t.server->port()),
                                                  grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  auto reader = stub->Generate(&context, request);
  REQUIRE(eventually([&] { return t.server->running() == 1; }));
  CHECK(eventually([&] { return t.server->running() == 0; }));
  CHECK(scraped(t.metrics, "reason=\"slow_reader\"} 1"));
  v1::GenerateResponse message;
  while (reader->Read(&message)) {
  }
  CHECK_FALSE(reader->Finish().ok());
  CHECK(t.engine_is_empty());
}

TEST_CASE("a large reply of one message arrives whole, with the id of its request") {
  GrpcTest t;
  v1::GenerateRequest request = text_request("a tale", 400);
  request.set_logprobs(20);
  request.set_request_id("large");
  grpc::ClientContext context;
  v1::CompleteResponse response;
  REQUIRE(t.stub->Complete(&context, request, &response).ok());
  CHECK(response.ByteSizeLong() > 16 << 10);
  CHECK(response.usage().completion_tokens() == 400);
  CHECK(response.request_id() == "large");
  const auto ids = context.GetServerInitialMetadata().equal_range("x-request-id");
  REQUIRE(std::distance(ids.first, ids.second) == 1);
  CHECK(ids.first->second == "large");
  CHECK(t.engine_is_empty());
}

TEST_CASE("a waiting call is called when it is late, each at its own time") {
  GrpcExecutor executor(2);
  {
    WaitingCalls waiting(executor);
    std::atomic<int> first{0}, second{0}, removed{0};
    const auto begun = std::chrono::steady_clock::now();
    const auto slow = waiting.add(milliseconds(300), [&] { ++first; });
    waiting.add(milliseconds(30), [&] { ++second; });
    const auto ticket = waiting.add(milliseconds(50), [&] { ++removed; });
    CHECK(waiting.remove(ticket));
    CHECK_FALSE(waiting.remove(ticket));
    REQUIRE(eventually([&] { return second == 1; }));
    CHECK(first == 0);
    REQUIRE(eventually([&] { return first == 1; }));
    CHECK(std::chrono::steady_clock::now() - begun >= milliseconds(300));
    CHECK_FALSE(waiting.remove(slow));
    std::this_thread::sleep_for(milliseconds(50));
    CHECK(removed == 0);
    executor.stop();
  }
}

TEST_CASE("200 streams at once, half of them cancelled, leave nothing behind") {
  GrpcTestOptions options;
  options.engine.runner.step_delay = std::chrono::microseconds(300);
  GrpcTest t(options);
  constexpr int kStreams = 200, kClients = 20, kTokens = 60;
  const uint32_t seed = std::random_device()();
  INFO("seed " << seed);
  const std::string expected =
      generate(*t.stub, text_request("a tale", kTokens)).choices.at(0).text();
  std::atomic<int> whole{0}, cancelled{0}, wrong{0};
  std::vector<std::thread> clients;
  for (int c = 0; c < kClients; ++c)
    clients.emplace_back([&, c] {
      auto channel = t.connect();
      auto stub = v1::Kivi::NewStub(channel);
      std::mt19937 random(seed + uint32_t(c));
      struct Call {
        grpc::ClientContext context;
        std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader;
      };
      std::vector<Call> calls(kStreams / kClients);
      for (Call& call : calls)
        call.reader = stub->Generate(&call.context, text_request("a tale", kTokens));
      for (size_t i = 0; i < calls.size(); ++i) {
        const bool cancels = i % 2 == 0;
        int left = cancels ? int(random() % 10) : -1;  // messages before the cancel
        std::string text;
        v1::GenerateResponse message;
        while (left != 0 && calls[i].reader->Read(&message)) {
          for (const auto& choice : message.choices()) text += choice.text();
          --left;
        }
        if (left == 0) calls[i].context.TryCancel();
        while (calls[i].reader->Read(&message)) {
        }
        const grpc::Status status = calls[i].reader->Finish();
        if (!cancels && status.ok() && text == expected)
          ++whole;
        else if (cancels && (status.ok() || status.error_code() == grpc::StatusCode::CANCELLED))
          ++cancelled;
        else
          ++wrong;
      }
    });
  for (auto& client : clients) client.join();
  CHECK(wrong == 0);
  CHECK(whole == kStreams / 2);
  CHECK(cancelled == kStreams / 2);
  CHECK(eventually([&] { return t.engine_is_empty() && t.server->running() == 0; }));
}

TEST_CASE("draining refuses new calls and lets running ones end") {
  GrpcTest t(slow_engine(milliseconds(5)));
  grpc::ClientContext context;
  auto reader = t.stub->Generate(&context, text_request("a tale", 50));
  v1::GenerateResponse message;
  REQUIRE(reader->Read(&message));
  t.state->begin_drain();
  const Streamed refused = generate(*t.stub, text_request("a tale", 5));
  CHECK(refused.status.error_code() == grpc::StatusCode::UNAVAILABLE);
  CHECK(details_of(refused.status).detail.retry_after_seconds() > 0);
  Streamed out;
  join(message, out);
  while (reader->Read(&message)) join(message, out);
  CHECK(reader->Finish().ok());
  CHECK(out.usage.completion_tokens() == 50);
  CHECK(out.choices.at(0).finish_reason() == v1::FINISH_REASON_LENGTH);
}

TEST_CASE("stop() ends running calls and returns") {
  GrpcTest t(slow_engine(milliseconds(5)));
  std::vector<std::future<grpc::StatusCode>> calls;
  for (int i = 0; i < 8; ++i)
    calls.push_back(std::async(std::launch::async, [&] {
      return generate(*t.stub, text_request("a tale", 1000)).status.error_code();
    }));
  REQUIRE(eventually([&] { return t.server->running() == 8; }));
  const auto begin = std::chrono::steady_clock::now();
  t.server->stop();
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(5));
  for (auto& call : calls) CHECK(call.get() != grpc::StatusCode::OK);
  CHECK(eventually([&] { return t.engine_is_empty(); }));
  CHECK(t.server->running() == 0);
}

TEST_CASE("an engine that is drained first ends its streams with finish_reason ABORT") {
  GrpcTest t(slow_engine(milliseconds(5)));
  auto call = std::async(std::launch::async,
                         [&] { return generate(*t.stub, text_request("a tale", 1000)); });
  REQUIRE(eventually([&] { return t.engine->stats().generation_tokens > 3; }));
  t.state->begin_drain();
  CHECK_FALSE(t.engine->drain(milliseconds(20)));
  const Streamed out = call.get();
  CHECK(out.status.ok());
  CHECK(out.choices.at(0).finish_reason() == v1::FINISH_REASON_ABORT);
}
