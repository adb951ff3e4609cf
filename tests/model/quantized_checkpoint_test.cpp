// SPDX-License-Identifier: Apache-2.0
// Quantized Hugging Face checkpoints. Each is written here as its library packs it, transcribed
// word by word from the library's loops, beside a plain checkpoint of the numbers that it stands
// for.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <numeric>
#include <random>

#include "engine/model/model_config.h"
#include "engine/model/weights.h"
#include "kernels/kv_codec.h"
#include "kernels/weight_codec.h"
#include "tests/golden/golden_models.h"
#include "tests/model/tales.h"
#include "tests/model/temporary_folder.h"

namespace kivi {

namespace {

using nlohmann::json;

// A safetensors file in the making.
class Tensors {
 public:
  template <class T>
  void add(const std::string& name, const char* dtype, const std::vector<int64_t>& shape,
           const std::vector<T>& values) {
    const size_t begin = data_.size();
    data_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
    header_[name] = {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {begin, data_.size()}}};
  }
  void remove(const std::string& name) { header_.erase(name); }
  json& entry(const std::string& name) { return header_[name]; }
  std::string bytes() const { return safetensors_bytes(header_.dump(), 0) + data_; }

 private:
  json header_;
  std::string data_;
};

// How a checkpoint is written.
struct Case {
  const char* name;
  json config;        // quantization_config
  int64_t group = 0;  // columns; 0 = a row
  bool reordered = false;
  bool symmetric = false;
};

// The text under a key; "" where it is absent.
std::string text_in(const json& config, const char* key) { return config.value(key, ""); }

json gptq(int64_t group, bool desc_act, bool sym) {
  return {{"quant_method", "gptq"}, {"bits", 4},           {"group_size", group},
          {"desc_act", desc_act},   {"sym", sym},          {"checkpoint_format", "gptq"},
          {"lm_head", false},       {"damp_percent", 0.01}};
}

json compressed(const char* format, json weights, json ignore = {"lm_head"}) {
  return {{"quant_method", "compressed-tensors"},
          {"format", format},
          {"ignore", std::move(ignore)},
          {"kv_cache_scheme", nullptr},
          {"quantization_status", "compressed"},
          {"config_groups",
           {{"group_0",
             {{"targets", {"Linear"}},
              {"input_activations", nullptr},
              {"output_activations", nullptr},
              {"weights", std::move(weights)}}}}}};
}

json int4_weights(int64_t group, bool symmetric, json actorder = nullptr) {
  return {{"num_bits", 4},
          {"type", "int"},
          {"symmetric", symmetric},
          {"strategy", group == 0 ? "channel" : "group"},
          {"group_size", group == 0 ? json(nullptr) : json(group)},
          {"actorder", std::move(actorder)},
          {"dynamic", false}};
}

json fp8_weights(const char* strategy) {
  return {{"num_bits", 8}, {"type", "float"}, {"symmetric", true}, {"strategy", strategy}};
}

// The int4 numbers of one module.
struct Int4Module {
  int64_t n, k, groups;
  std::vector<int> codes;      // [n, k]
  std::vector<f16> scales;     // [groups, n]
  std::vector<int> zeros;      // [groups, n]
  std::vector<int32_t> group;  // [k]

