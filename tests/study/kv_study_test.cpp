// SPDX-License-Identifier: Apache-2.0
// What a study sees of a model is what the model computes, and its simulations are the store's.
#include "study/kv_study.h"

#include <cmath>

#include "engine/model/checkpoint.h"
#include "engine/model/model_config.h"
#include "engine/model/weights.h"
#include "kernels/cpu/cpu_backend.h"
#include "study/kv_quantizer.h"
#include "tests/kernels/store_harness.h"
#include "tests/model/tales.h"

namespace kivi {

namespace {

Request scored(const std::vector<int32_t>& prompt) {
  Request request;
  request.prompt = prompt;
  request.sampling.max_tokens = 0;
  request.sampling.prompt_logprobs = 0;
  return request;
}

std::vector<int32_t> some_text(const std::string& model, int tokens) {
  const Golden golden = read_golden(model);
  std::vector<int32_t> ids = golden.prompt;
  ids.insert(ids.end(), golden.greedy.begin(), golden.greedy.end());
  const size_t known = ids.size();
  while (int(ids.size()) < tokens) ids.push_back(ids[ids.size() * 3 % known]);
  ids.resize(size_t(tokens));
  return ids;
}

std::unique_ptr<KvStudy> study_of(const std::string& model, int window, int residual) {
  EngineConfig config;
  config.model = model_folder(model);
  config.device = "cpu";
  auto study = KvStudy::load(config, window, residual);
  if (!study.ok()) FAIL(study.error().message);
  return std::move(study).value();
}

std::vector<float> losses(KvStudy& study, const std::vector<int32_t>& ids) {
  std::vector<float> out;
  for (const SampledToken& t : run_one(*study.model().engine, scored(ids)).prompt_logprobs)
    out.push_back(-t.logprob);
  return out;
}

double mean_of(const std::vector<float>& x) {
  double sum = 0;
  for (const float v : x) sum += v;
  return sum / double(x.size());
}

double change(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::abs(double(a[i]) - b[i]);
  return sum / double(a.size());
}

// rope(W norm(embedding)) of layer 0 by the backend's ops: kv [t, 2 hk d] f16.
std::vector<f16> first_layer(const std::string& name, const std::vector<int32_t>& ids) {
  const auto backend = make_cpu_backend(1);
  const ModelConfig config = read_model_config(model_folder(name)).value();
  const Checkpoint checkpoint = Checkpoint::open(model_folder(name)).value();
  const DecoderWeights w =
      load_weights(*backend, config.spec, config.names, checkpoint, config.dtype, {}).value();
  const DecoderSpec& spec = config.spec;
  const int64_t t = int64_t(ids.size());
  std::vector<int32_t> tokens = ids, positions;
  for (int i = 0; i < t; ++i) positions.push_back(i);
  test::Guarded x(DType::f32, t, spec.hidden), h(DType::f32, t, spec.hidden);
  test::Guarded qkv(DType::f32, t, spec.qkv_size()), q(DType::f32, t, spec.query_size());
  test::Guarded kv(DType::f16, t, spec.kv_size());
  const LayerWeights& l = w.layers[0];
  backend->embed(w.embedding.whole(), make_tensor(tokens.data(), DType::i32, t), *x);
  backend->norm(*x, l.attention_norm, l.attention_norm_bias, spec.norm, float(spec.norm_eps), *h);
  backend->matmul(*h, l.qkv.whole(), l.qkv_bias, *qkv);
  Rope rope;
  rope.inverse_frequencies = w.inverse_frequencies;
  rope.rotary_dim = spec.rope.rotary_dim;
  backend->rope(*qkv, make_tensor(positions.data(), DType::i32, t), rope, spec.kv_shape(), *q, *kv);
  const f16* rows = kv->as<f16>();
  return {rows, rows + kv->size()};
}

}  // namespace

TEST_CASE("An observer sees layer 0's keys and values as rope(W norm(x)) has them") {
  const std::string name = GENERATE("tales-llama", "tales-mistral", "tales-falcon");
  CAPTURE(name);
  const std::vector<int32_t> ids = some_text(name, 100);
  std::vector<f16> seen;
  int appended = 0;
  AttentionObserver observer;
  observer.before_attend = [&](Backend& backend, const AttentionCall& call) {
    if (call.layer != 0) return;
    seen.resize(size_t(call.kv.size()));
    backend.download(seen.data(), call.kv.data, call.kv.bytes());
  };
  observer.before_append = [&](Backend&, const Tensor&, const KvView&, int) { ++appended; };
  EngineConfig config = test_config(name, "fp16");
  auto loaded = load_model(config, {}, [&](Backend& device) { device.observe(observer); });
  REQUIRE(loaded.ok());
  run_one(*(*loaded)->engine, scored(ids));
  const std::vector<f16> expected = first_layer(name, ids);
  REQUIRE(seen.size() == expected.size());
  CHECK(std::ranges::equal(seen, expected, {}, &f16::bits, &f16::bits));
  CHECK(appended == (*loaded)->summary.layers);
}

TEST_CASE("Simulated keys and values are what the product's store gives back") {
  const int bits = GENERATE(2, 4);
  const auto backend = make_cpu_backend(1);
  const KvLayout layout{{KvKind::kivi, bits, bits, 32, 32}, {1, 2, 64}};
  constexpr int kTokens = 128;
  test::StoreHarness store(*backend, layout, 1, kTokens, 17);
  test::TestSequence sequence = store.sequence(kTokens);
  test::append(*backend, store, {{&sequence, kTokens}});
  KvRows keys{kTokens, 2, 64, {}}, values = keys;
  for (const std::vector<f16>& row : sequence.tokens[0]) {
    keys.data.insert(keys.data.end(), row.begin(), row.begin() + 128);
    values.data.insert(values.data.end(), row.begin() + 128, row.end());
  }
  const KvRows k = simulated(keys, {bits, KvAxis::channel, 32});
  const KvRows v = simulated(values, {bits, KvAxis::token, 32});
  int wrong = 0;
  for (int t = 0; t < kTokens; ++t)
    for (int head = 0; head < 2; ++head)
      for (int c = 0; c < 64; ++c) {
        const std::byte* block = store.view().page_block(0, sequence.pages[size_t(t / 64)], head);
        const size_t at = size_t(t * 128 + head * 64 + c);
        wrong += to_f16(read_key(layout, block, t % 64, c)).bits != k.data[at].bits;
        if (t < kTokens - 32)  // the rest is in the residual
          wrong += to_f16(read_value(layout, block, t % 64, c)).bits != v.data[at].bits;
      }
  CHECK(wrong == 0);
}

TEST_CASE("A study that looks, or simulates 16 bits, changes no loss; fewer bits change more",
          "[long]") {
  const std::string name = GENERATE("tales-llama", "tales-mistral", "tales-falcon");
  CAPTURE(name);
  const std::vector<int32_t> ids = some_text(name, 256);
  const auto study = study_of(name, 256, 0);
  const std::vector<float> plain = losses(*study, ids);
  REQUIRE(plain.size() == 255);
  REQUIRE(study->collect({}).ok());
  CHECK(losses(*study, ids) == plain);
  const KvStatistics s = study->statistics();
  CHECK(int(s.layers.size()) == study->model().summary.layers);
  CHECK(s.windows == 1);
  REQUIRE(study->simulate({{16, KvAxis::channel, 32}, {16, KvAxis::token, 32}}).ok());
  CHECK(losses(*study, ids) == plain);
  const auto with = [&](int bits) {
    REQUIRE(study->simulate({{bits, KvAxis::channel, 32}, {bits, KvAxis::token, 32}}).ok());
    return change(losses(*study, ids), plain);
  };
  const double four = with(4), two = with(2);
  CHECK(four > 1e-3);
  CHECK(two > 2 * four);
  study->rest();
  CHECK(losses(*study, ids) == plain);
}

TEST_CASE("With a residual, what is read is near what the product's own format reads", "[long]") {
  const std::vector<int32_t> ids = some_text("tales-llama", 256);
  const auto study = study_of("tales-llama", 256, 32);
  const std::vector<float> plain = losses(*study, ids);
  REQUIRE(study->simulate({{2, KvAxis::channel, 32}, {2, KvAxis::token, 32}}).ok());
  const std::vector<float> simulation = losses(*study, ids);
  // The first 32 tokens are read in 16 bits by all that see them alone.
  for (size_t i = 0; i < 32; ++i) CHECK(simulation[i] == plain[i]);

  EngineConfig config = test_config("tales-llama", "kivi2");  // R 32
  config.kivi_prefill = PrefillMode::stream;
  config.prefill_chunk_tokens = 1;
  const auto product = load_or_fail(config);
  std::vector<float> stored;
  for (const SampledToken& t : run_one(*product->engine, scored(ids)).prompt_logprobs)
    stored.push_back(-t.logprob);
  const double expected = change(stored, plain), found = change(simulation, plain);
  CAPTURE(expected, found, mean_of(plain), mean_of(stored), mean_of(simulation));
  CHECK(found > 0.7 * expected);
  CHECK(found < 2 * expected);  // the product keeps more values in 16 bits
}

TEST_CASE("A study refuses what the model does not have, by name") {
  const auto study = study_of("tales-falcon", 128, 0);
  KvStudyOptions options;
  options.layers = {0, 4};
  Status status = study->collect(options);
  REQUIRE(!status.ok());
  CHECK(status.error().field == "layers");
  CHECK(status.error().message == "layers has 4, must be from 0 to 3");
  options.layers = {};
  options.group = 128;
  status = study->collect(options);
  REQUIRE(!status.ok());
  CHECK(status.error().field == "group");
  CHECK(!study->simulate({{2, KvAxis::channel, 32}, {2, KvAxis::token, 128}}).ok());
  CHECK(study->simulate({{2, KvAxis::channel, 128}, {2, KvAxis::token, 32}}).ok());
  EngineConfig config;
  config.model = model_folder("tales-falcon");
  config.device = "cpu";
  const auto too_long = KvStudy::load(config, 4096, 0);
  REQUIRE(!too_long.ok());
  CHECK(too_long.error().field == "window");
}

namespace {

// Counts what it is asked to record.
class RecordingBackend final : public CpuBackend {
 public:
  RecordingBackend() : CpuBackend(1) {}
  int recorded = 0;

