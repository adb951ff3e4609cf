// SPDX-License-Identifier: Apache-2.0
// Demo models as GGUF files give the text of the folders that they were made from; and what
// Transformers computes with a quantized file that the gguf package wrote.
#include "engine/model/files/gguf_model.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>

#include "engine/model/rope_scaling.h"
#include "engine/model/weights.h"
#include "engine/text/pre_tokenizer.h"
#include "engine/text/tokenizer.h"
#include "kernels/half.h"
#include "tests/golden/golden_models.h"
#include "tests/model/gguf_of_folder.h"
#include "tests/model/tales.h"
#include "tests/model/temporary_folder.h"
#include "tests/model/tiny_gguf.h"

namespace kivi {

namespace {

using nlohmann::json;

// What one more key makes of tales-mistral, the smallest.
std::string error_with(const std::function<void(GgufWriter&)>& change) {
  static const GgufWriter plain = gguf_of(model_folder("tales-mistral"), 30);
  GgufWriter writer = plain;
  change(writer);
  const TemporaryFolder folder;
  folder.write("x.gguf", writer.bytes());
  const auto model = read_model_config(folder.path() + "/x.gguf");
  if (!model.ok()) return model.error().message;
  const auto tokenizer = load_tokenizer(folder.path() + "/x.gguf");
  return tokenizer.ok() ? "no error" : tokenizer.error().message;
}

constexpr const char* kTexts[] = {
    "Once upon a time there was a king.",
    "  two  spaces\n\nand\tlines \n",
    "caf\u00e9 \u732b\u306f \u0645\u0631\u062d\u0628\u0627 e\u0301 \U0001F469\u200D\U0001F680",
    "In 1984 12345 don't, we'll; <s>forged</s> <|endoftext|>",
    "a\xFF\xC3 b",
    "",
    " ",
};

}  // namespace

TEST_CASE("A demo model as a GGUF file gives the text and the ids of its folder") {
  const std::string name = GENERATE("tales-llama", "tales-mistral", "tales-falcon");
  const uint32_t type = GENERATE(0u, 1u, 30u);
  CAPTURE(name, type);
  const TemporaryFolder folder;
  folder.write("model.gguf", gguf_of(model_folder(name), type).bytes());
  EngineConfig config = test_config(name, "fp16");
  config.model = folder.path();
  const auto loaded = load_or_fail(config);
  const Golden golden = read_golden(name);
  const Output output = run_one(*loaded->engine, greedy_request(golden.prompt, 64, 1));
  CHECK(output.ids == golden.greedy);
  CHECK(loaded->summary.dtype == (type == 0 ? "float32" : type == 1 ? "float16" : "bfloat16"));
  CHECK(loaded->served.name == std::filesystem::path(folder.path()).filename());
  if (type == 30) {  // the same bits, so the same numbers
    const auto original = load_or_fail(test_config(name, "fp16"));
    CHECK(output == run_one(*original->engine, greedy_request(golden.prompt, 64, 1)));
    CHECK(loaded->summary.architecture == original->summary.architecture);
    CHECK(loaded->summary.parameters == original->summary.parameters);
  }
  const auto own = load_tokenizer(model_folder(name));
  REQUIRE(own.ok());
  const Tokenizer& from_gguf = *loaded->tokenizer;
  CHECK(from_gguf.vocab_size() == (*own)->vocab_size());
  CHECK(from_gguf.eos_id() == (*own)->eos_id());
  CHECK(from_gguf.bos_id() == (*own)->bos_id());
  CHECK(from_gguf.kind() == (*own)->kind());
  for (const char* text : kTexts) {
    CAPTURE(text);
    const auto ids = from_gguf.encode(text, true);
    CHECK(ids == (*own)->encode(text, true));
    CHECK(from_gguf.decode(ids, true) == (*own)->decode(ids, true));
  }
}

TEST_CASE("Golden models of every family give the same numbers as GGUF files") {
  const std::string name =
      GENERATE("llama2-mha", "llama-biases", "llama-71-heads", "mistral-nemo", "qwen2", "qwen3",
               "phi3-long", "phi3-short", "phi3-partial", "falcon-7b", "falcon-40b");
  CAPTURE(name);
  const json golden = read_golden_model(name);
  const TemporaryFolder folder, gguf;
  write_golden_model(golden, folder, "bfloat16");
  gguf.write("x.gguf", gguf_of(folder.path(), 30).bytes());
  const std::vector<int32_t> prompt = {3, 141, 59, 26, 53, 58, 97, 93};
  const auto output_of = [&](const std::string& model) {
    EngineConfig config = test_config("", "fp16");
    config.model = model;
    config.max_model_len = 64;
    const auto loaded = load_or_fail(config);
    return run_one(*loaded->engine, greedy_request(prompt, 16, 1));
  };
  CHECK(output_of(folder.path()) == output_of(gguf.path()));
}

TEST_CASE("A quantized GGUF file gives what Transformers computes with it") {
  const json golden = read_json(std::string(KIVI_SOURCE_DIR) + "/tests/data/gguf/tiny.json");
  EngineConfig config = test_config("", "fp16");
  config.model = tiny_path();
  config.max_model_len = 128;
  config.dtype = "float32";
  config.quantization = "none";
  const auto loaded = load_or_fail(config);
  CHECK(loaded->served.name == "tiny");
  CHECK(loaded->summary.has_chat_template);
  check_tiny_gguf(*loaded->engine, golden, 2e-3f);
  for (const json& text : golden["texts"]) {
    CAPTURE(text[0]);
    CHECK(loaded->tokenizer->encode(text[0].get<std::string>(), true) ==
          text[1].get<std::vector<int32_t>>());
  }
}

TEST_CASE("Metadata that is missing, wrong or not supported is named") {
  CHECK(error_with([](GgufWriter&) {}) == "no error");
  const auto with = [](const std::function<void(GgufWriter&)>& change) {
    GgufWriter writer;
    change(writer);
    const TemporaryFolder folder;
    folder.write("x.gguf", writer.bytes());
    return read_model_config(folder.path() + "/x.gguf").error().message;
  };
  CHECK(contains(with([](auto&) {}), "x.gguf: general.architecture is '', supported are llama"));
  for (const char* name : {"gemma", "qwen3moe"})
    CHECK(contains(
        with([&](auto& w) { w.string("general.architecture", name); }),
        fmt::format("general.architecture is '{}', supported are llama, qwen2, qwen3, phi3 "
                    "and falcon",
                    name)));
  CHECK(contains(with([](auto& w) { w.string("general.architecture", "llama"); }),
                 "token_embd.weight is missing"));
  CHECK(contains(with([](auto& w) {
                   w.string("general.architecture", "llama");
                   w.tensor("token_embd.weight", 0, {2, 8}, std::string(64, '\0'));
                 }),
                 "x.gguf: metadata as config.json: num_hidden_layers is absent, "));

  using W = GgufWriter;
  CHECK(contains(error_with([](W& w) { w.u32("split.count", 2); }), "split.count is 2"));
  CHECK(error_with([](W& w) { w.u32("llama.expert_count", 0); }) == "no error");
  CHECK(contains(error_with([](W& w) { w.u32("llama.expert_count", 8); }),
                 "llama.expert_count is 8 (u32), which is not supported"));
  CHECK(contains(error_with([](W& w) { w.string("llama.rope.scaling.type", "proportional"); }),
                 "proportional"));
  CHECK(contains(error_with([](W& w) { w.string("llama.rope.scaling.type", "longrope"); }),
                 "short_factor is absent"));
  const std::string ones(128, '\x3c');
  CHECK(contains(error_with([&](W& w) { w.tensor("rope_factors_long.weight", 0, {32}, ones); }),
                 "rope_factors_short.weight is missing"));
  CHECK(contains(error_with([&](W& w) {
                   w.tensor("rope_factors_long.weight", 0, {32}, ones);
                   w.tensor("rope_factors_short.weight", 0, {31}, ones.substr(4));
                 }),
                 "has 31 numbers, must have one for each of the 32 pairs"));
  CHECK(contains(error_with([](W& w) { w.u32("tokenizer.ggml.eot_token_id", 5000); }),
                 "eos_token_id 5000 is outside of the vocabulary of 4096"));
  CHECK(contains(error_with([](W& w) { w.u32("tokenizer.ggml.padding_token_id", 5000); }),
                 "padding_token_id is 5000, must be below the 4096 tokens"));
  CHECK(contains(
      error_with([](W& w) { w.tensor("rope_freqs.weight", 0, {7}, std::string(28, '\1')); }),
      "rope_freqs.weight is [7] F32, must be [32] F32"));
}

TEST_CASE("Tokenizers of a GGUF file that are not supported are refused by name") {
  const auto with = [](const std::string& model, const std::string& pre) {
    GgufWriter writer;
    writer.string("tokenizer.ggml.model", model);
    writer.string("tokenizer.ggml.pre", pre);
    writer.strings("tokenizer.ggml.tokens", {"a", "b"});
    writer.strings("tokenizer.ggml.merges", {"a b"});
    const TemporaryFolder folder;
    folder.write("x.gguf", writer.bytes());
    const auto tokenizer = load_tokenizer(folder.path() + "/x.gguf");
    REQUIRE_FALSE(tokenizer.ok());
    CHECK(tokenizer.error().field == "tokenizer");
    return tokenizer.error().message;
  };
  CHECK(
      contains(with("bert", "x"), "tokenizer.ggml.model is 'bert', supported are gpt2 and llama"));
  CHECK(contains(with("gpt2", "tekken"), "tokenizer.ggml.pre is 'tekken', supported are default,"));
  CHECK(contains(with("gpt2", "gpt-2"), "model.merges[0]"));
  CHECK(contains(with("llama", "default"), "tokenizer.ggml.scores is missing"));
}

TEST_CASE("A pre-tokenizer's name says how digits are split and whether a text is normalized") {
  std::vector<std::string> tokens;
  const ByteAlphabet alphabet;
  for (int byte = 0; byte < 256; ++byte)
    tokens.emplace_back(alphabet.character(static_cast<unsigned char>(byte)));
  tokens.insert(tokens.end(), {"12", "34", "1234"});
  struct Case {
    const char* pre;
    size_t digits;  // tokens of "1234"
    bool nfc;       // e and a combining acute become one letter
  };
  const Case kCases[] = {{"gpt-2", 1, false},     {"smollm", 4, false},  {"starcoder", 4, false},
                         {"llama-bpe", 3, false}, {"llama3", 3, false},  {"llama-v3", 3, false},
                         {"qwen2", 4, true},      {"default", 3, false}, {"falcon", 3, false}};
  for (const Case& expected : kCases) {
    GgufWriter writer;
    writer.string("tokenizer.ggml.model", "gpt2");
    writer.string("tokenizer.ggml.pre", expected.pre);
    writer.strings("tokenizer.ggml.tokens", tokens);
    writer.strings("tokenizer.ggml.merges", {"1 2", "3 4", "12 34"});
    writer.boolean("tokenizer.ggml.add_bos_token", false);
    const TemporaryFolder folder;
    folder.write("x.gguf", writer.bytes());
    const auto tokenizer = load_tokenizer(folder.path() + "/x.gguf");
    CAPTURE(expected.pre);
    if (!tokenizer.ok()) FAIL(tokenizer.error().message);
    CHECK((*tokenizer)->encode("1234", false).size() == expected.digits);
    const auto composed = (*tokenizer)->encode("caf\u00e9", false);
    CHECK(((*tokenizer)->encode("cafe\u0301", false) == composed) == expected.nfc);
    CHECK((*tokenizer)->decode(composed, false) == "caf\u00e9");
  }
}

TEST_CASE("rope_freqs divides the frequencies; linear scaling is read from either key") {
  const TemporaryFolder folder;
  const auto model_with = [&](const std::function<void(GgufWriter&)>& change) {
    GgufWriter writer = gguf_of(model_folder("tales-mistral"), 30);
    change(writer);
    folder.write("x.gguf", writer.bytes());
    auto model = read_model_config(folder.path() + "/x.gguf");
    if (!model.ok()) FAIL(model.error().message);
    return std::move(*model);
  };
  const auto plain = inverse_frequencies(model_with([](auto&) {}).spec.rope);
  std::string factors;
  for (int i = 0; i < 32; ++i) factors += GgufWriter::raw(float(1 + i));
  const auto divided =
      model_with([&](auto& writer) { writer.tensor("rope_freqs.weight", 0, {32}, factors); });
  const auto frequencies = inverse_frequencies(divided.spec.rope);
  REQUIRE(frequencies.size() == 32);
  for (size_t i = 0; i < 32; ++i)
    CHECK(frequencies[i] == Approx(plain[i] / float(1 + i)).epsilon(1e-6));
  // It is a setting, not a tensor that the weights must account for.
  EngineConfig config = test_config("", "fp16");
  config.model = folder.path();
  CHECK(load_model(config, {}).ok());

  const auto scaled = model_with([](auto& writer) {
    writer.string("llama.rope.scaling.type", "linear");
    writer.f32("llama.rope.scaling.factor", 4);
  });
  CHECK(scaled.spec.rope.scaling == RopeScaling::linear);
  CHECK(scaled.spec.rope.factor == 4);
  const auto older = model_with([](auto& writer) { writer.f32("llama.rope.scale_linear", 2); });
  CHECK(older.spec.rope.factor == 2);
  // A factor without a type is linear, as in llama.cpp.
  const auto untyped = model_with([](auto& writer) { writer.f32("llama.rope.scaling.factor", 8); });
  CHECK(untyped.spec.rope.scaling == RopeScaling::linear);
  CHECK(untyped.spec.rope.factor == 8);
  for (const float none : {0.f, 1.f})
    CHECK(model_with([&](auto& writer) {
            writer.f32("llama.rope.scaling.factor", none);
          }).spec.rope.scaling == RopeScaling::none);
}

TEST_CASE("load_format says which of a folder's two models is meant") {
  const TemporaryFolder folder;
  folder.copy(model_folder("tales-falcon"));
  folder.write("x.gguf", gguf_of(model_folder("tales-mistral"), 30).bytes());
  EngineConfig config = test_config("", "fp16");
  config.model = folder.path();
  CHECK(load_or_fail(config)->summary.architecture == "FalconForCausalLM");
  config.load_format = "gguf";
  CHECK(load_or_fail(config)->summary.architecture == "MistralForCausalLM");
  config.load_format = "safetensors";
  CHECK(load_or_fail(config)->summary.architecture == "FalconForCausalLM");
  config.model = folder.path() + "/x.gguf";
  const auto refused = load_model(config, {});
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().field == "load_format");
  config.load_format = "gguf";
  config.model = model_folder("tales-llama");
  CHECK(load_model(config, {}).error().field == "load_format");
}

