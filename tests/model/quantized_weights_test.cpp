// SPDX-License-Identifier: Apache-2.0
// Quantized matrices from a file to the device: they keep their numbers in blocks, whatever is
// stacked, reordered or rotated; and what --quantization makes of a 16-bit checkpoint.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <functional>
#include <random>

#include "engine/model/decoder_model.h"
#include "engine/model/model_config.h"
#include "engine/model/weight_quantizer.h"
#include "engine/model/weights.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/weight_codec.h"
#include "tests/golden/golden_models.h"
#include "tests/kernels/support.h"
#include "tests/model/gguf_of_folder.h"
#include "tests/model/tales.h"
#include "tests/model/temporary_folder.h"

namespace kivi {

namespace {

std::vector<float> numbers_of(const Weight& w, int64_t row) {
  std::vector<float> numbers(size_t(w.columns), 0.f);
  if (w.is_plain())
    for (int64_t c = 0; c < w.columns; ++c)
      numbers[size_t(c)] = w.plain.dtype == DType::f32   ? w.plain.row<float>(row)[c]
                           : w.plain.dtype == DType::f16 ? to_float(w.plain.row<f16>(row)[c])
                                                         : to_float(w.plain.row<bf16>(row)[c]);
  else
    read_weight_row(w, row, numbers);
  return numbers;
}

std::vector<std::vector<float>> rows_of(const WeightMatrix& matrix) {
  std::vector<std::vector<float>> rows;
  for (const Weight& part : matrix.parts)
    for (int64_t i = 0; i < part.rows; ++i) rows.push_back(numbers_of(part, i));
  return rows;
}

// Largest difference of two matrices, and the largest number of the second one.
struct Difference {
  double most = 0, size = 0;
};
Difference difference(const WeightMatrix& a, const WeightMatrix& b) {
  const auto left = rows_of(a), right = rows_of(b);
  REQUIRE(left.size() == right.size());
  Difference found;
  for (size_t i = 0; i < left.size(); ++i) {
    REQUIRE(left[i].size() == right[i].size());
    for (size_t c = 0; c < left[i].size(); ++c) {
      found.most = std::max(found.most, std::abs(double(left[i][c]) - double(right[i][c])));
      found.size = std::max(found.size, std::abs(double(right[i][c])));
    }
  }
  return found;
}

void each_matrix(
    const DecoderWeights& a, const DecoderWeights& b,
    const std::function<void(const char*, const WeightMatrix&, const WeightMatrix&)>& f) {
  f("embedding", a.embedding, b.embedding);
  f("head", a.head, b.head);
  for (size_t i = 0; i < a.layers.size(); ++i) {
    f("qkv", a.layers[i].qkv, b.layers[i].qkv);
    f("output", a.layers[i].output, b.layers[i].output);
    f("up", a.layers[i].up, b.layers[i].up);
    f("down", a.layers[i].down, b.layers[i].down);
  }
}

DecoderWeights load(Backend& backend, const ModelConfig& model, const std::string& path,
                    DType dtype, const WeightFormats& formats) {
  const auto checkpoint = Checkpoint::open(path);
  REQUIRE(checkpoint.ok());
  auto weights = load_weights(backend, model.spec, model.names, *checkpoint, dtype, {}, formats);
  if (!weights.ok()) FAIL(weights.error().message);
  return std::move(weights).value();
}

}  // namespace

TEST_CASE("Matrices of a GGUF file keep their numbers in blocks, stacked and reordered") {
  const auto backend = make_cpu_backend(2);
  const ModelConfig model = read_model_config(tiny_path()).value();
  const DecoderWeights blocks = load(*backend, model, tiny_path(), DType::f32, model.formats);
  const DecoderWeights plain = load(*backend, model, tiny_path(), DType::f32, {});
  // q Q4_K, k Q5_K, v Q6_K; gate Q5_0, up Q5_1.
  REQUIRE(blocks.layers[0].qkv.parts.size() == 3);
  CHECK(blocks.layers[0].qkv.parts[0].format.kind == WeightKind::q4_k);
  CHECK(blocks.layers[0].qkv.parts[2].format.kind == WeightKind::q6_k);
  REQUIRE(blocks.layers[0].up.parts.size() == 2);
  CHECK(blocks.embedding.whole().format.kind == WeightKind::q8_0);
  REQUIRE(plain.layers[0].qkv.parts.size() == 1);
  each_matrix(blocks, plain, [](const char* name, const auto& a, const auto& b) {
    CAPTURE(name);
    const Difference found = difference(a, b);
    CHECK(found.size > 0.01);
    CHECK(found.most <= 2e-7 * found.size);  // a fused multiplication and addition
  });
}

TEST_CASE("Equal formats are stacked into one matrix, unequal ones are not") {
  WeightItem item;
  item.columns = 256;
  item.parts = {{"a", 32}, {"b", 16}, {"c", 32}, {"d", 8}, {"e", 16}};
  const WeightFormat q4{WeightKind::q4_k}, q6{WeightKind::q6_k};
  const auto counts = [&](const WeightFormats& formats) {
    std::vector<size_t> found;
    for (const WeightRun& run : runs_of(item, formats)) found.push_back(run.count);
    return found;
  };
  using Counts = std::vector<size_t>;
  CHECK(counts({}) == Counts{5});
  CHECK(counts({{"a", q4}, {"b", q4}}) == Counts{2, 3});
  CHECK(counts({{"a", q4}, {"b", q6}, {"c", q4}, {"d", q4}, {"e", q4}}) == Counts{1, 1, 2, 1});
  // Floats have no tiles to fill.
  const WeightFormat fp8{WeightKind::e4m3};
  CHECK(counts({{"a", fp8}, {"b", fp8}, {"c", fp8}, {"d", fp8}, {"e", fp8}}) == Counts{5});
}

TEST_CASE("A model in blocks says nearly what the same numbers say in fp32") {
  EngineConfig config = test_config("", "fp16");
  config.model = tiny_path();
  config.max_model_len = 128;
  config.dtype = "float32";
  const nlohmann::json golden =
      read_json(std::string(KIVI_SOURCE_DIR) + "/tests/data/gguf/tiny.json");
  const auto prompt = golden["prompt"].get<std::vector<int32_t>>();
  const auto logits = golden["logits"].get<std::vector<float>>();
  for (const char* format : {"fp16", "kivi3.5"}) {  // kivi3.5 rotates heads
    CAPTURE(format);
    config.kv_cache_dtype = format;
    const auto loaded = load_or_fail(config);
    CHECK(contains(loaded->plan.text(), "Q5_1"));
    CHECK(contains(loaded->summary.weight_formats, "Q4_K"));
    const Output output = run_one(*loaded->engine, greedy_request(prompt, 4, 20));
    REQUIRE(output.first_top.size() == 20);
    const float constant = logits[size_t(output.first_top[0].id)] - output.first_top[0].logprob;
    double worst = 0;
    for (const TokenLogprob& top : output.first_top)
      worst = std::max(worst, double(std::abs(top.logprob + constant - logits[size_t(top.id)])));
    CHECK(worst < 0.1);
    CHECK(worst > 0);  // x is quantized
  }
}

TEST_CASE("A quantized output matrix undoes the rotation of heads as a plain one does") {
  const auto backend = make_cpu_backend(1);
  ModelConfig model = read_model_config(tiny_path()).value();
  model.spec.rotated_heads = true;
  const DecoderWeights blocks = load(*backend, model, tiny_path(), DType::f32, model.formats);
  const DecoderWeights plain = load(*backend, model, tiny_path(), DType::f32, {});
  const Weight& output = blocks.layers[0].output.whole();
  CHECK(output.hadamard == model.spec.head_dim);
  CHECK(blocks.layers[0].qkv.parts[0].hadamard == 0);
  std::mt19937 random(61);
  test::Guarded x(DType::f32, 3, output.columns), got(DType::f32, 3, output.rows);
  test::Guarded want(DType::f32, 3, output.rows);
  x.fill(random);
  backend->matmul(*x, output, {}, *got);
  backend->matmul(*x, plain.layers[0].output.whole(), {}, *want);
  double error = 0, size = 0;
  for (int i = 0; i < 3; ++i)
    for (int64_t j = 0; j < output.rows; ++j) {
      error += std::pow(got.get(i, j) - want.get(i, j), 2);
      size += std::pow(want.get(i, j), 2);
    }
  CHECK(std::sqrt(error / size) < 0.01);
}

TEST_CASE("fp8 and int4 are as near to a 16-bit matrix as their steps allow") {
  const auto backend = make_cpu_backend(2);
  const std::string path = model_folder("tales-mistral");
  const ModelConfig model = read_model_config(path).value();
  const DecoderWeights plain = load(*backend, model, path, DType::f32, {});
  for (const WeightFormat& format : {WeightFormat{WeightKind::e4m3}, {WeightKind::int4, 128}}) {
    INFO(name_of(format));
    const WeightFormats formats = layer_formats(model.spec, model.names, format);
    const DecoderWeights quantized = load(*backend, model, path, DType::bf16, formats);
    CHECK(quantized.embedding.whole().is_plain());
    CHECK(quantized.head.whole().is_plain());
    for (size_t i = 0; i < plain.layers.size(); ++i) {
      const auto got = rows_of(quantized.layers[i].down), want = rows_of(plain.layers[i].down);
      CHECK(quantized.layers[i].down.whole().format == format);
      for (size_t row = 0; row < want.size(); ++row) {
        double error = 0, size = 0;
        for (size_t c = 0; c < want[row].size(); ++c) {
          error += std::pow(double(got[row][c]) - double(want[row][c]), 2);
          size += std::pow(double(want[row][c]), 2);
        }
        // 3 bits of mantissa: a relative error of 2^-4 at most, uniform. 16 levels over about 5
        // standard deviations: 5 / 15 / sqrt(12) of one.
        REQUIRE(std::sqrt(error / size) < (format.kind == WeightKind::e4m3 ? 0.035 : 0.13));
      }
    }
  }
}

TEST_CASE("Rounding to int4 with a clip is never worse than without") {
  std::mt19937 random(62);
  std::normal_distribution<float> normal;
  const WeightFormat format{WeightKind::int4, 128};
  const int64_t k = 320;  // the last group is shorter
  std::vector<float> x(size_t(k), 0.f), got(x.size());
  std::vector<uint8_t> codes(x.size());
  std::vector<std::byte> records(size_t(record_count(format, k) * 5));
  REQUIRE(records.size() == 15);
  int better = 0;
  for (int round = 0; round < 50; ++round) {
    for (float& v : x) v = normal(random);
    if (round == 0) std::fill(x.begin(), x.begin() + 128, 0.f);
    if (round == 1) std::fill(x.begin(), x.begin() + 128, 3.f);
    x[200] = 9;  // an outlier
    quantize_row(format, x, codes, records);
    dequantize_row(format, {codes, records}, got);
    for (int64_t begin = 0; begin < k; begin += 128) {
      const int64_t end = std::min<int64_t>(begin + 128, k);
      const float low = std::min(0.f, *std::min_element(x.begin() + begin, x.begin() + end));
      const float high = std::max(0.f, *std::max_element(x.begin() + begin, x.begin() + end));
      const float scale = std::max(high - low, 1e-9f) / 15;
      const float zero = std::round(-low / scale);
      double clipped = 0, plain = 0;
      for (int64_t c = begin; c < end; ++c) {
        const float code = std::clamp(std::nearbyint(x[size_t(c)] / scale) + zero, 0.f, 15.f);
        plain += std::pow(double(scale * (code - zero) - x[size_t(c)]), 2);
        clipped += std::pow(double(got[size_t(c)] - x[size_t(c)]), 2);
      }
      REQUIRE(clipped <= plain * (1 + 1e-6) + 1e-12);
      better += clipped < plain * 0.98;
    }
  }
  CHECK(better > 50);
}

TEST_CASE("--quantization is planned, loaded and refused as it says") {
  EngineConfig config = test_config("tales-llama", "fp16");
  const auto plain = plan_memory(config);
  REQUIRE(plain.ok());
  int64_t before = plain->weights;
  for (const char* name : {"fp8", "int4"}) {
    config.quantization = name;
    const auto plan = plan_memory(config);
    REQUIRE(plan.ok());
    CHECK(plan->weights < before * 8 / 10);
    before = plan->weights;
    CHECK(contains(plan->text(), name));
    const auto loaded = load_or_fail(config);
    CHECK(loaded->plan.text() == plan->text());
    CHECK(loaded->summary.weight_bytes == plan->weights);
    CHECK(run_one(*loaded->engine, greedy_request({1, 2, 3}, 20)).ids.size() == 20);
    EngineConfig dummy = config;
    dummy.load_format = "dummy";
    CHECK(load_or_fail(dummy)->summary.weight_bytes == plan->weights);
  }
  config.model = tiny_path();
  config.max_model_len = 128;
  const auto refused = plan_memory(config);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().field == "quantization");
  CHECK(contains(refused.error().message, "quantized already"));
  config.quantization = "none";
  const auto none = plan_memory(config);
  REQUIRE(none.ok());
  CHECK(contains(none->text(), "1 Q4_K"));
  CHECK(contains(none->text(), "dequantized"));
  config.quantization = "int8";
  CHECK(plan_memory(config).error().field == "quantization");
}

