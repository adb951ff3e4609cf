// SPDX-License-Identifier: Apache-2.0
// What the metadata of an inference gateway changes, and when it counts.
#include "server/gateway.h"

#include <atomic>
#include <future>

#include "tests/grpc/grpc_fixture.h"

using namespace kivi;
using namespace kivi::testing;

namespace {

grpc::Status complete_with(v1::Kivi::Stub& stub, std::string_view name, const std::string& value,
                           int max_tokens) {
  grpc::ClientContext context;
  if (!value.empty()) context.AddMetadata(std::string(name), value);
  v1::CompleteResponse response;
  return stub.Complete(&context, text_request("Once", max_tokens), &response);
}

// The status of a second call with this fairness id, if one client may send one a minute.
grpc::StatusCode second_status(bool trusted, const std::string& first_id,
                               const std::string& second_id) {
  GrpcTestOptions options;
  options.server.limit_requests_per_minute = 1;
  options.server.gateway_headers = trusted;
  GrpcTest test(options);
  REQUIRE(complete_with(*test.stub, kFairnessHeader, first_id, 1).ok());
  return complete_with(*test.stub, kFairnessHeader, second_id, 1).error_code();
}

}  // namespace

TEST_CASE("the fairness id of a trusted gateway is the tenant of a call") {
  CHECK(second_status(true, "a", "b") == grpc::StatusCode::OK);
  CHECK(second_status(true, "a", "a") == grpc::StatusCode::RESOURCE_EXHAUSTED);
  CHECK(second_status(true, "a", "") == grpc::StatusCode::OK);
}

TEST_CASE("without trust a caller cannot choose its tenant") {
  CHECK(second_status(false, "a", "b") == grpc::StatusCode::RESOURCE_EXHAUSTED);
  CHECK(second_status(true, "a b", "c d") == grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_CASE("a call with an objective is served in the order of its priority") {
  GrpcTestOptions options;
  options.server.gateway_headers = true;
  options.server.objective_priorities = {"premium=-10"};
  options.engine.config.scheduling_policy = SchedulingPolicy::priority;
  options.engine.config.max_num_seqs = 1;
  options.engine.runner.step_delay = std::chrono::milliseconds(1);
  GrpcTest test(options);

  grpc::ClientContext context;
  v1::GenerateRequest running = text_request("Once", 300);
  running.set_ignore_eos(true);
  const auto stream = test.stub->Generate(&context, running);
  v1::GenerateResponse message;
  REQUIRE(stream->Read(&message));

  std::atomic<int> ended = 0;
  const auto send = [&](const std::string& objective, int max_tokens) {
    return std::async(std::launch::async, [&test, &ended, objective, max_tokens] {
      const bool ok = complete_with(*test.stub, kObjectiveHeader, objective, max_tokens).ok();
      return ok ? ended++ : -1;
    });
  };
  // Long enough that its thread counts last, however late the other thread runs.
  auto plain = send("", 300);
  REQUIRE(eventually([&] { return test.engine->stats().waiting == 1; }));
  auto premium = send("premium", 2);
  REQUIRE(eventually([&] { return test.engine->stats().waiting == 2; }));
  while (stream->Read(&message)) {
  }
  REQUIRE(stream->Finish().ok());
  CHECK(premium.get() == 0);
  CHECK(plain.get() == 1);
}
