// SPDX-License-Identifier: Apache-2.0
// Limits per key over gRPC, the bytes of texts, of replies and of messages in flight, and what
// comes of an allocation that fails.
#include <atomic>
#include <new>

#include "tests/grpc/grpc_fixture.h"

using namespace kivi;
using namespace kivi::testing;

namespace {

grpc::Status complete_status(v1::Kivi::Stub& stub, const char* key, int max_tokens) {
  grpc::ClientContext context;
  if (*key != '\0') context.AddMetadata("authorization", std::string("Bearer ") + key);
  v1::CompleteResponse response;
  return stub.Complete(&context, text_request("Once", max_tokens), &response);
}

grpc::Status complete_status(v1::Kivi::Stub& stub, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  v1::CompleteResponse response;
  return stub.Complete(&context, request, &response);
}

grpc::Status tokenize(v1::Kivi::Stub& stub, const std::string& text) {
  grpc::ClientContext context;
  v1::TokenizeRequest request;
  request.set_text(text);
  v1::TokenizeResponse response;
  return stub.Tokenize(&context, request, &response);
}

// INVALID_ARGUMENT that names `field` and the flag whose limit holds.
void check_refused(const grpc::Status& status, const std::string& field, const std::string& flag) {
  CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  const ErrorDetails details = details_of(status);
  CHECK(details.detail.code() == "invalid_value");
  CHECK(details.detail.field() == field);
  CHECK(status.error_message().find(flag) != std::string::npos);
}

// The tokenizer of the fixture, whose allocations fail while `fails` is set.
class StarvedTokenizer final : public Tokenizer {
 public:
  explicit StarvedTokenizer(std::unique_ptr<Tokenizer> own) : own_(std::move(own)) {}

  std::vector<int32_t> encode(std::string_view text, bool special) const override {
    if (fails) throw std::bad_alloc();
    return own_->encode(text, special);
  }
  const std::string& token_bytes(int32_t id, bool skip_special) const override {
    if (fails) throw std::bad_alloc();
    return own_->token_bytes(id, skip_special);
  }
  std::string token_name(int32_t id) const override { return own_->token_name(id); }
  std::optional<int32_t> token_id(std::string_view name) const override {
    return own_->token_id(name);
  }
  bool strips_leading_space() const override { return own_->strips_leading_space(); }
  int vocab_size() const override { return own_->vocab_size(); }
  std::optional<int32_t> bos_id() const override { return own_->bos_id(); }
  std::optional<int32_t> eos_id() const override { return own_->eos_id(); }
  std::string kind() const override { return own_->kind(); }

  std::atomic<bool> fails{false};

 private:
  const std::unique_ptr<Tokenizer> own_;
};

}  // namespace

TEST_CASE("a text beyond max_tokenize_bytes is refused before it is tokenized") {
  GrpcTestOptions options;
  options.engine.config.max_tokenize_bytes = 1000;
  GrpcTest test(options);
  const std::string longest(1000, 'a');
  CHECK(tokenize(*test.stub, longest).ok());
  CHECK(complete_status(*test.stub, text_request(longest, 1)).ok());
  check_refused(tokenize(*test.stub, longest + "a"), "text", "--max-tokenize-bytes");
  const v1::GenerateRequest longer = text_request(longest + "a", 1);
  check_refused(complete_status(*test.stub, longer), "prompt", "--max-tokenize-bytes");
  check_refused(generate(*test.stub, longer).status, "prompt", "--max-tokenize-bytes");
  grpc::ClientContext context;
  v1::EmbedRequest embed;
  embed.add_inputs()->set_text(longest + "a");
  v1::EmbedResponse response;
  CHECK(test.stub->Embed(&context, embed, &response).error_code() ==
        grpc::StatusCode::INVALID_ARGUMENT);
  // Ids are not tokenized: their number counts against the context alone.
  v1::GenerateRequest ids;
  for (int i = 0; i < 1500; ++i) ids.mutable_token_ids()->add_ids(5);
  ids.set_max_tokens(1);
  CHECK(complete_status(*test.stub, ids).ok());
}

