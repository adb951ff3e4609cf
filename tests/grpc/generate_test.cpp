// SPDX-License-Identifier: Apache-2.0
// Generate and Complete: what comes out, and what is refused.
#include <limits>
#include <thread>

#include "tests/grpc/grpc_fixture.h"

using namespace kivi;
using namespace kivi::testing;

namespace {

struct Completed {
  v1::CompleteResponse response;
  grpc::Status status;
};

Completed complete(v1::Kivi::Stub& stub, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  Completed out;
  out.status = stub.Complete(&context, request, &out.response);
  return out;
}

std::string bytes_of(const google::protobuf::Message& message) {
  return message.SerializeAsString();
}

}  // namespace

TEST_CASE("a Generate stream joined is what Complete answers") {
  GrpcTest t;
  for (int n : {1, 3}) {
    v1::GenerateRequest request = text_request("Once upon a time there was a king", 60);
    request.set_n(n);
    request.set_logprobs(2);
    request.set_echo(n == 3);
    const Streamed streamed = generate(*t.stub, request);
    const Completed whole = complete(*t.stub, request);
    REQUIRE(streamed.status.ok());
    REQUIRE(whole.status.ok());
    CHECK(streamed.well_formed);
    REQUIRE(int(streamed.choices.size()) == n);
    REQUIRE(whole.response.choices_size() == n);
    for (int i = 0; i < n; ++i) {
      CHECK(bytes_of(streamed.choices[size_t(i)]) == bytes_of(whole.response.choices(i)));
      CHECK(streamed.choices[size_t(i)].finish_reason() == v1::FINISH_REASON_LENGTH);
    }
    CHECK(bytes_of(streamed.usage) == bytes_of(whole.response.usage()));
    CHECK(streamed.usage.completion_tokens() == 60 * n);
    CHECK(whole.response.model() == "tales");
    CHECK(whole.response.system_fingerprint() == "fp_test");
    CHECK_FALSE(streamed.request_id.empty());
  }
  CHECK(eventually([&] { return t.engine_is_empty(); }));
}

TEST_CASE("the text is what the ids decode to, and ids in are taken as they are") {
  GrpcTestOptions options;
  options.engine.runner.tokens = FakeRunnerOptions::Tokens::echo;
  GrpcTest t(options);
  const std::string text = "The fox — said “Guten Tag, schöne Füchsin” — and went.";
  const std::vector<int32_t> ids = t.tokenizer->encode(text, false);
  v1::GenerateRequest request;
  for (int32_t id : ids) request.mutable_token_ids()->add_ids(id);
  request.set_max_tokens(int(ids.size()));
  const Streamed out = generate(*t.stub, request);
  REQUIRE(out.status.ok());
  CHECK(out.usage.prompt_tokens() == int(ids.size()));  // no BOS
  REQUIRE(out.choices.size() == 1);
  const v1::Choice& choice = out.choices[0];
  CHECK(std::vector<int32_t>(choice.token_ids().begin(), choice.token_ids().end()) == ids);
  CHECK(choice.text().find(text.substr(4)) != std::string::npos);
  CHECK(choice.logprobs_size() == 0);

  v1::GenerateRequest as_text = text_request(text, 1);
  CHECK(generate(*t.stub, as_text).usage.prompt_tokens() == int(ids.size()) + 1);  // with BOS
  as_text.set_add_special_tokens(false);
  CHECK(generate(*t.stub, as_text).usage.prompt_tokens() == int(ids.size()));
  as_text.set_truncate_prompt_tokens(5);
  CHECK(generate(*t.stub, as_text).usage.prompt_tokens() == 5);
  for (const bool end : {false, true}) {
    as_text.set_truncate_prompt_end(end);
    as_text.set_echo(true);
    const Streamed kept = generate(*t.stub, as_text);
    REQUIRE(kept.choices.size() == 1);
    CHECK(kept.choices[0].token_ids(0) == (end ? ids[0] : ids[ids.size() - 5]));
  }
}

