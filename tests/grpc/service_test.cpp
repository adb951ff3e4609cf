// SPDX-License-Identifier: Apache-2.0
// What stands around the calls: health, reflection, keys, sizes, the other methods, and the two
// copies of Protobuf in one process.
#include <google/protobuf/io/coded_stream.h>
#include <grpcpp/generic/generic_stub.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>

#include "grpc/health/v1/health.grpc.pb.h"
#include "grpc/reflection/v1/reflection.grpc.pb.h"
#include "tests/grpc/grpc_fixture.h"

using namespace kivi;
using namespace kivi::testing;
using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

// ThreadSanitizer asks for this, where it is built in. gRPC's archives are not instrumented: it
// sees their calls of memcpy and sendmsg, but not the locks around them. Our own reads and writes
// stay watched.
extern "C" const char* __tsan_default_options() { return "ignore_interceptors_accesses=1"; }

namespace {

HealthCheckResponse::ServingStatus check(Health::Stub& stub, const std::string& service) {
  grpc::ClientContext context;
  HealthCheckRequest request;
  HealthCheckResponse response;
  request.set_service(service);
  if (!stub.Check(&context, request, &response).ok()) return HealthCheckResponse::SERVICE_UNKNOWN;
  return response.status();
}

grpc::ByteBuffer buffer_of(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

std::string bytes_of(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string out;
  if (!buffer.Dump(&slices).ok()) return out;
  for (const auto& slice : slices)
    out.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return out;
}

// One message to a bidirectional method and one back, as bytes.
std::string ask(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                const std::string& request) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  auto call = stub.PrepareCall(&context, method, &queue);
  const auto wait = [&] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  grpc::ByteBuffer answer;
  grpc::Status status;
  call->StartCall(nullptr);
  REQUIRE(wait());
  call->Write(buffer_of(request), nullptr);
  REQUIRE(wait());
  call->Read(&answer, nullptr);
  REQUIRE(wait());
  call->WritesDone(nullptr);
  REQUIRE(wait());
  call->Finish(&status, nullptr);
  REQUIRE(wait());
  CHECK(status.ok());
  return bytes_of(answer);
}

// A ServerReflectionRequest or a part of its answer: field `number` holding a string.
std::string string_field(int number, const std::string& value) {
  return std::string(1, char(number << 3 | 2)) + char(value.size()) + value;
}

void add_key(grpc::ClientContext& context, const std::string& key) {
  context.AddMetadata("authorization", "Bearer " + key);
}

grpc::StatusCode info_with_key(v1::Kivi::Stub& stub, const std::string& key) {
  grpc::ClientContext context;
  if (!key.empty()) add_key(context, key);
  v1::GetModelInfoResponse response;
  return stub.GetModelInfo(&context, v1::GetModelInfoRequest(), &response).error_code();
}

}  // namespace

TEST_CASE(
    "health: NOT_SERVING while loading, SERVING, NOT_SERVING while draining; Watch sees all") {
  GrpcTestOptions options;
  options.loaded = false;
  GrpcTest t(options);
  auto stub = Health::NewStub(t.channel);
  for (const char* service : {"", "kivi.v1.Kivi"}) {
    CHECK(check(*stub, service) == HealthCheckResponse::NOT_SERVING);
  }
  CHECK(check(*stub, "kivi.v2.Kivi") == HealthCheckResponse::SERVICE_UNKNOWN);

  grpc::ClientContext contexts[2];
  std::vector<std::unique_ptr<grpc::ClientReader<HealthCheckResponse>>> watches;
  HealthCheckRequest request;
  for (int i = 0; i < 2; ++i) {
    request.set_service(i == 0 ? "" : "kivi.v1.Kivi");
    watches.push_back(stub->Watch(&contexts[i], request));
  }
  const auto all_see = [&](HealthCheckResponse::ServingStatus status) {
    for (auto& watch : watches) {
      HealthCheckResponse response;
      REQUIRE(watch->Read(&response));
      CHECK(response.status() == status);
    }
  };
  all_see(HealthCheckResponse::NOT_SERVING);
  const grpc::Status loading = generate(*t.stub, text_request("a tale", 4)).status;
  CHECK(loading.error_code() == grpc::StatusCode::UNAVAILABLE);
  CHECK(loading.error_message() == "the model is loading");
  t.state->set_model(t.model);
  all_see(HealthCheckResponse::SERVING);
  CHECK(check(*stub, "") == HealthCheckResponse::SERVING);
  CHECK(generate(*t.stub, text_request("a tale", 4)).status.ok());
  t.state->set_grpc_answers(false);
  all_see(HealthCheckResponse::NOT_SERVING);
  t.state->set_grpc_answers(true);
  all_see(HealthCheckResponse::SERVING);
  t.state->begin_drain();
  all_see(HealthCheckResponse::NOT_SERVING);
  CHECK(check(*stub, "kivi.v1.Kivi") == HealthCheckResponse::NOT_SERVING);
  t.server->stop();  // ends the watches
  for (auto& watch : watches) {
    HealthCheckResponse response;
    while (watch->Read(&response)) {
    }
    watch->Finish();
  }
}

