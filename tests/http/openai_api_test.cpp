// SPDX-License-Identifier: Apache-2.0
// The JSON of the API without sockets: where each field goes, and what is written.
#include "server/openai/openai_api.h"

#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <random>

#include "base/utf8.h"
#include "engine/limits.h"
#include "server/json_writer.h"

using namespace kivi;
using nlohmann::json;

namespace {

ApiRules rules() {
  ApiRules r;
  r.model_name = "tales";
  r.vocab_size = 100;
  return r;
}

CompletionCall parsed(const std::string& body, const ApiRules& r = rules()) {
  auto call = parse_completion(body, r);
  INFO(body);
  REQUIRE(call.ok());
  return *call;
}

std::string json_string(std::string_view text) {
  std::string out;
  append_json_string(out, text);
  return out;
}

// A completion that is nothing but its numbers.
class FixedCompletion : public Completion {
 public:
  bool poll(std::vector<TextChunk>&) override { return true; }
  void cancel() override {}
  Usage usage() const override { return {5, 7}; }
  int completion_tokens(int choice) const override { return 2 + choice; }
  const std::vector<int32_t>& prompt_ids(int) const override { return ids_; }
  const std::vector<RequestTimes>& times() const override { return times_; }

 private:
  std::vector<int32_t> ids_ = {1, 2};
  std::vector<RequestTimes> times_;
};

CompletionWriter writer_of(const CompletionCall& call) {
  ServedModel model;
  model.name = "a \"model\"";
  model.fingerprint = "fp";
  return CompletionWriter(model, call, 12);
}

}  // namespace

TEST_CASE("a completion with a schema is refused where any object of it has too many fields") {
  std::string fields;
  for (int i = 0; i <= kMaxChatObjectFields; ++i) fields += fmt::format("\"{}\":0,", i);
  fields.back() = '}';
  const auto with_schema =
      parse_completion(R"({"prompt":"a","guided_json":{},"x":{)" + fields + "}", rules());
  REQUIRE_FALSE(with_schema.ok());
  CHECK(with_schema.error().message.find("fields, must have at most 1024") != std::string::npos);
  CHECK(parse_completion(R"({"prompt":"a","x":{)" + fields + "}", rules()).ok());
}

TEST_CASE("every field of a completion request lands in its place") {
  const CompletionCall call = parsed(R"({
    "model":"tales", "prompt":["a",[5,6]], "max_tokens":9, "temperature":0.5, "top_p":0.25,
    "top_k":7, "min_p":0.125, "seed":-1, "n":2, "best_of":3, "stop":["x","y"],
    "stop_token_ids":[8], "include_stop_str_in_output":true, "min_tokens":4, "ignore_eos":true,
    "presence_penalty":-1.5, "frequency_penalty":1.5, "repetition_penalty":1.25,
    "logit_bias":{"3":-100,"4":2.5}, "logprobs":5, "echo":true, "priority":-2, "user":"u",
    "request_id":"r", "add_special_tokens":false, "skip_special_tokens":false,
    "truncate_prompt_tokens":11, "return_token_ids":true, "zzz":1, "aaa":2})");
  const CompletionRequest& r = call.request;
  REQUIRE(r.prompts.size() == 2);
  CHECK(std::get<std::string>(r.prompts[0]) == "a");
  CHECK(std::get<std::vector<int32_t>>(r.prompts[1]) == std::vector<int32_t>{5, 6});
  CHECK(r.sampling.max_tokens == 9);
  CHECK(r.sampling.temperature == 0.5f);
  CHECK(r.sampling.top_p == 0.25f);
  CHECK(r.sampling.top_k == 7);
  CHECK(r.sampling.min_p == 0.125f);
  CHECK(r.sampling.seed == uint64_t(-1));
  CHECK(r.n == 2);
  CHECK(r.best_of == 3);
  CHECK(r.stop == std::vector<std::string>{"x", "y"});
  CHECK(r.sampling.stop_token_ids == std::vector<int32_t>{8});
  CHECK(r.include_stop_str_in_output);
  CHECK(r.sampling.min_tokens == 4);
  CHECK(r.sampling.ignore_eos);
  CHECK(r.sampling.presence_penalty == -1.5f);
  CHECK(r.sampling.frequency_penalty == 1.5f);
  CHECK(r.sampling.repetition_penalty == 1.25f);
  REQUIRE(r.sampling.logit_bias.size() == 2);
  CHECK(r.sampling.logit_bias[0].id == 3);
  CHECK(r.sampling.logit_bias[0].bias == -100);
  CHECK(r.sampling.logit_bias[1].bias == 2.5f);
  CHECK(r.sampling.logprobs == 5);
  CHECK(r.sampling.prompt_logprobs == 5);  // with echo
  CHECK(r.echo);
  CHECK(r.priority == -2);
  CHECK(call.user == "u");
  CHECK(call.request_id == "r");
  CHECK_FALSE(r.add_special_tokens);
  CHECK_FALSE(r.skip_special_tokens);
  CHECK(r.truncate_prompt_tokens == 11);
  CHECK(call.return_token_ids);
  CHECK_FALSE(r.streaming);
  CHECK(call.unknown_fields == std::vector<std::string>{"aaa", "zzz"});
}

