// SPDX-License-Identifier: Apache-2.0
// Weights: what a checkpoint must hold, and where its rows go.
#include "engine/model/weights.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>

#include "engine/model/model_config.h"
#include "engine/serving/load.h"
#include "kernels/half.h"
#include "tests/model/tales.h"
#include "tests/model/temporary_folder.h"

namespace kivi {

namespace {

using nlohmann::json;

// A copy of tales-mistral (the smallest) whose safetensors header goes through `change`.
template <class Change>
std::string load_error(const Change& change) {
  const TemporaryFolder folder;
  folder.copy(model_folder("tales-mistral"));
  std::ifstream file(model_folder("tales-mistral") + "/model.safetensors", std::ios::binary);
  uint64_t length = 0;
  file.read(reinterpret_cast<char*>(&length), sizeof(length));
  std::string header(length, '\0');
  file.read(header.data(), std::streamsize(length));
  const std::string data(std::istreambuf_iterator<char>(file), {});
  json document = json::parse(header);
  change(document);
  std::string bytes = safetensors_bytes(document.dump(), 0);
  folder.write("model.safetensors", bytes + data);

  EngineConfig config = test_config("tales-mistral", "fp16");
  config.model = folder.path();
  const auto loaded = load_model(config, {});
  return loaded.ok() ? "no error" : loaded.error().message;
}

// Rows of a device matrix as floats (f32 weights).
std::vector<float> download(Backend& backend, const Tensor& tensor) {
  std::vector<float> values(size_t(tensor.size()));
  backend.download(values.data(), tensor.data, values.size() * sizeof(float));
  return values;
}

}  // namespace

TEST_CASE("An unchanged copy loads") {
  CHECK(load_error([](json&) {}) == "no error");
}

TEST_CASE("A wrong shape is refused with both shapes") {
  const std::string message = load_error([](json& header) {
    header["model.layers.2.mlp.gate_proj.weight"]["shape"] = json::array({128, 344});
  });
  CHECK(message.find("/model.safetensors: tensor 'model.layers.2.mlp.gate_proj.weight' is "
                     "[128, 344] BF16, must be [344, 128] (from the configuration)") !=
        std::string::npos);
}

TEST_CASE("A missing and an unexpected tensor are both named") {
  const std::string message = load_error([](json& header) {
    header["model.layers.1.self_attn.q_proj.other"] =
        header["model.layers.1.self_attn.q_proj.weight"];
    header.erase("model.layers.1.self_attn.q_proj.weight");
  });
  CHECK(message.find("1 of 38 tensors are missing: model.layers.1.self_attn.q_proj.weight; 1 "
                     "tensors are unexpected (the configuration does not call for them): "
                     "model.layers.1.self_attn.q_proj.other") != std::string::npos);
}

TEST_CASE("A bias that config.json does not call for is not dropped in silence") {
  const std::string message = load_error([](json& header) {
    header["model.layers.0.self_attn.q_proj.bias"] = header["model.norm.weight"];
  });
  CHECK(message.find("unexpected") != std::string::npos);
}

TEST_CASE("A dtype that is not computed with is refused by name") {
  const std::string message =
      load_error([](json& header) { header["model.norm.weight"]["dtype"] = "I16"; });
  CHECK(message.find("tensor 'model.norm.weight' is [128] I16, must be F32, F16 or BF16") !=
        std::string::npos);
}

TEST_CASE("Leftovers of older checkpoints are ignored") {
  CHECK(load_error([](json& header) {
          header["lm_head.weight"] = header["model.embed_tokens.weight"];  // tied
          header["model.layers.0.self_attn.rotary_emb.inv_freq"] = header["model.norm.weight"];
        }) == "no error");
}

// A safetensors header of f32 weights, one behind the other.
struct Header {
  nlohmann::json json;
  size_t bytes = 0;