  float number(int64_t row, int64_t c) const {
    const int64_t at = group[size_t(c)] * n + row;
    return to_float(scales[size_t(at)]) * float(codes[size_t(row * k + c)] - zeros[size_t(at)]);
  }
};

Int4Module random_module(const Case& c, int64_t n, int64_t k, std::mt19937& random) {
  const int64_t size = c.group == 0 ? k : c.group;
  Int4Module m{n, k, (k + size - 1) / size, {}, {}, {}, {}};
  for (int64_t i = 0; i < n * k; ++i) m.codes.push_back(int(random() % 16));
  for (int64_t i = 0; i < m.groups * n; ++i) {
    m.scales.push_back(to_f16(0.01f + float(random() % 64) / 2048));
    m.zeros.push_back(c.symmetric ? 8 : 1 + int(random() % 15));
  }
  for (int64_t i = 0; i < k; ++i) m.group.push_back(int32_t(i / size));
  if (c.reordered) std::shuffle(m.group.begin(), m.group.end(), random);
  return m;
}

// AutoGPTQ's QuantLinear.pack: rows of eight columns of k; zero points less one, along n.
void add_gptq(Tensors& tensors, const std::string& name, const Int4Module& m, int less) {
  std::vector<int32_t> qweight(size_t(m.k / 8 * m.n), 0), qzeros(size_t(m.groups * m.n / 8), 0);
  for (int64_t i = 0; i < m.k; ++i)
    for (int64_t j = 0; j < m.n; ++j)
      qweight[size_t(i / 8 * m.n + j)] |=
          int32_t(uint32_t(m.codes[size_t(j * m.k + i)]) << (4 * (i % 8)));
  for (int64_t g = 0; g < m.groups; ++g)
    for (int64_t j = 0; j < m.n; ++j)
      qzeros[size_t((g * m.n + j) / 8)] |=
          int32_t(uint32_t(m.zeros[size_t(g * m.n + j)] - less) << (4 * (j % 8)));
  tensors.add(name + ".qweight", "I32", {m.k / 8, m.n}, qweight);
  tensors.add(name + ".qzeros", "I32", {m.groups, m.n / 8}, qzeros);
  tensors.add(name + ".scales", "F16", {m.groups, m.n}, m.scales);
  tensors.add(name + ".g_idx", "I32", {m.k}, m.group);
}

// AutoAWQ's WQLinear_GEMM.from_linear.
void add_awq(Tensors& tensors, const std::string& name, const Int4Module& m) {
  const int order_map[] = {0, 2, 4, 6, 1, 3, 5, 7};
  std::vector<int32_t> qweight(size_t(m.k * m.n / 8), 0), qzeros(size_t(m.groups * m.n / 8), 0);
  for (int64_t col = 0; col < m.n / 8; ++col)
    for (int i = 0; i < 8; ++i) {
      const int64_t j = col * 8 + order_map[i];
      for (int64_t r = 0; r < m.k; ++r)
        qweight[size_t(r * (m.n / 8) + col)] |=
            int32_t(uint32_t(m.codes[size_t(j * m.k + r)]) << (i * 4));
      for (int64_t g = 0; g < m.groups; ++g)
        qzeros[size_t(g * (m.n / 8) + col)] |=
            int32_t(uint32_t(m.zeros[size_t(g * m.n + j)]) << (i * 4));
    }
  tensors.add(name + ".qweight", "I32", {m.k, m.n / 8}, qweight);
  tensors.add(name + ".qzeros", "I32", {m.groups, m.n / 8}, qzeros);
  tensors.add(name + ".scales", "F16", {m.groups, m.n}, m.scales);
}

// compressed-tensors' pack_to_int32: signed codes plus 8, packed along k; zero points along n.
void add_packed(Tensors& tensors, const std::string& name, const Int4Module& m, const Case& c) {
  std::vector<int32_t> packed(size_t(m.n * m.k / 8), 0);
  std::vector<int32_t> zeros(size_t((m.n + 7) / 8 * m.groups), 0);
  std::vector<f16> scales(size_t(m.n * m.groups));
  for (int64_t j = 0; j < m.n; ++j)
    for (int64_t i = 0; i < m.k; ++i) {
      const int code = m.codes[size_t(j * m.k + i)] - 8;
      packed[size_t((j * m.k + i) / 8)] |= int32_t(uint32_t(code + 8) << (4 * (i % 8)));
    }
  for (int64_t j = 0; j < m.n; ++j)
    for (int64_t g = 0; g < m.groups; ++g) {
      scales[size_t(j * m.groups + g)] = m.scales[size_t(g * m.n + j)];
      zeros[size_t(j / 8 * m.groups + g)] |=
          int32_t(uint32_t(m.zeros[size_t(g * m.n + j)]) << (4 * (j % 8)));
    }
  tensors.add(name + ".weight_packed", "I32", {m.n, m.k / 8}, packed);
  tensors.add(name + ".weight_scale", "F16", {m.n, m.groups}, scales);
  tensors.add(name + ".weight_shape", "I64", {2}, std::vector<int64_t>{m.n, m.k});
  if (!c.symmetric)
    tensors.add(name + ".weight_zero_point", "I32", {(m.n + 7) / 8, m.groups}, zeros);
  if (c.reordered) tensors.add(name + ".weight_g_idx", "I32", {m.k}, m.group);
}

// Writes two folders of llama2-mha: one as `c` says, and one of the same numbers in fp32.
struct Folders {
  TemporaryFolder quantized, plain;
  Tensors tensors;

