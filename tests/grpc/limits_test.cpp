// SPDX-License-Identifier: Apache-2.0
// Limits per key over gRPC, and the bytes of messages in flight.
#include "tests/grpc/grpc_fixture.h"

using namespace kivi;
using namespace kivi::testing;

namespace {

grpc::Status complete(v1::Kivi::Stub& stub, const char* key, int max_tokens) {
  grpc::ClientContext context;
  if (*key != '\0') context.AddMetadata("authorization", std::string("Bearer ") + key);
  v1::CompleteResponse response;
  return stub.Complete(&context, text_request("Once", max_tokens), &response);
}

}  // namespace

TEST_CASE("a caller over its limit gets RESOURCE_EXHAUSTED with a time to wait") {
  GrpcTestOptions options;
  options.server.api_keys = {"one", "two"};
  options.server.limit_requests_per_minute = 2;
  GrpcTest test(options);
  CHECK(complete(*test.stub, "one", 2).ok());
  CHECK(complete(*test.stub, "one", 2).ok());
  const grpc::Status refused = complete(*test.stub, "one", 2);
  CHECK(refused.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  const ErrorDetails details = details_of(refused);
  CHECK(details.detail.code() == "rate_limit_exceeded");
  CHECK(details.detail.retry_after_seconds() >= 1);
  CHECK(complete(*test.stub, "two", 2).ok());
  CHECK(complete(*test.stub, "wrong", 2).error_code() == grpc::StatusCode::UNAUTHENTICATED);
}

TEST_CASE("a call's place is free once the caller has its status") {
  GrpcTestOptions options;
  options.server.limit_concurrent_requests = 1;
  GrpcTest test(options);
  for (int i = 0; i < 50; ++i) REQUIRE(complete(*test.stub, "", 2).ok());
  for (int i = 0; i < 50; ++i) REQUIRE(generate(*test.stub, text_request("Once", 2)).status.ok());
}

TEST_CASE("messages of calls that run count among the bytes in flight until the calls end") {
  GrpcTestOptions options;
  options.server.max_body_bytes_in_flight = 30'000;
  options.engine.runner.step_delay = std::chrono::milliseconds(1);
  GrpcTest test(options);
  v1::GenerateRequest running = text_request("Once", 2'000);
  for (int i = 0; i < 60; ++i) running.add_stop(std::string(400, char('A' + i % 26)));
  running.set_ignore_eos(true);

  grpc::ClientContext context;
  const auto stream = test.stub->Generate(&context, running);
  v1::GenerateResponse first;
  REQUIRE(stream->Read(&first));
  const auto second_status = [&] {
    grpc::ClientContext other;
    v1::CompleteResponse response;
    v1::GenerateRequest second = running;
    second.set_max_tokens(1);
    return test.stub->Complete(&other, second, &response);
  };
  const grpc::Status refused = second_status();
  CHECK(refused.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  const ErrorDetails details = details_of(refused);
  CHECK(details.detail.code() == "too_many_body_bytes");
  CHECK(details.detail.retry_after_seconds() == 1);
  CHECK(complete(*test.stub, "", 2).ok());  // a small one fits beside it
  context.TryCancel();
  CHECK(eventually([&] { return second_status().ok(); }));
}
