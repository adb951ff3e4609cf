// SPDX-License-Identifier: Apache-2.0
// EngineConfig and SamplingParams: every wrong value is refused by an error that names the field,
// the value and what was expected.
#include "engine/config.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <functional>
#include <limits>

#include "engine/request.h"

using namespace kivi;

namespace {

const float kNan = std::numeric_limits<float>::quiet_NaN();
const float kInfinity = std::numeric_limits<float>::infinity();

template <class T>
struct Wrong {
  const char* field;
  const char* value;  // as the message shows it
  std::function<void(T&)> set;
};

void check_error(const Status& status, const char* field, const char* value) {
  INFO("field " << field << ", value " << value);
  REQUIRE_FALSE(status.ok());
  const Error& error = status.error();
  INFO(error.message);
  CHECK(error.code == ErrorCode::invalid);
  CHECK(error.field == field);
  CHECK(error.message.find(field) != std::string::npos);
  CHECK(error.message.find(value) != std::string::npos);
  CHECK(error.message.find("must") != std::string::npos);
}

}  // namespace

TEST_CASE("the default engine configuration is valid") { CHECK(validate(EngineConfig{}).ok()); }

TEST_CASE("every wrong engine setting is refused by name and value") {
  using C = EngineConfig;
  const Wrong<C> cases[] = {
      {"device", "tpu", [](C& c) { c.device = "tpu"; }},
      {"dtype", "int8", [](C& c) { c.dtype = "int8"; }},
      {"load_format", "pickle", [](C& c) { c.load_format = "pickle"; }},
      {"threads", "-1", [](C& c) { c.threads = -1; }},
      {"max_model_len", "-5", [](C& c) { c.max_model_len = -5; }},
      {"kv_cache_dtype", "kivi3", [](C& c) { c.kv_cache_dtype = "kivi3"; }},
      {"kivi_group_size", "48", [](C& c) { c.kivi_group_size = 48; }},
      {"kivi_residual_length", "-32", [](C& c) { c.kivi_residual_length = -32; }},
      {"kivi_residual_length", "100", [](C& c) { c.kivi_residual_length = 100; }},
      {"kivi_residual_length", "2048", [](C& c) { c.kivi_residual_length = 2048; }},
      {"kivi_residual_length", "32",
       [](C& c) {
         c.kivi_group_size = 64;
         c.kivi_residual_length = 32;
       }},
      {"kv_sinks", "-2", [](C& c) { c.kv_sinks = -2; }},
      {"kv_sinks", "40", [](C& c) { c.kv_sinks = 40; }},
      {"kv_parameter_bits", "4", [](C& c) { c.kv_parameter_bits = 4; }},
      {"kv_cache_memory_bytes", "-1", [](C& c) { c.kv_cache_memory_bytes = -1; }},
      {"gpu_memory_utilization", "0", [](C& c) { c.gpu_memory_utilization = 0; }},
      {"gpu_memory_utilization", "1.5", [](C& c) { c.gpu_memory_utilization = 1.5; }},
      {"gpu_memory_utilization", "nan", [](C& c) { c.gpu_memory_utilization = NAN; }},
      {"max_num_seqs", "0", [](C& c) { c.max_num_seqs = 0; }},
      {"prefill_chunk_tokens", "0", [](C& c) { c.prefill_chunk_tokens = 0; }},
      {"prefill_staging_tokens", "-1", [](C& c) { c.prefill_staging_tokens = -1; }},
      {"max_num_batched_tokens", "575", [](C& c) { c.max_num_batched_tokens = 575; }},
      {"max_num_batched_tokens", "1048577", [](C& c) { c.max_num_batched_tokens = (1 << 20) + 1; }},
      {"max_num_queued_reqs", "0", [](C& c) { c.max_num_queued_reqs = 0; }},
      {"max_num_queued_tokens", "0", [](C& c) { c.max_num_queued_tokens = 0; }},
      {"max_logprobs", "-1", [](C& c) { c.max_logprobs = -1; }},
  };
  for (const auto& wrong : cases) {
    C config;
    wrong.set(config);
    check_error(validate(config), wrong.field, wrong.value);
  }
  C config;
  config.max_num_batched_tokens = 64 + 512;  // the least that holds every decode and one chunk
  CHECK(validate(config).ok());
  config.max_num_batched_tokens = 1 << 20;
  CHECK(validate(config).ok());
}