TEST_CASE("a reply of one message that nobody reads ends its call") {
  GrpcTestOptions options;
  options.server.write_timeout = 1;
  GrpcTest t(options);
  v1::TokenizeRequest request;
  for (int i = 0; i < 6000; ++i) request.mutable_text()->append("a tale ");
  request.set_return_token_strings(true);  // more than the window of a stream holds
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // which would make it larger
  grpc::GenericStub stub(grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(t.server->port()),
                                                   grpc::InsecureChannelCredentials(), arguments));
  grpc::CompletionQueue queue;
  const auto wait = [&] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  for (const bool reads : {true, false}) {
    grpc::ClientContext context;
    const auto call = stub.PrepareCall(&context, "/kivi.v1.Kivi/Tokenize", &queue);
    call->StartCall(nullptr);
    REQUIRE(wait());
    call->WriteLast(buffer_of(request.SerializeAsString()), grpc::WriteOptions(), nullptr);
    REQUIRE(wait());
    if (!reads) std::this_thread::sleep_for(std::chrono::milliseconds(1500));
    grpc::ByteBuffer answer;
    call->Read(&answer, nullptr);
    CHECK(wait() == reads);
    grpc::Status status;
    call->Finish(&status, nullptr);
    REQUIRE(wait());
    CHECK(status.error_code() == (reads ? grpc::StatusCode::OK : grpc::StatusCode::CANCELLED));
    if (reads) CHECK(answer.Length() > 64 << 10);
  }
}

TEST_CASE("reflection lists kivi.v1.Kivi and gives its file, in both versions of the protocol") {
  GrpcTest t;
  for (const std::string version : {"v1", "v1alpha"}) {
    INFO(version);
    const std::string method =
        "/grpc.reflection." + version + ".ServerReflection/ServerReflectionInfo";
    const std::string list = ask(t.channel, method, string_field(7, ""));
    CHECK(list.find("kivi.v1.Kivi") != std::string::npos);
    CHECK(list.find("grpc.health.v1.Health") != std::string::npos);
    CHECK(list.find("grpc.reflection.v1.ServerReflection") != std::string::npos);
    const std::string file = ask(t.channel, method, string_field(4, "kivi.v1.Kivi"));
    CHECK(file.find("GenerateRequest") != std::string::npos);
    CHECK(ask(t.channel, method, string_field(3, "kivi/v1/kivi.proto")).find("GenerateRequest") !=
          std::string::npos);
  }
}

TEST_CASE("reflection v1 answers many requests of a stream, and errors do not end it") {
  using grpc::reflection::v1::ServerReflection;
  using grpc::reflection::v1::ServerReflectionRequest;
  using grpc::reflection::v1::ServerReflectionResponse;
  GrpcTest t;
  auto stub = ServerReflection::NewStub(t.channel);
  grpc::ClientContext context;
  const auto stream = stub->ServerReflectionInfo(&context);
  const auto asked = [&](const ServerReflectionRequest& request) {
    ServerReflectionResponse response;
    REQUIRE(stream->Write(request));
    REQUIRE(stream->Read(&response));
    CHECK(response.original_request().SerializeAsString() == request.SerializeAsString());
    return response;
  };
  ServerReflectionRequest request;
  CHECK(asked(request).error_response().error_code() == int(grpc::StatusCode::INVALID_ARGUMENT));
  request.set_file_containing_symbol("no.such.Name");
  CHECK(asked(request).error_response().error_code() == int(grpc::StatusCode::NOT_FOUND));
  request.set_file_by_filename("no/such.proto");
  CHECK(asked(request).error_response().error_code() == int(grpc::StatusCode::NOT_FOUND));
  request.mutable_file_containing_extension()->set_containing_type("kivi.v1.Usage");
  CHECK(asked(request).error_response().error_code() == int(grpc::StatusCode::NOT_FOUND));
  request.set_all_extension_numbers_of_type("kivi.v1.Usage");
  CHECK(asked(request).all_extension_numbers_response().base_type_name() == "kivi.v1.Usage");
  request.set_file_containing_symbol("kivi.v1.Kivi.Generate");
  CHECK(asked(request).file_descriptor_response().file_descriptor_proto_size() >= 1);
  request.set_list_services("*");
  CHECK(asked(request).list_services_response().service_size() == 4);
  stream->WritesDone();
  ServerReflectionResponse none;
  CHECK_FALSE(stream->Read(&none));
  CHECK(stream->Finish().ok());
}