TEST_CASE("logprobs come for each token, with the likeliest ones") {
  GrpcTest t;
  v1::GenerateRequest request = text_request("the king", 10);
  request.set_logprobs(3);
  request.set_echo(true);
  const Streamed out = generate(*t.stub, request);
  REQUIRE(out.status.ok());
  const v1::Choice& choice = out.choices.at(0);
  REQUIRE(choice.prompt_tokens() == out.usage.prompt_tokens());
  REQUIRE(choice.token_ids_size() == choice.prompt_tokens() + 10);
  REQUIRE(choice.logprobs_size() == choice.token_ids_size());
  for (int i = 0; i < choice.logprobs_size(); ++i) {
    const v1::TokenLogprobs& token = choice.logprobs(i);
    CHECK(token.id() == choice.token_ids(i));
    CHECK(token.has_logprob() == (i > 0));  // nothing comes before the prompt's first token
    if (i == 0) continue;
    CHECK(token.logprob() == -1);  // FakeRunner's
    REQUIRE(token.top_size() == 3);
    CHECK(token.top(0).id() == token.id());
    CHECK(token.top(2).logprob() == -3);
  }
}

TEST_CASE("a stop string, a stop id and EOS end a choice, and are named") {
  GrpcTest t;
  const Streamed plain = generate(*t.stub, text_request("a tale", 40));
  REQUIRE(plain.status.ok());
  const v1::Choice& all = plain.choices.at(0);

  v1::GenerateRequest request = text_request("a tale", 40);
  request.add_stop_token_ids(all.token_ids(9));
  Streamed out = generate(*t.stub, request);
  CHECK(out.choices.at(0).finish_reason() == v1::FINISH_REASON_STOP);
  CHECK(out.choices.at(0).stop_token_id() == all.token_ids(9));
  CHECK(out.usage.completion_tokens() <= 10);

  const std::string stop = all.text().substr(all.text().size() / 2, 4);
  request = text_request("a tale", 40);
  request.add_stop(stop);
  out = generate(*t.stub, request);
  CHECK(out.choices.at(0).finish_reason() == v1::FINISH_REASON_STOP);
  CHECK(out.choices.at(0).stop_string() == stop);
  CHECK(out.choices.at(0).text() == all.text().substr(0, all.text().find(stop)));
  request.set_include_stop_str_in_output(true);
  out = generate(*t.stub, request);
  CHECK(out.choices.at(0).text() == all.text().substr(0, all.text().find(stop)) + stop);
  CHECK(eventually([&] { return t.engine_is_empty(); }));
}

TEST_CASE("best_of computes more than it returns") {
  GrpcTest t;
  v1::GenerateRequest request = text_request("a tale", 8);
  request.set_n(2);
  request.set_best_of(5);
  const Completed out = complete(*t.stub, request);
  REQUIRE(out.status.ok());
  CHECK(out.response.choices_size() == 2);
  CHECK(out.response.usage().completion_tokens() == 5 * 8);
}