TEST_CASE("format auto is kivi2.5 for multi-head and kivi3.5 for GQA and MQA") {
  const KvShape shape{2, 8, 64};
  CHECK(name_of(*kv_format_of({}, shape, 8)) == "kivi2.5");
  CHECK(name_of(*kv_format_of({}, shape, 32)) == "kivi3.5");
  CHECK(name_of(*kv_format_of({}, {2, 1, 64}, 71)) == "kivi3.5");
  CHECK(name_of(*kv_format_of({}, {2, 1, 80}, 8)) == "fp16");  // no KIVI format for this head size
}

TEST_CASE("every preset is understood and named back") {
  for (const std::string_view name : kv_format_names()) {
    EngineConfig config;
    config.kv_cache_dtype = name;
    config.kivi_residual_length = 64;
    const auto format = kv_format_of(config, {2, 8, 128}, 8);
    REQUIRE(format.ok());
    CHECK(name_of(*format) == name);
    const bool quantized = format->kind == KvKind::kivi;
    CHECK(format->residual == (quantized ? 64 : 0));
    CHECK(format->group % 32 == 0);
    CHECK((format->group > 0) == quantized);
    // A name with a fraction says the bits of a value and its share of the parameters.
    if (name.find('.') == std::string_view::npos) continue;
    const KvLayout layout{*format, {1, 1, 128}};
    const double bits = 8.0 * layout.block_bytes() / (2 * 128 * layout.page_tokens());
    CHECK(name == "kivi" + std::to_string(bits).substr(0, name.size() - 4));
  }
  EngineConfig config;
  config.kv_cache_dtype = "kivi-k4v2";
  CHECK(kv_format_of(config, {2, 8, 128}, 8)->key_bits == 4);
  CHECK(kv_format_of(config, {2, 8, 128}, 8)->value_bits == 2);
}

TEST_CASE("settings change a format, and its name says so") {
  EngineConfig config;
  config.kv_cache_dtype = "kivi2";
  config.kv_sinks = 64;
  config.kv_parameter_bits = 8;
  config.kv_key_bias = Switch::on;
  const auto format = kv_format_of(config, {2, 8, 128}, 8);
  REQUIRE(format.ok());
  CHECK(*format == KvFormat{KvKind::kivi, 2, 2, 32, 128, 64, 8, true, false});
  CHECK(name_of(*format) == "kivi2+p8+bias");
  config.kv_rotation = Switch::on;
  CHECK(name_of(*kv_format_of(config, {2, 8, 128}, 8)) == "kivi2.5");
  CHECK(kv_format_of(config, {2, 8, 96}, 8).error().field == "kv_rotation");
  config.kivi_group_size = 64;
  CHECK(name_of(*kv_format_of(config, {2, 8, 128}, 8)) == "kivi2.25");

  EngineConfig named;
  named.kv_cache_dtype = "kivi2+s32+p8+bias+rotation";
  EngineConfig preset;
  preset.kv_cache_dtype = "kivi2.5";
  CHECK(*kv_format_of(named, {2, 8, 128}, 8) == *kv_format_of(preset, {2, 8, 128}, 8));
  CHECK(kv_format_of(named, {2, 8, 96}, 8).error().field == "kv_rotation");  // asked for by name
  CHECK_FALSE(kv_format_of(preset, {2, 8, 96}, 8)->rotation);
  for (const char* bad : {"kivi2+", "kivi2+s", "kivi2+s3x", "kivi2++p8", "+p8", "kivi2+p8 "}) {
    named.kv_cache_dtype = bad;
    CHECK(validate(named).error().field == "kv_cache_dtype");
  }
  named.kv_cache_dtype = "kivi2+p7";
  CHECK(kv_format_of(named, {2, 8, 128}, 8).error().field == "kv_parameter_bits");
  named.kv_cache_dtype = "fp16+s32";
  CHECK(kv_format_of(named, {2, 8, 128}, 8).error().field == "kv_cache_dtype");
}

TEST_CASE("a format that the model's shape cannot have is refused") {
  EngineConfig config;
  config.kivi_group_size = 128;
  const auto falcon = kv_format_of(config, {2, 1, 64}, 71);
  REQUIRE_FALSE(falcon.ok());
  CHECK(falcon.error().field == "kivi_group_size");
  CHECK(falcon.error().message.find("64") != std::string::npos);

  config = {};
  config.kv_cache_dtype = "kivi4";
  const auto odd = kv_format_of(config, {2, 1, 160}, 8);  // no KIVI layout for head_dim 160
  REQUIRE_FALSE(odd.ok());
  CHECK_FALSE(odd.error().field.empty());
  const auto eighty = kv_format_of(config, {2, 1, 80}, 8);
  REQUIRE_FALSE(eighty.ok());
  CHECK(eighty.error().message == "head_dim is 80, KIVI formats need 64, 96, 128 or 256");
  config.kv_cache_dtype = "auto";
  CHECK(kv_format_of(config, {2, 1, 80}, 8)->kind == KvKind::f16);
  CHECK(kv_format_of(config, {2, 1, 256}, 8)->kind == KvKind::f16);
  config.kv_cache_dtype = "int4";
  CHECK(kv_format_of(config, {2, 8, 128}, 8).error().field == "kv_cache_dtype");
}