  void add(const std::string& name, const std::vector<int64_t>& shape) {
    size_t size = sizeof(float);
    for (const int64_t n : shape) size *= size_t(n);
    json[name + ".weight"] = {
        {"dtype", "F32"}, {"shape", shape}, {"data_offsets", {bytes, bytes + size}}};
    bytes += size;
  }
};

TEST_CASE("Grouped q|k|v rows are put in the kernels' order") {
  // Two KV heads, four query heads of 16: groups are [q0 q1 k0 v0] [q2 q3 k1 v1].
  DecoderSpec spec;
  spec.layers = 1;
  spec.hidden = 16;
  spec.heads_q = 4;
  spec.heads_kv = 2;
  spec.head_dim = 16;
  spec.intermediate = 16;
  spec.vocab = 2;
  spec.norms_per_layer = 1;
  spec.parallel_attention = true;
  spec.gated = false;
  spec.tied_embeddings = true;
  spec.rope.rotary_dim = 16;
  const TensorNames names = {.embedding = "e",
                             .final_norm = "n",
                             .head = "h",
                             .layers = "l.",
                             .attention_norm = "n",
                             .mlp_norm = "",
                             .qkv = {"qkv"},
                             .qkv_order = QkvOrder::groups,
                             .output = "o",
                             .up = {"u"},
                             .down = "d"};
  Header header;
  header.add("l.0.qkv", {128, 16});
  header.add("e", {2, 16});
  header.add("n", {16});
  header.add("l.0.n", {16});
  header.add("l.0.o", {16, 64});
  header.add("l.0.u", {16, 16});
  header.add("l.0.d", {16, 16});
  std::string file = safetensors_bytes(header.json.dump(), header.bytes);
  std::vector<float> qkv(128 * 16);
  for (size_t i = 0; i < qkv.size(); ++i) qkv[i] = float(i / 16);  // row number
  std::memcpy(file.data() + file.size() - header.bytes, qkv.data(), qkv.size() * sizeof(float));

  const TemporaryFolder folder;
  folder.write("model.safetensors", file);
  const auto checkpoint = Checkpoint::open(folder.path());
  REQUIRE(checkpoint.ok());
  const auto backend = make_cpu_backend(1);
  const auto weights = load_weights(*backend, spec, names, *checkpoint, DType::f32, {});
  if (!weights.ok()) FAIL(weights.error().message);
  const std::vector<float> rows = download(*backend, weights->layers[0].qkv.plain());
  const int expected_heads[] = {0, 1, 4, 5, 2, 6, 3, 7};  // q0 q1 q2 q3 k0 k1 v0 v1 in the file
  for (size_t head = 0; head < 8; ++head)
    for (size_t channel = 0; channel < 16; ++channel)
      CHECK(rows[(head * 16 + channel) * 16] == float(expected_heads[head] * 16 + int(channel)));
}

TEST_CASE(
    "Dummy weights of the config's shape give finite logits, with neither weights nor tokenizer") {
  const TemporaryFolder folder;
  json config;
  std::ifstream(model_folder("tales-llama") + "/config.json") >> config;
  config["num_hidden_layers"] = 3;
  config["hidden_size"] = 320;  // 5 heads of 64, one KV head
  config["num_attention_heads"] = 5;
  config["num_key_value_heads"] = 1;
  config["tie_word_embeddings"] = false;
  folder.write("config.json", config.dump());

  EngineConfig engine_config = test_config("tales-llama", "kivi4");
  engine_config.model = folder.path();
  CHECK_FALSE(load_model(engine_config, {}).ok());  // neither weights nor tokenizer
  engine_config.load_format = "dummy";
  const auto loaded = load_or_fail(engine_config);
  CHECK(loaded->served.tokenizer->vocab_size() <= 4096);  // of bytes
  const Output output = run_one(*loaded->engine, greedy_request({1, 2, 3}, 40, 4));
  REQUIRE(output.ids.size() == 40);
  for (const float logprob : output.logprobs) {
    CHECK(std::isfinite(logprob));
    CHECK(logprob > -20);
  }
}

TEST_CASE("Every tensor arrives byte for byte, whatever its size") {
  // Odd sizes, many tensors, and one that takes more than one upload (64 MiB).
  DecoderSpec spec;
  spec.layers = 23;
  spec.hidden = 417;
  spec.heads_q = 3;
  spec.heads_kv = 1;
  spec.head_dim = 16;
  spec.intermediate = 5;
  spec.vocab = 41'003;
  spec.rope.rotary_dim = 16;
  spec.tied_embeddings = true;
  const TensorNames names = {.embedding = "e",
                             .final_norm = "n",
                             .head = "h",
                             .layers = "l.",
                             .attention_norm = "an",
                             .mlp_norm = "mn",
                             .qkv = {"q", "k", "v"},
                             .output = "o",
                             .up = {"g", "u"},
                             .down = "d"};
  Header header;
  const int64_t n = spec.hidden;
  for (int i = 0; i < spec.layers; ++i) {
    const std::string at = "l." + std::to_string(i) + ".";
    header.add(at + "an", {n});
    header.add(at + "mn", {n});
    header.add(at + "q", {48, n});
    header.add(at + "k", {16, n});
    header.add(at + "v", {16, n});
    header.add(at + "o", {n, 48});
    header.add(at + "g", {5, n});
    header.add(at + "u", {5, n});
    header.add(at + "d", {n, 5});
  }
  header.add("n", {n});
  header.add("e", {spec.vocab, n});
  REQUIRE(size_t(spec.vocab) * size_t(n) * 4 > (size_t(64) << 20));
  std::string file = safetensors_bytes(header.json.dump(), header.bytes);
  const size_t begin = file.size() - header.bytes;
  uint64_t state = 99;
  for (size_t i = begin; i < file.size(); i += sizeof(float)) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const float x = float(int32_t(state >> 32)) * 0x1p-31f;
    std::memcpy(file.data() + i, &x, sizeof(x));
  }
  const TemporaryFolder folder;
  folder.write("model.safetensors", file);
  const auto checkpoint = Checkpoint::open(folder.path());
  REQUIRE(checkpoint.ok());
  const auto backend = make_cpu_backend(2);
  const auto weights = load_weights(*backend, spec, names, *checkpoint, DType::f32, {});
  if (!weights.ok()) FAIL(weights.error().message);