TEST_CASE("List of the health service says the state of every service, without a key") {
  GrpcTestOptions options;
  options.loaded = false;
  options.server.api_keys = {"key-one"};
  GrpcTest t(options);
  auto stub = Health::NewStub(t.channel);
  const auto states = [&] {
    grpc::ClientContext context;
    grpc::health::v1::HealthListResponse response;
    CHECK(stub->List(&context, grpc::health::v1::HealthListRequest(), &response).ok());
    REQUIRE(response.statuses().size() == 2);
    CHECK(response.statuses().at("").status() == response.statuses().at("kivi.v1.Kivi").status());
    return response.statuses().at("").status();
  };
  CHECK(states() == HealthCheckResponse::NOT_SERVING);
  t.state->set_model(t.model);
  CHECK(states() == HealthCheckResponse::SERVING);
  t.state->begin_drain();
  CHECK(states() == HealthCheckResponse::NOT_SERVING);
}

TEST_CASE("with keys: a call without the right one is UNAUTHENTICATED") {
  GrpcTestOptions options;
  options.server.api_keys = {"key-one", "key-two"};
  GrpcTest t(options);
  for (const char* key : {"", "key", "key-onf", "key-one2", "KEY-ONE"})
    CHECK(info_with_key(*t.stub, key) == grpc::StatusCode::UNAUTHENTICATED);
  for (const char* key : {"key-one", "key-two"})
    CHECK(info_with_key(*t.stub, key) == grpc::StatusCode::OK);
  const grpc::Status refused = generate(*t.stub, text_request("a tale", 4)).status;
  CHECK(refused.error_code() == grpc::StatusCode::UNAUTHENTICATED);
  CHECK(details_of(refused).detail.code() == "invalid_api_key");
  grpc::ClientContext context;
  context.AddMetadata("authorization", "key-one");  // no scheme
  v1::CompleteResponse response;
  CHECK(t.stub->Complete(&context, text_request("a tale", 4), &response).error_code() ==
        grpc::StatusCode::UNAUTHENTICATED);
  CHECK(t.engine->stats().steps == 0);
  auto health = Health::NewStub(t.channel);  // open, as /health
  CHECK(check(*health, "") == HealthCheckResponse::SERVING);
}

TEST_CASE("an empty bearer opens nothing") {
  GrpcTestOptions options;
  options.server.api_keys = {"key-one"};
  GrpcTest t(options);
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer ");
  v1::GetServerInfoResponse response;
  CHECK(t.stub->GetServerInfo(&context, v1::GetServerInfoRequest(), &response).error_code() ==
        grpc::StatusCode::UNAUTHENTICATED);
}