TEST_CASE("every wrong sampling parameter is refused by name and value") {
  using P = SamplingParams;
  const Wrong<P> cases[] = {
      {"temperature", "-0.5", [](P& p) { p.temperature = -0.5f; }},
      {"temperature", "101", [](P& p) { p.temperature = 101; }},
      {"temperature", "nan", [](P& p) { p.temperature = kNan; }},
      {"temperature", "inf", [](P& p) { p.temperature = kInfinity; }},
      {"top_p", "0", [](P& p) { p.top_p = 0; }},
      {"top_p", "1.5", [](P& p) { p.top_p = 1.5f; }},
      {"top_p", "nan", [](P& p) { p.top_p = kNan; }},
      {"top_k", "-2", [](P& p) { p.top_k = -2; }},
      {"min_p", "1", [](P& p) { p.min_p = 1; }},
      {"min_p", "-0.25", [](P& p) { p.min_p = -0.25f; }},
      {"min_p", "nan", [](P& p) { p.min_p = kNan; }},
      {"max_tokens", "-1", [](P& p) { p.max_tokens = -1; }},
      {"min_tokens", "-1", [](P& p) { p.min_tokens = -1; }},
      {"min_tokens", "17", [](P& p) { p.min_tokens = 17; }},
      {"stop_token_ids", "100",
       [](P& p) {
         p.stop_token_ids = {5, 100};
       }},
      {"stop_token_ids", "-1", [](P& p) { p.stop_token_ids = {-1}; }},
      {"stop_token_ids", "257", [](P& p) { p.stop_token_ids.assign(257, 1); }},
      {"presence_penalty", "2.5", [](P& p) { p.presence_penalty = 2.5f; }},
      {"presence_penalty", "nan", [](P& p) { p.presence_penalty = kNan; }},
      {"frequency_penalty", "-2.5", [](P& p) { p.frequency_penalty = -2.5f; }},
      {"repetition_penalty", "0", [](P& p) { p.repetition_penalty = 0; }},
      {"repetition_penalty", "nan", [](P& p) { p.repetition_penalty = kNan; }},
      {"repetition_penalty", "inf", [](P& p) { p.repetition_penalty = kInfinity; }},
      {"logit_bias", "100.5",
       [](P& p) {
         p.logit_bias = {{1, 100.5f}};
       }},
      {"logit_bias", "nan",
       [](P& p) {
         p.logit_bias = {{1, kNan}};
       }},
      {"logit_bias", "100",
       [](P& p) {
         p.logit_bias = {{100, 1}};
       }},
      {"logit_bias", "4",
       [](P& p) {
         p.logit_bias = {{4, 1}, {5, 1}, {4, 2}};
       }},
      {"logit_bias", "1025",
       [](P& p) {
         p.logit_bias.assign(1025, {1, 1});
       }},
      {"logprobs", "21", [](P& p) { p.logprobs = 21; }},
      {"logprobs", "-2", [](P& p) { p.logprobs = -2; }},
      {"prompt_logprobs", "21", [](P& p) { p.prompt_logprobs = 21; }},
  };
  for (const auto& wrong : cases) {
    P params;
    wrong.set(params);
    check_error(validate(params, /*vocab_size=*/100, /*max_logprobs=*/20), wrong.field,
                wrong.value);
  }
}

TEST_CASE("sampling parameters at the ends of their ranges are accepted") {
  SamplingParams p;
  p.temperature = 0;
  p.top_k = -1;
  p.min_p = 0;
  p.max_tokens = p.min_tokens = 0;
  p.stop_token_ids = {0, 99};
  p.presence_penalty = -2;
  p.frequency_penalty = 2;
  p.logit_bias = {{0, -100}, {99, 100}};
  p.logprobs = p.prompt_logprobs = 20;
  CHECK(validate(p, 100, 20).ok());
  p.temperature = 100;
  p.top_p = std::numeric_limits<float>::min();
  CHECK(validate(p, 100, 20).ok());
}