TEST_CASE("every invalid field is INVALID_ARGUMENT and named") {
  GrpcTest t;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  struct Case {
    const char* field;
    std::function<void(v1::GenerateRequest&)> spoil;
  };
  const std::vector<Case> cases = {
      {"prompt", [](auto& r) { r.clear_prompt(); }},
      {"token_ids", [](auto& r) { r.mutable_token_ids(); }},
      {"token_ids", [](auto& r) { r.mutable_token_ids()->add_ids(-1); }},
      {"token_ids", [](auto& r) { r.mutable_token_ids()->add_ids(4096); }},
      {"max_tokens", [](auto& r) { r.set_max_tokens(-1); }},
      {"min_tokens", [](auto& r) { r.set_min_tokens(99); }},
      {"min_tokens", [](auto& r) { r.set_min_tokens(-1); }},
      {"temperature", [](auto& r) { r.set_temperature(-0.1f); }},
      {"temperature", [=](auto& r) { r.set_temperature(nan); }},
      {"top_p", [](auto& r) { r.set_top_p(0); }},
      {"top_p", [](auto& r) { r.set_top_p(1.01f); }},
      {"top_p", [=](auto& r) { r.set_top_p(nan); }},
      {"top_k", [](auto& r) { r.set_top_k(-2); }},
      {"min_p", [](auto& r) { r.set_min_p(-0.1f); }},
      {"min_p", [](auto& r) { r.set_min_p(1.5f); }},
      {"presence_penalty", [](auto& r) { r.set_presence_penalty(2.1f); }},
      {"frequency_penalty", [](auto& r) { r.set_frequency_penalty(-2.1f); }},
      {"repetition_penalty", [](auto& r) { r.set_repetition_penalty(0); }},
      {"repetition_penalty", [=](auto& r) { r.set_repetition_penalty(nan); }},
      {"logit_bias", [](auto& r) { (*r.mutable_logit_bias())[5] = 101; }},
      {"logit_bias", [](auto& r) { (*r.mutable_logit_bias())[4096] = 1; }},
      {"stop", [](auto& r) { r.add_stop(""); }},
      {"stop", [](auto& r) { r.add_stop(std::string(kMaxStopStringBytes + 1, 'x')); }},
      {"stop",
       [](auto& r) {
         for (int i = 0; i <= kMaxStopStrings; ++i) r.add_stop("x");
       }},
      {"stop_token_ids", [](auto& r) { r.add_stop_token_ids(-5); }},
      {"allowed_token_ids", [](auto& r) { r.add_allowed_token_ids(4096); }},
      {"bad_words", [](auto& r) { r.add_bad_words(""); }},
      {"logprobs", [](auto& r) { r.set_logprobs(21); }},
      {"logprobs", [](auto& r) { r.set_logprobs(-2); }},
      {"n", [](auto& r) { r.set_n(0); }},
      {"n", [](auto& r) { r.set_n(129); }},
      {"truncate_prompt_tokens", [](auto& r) { r.set_truncate_prompt_tokens(0); }},
      {"request_id", [](auto& r) { r.set_request_id("two words"); }},
      {"request_id", [](auto& r) { r.set_request_id(std::string(257, 'x')); }},
  };
  for (const Case& c : cases) {
    INFO(c.field);
    v1::GenerateRequest request = text_request("a tale", 4);
    c.spoil(request);
    for (const grpc::Status& status :
         {generate(*t.stub, request).status, complete(*t.stub, request).status}) {
      CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
      const ErrorDetails details = details_of(status);
      CHECK(details.detail.field() == c.field);
      CHECK(details.detail.code() == "invalid_value");
      REQUIRE(details.bad_request.field_violations_size() == 1);
      CHECK(details.bad_request.field_violations(0).field() == c.field);
      CHECK(status.error_message().find(c.field) != std::string::npos);
    }
  }
  v1::GenerateRequest request = text_request("a tale", 4);
  request.set_best_of(2);
  CHECK(details_of(generate(*t.stub, request).status).detail.field() == "best_of");
  for (int best_of : {0, 1, 129}) {
    request.set_n(2);
    request.set_best_of(best_of);
    CHECK(details_of(complete(*t.stub, request).status).detail.field() == "best_of");
  }
  CHECK(t.engine->stats().steps == 0);
}

TEST_CASE("a prompt beyond the context is OUT_OF_RANGE") {
  GrpcTestOptions options;
  options.engine.max_model_len = 64;
  GrpcTest t(options);
  v1::GenerateRequest request;
  for (int i = 0; i < 64; ++i) request.mutable_token_ids()->add_ids(10);
  const Streamed out = generate(*t.stub, request);
  CHECK(out.status.error_code() == grpc::StatusCode::OUT_OF_RANGE);
  CHECK(details_of(out.status).detail.code() == "context_length_exceeded");
  CHECK(out.status.error_message().rfind("This model's maximum context length is 64 tokens. ", 0) ==
        0);
  request.set_truncate_prompt_tokens(60);
  request.set_max_tokens(100);
  const Streamed cut = generate(*t.stub, request);
  REQUIRE(cut.status.ok());
  CHECK(cut.usage.completion_tokens() == 4);
  CHECK(cut.choices.at(0).finish_reason() == v1::FINISH_REASON_LENGTH);
}

