// SPDX-License-Identifier: Apache-2.0
// A GrpcServer over a fake engine and the real tokenizer of tales-llama, and a client of it.
#pragma once

#include <grpcpp/grpcpp.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kivi/v1/error.pb.h"
#include "kivi/v1/kivi.grpc.pb.h"
#include "server/grpc/grpc_server.h"
#include "tests/engine/fake_runner.h"

namespace kivi::testing {

struct GrpcTestOptions {
  ServerConfig server;
  FakeEngineOptions engine;
  bool loaded = true;  // false: the test calls state->set_model itself
};

class GrpcTest {
 public:
  explicit GrpcTest(GrpcTestOptions options = {}) : metrics("kivi", "tales") {
    auto loaded = load_tokenizer(KIVI_SOURCE_DIR "/models/tales-llama");
    REQUIRE(loaded.ok());
    tokenizer = std::move(*loaded);
    options.engine.runner.vocab_size = tokenizer->vocab_size();
    model.kv_format = options.engine.format;
    model.max_model_len = options.engine.max_model_len;
    model.hidden = options.engine.runner.hidden;
    engine = make_fake_engine(std::move(options.engine));
    engine->start();
    model.name = "tales";
    model.fingerprint = "fp_test";
    model.tokenizer = tokenizer.get();
    model.engine = engine.get();
    options.server.grpc_port = 0;
    state = std::make_unique<ServerState>(options.server, metrics);
    server = std::make_unique<GrpcServer>(*state);
    const Status started = server->start();
    REQUIRE(started.ok());
    if (options.loaded) state->set_model(model);
    channel = connect();
    stub = v1::Kivi::NewStub(channel);
  }
  ~GrpcTest() { server->stop(); }

  // A channel with a connection of its own.
  std::shared_ptr<grpc::Channel> connect() const {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetMaxReceiveMessageSize(-1);
    return grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(server->port()),
                                     grpc::InsecureChannelCredentials(), arguments);
  }

  bool engine_is_empty() const {
    const EngineStats s = engine->stats();
    return s.running == 0 && s.waiting == 0 && s.waiting_tokens == 0 &&
           s.kv_pages_free == s.kv_pages_total && s.kv_slots_free == s.kv_slots_total &&
           s.staging_pages_free == s.staging_pages_total && s.kv_bytes == KvBytes{};
  }

  Metrics metrics;
  std::unique_ptr<ServerState> state;
  std::unique_ptr<GrpcServer> server;  // destroyed after the engine, see GrpcServer
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<Engine> engine;
  ServedModel model;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Kivi::Stub> stub;
};

// Waits until `condition` holds, at most `limit`.
inline bool eventually(const std::function<bool()>& condition,
                       std::chrono::milliseconds limit = std::chrono::seconds(10)) {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

inline v1::GenerateRequest text_request(const std::string& text, int max_tokens) {
  v1::GenerateRequest request;
  request.set_text(text);
  request.set_max_tokens(max_tokens);
  request.set_seed(7);
  return request;
}

// All that a Generate call gave: parts joined by choice. (Catch's macros belong to the main thread:
// what a call of another thread saw is kept here.)
struct Streamed {
  std::vector<v1::Choice> choices;
  v1::Usage usage;
  std::string request_id;
  int messages = 0;
  bool well_formed = true;  // nothing follows a choice's last part
  grpc::Status status;
};

inline void join(const v1::GenerateResponse& message, Streamed& out) {
  ++out.messages;
  if (!message.request_id().empty()) out.request_id = message.request_id();
  if (message.has_usage()) out.usage = message.usage();
  for (const v1::Choice& part : message.choices()) {
    if (size_t(part.index()) >= out.choices.size()) out.choices.resize(size_t(part.index()) + 1);
    v1::Choice& whole = out.choices[size_t(part.index())];
    if (whole.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) out.well_formed = false;
    const std::string text = whole.text() + part.text();
    const int prompt_tokens = whole.prompt_tokens() + part.prompt_tokens();
    whole.MergeFrom(part);
    whole.set_text(text);
    whole.set_index(part.index());
    if (prompt_tokens > 0) whole.set_prompt_tokens(prompt_tokens);
  }
}

inline Streamed generate(v1::Kivi::Stub& stub, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  Streamed out;
  auto reader = stub.Generate(&context, request);
  v1::GenerateResponse message;
  while (reader->Read(&message)) join(message, out);
  out.status = reader->Finish();
  return out;
}

struct ErrorDetails {
  v1::Status status;
  v1::BadRequest bad_request;
  v1::ErrorDetail detail;
};

// Reads grpc-status-details-bin; fails the test where it is not as error.proto says.
inline ErrorDetails details_of(const grpc::Status& status) {
  ErrorDetails out;
  REQUIRE(out.status.ParseFromString(status.error_details()));
  CHECK(out.status.code() == int(status.error_code()));
  CHECK(out.status.message() == status.error_message());
  bool found = false;
  for (const auto& any : out.status.details()) {
    if (any.type_url() == "type.googleapis.com/google.rpc.BadRequest")
      REQUIRE(out.bad_request.ParseFromString(any.value()));
    if (any.UnpackTo(&out.detail)) found = true;
  }
  CHECK(found);
  return out;
}

}  // namespace kivi::testing