TEST_CASE("x-request-id is echoed, and made where there is none") {
  GrpcTest t;
  const auto echoed = [&](const std::string& id, const std::string& field) {
    grpc::ClientContext context;
    if (!id.empty()) context.AddMetadata("x-request-id", id);
    context.AddMetadata("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    v1::GenerateRequest request = text_request("a tale", 2);
    request.set_request_id(field);
    v1::CompleteResponse response;
    REQUIRE(t.stub->Complete(&context, request, &response).ok());
    const auto it = context.GetServerInitialMetadata().find("x-request-id");
    REQUIRE(it != context.GetServerInitialMetadata().end());
    CHECK(response.request_id() == std::string(it->second.data(), it->second.size()));
    return response.request_id();
  };
  CHECK(echoed("mine-1", "") == "mine-1");
  CHECK(echoed("mine-1", "field-2") == "field-2");
  const std::string a = echoed("", ""), b = echoed("", "");
  CHECK(a.size() == 5 + 32);
  CHECK(a != b);
  CHECK(echoed(std::string(300, 'x'), "").size() == 5 + 32);
}

TEST_CASE("an error before any message has x-request-id in its trailers and no initial metadata") {
  GrpcTest t;
  const auto check = [](const auto& call) {
    grpc::ClientContext context;
    context.AddMetadata("x-request-id", "mine-1");
    CHECK(call(context).error_code() == grpc::StatusCode::INVALID_ARGUMENT);
    CHECK(context.GetServerInitialMetadata().count("x-request-id") == 0);
    const auto it = context.GetServerTrailingMetadata().find("x-request-id");
    REQUIRE(it != context.GetServerTrailingMetadata().end());
    CHECK(std::string(it->second.data(), it->second.size()) == "mine-1");
  };
  v1::GenerateRequest wrong = text_request("a tale", 2);
  wrong.set_top_p(-1);
  check([&](grpc::ClientContext& context) {
    v1::CompleteResponse response;
    return t.stub->Complete(&context, wrong, &response);
  });
  check([&](grpc::ClientContext& context) {
    const auto reader = t.stub->Generate(&context, wrong);
    v1::GenerateResponse response;
    CHECK_FALSE(reader->Read(&response));
    return reader->Finish();
  });
  check([&](grpc::ClientContext& context) {
    v1::DetokenizeRequest request;
    request.add_token_ids(1 << 30);
    v1::DetokenizeResponse response;
    return t.stub->Detokenize(&context, request, &response);
  });
}

TEST_CASE("a message beyond max_body_bytes is refused and the server goes on") {
  GrpcTestOptions options;
  options.server.max_body_bytes = 64 << 10;
  GrpcTest t(options);
  const grpc::Status status = generate(*t.stub, text_request(std::string(65 << 10, 'a'), 4)).status;
  CHECK(status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  CHECK(t.server->running() == 0);
  CHECK(generate(*t.stub, text_request("a tale", 4)).status.ok());
}

TEST_CASE("Tokenize and Detokenize are the tokenizer's, and inverse") {
  GrpcTest t;
  const std::string text = "Once upon a time, “schön” \xf0\x9f\xa6\x8a!\n\n";
  v1::TokenizeRequest request;
  v1::TokenizeResponse ids;
  request.set_text(text);
  request.set_return_token_strings(true);
  grpc::ClientContext a;
  REQUIRE(t.stub->Tokenize(&a, request, &ids).ok());
  const std::vector<int32_t> got(ids.token_ids().begin(), ids.token_ids().end());
  CHECK(got == t.tokenizer->encode(text, true));
  CHECK(ids.max_model_len() == t.model.max_model_len);
  REQUIRE(ids.token_strings_size() == ids.token_ids_size());
  CHECK(ids.token_strings(0) == "<s>");
  request.set_add_special_tokens(false);
  request.set_return_token_strings(false);
  grpc::ClientContext b;
  REQUIRE(t.stub->Tokenize(&b, request, &ids).ok());
  CHECK(ids.token_ids_size() == int(got.size()) - 1);
  CHECK(ids.token_strings_size() == 0);

  v1::DetokenizeRequest back;
  v1::DetokenizeResponse out;
  for (int32_t id : got) back.add_token_ids(id);
  grpc::ClientContext c;
  REQUIRE(t.stub->Detokenize(&c, back, &out).ok());
  CHECK(out.text() == t.tokenizer->decode(got, false));
  CHECK(out.text().find("<s>") == 0);
  back.set_skip_special_tokens(true);
  grpc::ClientContext d;
  REQUIRE(t.stub->Detokenize(&d, back, &out).ok());
  CHECK(out.text() == text);
  back.add_token_ids(4096);
  grpc::ClientContext e;
  const grpc::Status status = t.stub->Detokenize(&e, back, &out);
  CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(details_of(status).detail.field() == "token_ids");
}

TEST_CASE("GetModelInfo and GetServerInfo say what is served") {
  GrpcTestOptions options;
  options.loaded = false;
  GrpcTest t(options);
  v1::GetServerInfoResponse server;
  v1::GetModelInfoResponse info;
  grpc::ClientContext a, b, c, d, e;
  REQUIRE(t.stub->GetServerInfo(&a, {}, &server).ok());
  CHECK(server.state() == v1::SERVER_STATE_LOADING);
  CHECK(t.stub->GetModelInfo(&b, {}, &info).error_code() == grpc::StatusCode::UNAVAILABLE);
  t.model.default_temperature = 0.5f;
  t.state->set_model(t.model);
  REQUIRE(t.stub->GetModelInfo(&c, {}, &info).ok());
  CHECK(info.model() == "tales");
  CHECK(info.vocab_size() == 4096);
  CHECK(info.kv_cache_dtype() == "kivi2");
  CHECK(info.default_temperature() == 0.5f);
  CHECK(info.default_top_p() == 1);
  CHECK(info.bos_token_id() == t.tokenizer->bos_id());
  REQUIRE(info.eos_token_ids_size() == 1);
  CHECK(info.eos_token_ids(0) == 2);
  REQUIRE(t.stub->GetServerInfo(&d, {}, &server).ok());
  CHECK(server.state() == v1::SERVER_STATE_SERVING);
  CHECK(server.kv_cache_tokens_capacity() == 4096 * 64);
  CHECK(server.uptime_seconds() > 0);
  t.state->begin_drain();
  REQUIRE(t.stub->GetServerInfo(&e, {}, &server).ok());
  CHECK(server.state() == v1::SERVER_STATE_DRAINING);
}

TEST_CASE("a port that is taken is an error that names grpc_port") {
  GrpcTest t;
  ServerConfig config;
  config.grpc_port = t.server->port();
  Metrics metrics("kivi", "tales");
  ServerState state(config, metrics);
  GrpcServer second(state);
  const Status status = second.start();
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().field == "grpc_port");
  CHECK(status.error().message.find(std::to_string(config.grpc_port)) != std::string::npos);
}

TEST_CASE("handled calls are counted by method and code; tokens as the client counted them") {
  GrpcTest t;
  int tokens = 0;
  for (int i = 0; i < 3; ++i)
    tokens += generate(*t.stub, text_request("a tale", 7)).choices.at(0).token_ids_size();
  v1::GenerateRequest bad = text_request("a tale", 7);
  bad.set_top_p(2);
  CHECK_FALSE(generate(*t.stub, bad).status.ok());
  const auto shows = [&](const std::string& line) {
    return eventually([&] { return t.metrics.scrape().find(line) != std::string::npos; });
  };
  const std::string generate_of = "grpc_method=\"/kivi.v1.Kivi/Generate\"} ";
  CHECK(shows("kivi:grpc_server_handled_total{model_name=\"tales\",grpc_code=\"OK\"," +
              generate_of + "3"));
  CHECK(shows("grpc_code=\"INVALID_ARGUMENT\"," + generate_of + "1"));
  CHECK(shows("kivi:generation_tokens_total{model_name=\"tales\"} " + std::to_string(tokens)));
  CHECK(shows("kivi:time_to_first_token_seconds_count{model_name=\"tales\"} 3"));
  CHECK(shows("kivi:e2e_request_latency_seconds_count{model_name=\"tales\"} 3"));
}

TEST_CASE("SentencePiece encodes and decodes while the gRPC server serves in the same process") {
  GrpcTest t;
  std::atomic<bool> stop{false};
  std::atomic<int> rounds{0}, wrong{0};
  const std::string text = "There was once a poor miller who had a beautiful daughter.";
  std::vector<std::thread> tokenizers;
  for (int i = 0; i < 2; ++i)
    tokenizers.emplace_back([&] {
      while (!stop) {
        const std::vector<int32_t> ids = t.tokenizer->encode(text, false);
        if (t.tokenizer->decode(ids, true) != text) ++wrong;
        ++rounds;
      }
    });
  const Streamed first = generate(*t.stub, text_request(text, 50));
  for (int i = 0; i < 30; ++i) {
    const Streamed out = generate(*t.stub, text_request(text, 50));
    if (!out.status.ok() || out.choices.at(0).text() != first.choices.at(0).text()) ++wrong;
  }
  stop = true;
  for (auto& thread : tokenizers) thread.join();
  CHECK(wrong == 0);
  CHECK(rounds > 0);
}

TEST_CASE("the program shares no symbol of Protobuf with libsentencepiece.so") {
  char path[4096];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path);
  REQUIRE(length > 0);
  FILE* nm = popen(("nm -D -C '" + std::string(path, size_t(length)) + "'").c_str(), "r");
  REQUIRE(nm != nullptr);
  int symbols = 0;
  std::string shared;
  char line[8192];
  while (fgets(line, sizeof line, nm) != nullptr) {
    ++symbols;
    if (std::string(line).find("google::protobuf") != std::string::npos) shared += line;
  }
  CHECK(pclose(nm) == 0);
  CHECK(symbols > 0);
  CHECK(shared == "");
}
