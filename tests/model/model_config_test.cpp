// SPDX-License-Identifier: Apache-2.0
// config.json and generation_config.json, right and wrong.
#include "engine/model/model_config.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <fstream>

#include "engine/model/families/registry.h"
#include "engine/model/rope_scaling.h"
#include "engine/model/weights.h"
#include "tests/model/temporary_folder.h"

namespace kivi {

namespace {

using nlohmann::json;

json config_of(const std::string& model) {
  std::ifstream file(std::string(KIVI_SOURCE_DIR) + "/models/" + model + "/config.json");
  return json::parse(file);
}

Result<ModelConfig> read(const json& config, const json& generation = nullptr) {
  const TemporaryFolder folder;
  folder.write("config.json", config.dump());
  if (!generation.is_null()) folder.write("generation_config.json", generation.dump());
  return read_model_config(folder.path());
}

// The error for tales-llama's config with one key changed.
Error error_with(const std::string& key, const json& value) {
  json config = config_of("tales-llama");
  config[key] = value;
  const auto model = read(config);
  if (model.ok()) FAIL("accepted " << key << " " << value);
  return model.error();
}

RopeSpec rope_of(const json& config) {
  const auto model = read(config);
  if (!model.ok()) FAIL(model.error().message);
  return model->spec.rope;
}

}  // namespace

TEST_CASE("The demo models' configs say what their README says") {
  const auto llama = read(config_of("tales-llama"));
  REQUIRE(llama.ok());
  CHECK(llama->family->architecture == "LlamaForCausalLM");
  CHECK(llama->spec.layers == 8);
  CHECK(llama->spec.heads_kv == 2);
  CHECK(llama->spec.head_dim == 64);
  CHECK(llama->spec.tied_embeddings);
  CHECK(llama->dtype == DType::bf16);
  CHECK(llama->eos_token_ids == std::vector<int32_t>{2});
  CHECK(parameter_count(llama->spec) == 6'852'864);

  const auto mistral = read(config_of("tales-mistral"));
  REQUIRE(mistral.ok());
  CHECK(mistral->spec.sliding_window == 256);
  CHECK(parameter_count(mistral->spec) == 1'250'432);

  const auto falcon = read(config_of("tales-falcon"));
  REQUIRE(falcon.ok());
  CHECK(falcon->spec.heads_kv == 1);  // multi_query, although num_kv_heads says 2
  CHECK(falcon->spec.parallel_attention);
  CHECK(falcon->spec.norms_per_layer == 1);
  CHECK_FALSE(falcon->spec.gated);
  CHECK(parameter_count(falcon->spec) == 1'246'464);
}

TEST_CASE("Older files spell the dtype and the rotary embedding differently") {
  json config = config_of("tales-llama");
  config.erase("dtype");
  config.erase("rope_parameters");
  config["torch_dtype"] = "float16";
  config["rope_theta"] = 500000.0;
  config["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", 8.0},
                            {"low_freq_factor", 1.0},
                            {"high_freq_factor", 4.0},
                            {"original_max_position_embeddings", 8192}};
  const auto model = read(config);
  REQUIRE(model.ok());
  CHECK(model->dtype == DType::f16);
  CHECK(model->spec.rope.theta == 500000);
  CHECK(model->spec.rope.scaling == RopeScaling::llama3);

  config["rope_scaling"] = {{"type", "linear"}, {"factor", 4.0}};
  CHECK(rope_of(config).scaling == RopeScaling::linear);
  config["rope_scaling"] = nullptr;
  CHECK(rope_of(config).scaling == RopeScaling::none);
  config.erase("rope_theta");
  CHECK(rope_of(config).theta == 10000);
}