TEST_CASE("another model's name is NOT_FOUND") {
  GrpcTest t;
  v1::GenerateRequest request = text_request("a tale", 4);
  request.set_model("gpt");
  const Streamed out = generate(*t.stub, request);
  CHECK(out.status.error_code() == grpc::StatusCode::NOT_FOUND);
  CHECK(details_of(out.status).detail.code() == "model_not_found");
  request.set_model("tales");
  CHECK(generate(*t.stub, request).status.ok());
  // The message repeats the name, but never more than trailing metadata can carry.
  for (const char* text : {"x", "\"", "ü"}) {
    std::string name;
    while (name.size() < 100'000) name += text;
    request.set_model(name);
    const grpc::Status status = generate(*t.stub, request).status;
    CHECK(status.error_code() == grpc::StatusCode::NOT_FOUND);
    CHECK(details_of(status).detail.field() == "model");
  }
}

TEST_CASE("a field that the contract does not know is accepted, and refused by strict_params") {
  for (bool strict : {false, true}) {
    GrpcTestOptions options;
    options.server.strict_params = strict;
    GrpcTest t(options);
    v1::GenerateRequest request = text_request("a tale", 4);
    request.GetReflection()->MutableUnknownFields(&request)->AddVarint(999, 1);
    const grpc::Status status = generate(*t.stub, request).status;
    CHECK(status.ok() == !strict);
    if (!strict) continue;
    CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
    CHECK(details_of(status).detail.field() == "999");
  }
}

TEST_CASE("a full queue is RESOURCE_EXHAUSTED and says when to try again") {
  GrpcTestOptions options;
  options.engine.config.max_num_seqs = 1;
  options.engine.config.max_num_queued_reqs = 1;
  options.engine.runner.step_delay = std::chrono::milliseconds(5);
  GrpcTest t(options);
  v1::GenerateRequest request = text_request("a tale", 400);
  request.set_n(2);
  bool first_ok = false;
  std::thread first([&, running = request] { first_ok = generate(*t.stub, running).status.ok(); });
  const auto is_full = [&] {
    const EngineStats stats = t.engine->stats();
    return stats.running == 1 && stats.waiting == 1;
  };
  CHECK(eventually(is_full));
  const Streamed out = generate(*t.stub, text_request("a tale", 4));
  CHECK(out.status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED);
  CHECK(details_of(out.status).detail.retry_after_seconds() > 0);
  first.join();
  CHECK(first_ok);
  // What could never fit is an error of its own, which names the field.
  request.set_n(8);
  const Streamed never = generate(*t.stub, request);
  CHECK(never.status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(details_of(never.status).detail.field() == "n");
  CHECK(eventually([&] { return t.engine_is_empty(); }));
}

TEST_CASE("a step that fails is INTERNAL for its calls and hurts no later one") {
  GrpcTestOptions options;
  options.engine.runner.fail_at_step = 3;
  GrpcTest t(options);
  const Streamed out = generate(*t.stub, text_request("a tale", 20));
  CHECK(out.status.error_code() == grpc::StatusCode::INTERNAL);
  CHECK(details_of(out.status).detail.code() == "internal_error");
  CHECK(generate(*t.stub, text_request("a tale", 20)).status.ok());
}

TEST_CASE("Embed gives a vector for each input, and refuses what is wrong by its field") {
  GrpcTest test;
  v1::EmbedRequest request;
  request.add_inputs()->mutable_token_ids()->mutable_ids()->Add(5);
  for (const int32_t id : {6, 7, 8}) request.mutable_inputs(0)->mutable_token_ids()->add_ids(id);
  request.add_inputs()->set_text("Once upon a time");
  const auto embed = [&](const v1::EmbedRequest& asked, v1::EmbedResponse& response) {
    grpc::ClientContext context;
    return test.stub->Embed(&context, asked, &response);
  };
  for (const bool mean : {false, true}) {
    request.set_pooling(mean ? v1::POOLING_MEAN : v1::POOLING_UNSPECIFIED);
    request.set_normalize(false);
    v1::EmbedResponse response;
    REQUIRE(embed(request, response).ok());
    CHECK(response.model() == "tales");
    CHECK_FALSE(response.request_id().empty());
    REQUIRE(response.embeddings_size() == 2);
    CHECK(response.usage().prompt_tokens() ==
          4 + int(test.tokenizer->encode("Once upon a time", true).size()));
    CHECK(response.usage().completion_tokens() == 0);
    for (int c = 0; c < 8; ++c) {
      float sum = 0;
      for (int i = mean ? 0 : 3; i < 4; ++i) sum += FakeRunner::hidden_of(5 + i, i, c);
      CHECK(response.embeddings(0).values(c) == (mean ? sum / 4 : sum));
    }
    request.clear_normalize();
    v1::EmbedResponse normal;
    REQUIRE(embed(request, normal).ok());
    for (const v1::Embedding& embedding : normal.embeddings()) {
      double squares = 0;
      for (const float x : embedding.values()) squares += double(x) * double(x);
      CHECK(squares == Approx(1));
    }
  }
  const auto refusal = [&](const std::function<void(v1::EmbedRequest&)>& change) {
    v1::EmbedRequest wrong = request;
    change(wrong);
    v1::EmbedResponse unused;
    return embed(wrong, unused).error_message();
  };
  using Request = v1::EmbedRequest;
  CHECK(refusal([](Request& r) { r.clear_inputs(); }).find("inputs has 0") == 0);
  CHECK(refusal([](Request& r) { r.add_inputs(); }).find("inputs[2] is not set") == 0);
  CHECK(refusal([](Request& r) { r.set_model("x"); }).find("model") == 0);
  CHECK(refusal([](Request& r) { r.set_pooling(v1::Pooling(9)); }).find("pooling is 9") == 0);
  CHECK(eventually([&] { return test.engine_is_empty(); }));
}