TEST_CASE("a reply that could be larger than max_reply_bytes is refused, and its stream is not") {
  GrpcTestOptions options;
  options.engine.config.max_reply_bytes = 4000;
  GrpcTest test(options);
  CHECK(complete_status(*test.stub, text_request("Once", 100)).ok());
  check_refused(complete_status(*test.stub, text_request("Once", 300)), "max_tokens",
                "--max-reply-bytes");
  v1::GenerateRequest several = text_request("Once", 100);
  several.set_n(8);
  check_refused(complete_status(*test.stub, several), "n", "--max-reply-bytes");
  v1::GenerateRequest scored = text_request("Once", 50);
  scored.set_logprobs(5);
  check_refused(complete_status(*test.stub, scored), "logprobs", "--max-reply-bytes");
  // The chunks of a stream are gone when they are written.
  CHECK(generate(*test.stub, text_request("Once", 300)).status.ok());
  CHECK(generate(*test.stub, several).status.ok());
  CHECK(test.engine_is_empty());
}

TEST_CASE("a call for which there is no memory is RESOURCE_EXHAUSTED, and the next one is served") {
  auto loaded = load_tokenizer(KIVI_SOURCE_DIR "/models/tales-llama");
  REQUIRE(loaded.ok());
  StarvedTokenizer tokenizer(std::move(*loaded));
  GrpcTestOptions options;
  options.loaded = false;
  GrpcTest test(options);
  test.model.tokenizer = &tokenizer;
  test.state->set_model(test.model);
  REQUIRE(complete_status(*test.stub, "", 2).ok());
  const auto check_starved = [](const grpc::Status& status) {
    CHECK(status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
    const ErrorDetails details = details_of(status);
    CHECK(details.detail.code() == "out_of_memory");
    CHECK(details.detail.retry_after_seconds() == 5);
  };
  for (int round = 0; round < 20; ++round) {
    tokenizer.fails = true;
    check_starved(tokenize(*test.stub, "Once"));
    check_starved(complete_status(*test.stub, "", 2));  // its text
    check_starved(generate(*test.stub, text_request("Once", 2)).status);
    v1::GenerateRequest ids;  // the text of its output
    ids.mutable_token_ids()->add_ids(5);
    ids.set_max_tokens(50);
    check_starved(complete_status(*test.stub, ids));
    check_starved(generate(*test.stub, ids).status);
    tokenizer.fails = false;
    REQUIRE(tokenize(*test.stub, "Once").ok());
    REQUIRE(generate(*test.stub, text_request("Once", 20)).status.ok());
  }
  CHECK(eventually([&] { return test.engine_is_empty(); }));
  CHECK(eventually([&] { return test.server->running() == 0; }));
}

TEST_CASE("a caller over its limit gets RESOURCE_EXHAUSTED with a time to wait") {
  GrpcTestOptions options;
  options.server.api_keys = {"one", "two"};
  options.server.limit_requests_per_minute = 2;
  GrpcTest test(options);
  CHECK(complete_status(*test.stub, "one", 2).ok());
  CHECK(complete_status(*test.stub, "one", 2).ok());
  const grpc::Status refused = complete_status(*test.stub, "one", 2);
  CHECK(refused.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  const ErrorDetails details = details_of(refused);
  CHECK(details.detail.code() == "rate_limit_exceeded");
  CHECK(details.detail.retry_after_seconds() >= 1);
  CHECK(complete_status(*test.stub, "two", 2).ok());
  CHECK(complete_status(*test.stub, "wrong", 2).error_code() == grpc::StatusCode::UNAUTHENTICATED);
}

TEST_CASE("a call's place is free once the caller has its status") {
  GrpcTestOptions options;
  options.server.limit_concurrent_requests = 1;
  GrpcTest test(options);
  for (int i = 0; i < 50; ++i) REQUIRE(complete_status(*test.stub, "", 2).ok());
  for (int i = 0; i < 50; ++i) REQUIRE(generate(*test.stub, text_request("Once", 2)).status.ok());
}

TEST_CASE("messages of calls that run count among the bytes in flight until the calls end") {
  GrpcTestOptions options;
  options.server.max_body_bytes_in_flight = 40'000;
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
  CHECK(complete_status(*test.stub, "", 2).ok());  // a small one fits beside it
  context.TryCancel();
  CHECK(eventually([&] { return second_status().ok(); }));
}