  size_t compared = 0;
  const auto same = [&](const Tensor& tensor, const std::vector<std::string>& parts) {
    std::string expected;
    for (const std::string& part : parts) {
      const json& offsets = header.json[part + ".weight"]["data_offsets"];
      expected += file.substr(begin + offsets[0].get<size_t>(),
                              offsets[1].get<size_t>() - offsets[0].get<size_t>());
    }
    std::string got(tensor.bytes(), 0);
    backend->download(got.data(), tensor.data, got.size());
    compared += got.size();
    return got == expected;
  };
  for (int i = 0; i < spec.layers; ++i) {
    const std::string at = "l." + std::to_string(i) + ".";
    const LayerWeights& w = weights->layers[size_t(i)];
    CHECK(same(w.attention_norm, {at + "an"}));
    CHECK(same(w.mlp_norm, {at + "mn"}));
    CHECK(same(w.qkv.plain(), {at + "q", at + "k", at + "v"}));
    CHECK(same(w.output.plain(), {at + "o"}));
    CHECK(same(w.up.plain(), {at + "g", at + "u"}));
    CHECK(same(w.down.plain(), {at + "d"}));
  }
  CHECK(same(weights->final_norm, {"n"}));
  CHECK(same(weights->embedding.plain(), {"e"}));
  CHECK(compared == header.bytes);