 private:
  void do_run_recorded(uint64_t, const std::function<void()>& ops) override {
    ++recorded;
    ops();
  }
};

}  // namespace

TEST_CASE("an observer sees each layer once, not its own ops, and nothing is recorded") {
  RecordingBackend backend;
  int ran = 0;
  backend.run_recorded(1, [&] { ++ran; });
  CHECK(backend.recorded == 1);
  const KvLayout layout{{KvKind::kivi, 2, 2, 32, 32}, {3, 2, 64}};
  constexpr int kTokens = 64;
  test::StoreHarness store(backend, layout, 1, kTokens, 5), other(backend, layout, 1, kTokens, 6);
  test::TestSequence sequence = store.sequence(kTokens), more = other.sequence(kTokens);
  std::vector<int> layers;
  AttentionObserver observer;
  observer.before_append = [&](Backend& device, const Tensor&, const KvView&, int layer) {
    if (layers.empty()) test::append(device, other, {{&more, kTokens}});
    layers.push_back(layer);
  };
  backend.observe(observer);
  backend.run_recorded(1, [&] { ++ran; });
  CHECK(ran == 2);
  CHECK(backend.recorded == 1);
  test::append(backend, store, {{&sequence, kTokens}});
  CHECK(layers == std::vector<int>{0, 1, 2});
}

}  // namespace kivi