  explicit Folders(const Case& c, const std::vector<std::string>& kept = {}) {
    std::mt19937 random(70);
    const json golden = read_golden_model("llama2-mha");
    json config = golden["config"];
    config.erase("torch_dtype");
    config["dtype"] = "float32";
    plain.write("config.json", config.dump());
    config["quantization_config"] = c.config;
    quantized.write("config.json", config.dump());
    for (const TemporaryFolder* folder : {&plain, &quantized})
      folder->write("tokenizer.json", bytes_tokenizer().dump());
    Tensors numbers;
    for (const json& tensor : golden["tensors"]) {
      const auto name = tensor[0].get<std::string>();
      const auto shape = tensor[1].get<std::vector<int64_t>>();
      const std::string module = name.substr(0, name.rfind('.'));
      const bool is_plain =
          !contains(name, "_proj") || std::find(kept.begin(), kept.end(), module) != kept.end();
      if (!is_plain) {
        write_module(c, module, shape[0], shape[1], numbers, random);
        continue;
      }
      int64_t size = 1;
      for (const int64_t n : shape) size *= n;
      const std::string bytes = golden_tensor(name, size_t(size), tensor[2], "float32");
      std::vector<float> values(size_t(size), 0.f);
      std::memcpy(values.data(), bytes.data(), bytes.size());
      numbers.add(name, "F32", shape, values);
      tensors.add(name, "F32", shape, values);
    }
    plain.write("model.safetensors", numbers.bytes());
    write();
  }
  void write() const { quantized.write("model.safetensors", tensors.bytes()); }

 private:
  void write_module(const Case& c, const std::string& module, int64_t n, int64_t k,
                    Tensors& numbers, std::mt19937& random) {
    std::vector<float> values;
    const std::string method = text_in(c.config, "quant_method");
    if (method == "fp8" || method == "fbgemm_fp8" ||
        text_in(c.config, "format") == "float-quantized") {
      const bool rows = c.group == 1;  // a scale a row
      std::vector<uint8_t> codes;
      std::vector<float> scales;
      for (int64_t i = 0; i < (rows ? n : 1); ++i)
        scales.push_back(0.001f * float(1 + random() % 8));
      for (int64_t i = 0; i < n * k; ++i) {
        uint8_t code = 0x7F;
        while ((code & 0x7F) == 0x7F) code = uint8_t(random());
        codes.push_back(code);
        values.push_back(from_e4m3(code) * scales[size_t(rows ? i / k : 0)]);
      }
      tensors.add(module + ".weight", "F8_E4M3", {n, k}, codes);
      if (rows)
        tensors.add(module + ".weight_scale", "F32", {n, 1}, scales);
      else if (method == "fp8")
        tensors.add(module + ".weight_scale", "F32", {}, scales);
      else
        tensors.add(module + ".weight_scale", "F32", {1}, scales);
      if (method == "fp8") tensors.add(module + ".input_scale", "F32", {}, std::vector<float>{1});
    } else {
      const Int4Module m = random_module(c, n, k, random);
      if (method == "gptq")
        add_gptq(tensors, module, m, text_in(c.config, "checkpoint_format") == "gptq" ? 1 : 0);
      else if (method == "awq")
        add_awq(tensors, module, m);
      else
        add_packed(tensors, module, m, c);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t col = 0; col < k; ++col) values.push_back(m.number(i, col));
    }
    numbers.add(module + ".weight", "F32", {n, k}, values);
  }
};

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const int64_t group : {32, 64, 128, -1})
    for (const bool desc_act : {false, true})
      for (const bool sym : {false, true})
        cases.push_back({"gptq", gptq(group, desc_act, sym), std::max<int64_t>(group, 0),
                         desc_act && group > 0, sym});
  for (Case& c :
       cases)  // with one group there is nothing to reorder, and desc_act says so all the same
    if (c.config["desc_act"] == true) c.reordered = true;
  json v2 = gptq(32, false, false);
  v2["checkpoint_format"] = "gptq_v2";
  cases.push_back({"gptq v2", v2, 32});
  for (const int64_t group : {32, 128})
    cases.push_back({"awq",
                     {{"quant_method", "awq"},
                      {"bits", 4},
                      {"group_size", group},
                      {"version", "gemm"},
                      {"zero_point", true},
                      {"modules_to_not_convert", nullptr}},
                     group});
  for (const bool symmetric : {false, true})
    for (const int64_t group : {0, 32, 128})
      cases.push_back({"packed", compressed("pack-quantized", int4_weights(group, symmetric)),
                       group, false, symmetric});
  cases.push_back({"packed, reordered",
                   compressed("pack-quantized", int4_weights(32, true, "group")), 32, true, true});
  cases.push_back({"packed, weight order",
                   compressed("pack-quantized", int4_weights(32, true, "weight")), 32, false,
                   true});
  cases.push_back({"float a row", compressed("float-quantized", fp8_weights("channel")), 1});
  cases.push_back({"float a tensor", compressed("float-quantized", fp8_weights("tensor")), 0});
  cases.push_back({"AutoFP8", {{"quant_method", "fp8"}, {"activation_scheme", "static"}}, 0});
  cases.push_back({"fbgemm",
                   {{"quant_method", "fbgemm_fp8"},
                    {"activation_scale_ub", 1200.0},
                    {"modules_to_not_convert", {"lm_head"}}},
                   1});
  return cases;
}