TEST_CASE("absent and null fields have OpenAI's defaults, or the model's where it has some") {
  for (const char* body :
       {R"({"prompt":"a"})",
        R"({"prompt":"a","max_tokens":null,"temperature":null,"top_p":null,"top_k":null,"n":null,
            "best_of":null,"stop":null,"seed":null,"logprobs":null,"echo":null,"stream":null,
            "stream_options":null,"logit_bias":null,"tools":null,"response_format":null})"}) {
    const CompletionCall call = parsed(body);
    const CompletionRequest& r = call.request;
    CHECK(r.sampling.max_tokens == 16);
    CHECK(r.sampling.temperature == 1);
    CHECK(r.sampling.top_p == 1);
    CHECK(r.sampling.top_k == 0);
    CHECK(r.sampling.logprobs == -1);
    CHECK(r.sampling.prompt_logprobs == -1);
    CHECK_FALSE(r.sampling.seed);
    CHECK(r.n == 1);
    CHECK(r.best_of == 1);
    CHECK(r.stop.empty());
    CHECK(call.unknown_fields.empty());
  }
  ApiRules with_defaults = rules();
  with_defaults.default_temperature = 0.25f;
  with_defaults.default_top_p = 0.5f;
  with_defaults.default_top_k = 40;
  const SamplingParams model = parsed(R"({"prompt":"a"})", with_defaults).request.sampling;
  CHECK(model.temperature == 0.25f);
  CHECK(model.top_p == 0.5f);
  CHECK(model.top_k == 40);
  const SamplingParams own =
      parsed(R"({"prompt":"a","temperature":0,"top_p":1,"top_k":-1})", with_defaults)
          .request.sampling;
  CHECK(own.temperature == 0);
  CHECK(own.top_p == 1);
  CHECK(own.top_k == 0);
}

TEST_CASE("an event is one line with the fields of the contract") {
  CompletionCall call = parsed(R"({"prompt":"a","stream":true,"logprobs":1,
      "stream_options":{"include_usage":true,"continuous_usage_stats":true}})");
  call.request.id = "cmpl-1";
  CompletionWriter writer = writer_of(call);
  TextChunk chunk;
  chunk.text = "a\n\"b\"";
  ChunkToken token;
  token.id = 4;
  token.text = "a\n";
  token.logprob = -0.5f;
  token.top = {{"z", {9, -0.25f}}, {"a\n", {4, -0.5f}}};
  token.text_offset = 3;
  chunk.tokens = {token};
  chunk.finish = FinishReason::stop;
  chunk.stop_reason = std::string("b\"");
  std::string out;
  writer.append_event(out, chunk, FixedCompletion());
  CHECK(out ==
        "data: {\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"created\":12,"
        "\"model\":\"a \\\"model\\\"\",\"system_fingerprint\":\"fp\",\"choices\":[{\"index\":0,"
        "\"text\":\"a\\n\\\"b\\\"\",\"logprobs\":{\"tokens\":[\"a\\n\"],\"token_logprobs\":[-0.5],"
        "\"top_logprobs\":[{\"z\":-0.25,\"a\\n\":-0.5}],\"text_offset\":[3]},"
        "\"finish_reason\":\"stop\",\"stop_reason\":\"b\\\"\"}],\"usage\":{\"prompt_tokens\":5,"
        "\"completion_tokens\":2,\"total_tokens\":7,"
        "\"prompt_tokens_details\":{\"cached_tokens\":0}}}\n\n");
  out.clear();
  writer.append_usage_event(out, FixedCompletion().usage());
  CHECK(json::parse(out.substr(6))["choices"] == json::array());
  CHECK(json::parse(out.substr(6))["usage"]["total_tokens"] == 12);
  out.clear();
  CompletionWriter::append_error_event(out, Error{ErrorCode::deadline, "late\n", ""});
  CHECK(out ==
        "data: {\"error\":{\"message\":\"late\\n\",\"type\":\"timeout_error\","
        "\"param\":null,\"code\":\"deadline_exceeded\"}}\n\n");
}