namespace {

// A device whose products need scratch.
class ScratchBackend final : public CpuBackend {
 public:
  ScratchBackend() : CpuBackend(1) {}
  int64_t product_scratch_bytes(const Weight& w, int64_t rows) const override {
    return w.is_plain() ? 0 : rows * w.rows * w.columns + w.hadamard;
  }
  void use_product_scratch(std::byte* memory, int64_t bytes) override {
    scratch = memory;
    scratch_bytes = bytes;
  }
  std::byte* scratch = nullptr;
  int64_t scratch_bytes = 0;
};

}  // namespace

TEST_CASE("A model gives its device the scratch of its largest quantized product") {
  ScratchBackend backend;
  const auto config = read_model_config(model_folder("tales-llama"));
  REQUIRE(config.ok());
  DecoderSpec spec = config->spec;
  const TensorNames& names = config->names;
  CHECK(product_scratch_bytes(backend, spec, names, {}, 7) == 0);
  const WeightFormats formats = layer_formats(spec, names, {WeightKind::e4m3});
  spec.rotated_heads = true;
  const int64_t bytes = product_scratch_bytes(backend, spec, names, formats, 7);
  CHECK(bytes == 7 * spec.up_size() * spec.hidden);
  auto weights = random_weights(backend, spec, names, DType::f32, {}, formats);
  REQUIRE(weights.ok());
  const DecoderModel::Limits limits = {7, 3, bytes}, none = {7, 3, 0};
  CHECK(DecoderModel::workspace_bytes(backend, spec, DType::f32, limits) ==
        DecoderModel::workspace_bytes(backend, spec, DType::f32, none) + bytes);
  const auto model = DecoderModel::create(backend, spec, std::move(weights).value(), limits);
  REQUIRE(model.ok());
  CHECK(backend.scratch_bytes == bytes);
  CHECK(reinterpret_cast<uintptr_t>(backend.scratch) % 256 == 0);
  std::fill_n(backend.scratch, bytes, std::byte{1});  // within the allocation (AddressSanitizer)
}