DecoderWeights load(Backend& backend, const TemporaryFolder& folder, bool keep) {
  const auto model = read_model_config(folder.path());
  if (!model.ok()) FAIL(model.error().message);
  const auto checkpoint =
      open_checkpoint(folder.path(), model->quantization, model->spec, model->names);
  if (!checkpoint.ok()) FAIL(checkpoint.error().message);
  auto weights = load_weights(backend, model->spec, model->names, *checkpoint, DType::f32, {},
                              keep ? model->formats : WeightFormats{});
  if (!weights.ok()) FAIL(weights.error().message);
  return std::move(weights).value();
}

// Rows of a matrix in the order of x's columns.
std::vector<float> numbers_of(const WeightMatrix& matrix) {
  std::vector<float> all;
  for (const Weight& part : matrix.parts)
    for (int64_t i = 0; i < part.rows; ++i) {
      std::vector<float> row(size_t(part.columns), 0.f);
      if (part.is_plain()) {
        std::memcpy(row.data(), part.plain.row<float>(i), row.size() * sizeof(float));
      } else {
        std::vector<float> stored(row.size());
        read_weight_row(part, i, stored);
        for (size_t c = 0; c < row.size(); ++c)
          row[part.order.empty() ? c : size_t(part.order.as<int32_t>()[c])] = stored[c];
      }
      all.insert(all.end(), row.begin(), row.end());
    }
  return all;
}

void check_equal(const DecoderWeights& got, const DecoderWeights& want) {
  REQUIRE(got.layers.size() == want.layers.size());
  for (size_t i = 0; i < got.layers.size(); ++i)
    for (const auto member :
         {&LayerWeights::qkv, &LayerWeights::output, &LayerWeights::up, &LayerWeights::down}) {
      const auto a = numbers_of(got.layers[i].*member), b = numbers_of(want.layers[i].*member);
      REQUIRE(a.size() == b.size());
      size_t different = 0;
      for (size_t c = 0; c < a.size(); ++c)
        different += std::abs(a[c] - b[c]) > 1e-6f * std::abs(b[c]);
      CHECK(different == 0);
    }
}

std::string error_of(const TemporaryFolder& folder) {
  EngineConfig config = test_config("", "fp16");
  config.model = folder.path();
  config.max_model_len = 64;
  const auto loaded = load_model(config, {});
  return loaded.ok() ? "" : loaded.error().message;
}

}  // namespace

TEST_CASE("A quantized checkpoint stands for the numbers that its library packed") {
  const auto backend = make_cpu_backend(2);
  for (const Case& c : all_cases()) {
    CAPTURE(c.name, c.config.dump());
    const Folders folders(c);
    const DecoderWeights want = load(*backend, folders.plain, false);
    const DecoderWeights kept = load(*backend, folders.quantized, true);
    CHECK(kept.layers[0].down.whole().format.kind ==
          (contains(c.config.dump(), "pack-q") || text_in(c.config, "quant_method") == "gptq" ||
                   text_in(c.config, "quant_method") == "awq"
               ? WeightKind::int4
               : WeightKind::e4m3));
    CHECK(kept.layers[0].down.whole().format.reordered == c.reordered);
    CHECK(kept.layers[0].qkv.parts.size() == (c.reordered ? 3 : 1));
    check_equal(kept, want);
    check_equal(load(*backend, folders.quantized, false), want);
  }
}