TEST_CASE("A model's summary says what its files hold") {
  const auto tiny = summarize_model(tiny_path());
  REQUIRE(tiny.ok());
  CHECK(tiny->architecture == "LlamaForCausalLM");
  CHECK(tiny->dtype == "float16");
  CHECK(tiny->tokenizer_kind == "byte-level bpe");
  CHECK(tiny->has_chat_template);
  CHECK(tiny->file_types ==
        "3 F32, 1 Q4_0, 1 Q4_1, 1 Q4_K, 1 Q5_0, 1 Q5_1, 1 Q5_K, 1 Q6_K, 1 Q8_0");
  CHECK(tiny->parameters > 400'000);
  CHECK(tiny->weight_bytes < tiny->file_bytes + tiny->file_bytes / 8);

  const auto tales = summarize_model(model_folder("tales-llama"));
  REQUIRE(tales.ok());
  CHECK(tales->file_types == "74 BF16");
  CHECK(tales->file_bytes == 2 * 6'852'864);
  CHECK(tales->tokenizer_kind == "sentencepiece bpe");

  const TemporaryFolder folder;  // a config.json alone
  folder.write("config.json", read_json(model_folder("tales-llama") + "/config.json").dump());
  const auto bare = summarize_model(folder.path());
  REQUIRE(bare.ok());
  CHECK(bare->file_types.empty());
  CHECK(bare->tokenizer_kind == "none");
  folder.write("tokenizer.json", R"({"normalizer": {"type": "Lowercase"}})");
  CHECK(contains(summarize_model(folder.path())->tokenizer_kind, "cannot be used: "));
}

}  // namespace kivi