TEST_CASE("Rotary frequencies are scaled by their rule") {
  RopeSpec rope;
  rope.rotary_dim = 128;
  rope.theta = 500000;
  const std::vector<float> plain = inverse_frequencies(rope);
  REQUIRE(plain.size() == 64);
  CHECK(plain[0] == 1);
  CHECK(plain[32] == Approx(1 / std::sqrt(500000.0)));

  rope.factor = 8;
  rope.scaling = RopeScaling::linear;
  CHECK(inverse_frequencies(rope)[32] == Approx(plain[32] / 8));

  rope.scaling = RopeScaling::llama3;
  const std::vector<float> llama3 = inverse_frequencies(rope);
  // Waves of up to 8192 / 4 tokens stay, of at least 8192 / 1 are stretched by 8.
  constexpr double kTurn = 6.283185307179586;
  for (size_t i = 0; i < 64; ++i) {
    CAPTURE(i);
    const double wave = kTurn / plain[i];
    if (wave <= 2048) CHECK(llama3[i] == plain[i]);
    if (wave >= 8192) CHECK(llama3[i] == Approx(plain[i] / 8));
    if (wave > 2048 && wave < 8192) {
      CHECK(llama3[i] < plain[i]);
      CHECK(llama3[i] > plain[i] / 8);
    }
  }
}

TEST_CASE(
    "A wrong value is refused, and the message names file, key, value and what was expected") {
  const auto [key, value, expected] = GENERATE(table<std::string, json, std::string>({
      {"num_hidden_layers", 0, "is 0, must be an integer in [1, 1024]"},
      {"num_hidden_layers", -3, "is -3, must be an integer in [1, 1024]"},
      {"num_hidden_layers", 8.5, "is 8.5, must be an integer in [1, 1024]"},
      {"num_hidden_layers", "8", "is \"8\", must be an integer in [1, 1024]"},
      {"num_hidden_layers", nullptr, "is absent, must be an integer in [1, 1024]"},
      {"hidden_size", 1 << 30, "is 1073741824, must be an integer in [1, 131072]"},
      {"hidden_size", 18446744073709551615u, "must be an integer in [1, 131072]"},
      {"vocab_size", json::array(), "is [], must be an integer"},
      {"num_key_value_heads", 3, "is 3, must divide num_attention_heads (4)"},
      {"head_dim", 512, "is 512, must be an integer in [1, 256]"},
      {"rms_norm_eps", "small", "is \"small\", must be a number in [0, 1]"},
      {"tie_word_embeddings", 1, "is 1, must be true or false"},
      {"hidden_act", "relu6", "is \"relu6\", supported are silu, gelu"},
      {"dtype", "int8", "is \"int8\", must be float32, float16 or bfloat16"},
      {"eos_token_id", "two", "is \"two\", must be a token id or a list"},
      {"eos_token_id", json::array({2, -1}), "must be a token id or a list"},
      {"architectures", "LlamaForCausalLM", "must be a list of strings"},
      {"rope_parameters", 5, "is 5, must be an object"},
  }));
  const Error error = error_with(key, value);
  CAPTURE(error.message);
  CHECK(error.message.find("/config.json: " + key + " is ") != std::string::npos);
  CHECK(error.message.find(expected) != std::string::npos);
  CHECK(error.field == key);
}

TEST_CASE("A head size that does not come out even is refused where head_dim is absent") {
  json config = config_of("tales-llama");
  config.erase("head_dim");
  CHECK(read(config).ok());
  config["hidden_size"] = 258;
  CHECK(read(config).error().field == "hidden_size");
}

TEST_CASE("An unknown architecture lists the supported ones") {
  const Error error = error_with("architectures", json::array({"GPT2LMHeadModel"}));
  CHECK(error.code == ErrorCode::unsupported);
  CHECK(error.message.find("architectures is [\"GPT2LMHeadModel\"], supported are "
                           "LlamaForCausalLM, MistralForCausalLM, MinistralForCausalLM, "
                           "Qwen2ForCausalLM, Qwen3ForCausalLM, Phi3ForCausalLM, "
                           "FalconForCausalLM") != std::string::npos);
  CHECK(error_with("architectures", nullptr).code == ErrorCode::unsupported);
}