TEST_CASE("the scored token stands in top_logprobs with the same float, beside the argmax") {
  CompletionCall call = parsed(R"({"prompt":"a","logprobs":1})");
  TextChunk chunk;
  ChunkToken outside, masked;
  outside.text = "x";
  outside.logprob = -7.123456f;
  outside.top = {{"best", {1, -0.1f}}};
  masked.text = "never";
  masked.logprob = -std::numeric_limits<float>::infinity();
  masked.top = {{"best", {1, -0.1f}}};
  chunk.tokens = {outside, masked};
  const CompletionWriter writer = writer_of(call);
  const std::vector<TextChunk> chunks = {chunk};
  const json logprobs =
      json::parse(writer.whole(chunks, FixedCompletion()))["choices"][0]["logprobs"];
  CHECK(logprobs["top_logprobs"][0].size() == 2);
  CHECK(logprobs["top_logprobs"][0]["x"] == logprobs["token_logprobs"][0]);
  CHECK(logprobs["token_logprobs"][0].get<float>() == -7.123456f);
  CHECK(logprobs["top_logprobs"][0]["best"].get<float>() == -0.1f);
  CHECK(logprobs["token_logprobs"][1] == -9999.0);
}

TEST_CASE("a JSON string reads back as what was written, for any UTF-8") {
  std::mt19937 random(11);
  INFO("seed 11");
  for (int round = 0; round < 300; ++round) {
    std::string text;
    for (int i = 0; i < 60; ++i) {
      const auto pick = random() % 5;
      uint_fast32_t c = pick == 0   ? random() % 0x80
                        : pick == 1 ? random() % 0x800
                        : pick == 2 ? random() % 0x10000
                        : pick == 3 ? random() % 0x110000
                                    : (random() % 2 ? 0x2028u : 0x85u);
      if (c >= 0xD800 && c < 0xE000) c = '?';
      append_utf8(text, char32_t(c));
    }
    const std::string written = json_string(text);
    CHECK(json::parse(written).get<std::string>() == text);
    CHECK(written.find('\n') == std::string::npos);
    CHECK(written.find("\xE2\x80\xA8") == std::string::npos);  // U+2028 splits lines in Python
  }
}

TEST_CASE("bytes that are not UTF-8 become U+FFFD, and the JSON stays valid") {
  const std::string r = "\xEF\xBF\xBD";
  const std::pair<std::string, std::string> cases[] = {{"\xff", r},
                                                       {"a\xC3", "a" + r},
                                                       {"\xC0\x80", r + r},
                                                       {"\xED\xA0\x80", r + r + r},
                                                       {"\xF5\x80\x80\x80", r + r + r + r},
                                                       {"\xE2\x82z", r + r + "z"},
                                                       {"\xF4\x90\x80\x80", r + r + r + r}};
  for (const auto& [bytes, shown] : cases)
    CHECK(json::parse(json_string(bytes)).get<std::string>() == shown);
  std::mt19937 random(3);
  for (int round = 0; round < 500; ++round) {
    std::string noise(random() % 50, '\0');
    for (char& c : noise) c = char(random());
    CHECK_NOTHROW(json::parse(json_string(noise)));
  }
}

TEST_CASE("a float is written with the digits that read back as itself") {
  std::mt19937 random(5);
  for (int round = 0; round < 2000; ++round) {
    const auto bits = uint32_t(random());
    float value;
    std::memcpy(&value, &bits, sizeof value);
    if (!std::isfinite(value)) continue;
    std::string out;
    append_json_float(out, value);
    CHECK(json::parse(out).get<float>() == value);
  }
}