TEST_CASE("Random quantized weights repeat 256 rows that were rounded as any others") {
  ScratchBackend backend;
  const auto config = read_model_config(model_folder("tales-llama"));
  REQUIRE(config.ok());
  const DecoderSpec& spec = config->spec;
  const TensorNames& names = config->names;
  const auto plain = random_weights(backend, spec, names, DType::f32, {});
  REQUIRE(plain.ok());
  for (const WeightFormat& format : {WeightFormat{WeightKind::e4m3}, {WeightKind::int4, 128}}) {
    const auto made =
        random_weights(backend, spec, names, DType::f32, {}, layer_formats(spec, names, format));
    REQUIRE(made.ok());
    const Weight& up = made->layers[0].up.whole();
    const int64_t k = up.columns;
    std::vector<uint8_t> codes(size_t(k), 0);
    std::vector<std::byte> records(
        size_t(record_count(format, k) * layout_of(format.kind).record_bytes), std::byte{0});
    std::vector<float> want(size_t(k), 0.f);
    for (const int64_t row : {int64_t(0), int64_t(255), int64_t(256), up.rows - 1}) {
      quantize_row(format, numbers_of(plain->layers[0].up.whole(), row % 256), codes, records);
      dequantize_row(format, {codes, records}, want);
      CHECK(numbers_of(up, row) == want);
    }
  }
}

}  // namespace kivi