TEST_CASE("An unknown rope scaling is refused by name, a broken one by its key") {
  Error error = error_with("rope_parameters", {{"rope_type", "proportional"}, {"factor", 4.0}});
  CHECK(error.code == ErrorCode::unsupported);
  CHECK(error.message.find("rope_parameters.rope_type is \"proportional\", supported are default, "
                           "linear, dynamic, llama3, yarn and longrope") != std::string::npos);
  error = error_with("rope_parameters", {{"rope_type", "longrope"}, {"factor", 4.0}});
  CHECK(error.message.find("rope_parameters.short_factor is absent, must be a list of numbers") !=
        std::string::npos);
  error = error_with("rope_parameters", {{"rope_type", "linear"}});
  CHECK(error.field == "rope_parameters.factor");
  error = error_with("rope_parameters", {{"rope_type", "llama3"},
                                         {"factor", 8},
                                         {"low_freq_factor", 4},
                                         {"high_freq_factor", 1},
                                         {"original_max_position_embeddings", 8192}});
  CHECK(error.field == "rope_parameters.high_freq_factor");
}

TEST_CASE("What a scaled rotary embedding reaches may be asked for") {
  json config = config_of("tales-llama");
  const auto reach = [&](const json& parameters) {
    config["rope_parameters"] = parameters;
    const auto model = read(config);
    if (!model.ok()) FAIL(model.error().message);
    CHECK(model->spec.max_positions == 2048);
    return model->spec.max_positions_scaled;
  };
  CHECK(reach({{"rope_type", "default"}}) == 2048);
  CHECK(reach({{"rope_type", "linear"}, {"factor", 4}}) == 8192);
  CHECK(reach({{"rope_type", "dynamic"}, {"factor", 2}}) == 4096);
  CHECK(reach({{"rope_type", "yarn"}, {"factor", 4}}) == 8192);
  // Here max_position_embeddings is the long context already.
  CHECK(reach({{"rope_type", "yarn"}, {"factor", 4}, {"original_max_position_embeddings", 512}}) ==
        2048);
}

TEST_CASE("A window is Mistral's own matter: absent it is the default, null it is none") {
  json config = config_of("tales-mistral");
  CHECK(read(config)->spec.sliding_window == 256);
  config["sliding_window"] = nullptr;
  CHECK(read(config)->spec.sliding_window == 0);
  config.erase("sliding_window");
  CHECK(read(config)->spec.sliding_window == 4096);

  config["architectures"] = {"Qwen2ForCausalLM"};
  config["sliding_window"] = 64;
  CHECK(read(config)->spec.sliding_window == 0);
  config["use_sliding_window"] = true;
  CHECK(read(config)->spec.sliding_window == 0);  // max_window_layers is 28 of 4 layers
  config["max_window_layers"] = 0;
  CHECK(read(config)->spec.sliding_window == 64);
  CHECK(read(config)->spec.qkv_bias);
  CHECK(read(config)->spec.windowed.empty());
  config["max_window_layers"] = 2;
  const DecoderSpec spec = read(config)->spec;
  CHECK(spec.sliding_window == 64);
  CHECK(spec.windowed == std::vector<bool>{false, false, true, true});
  CHECK(spec.window_of(1) == 0);
  CHECK(spec.window_of(2) == 64);
}

TEST_CASE("layer_types says which layers have the window") {
  json config = config_of("tales-mistral");
  config["head_dim"] = 64;
  config["sliding_window"] = 64;
  config["use_sliding_window"] = true;
  const json full = "full_attention", sliding = "sliding_attention";
  for (const char* family : {"Qwen2ForCausalLM", "Qwen3ForCausalLM", "MinistralForCausalLM"}) {
    CAPTURE(family);
    config["architectures"] = {family};
    config["layer_types"] = {full, sliding, full, sliding};
    CHECK(read(config)->spec.windowed == std::vector<bool>{false, true, false, true});
    config["layer_types"] = {sliding, sliding, sliding, sliding};
    CHECK(read(config)->spec.sliding_window == 64);
    CHECK(read(config)->spec.windowed.empty());
    config["layer_types"] = {full, full, full, full};
    CHECK(read(config)->spec.sliding_window == 0);
    config["layer_types"] = {full, sliding};
    CHECK(read(config).error().message.find("must have 4 entries") != std::string::npos);
    config["layer_types"] = {full, sliding, full, "chunked_attention"};
    CHECK(read(config).error().code == ErrorCode::unsupported);
    CHECK(read(config).error().field == "layer_types");
  }
  // A Mistral has one window for all.
  config["architectures"] = {"MistralForCausalLM"};
  config["layer_types"] = {sliding, sliding, sliding, sliding};
  CHECK(read(config)->spec.sliding_window == 64);
  config["layer_types"] = {full, sliding, full, sliding};
  CHECK(read(config).error().field == "layer_types");
}