TEST_CASE("A quantized checkpoint is served: dequantized, it gives the plain checkpoint's ids") {
  for (const size_t index : {size_t(0), size_t(2), size_t(17), size_t(25), size_t(27)}) {
    const Case c = all_cases().at(index);
    CAPTURE(c.name);
    const Folders folders(c);
    const auto run = [&](const std::string& model, const char* quantization, const char* cache) {
      EngineConfig config = test_config("", cache);
      config.model = model;
      config.quantization = quantization;
      config.max_model_len = 64;
      const auto loaded = load_or_fail(config);
      CHECK(plan_memory(config)->weights == loaded->summary.weight_bytes);
      return run_one(*loaded->engine, greedy_request({3, 141, 59, 26, 53}, 16, 1));
    };
    const Output want = run(folders.plain.path(), "none", "fp16");
    CHECK(run(folders.quantized.path(), "none", "fp16").ids == want.ids);
    // In its own format, with and without rotated heads: x is quantized, so logits move a little.
    for (const char* cache : {"fp16", "kivi4.5"}) {
      const Output kept = run(folders.quantized.path(), "auto", cache);
      REQUIRE(kept.logprobs.size() == want.logprobs.size());
      CHECK(std::abs(kept.logprobs[0] - want.logprobs[0]) < 0.3f);
    }
  }
}

TEST_CASE("Modules that a configuration leaves plain are read as plain ones") {
  const auto backend = make_cpu_backend(1);
  const std::string down = "model.layers.1.mlp.down_proj";
  const std::string q = "model.layers.0.self_attn.q_proj";
  for (const json& list : {json{"lm_head", down, q}, json{down, "re:.*0.*q_proj$", "lm_head"}}) {
    CAPTURE(list.dump());
    Case c{"packed", compressed("pack-quantized", int4_weights(32, true), list), 32, false, true};
    const Folders folders(c, {down, q});
    const DecoderWeights kept = load(*backend, folders.quantized, true);
    CHECK(kept.layers[1].down.whole().is_plain());
    CHECK_FALSE(kept.layers[0].down.whole().is_plain());
    REQUIRE(kept.layers[0].qkv.parts.size() == 2);
    CHECK(kept.layers[0].qkv.parts[0].is_plain());
    check_equal(kept, load(*backend, folders.plain, false));
  }
  Case c{"AutoFP8", {{"quant_method", "fp8"}, {"ignored_layers", {"lm_head", "mlp"}}}, 0};
  std::vector<std::string> mlps;
  for (const char* layer : {"0", "1"})
    for (const char* name : {"gate_proj", "up_proj", "down_proj"})
      mlps.push_back(std::string("model.layers.") + layer + ".mlp." + name);
  const Folders folders(c, mlps);
  check_equal(load(*backend, folders.quantized, true), load(*backend, folders.plain, false));
}

TEST_CASE("A list of modules names whole parts of names, or patterns") {
  const std::string module = "model.layers.12.mlp.up_proj";
  const auto listed = [&](const char* entry) { return is_listed({entry}, module); };
  CHECK(listed("model.layers.12.mlp.up_proj"));
  CHECK(listed("up_proj"));
  CHECK(listed("layers.12"));
  CHECK_FALSE(listed("layers.1"));
  CHECK_FALSE(listed("proj"));
  CHECK_FALSE(listed(""));
  CHECK(listed("re:.*up_proj"));
  CHECK(listed("re:.*up_proj$"));
  CHECK(listed("re:model\\.layers\\.12\\..*"));
  CHECK(listed("re:^model"));
  CHECK_FALSE(listed("re:up_proj"));
  CHECK_FALSE(listed("re:.*up_pro$"));
  CHECK_FALSE(listed("re:model\\.layers\\.1\\..*"));
  CHECK_FALSE(listed("re:.*\\.12$"));
}