  // Converted, by several threads and in several chunks: every number is rounded, in its place.
  const auto halves = load_weights(*backend, spec, names, *checkpoint, DType::f16, {});
  if (!halves.ok()) FAIL(halves.error().message);
  const auto rounded = [&](const Tensor& half, const Tensor& full) {
    const std::vector<float> values = download(*backend, full);
    for (int64_t i = 0; i < full.size(); ++i)
      if (half.as<f16>()[i].bits != to_f16_saturated(values[size_t(i)]).bits) return false;
    return half.size() == full.size();
  };
  CHECK(rounded(halves->embedding.plain(), weights->embedding.plain()));
  for (size_t i = 0; i < halves->layers.size(); ++i) {
    CHECK(rounded(halves->layers[i].qkv.plain(), weights->layers[i].qkv.plain()));
    CHECK(rounded(halves->layers[i].up.plain(), weights->layers[i].up.plain()));
    CHECK(rounded(halves->layers[i].mlp_norm, weights->layers[i].mlp_norm));
  }
}

TEST_CASE("The phases of starting up are listed, and together no longer than starting up") {
  const auto begin = Clock::now();
  const auto loaded = load_or_fail(test_config("tales-llama", "kivi2"));
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  std::vector<std::string> names;
  double sum = 0;
  for (const LoadPhase& phase : loaded->phases) {
    names.push_back(phase.name);
    CHECK(phase.seconds >= 0);
    sum += phase.seconds;
  }
  CHECK(names ==
        std::vector<std::string>{"config", "device", "plan", "tokenizer", "weights", "memory"});
  CHECK(sum <= seconds);
  CHECK(sum > seconds / 2);
  CHECK(loaded->phases[4].bytes == loaded->plan.weights);
  CHECK(describe(LoadPhase{"weights", 2, 13'000'000'000}) ==
        "weights 2.00 s (13.00 GB, 6.50 GB/s)");
  CHECK(describe(LoadPhase{"config", 0.5}) == "config 0.50 s");
}

TEST_CASE("A trace's device times add up to the time that passed") {
  const auto loaded = load_or_fail(test_config("tales-mistral", "kivi4"));
  std::vector<StepTrace> trace;
  loaded->engine->on_trace([&](const StepTrace& step) { trace.push_back(step); });
  const auto begin = Clock::now();
  run_all(*loaded->engine, {greedy_request({1, 2, 3}, 30), greedy_request({4, 5}, 20)});
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  REQUIRE(trace.size() >= 30);
  CHECK_FALSE(trace[0].device);  // nothing was timed before it
  double idle = 0, busy = 0;
  for (size_t i = 1; i < trace.size(); ++i) {
    REQUIRE(trace[i].device);
    CHECK(trace[i].device->idle > 0);
    CHECK(trace[i].device->busy > 0);
    idle += trace[i].device->idle;
    busy += trace[i].device->busy;
    // The host plans the step, the device computes it, the host collects it.
    const std::chrono::duration<double> host = trace[i].collected - trace[i].planned;
    CHECK(trace[i].device->busy <= host.count());
  }
  CHECK(idle + busy <= seconds);
  // From the end of the first step to the end of the last: between the two collections, or so.
  const std::chrono::duration<double> between = trace.back().collected - trace[0].collected;
  CHECK(idle + busy == Approx(between.count()).epsilon(0.2));
}

TEST_CASE("Loading reports its progress in bytes, up to all of them") {
  int64_t last = 0, total = 0, calls = 0;
  const auto loaded = load_model(test_config("tales-llama", "fp16"),
                                 [&](const std::string& phase, int64_t done, int64_t all) {
                                   CHECK(phase == "weights");
                                   CHECK(done > last);
                                   last = done;
                                   total = all;
                                   ++calls;
                                 });
  REQUIRE(loaded.ok());
  CHECK(calls > 1);
  CHECK(total == (*loaded)->plan.weights);
  CHECK(last <= total);
  CHECK(last > total - 4096 - 256 * 100);  // the rest is alignment and rotary frequencies
}

}  // namespace kivi