// Expectations of the next four are those of Transformers 5.24's configuration classes.
TEST_CASE("rope_scaling counts alone where it says anything, even beside rope_parameters") {
  json config = config_of("tales-llama");
  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1e6}};
  config.erase("rope_theta");
  config["rope_scaling"] = {
      {"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 1024}};
  CHECK(rope_of(config).scaling == RopeScaling::yarn);
  CHECK(rope_of(config).factor == 4);
  CHECK(rope_of(config).original_max_position_embeddings == 1024);
  CHECK(rope_of(config).theta == 10000);
  config["rope_theta"] = 5e5;
  CHECK(rope_of(config).theta == 5e5);
  config["rope_scaling"] = {{"type", "linear"}, {"factor", 2.0}, {"rope_theta", 2e4}};
  CHECK(rope_of(config).scaling == RopeScaling::linear);
  CHECK(rope_of(config).theta == 2e4);
  for (const json& nothing : {json(nullptr), json::object()}) {
    config["rope_scaling"] = nothing;
    CHECK(rope_of(config).scaling == RopeScaling::none);
    CHECK(rope_of(config).theta == 1e6);
  }
}

TEST_CASE("Phi-3's longrope has its trained context outside, and two lists of factors") {
  json config = config_of("tales-llama");
  config["architectures"] = {"Phi3ForCausalLM"};
  config["attention_bias"] = true;  // has none all the same
  config["max_position_embeddings"] = 8192;
  config["original_max_position_embeddings"] = 1024;
  config.erase("rope_parameters");
  const json ones = std::vector<double>(32, 1.0), twos = std::vector<double>(32, 2.0);
  config["rope_scaling"] = {{"type", "su"}, {"short_factor", ones}, {"long_factor", twos}};
  const auto model = read(config);
  REQUIRE(model.ok());
  CHECK_FALSE(model->spec.qkv_bias);
  CHECK(model->family->names(model->spec).qkv.size() == 1);
  RopeSpec rope = model->spec.rope;
  CHECK(rope.scaling == RopeScaling::longrope);
  CHECK(rope.original_max_position_embeddings == 1024);
  CHECK(rope.attention_factor == Approx(std::sqrt(1 + std::log(8.0) / std::log(1024.0))));
  CHECK(model->spec.max_positions_scaled == 8192);
  const float plain = inverse_frequencies(rope)[5];
  fit_context(rope, 1024);
  CHECK(inverse_frequencies(rope)[5] == plain);
  fit_context(rope, 1025);
  CHECK(inverse_frequencies(rope)[5] == Approx(plain / 2));

  config["rope_scaling"]["attention_factor"] = 1.5;
  CHECK(rope_of(config).attention_factor == 1.5);
  config["rope_scaling"]["long_factor"] = std::vector<double>(31, 2.0);
  CHECK(read(config).error().field == "rope_scaling.long_factor");
  config["rope_scaling"]["long_factor"] = {1, 0};
  CHECK(read(config).error().message.find("must be a list of numbers in [") != std::string::npos);
  config["rope_scaling"] = {{"type", "yarn"}, {"factor", 4.0}};
  CHECK(read(config).error().code == ErrorCode::unsupported);

  // A part of each head: Phi-4-mini.
  config["partial_rotary_factor"] = 0.75;
  const json some = std::vector<double>(24, 1.0);
  config["rope_scaling"] = {{"type", "longrope"}, {"short_factor", some}, {"long_factor", some}};
  CHECK(rope_of(config).rotary_dim == 48);
}

TEST_CASE("Two trained contexts that differ are refused, because Transformers' versions disagree") {
  json config = config_of("tales-llama");
  config["rope_parameters"] = {
      {"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 1024}};
  config["original_max_position_embeddings"] = 1024;
  CHECK(read(config).ok());
  config["original_max_position_embeddings"] = 512;
  const auto refused = read(config);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().field == "original_max_position_embeddings");
  CHECK(refused.error().message.find("1024") != std::string::npos);
  config["rope_parameters"] = {{"rope_type", "linear"}, {"factor", 4.0}};  // has no use for it
  CHECK(read(config).ok());
}

TEST_CASE("Qwen2 has no window where sliding_window is null, though a window is asked for") {
  json config = config_of("tales-mistral");
  config["architectures"] = {"Qwen2ForCausalLM"};
  config["use_sliding_window"] = true;
  config["max_window_layers"] = 0;
  config["sliding_window"] = nullptr;
  CHECK(read(config)->spec.sliding_window == 0);
  config.erase("sliding_window");
  CHECK(read(config)->spec.sliding_window == 4096);
}

TEST_CASE("Qwen3 norms its heads, has biases if it says so, and must give its head size") {
  json config = config_of("tales-llama");
  config["architectures"] = {"Qwen3ForCausalLM"};
  config["head_dim"] = 128;  // not hidden_size / num_attention_heads
  auto model = read(config);
  REQUIRE(model.ok());
  CHECK(model->spec.qk_norm);
  CHECK(model->spec.head_dim == 128);
  CHECK_FALSE(model->spec.qkv_bias);
  CHECK_FALSE(model->spec.output_bias);
  const TensorNames names = model->family->names(model->spec);
  CHECK(names.q_norm == "self_attn.q_norm");
  CHECK(names.k_norm == "self_attn.k_norm");
  const int64_t normed = parameter_count(model->spec);
  model->spec.qk_norm = false;
  CHECK(normed == parameter_count(model->spec) + 8 * 2 * 128);  // of 8 layers

  config["attention_bias"] = true;
  model = read(config);
  REQUIRE(model.ok());
  CHECK(model->spec.qkv_bias);
  CHECK(model->spec.output_bias);
  config.erase("head_dim");
  CHECK(read(config).error().message.find("head_dim is absent, must be given for Qwen3") !=
        std::string::npos);
  config["architectures"] = {"Qwen3MoeForCausalLM"};
  CHECK(read(config).error().message.find(
            "architectures is [\"Qwen3MoeForCausalLM\"], supported") != std::string::npos);
}

TEST_CASE("Mistral has no biases, whatever its configuration says") {
  json config = config_of("tales-mistral");
  config["attention_bias"] = true;
  config["mlp_bias"] = true;
  const DecoderSpec spec = read(config)->spec;
  CHECK_FALSE(spec.qkv_bias);
  CHECK_FALSE(spec.output_bias);
  CHECK_FALSE(spec.mlp_bias);
  config["architectures"] = {"LlamaForCausalLM"};
  CHECK(read(config)->spec.output_bias);
}

TEST_CASE("A quantization that is not read is refused by name") {
  const Error error = error_with("quantization_config", {{"quant_method", "bitsandbytes"}});
  CHECK(error.code == ErrorCode::unsupported);
  CHECK(error.field == "quantization_config");
}

TEST_CASE("generation_config.json gives more EOS ids and the defaults of requests") {
  const auto model = read(config_of("tales-llama"), {{"eos_token_id", json::array({2, 7, 9})},
                                                     {"temperature", 0.6},
                                                     {"top_p", 0.9},
                                                     {"top_k", 40}});
  REQUIRE(model.ok());
  CHECK(model->eos_token_ids == std::vector<int32_t>{2, 7, 9});
  CHECK(model->temperature == Approx(0.6f));
  CHECK(model->top_p == Approx(0.9f));
  CHECK(model->top_k == 40);

  CHECK(read(config_of("tales-llama"), {{"top_p", 1.5}}).error().field == "top_p");
  CHECK(read(config_of("tales-llama"), {{"temperature", "hot"}}).error().field == "temperature");
  CHECK(read(config_of("tales-llama"), {{"eos_token_id", 4096}})
            .error()
            .message.find("eos_token_id 4096 is outside of the vocabulary of 4096") !=
        std::string::npos);
}

TEST_CASE("Files that are missing, not JSON, or nested too deep are errors that name the file") {
  const TemporaryFolder folder;
  CHECK(read_model_config(folder.path() + "/none").error().field == "model");
  CHECK(read_model_config(folder.path()).error().message.find("/config.json: no such file") !=
        std::string::npos);
  folder.write("config.json", "{\"architectures\": [");
  CHECK(read_model_config(folder.path()).error().message.find("config.json: is not valid JSON") !=
        std::string::npos);
  folder.write("config.json", std::string(100'000, '['));
  CHECK(read_model_config(folder.path()).error().message.find("nested more than 64 levels") !=
        std::string::npos);
  folder.write("config.json", "7");
  CHECK(read_model_config(folder.path()).error().message.find("must be a JSON object") !=
        std::string::npos);
}

TEST_CASE("Falcon3, Llama 3.2 and Llama 3.3 are Llamas of their published sizes") {
  json config = {{"architectures", {"LlamaForCausalLM"}},
                 {"attention_bias", false},
                 {"eos_token_id", 11},
                 {"head_dim", 256},
                 {"hidden_act", "silu"},
                 {"hidden_size", 3072},
                 {"intermediate_size", 23040},
                 {"max_position_embeddings", 32768},
                 {"mlp_bias", false},
                 {"model_type", "llama"},
                 {"num_attention_heads", 12},
                 {"num_hidden_layers", 28},
                 {"num_key_value_heads", 4},
                 {"rms_norm_eps", 1e-6},
                 {"rope_scaling", nullptr},
                 {"rope_theta", 1000042},
                 {"tie_word_embeddings", false},
                 {"torch_dtype", "bfloat16"},
                 {"vocab_size", 131072}};
  const auto falcon3 = read(config);
  REQUIRE(falcon3.ok());
  CHECK(falcon3->spec.head_dim == 256);
  CHECK(falcon3->spec.rope.theta == 1000042);
  CHECK(parameter_count(falcon3->spec) == 7'455'550'464);

  config.update({{"eos_token_id", {128001, 128008, 128009}},
                 {"head_dim", 64},
                 {"hidden_size", 2048},
                 {"intermediate_size", 8192},
                 {"max_position_embeddings", 131072},
                 {"num_attention_heads", 32},
                 {"num_hidden_layers", 16},
                 {"num_key_value_heads", 8},
                 {"rms_norm_eps", 1e-5},
                 {"rope_scaling",
                  {{"factor", 32.0},
                   {"high_freq_factor", 4.0},
                   {"low_freq_factor", 1.0},
                   {"original_max_position_embeddings", 8192},
                   {"rope_type", "llama3"}}},
                 {"rope_theta", 500000.0},
                 {"tie_word_embeddings", true},
                 {"vocab_size", 128256}});
  const auto llama32 = read(config);
  REQUIRE(llama32.ok());
  CHECK(llama32->eos_token_ids.size() == 3);
  CHECK(llama32->spec.rope.factor == 32);
  CHECK(parameter_count(llama32->spec) == 1'235'814'400);

  config.update({{"head_dim", 128},
                 {"hidden_size", 8192},
                 {"intermediate_size", 28672},
                 {"num_attention_heads", 64},
                 {"num_hidden_layers", 80},
                 {"tie_word_embeddings", false}});
  config["rope_scaling"]["factor"] = 8.0;
  const auto llama33 = read(config);
  REQUIRE(llama33.ok());
  CHECK(llama33->spec.max_positions == 131072);
  CHECK(parameter_count(llama33->spec) == 70'553'706'496);
}

TEST_CASE("Falcon's older and newer architectures map to the same switches") {
  json config = config_of("tales-falcon");
  config["new_decoder_architecture"] = true;  // 40B: groups of queries, two norms side by side
  auto model = read(config);
  REQUIRE(model.ok());
  CHECK(model->spec.heads_kv == 2);
  CHECK(model->spec.norms_per_layer == 2);
  CHECK(model->family->names(model->spec).attention_norm == "ln_attn");

  config["num_ln_in_parallel_attn"] = 1;  // Falcon 2
  model = read(config);
  REQUIRE(model.ok());
  CHECK(model->family->names(model->spec).attention_norm == "input_layernorm");

  config["new_decoder_architecture"] = false;
  config["num_ln_in_parallel_attn"] = 2;
  CHECK(read(config).error().field == "num_ln_in_parallel_attn");
  config["num_ln_in_parallel_attn"] = 1;
  config["alibi"] = true;
  CHECK(read(config).error().code == ErrorCode::unsupported);
}

}  // namespace kivi