TEST_CASE("A quantization that is not supported is refused by name") {
  const auto error_with = [](const json& config) {
    const auto read = read_quantization("config.json", config);
    return read.ok() ? std::string("no error") : read.error().message;
  };
  const auto changed = [](json config, const char* pointer, json value) {
    config[json::json_pointer(pointer)] = std::move(value);
    return config;
  };
  const json plain = gptq(128, false, true);
  CHECK(error_with(plain) == "no error");
  CHECK(contains(error_with(changed(plain, "/bits", 8)),
                 "config.json: quantization_config.bits is 8, supported is 4"));
  CHECK(contains(error_with(changed(plain, "/group_size", 48)), "group_size is 48"));
  CHECK(contains(error_with(changed(plain, "/checkpoint_format", "marlin")), "marlin"));
  CHECK(contains(error_with(changed(plain, "/lm_head", true)), "lm_head is true"));
  CHECK(contains(error_with(changed(plain, "/dynamic", json{{"-:.*q_proj", json::object()}})),
                 "quantization_config.dynamic"));
  CHECK(contains(error_with(changed(plain, "/quant_method", "bitsandbytes")),
                 "quant_method is \"bitsandbytes\", supported are gptq, awq"));
  CHECK(contains(error_with({{"bits", 4}}), "quant_method is absent"));
  CHECK(contains(error_with("x"), "quant_method"));
  const json awq = {{"quant_method", "awq"}, {"bits", 4}, {"group_size", 128}};
  CHECK(error_with(awq) == "no error");
  CHECK(contains(error_with(changed(awq, "/version", "gemv")), "version is \"gemv\""));
  CHECK(contains(error_with(changed(awq, "/zero_point", false)), "zero_point is false"));
  const json fp8 = {{"quant_method", "fp8"}};
  CHECK(contains(error_with(changed(fp8, "/weight_block_size", {128, 128})), "weight_block_size"));
  const json packed = compressed("pack-quantized", int4_weights(128, true));
  CHECK(error_with(packed) == "no error");
  const auto packed_with = [&](const char* pointer, json value) {
    return error_with(changed(packed, pointer, std::move(value)));
  };
  CHECK(contains(packed_with("/format", "int-quantized"), "format is \"int-quantized\""));
  CHECK(contains(packed_with("/kv_cache_scheme", json{{"num_bits", 8}}), "kv_cache_scheme"));
  CHECK(contains(packed_with("/config_groups/group_1", json::object()), "one group"));
  CHECK(contains(packed_with("/config_groups/group_0/targets", {"re:.*q_proj"}), "targets"));
  CHECK(contains(packed_with("/config_groups/group_0/weights/num_bits", 8), "num_bits is 8"));
  CHECK(contains(packed_with("/config_groups/group_0/weights/strategy", "block"), "strategy"));
  CHECK(contains(packed_with("/config_groups/group_0/input_activations", json{{"num_bits", 8}}),
                 "input_activations"));
  CHECK(contains(packed_with("/sparsity_config", json{{"format", "sparse-24-bitmask"}}),
                 "sparsity_config"));
  CHECK(contains(packed_with("/ignore", {"re:(a+)+$"}), "'re:(a+)+$' is not supported"));
}

TEST_CASE("A tensor of a quantized module that is missing or wrong is named") {
  const Case c{"gptq", gptq(32, true, false), 32, true};
  const std::string up = "model.layers.0.mlp.up_proj";
  CHECK(error_of(Folders(c).quantized).empty());
  const auto error_with = [&](auto change) {
    Folders folders(c);
    change(folders.tensors);
    folders.write();
    return error_of(folders.quantized);
  };
  CHECK(contains(error_with([&](Tensors& t) { t.remove(up + ".qzeros"); }),
                 "'" + up + ".qzeros' is missing"));
  CHECK(contains(error_with([&](Tensors& t) { t.remove(up + ".g_idx"); }), ".g_idx' is missing"));
  CHECK(contains(error_with([&](Tensors& t) {
                   t.entry(up + ".qweight")["shape"] = {80, 16};
                 }),
                 ".qweight' is [80, 16] I32, must be [16, 80] I32"));
  CHECK(contains(error_with([&](Tensors& t) { t.entry(up + ".qweight")["dtype"] = "F32"; }),
                 "must be [16, 80] I32"));
  const auto with_indices = [&](const std::vector<int32_t>& indices) {
    return error_with([&](Tensors& t) { t.add(up + ".g_idx", "I32", {128}, indices); });
  };
  std::vector<int32_t> indices(128, 0);
  CHECK(contains(with_indices(indices), "give group 0 128 columns, must be 32"));
  for (size_t i = 0; i < 128; ++i) indices[i] = int32_t(i / 32);
  CHECK(with_indices(indices).empty());
  indices[5] = 4;
  CHECK(contains(with_indices(indices), "have 4, must be in [0, 4)"));
  indices[5] = -1;
  CHECK(contains(with_indices(indices), "have -1"));
  // Columns out of order, where the configuration says that they are in order.
  const Case ordered{"gptq", gptq(32, false, false), 32, true};
  CHECK(contains(error_of(Folders(ordered).quantized), "puts columns out of order"));
}

}  // namespace kivi
