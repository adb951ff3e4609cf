// SPDX-License-Identifier: Apache-2.0
#include "bench/kernel_benchmark.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <initializer_list>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <utility>

#include "bench/benchmark_data.h"
#include "bench/kernel_costs.h"
#include "bench/kernel_timer.h"
#include "bench/page_copies.h"
#include "engine/model/model_config.h"
#include "engine/model/rope_scaling.h"
#include "engine/model/weight_quantizer.h"
#include "engine/serving/device.h"

namespace kivi {
namespace {

constexpr int kSampledRowsMax = 512;  // of logits: rows beyond are prompt tokens
constexpr int kPromptRowsMin = 32;    // fewer are no prompt
constexpr int kFillRows = 2048;       // of a step that fills a store
constexpr int kStepStores = 2;        // models whose steps are stored in turn
constexpr int kIdSets = 64;           // different ids for embed and gather

// New tokens of one sequence upon cached ones.
struct PromptCase {
  int past, rows;
};

// What differs between a device with its own memory and a CPU.
struct Scale {
  std::vector<int> rows;
  std::vector<CacheCase> caches;
  std::vector<PromptCase> prompts;
  int64_t rotation_bytes;
  int64_t copy_bytes;
  int matrix_size;
  int64_t page_copy_bytes;  // of a batch of pages that go to the host or come back
};
const Scale kDeviceScale = {{1, 64, 4096},
                            {{1, 32768}, {8, 4096}, {32, 2048}, {64, 1024}, {8, 32768}},
                            {{0, 1024},
                             {0, 2048},
                             {0, 4096},
                             {0, 8192},
                             {0, 16384},
                             {0, 32768},
                             {0, 65536},
                             {0, 131072},
                             {4096, 4096},
                             {32768, 512},
                             {32768, 4096},
                             {131072, 4096},
                             {1 << 20, 512},
                             {1 << 20, 4096}},
                            int64_t(800) << 20,
                            int64_t(2) << 30,
                            8192,
                            int64_t(512) << 20};
const Scale kCpuScale = {{1, 8, 64},        {{1, 1024}, {8, 512}}, {{0, 64}, {64, 64}},
                         int64_t(96) << 20, int64_t(128) << 20,    1024,
                         int64_t(16) << 20};

// As in service: each sequence completes its R keys at a step of its own.
std::vector<int> staggered_pasts(std::vector<int> pasts) {
  for (size_t i = 0; i < pasts.size(); ++i) pasts[i] -= std::min(pasts[i], int(i * 37 + 1) % 128);
  return pasts;
}

const std::vector<std::string> kFormats = {"fp16",  "fp8",     "kivi4",   "kivi-k4v2",
                                           "kivi2", "kivi4.5", "kivi3.5", "kivi2.5"};

class Benchmark {
 public:
  Benchmark(Backend& backend, const EngineConfig& config, const DecoderSpec& spec, DType dtype,
            const KernelBenchmarkOptions& options, const KernelObserver& observer)
      : backend_(backend),
        config_(config),
        spec_(spec),
        dtype_(dtype),
        a_(backend.activation_type(dtype)),
        options_(options),
        observer_(observer),
        timer_(backend),
        scale_(backend.asynchronous() ? kDeviceScale : kCpuScale) {
    if (!options.rows.empty()) {
      scale_.rows = options.rows;
      scale_.prompts.clear();
      for (const int t : options.rows) {
        if (t < kPromptRowsMin) continue;
        scale_.prompts.push_back({0, t});
        scale_.prompts.push_back({t, t});
      }
    }
    if (!options.caches.empty()) scale_.caches = options.caches;
  }

  Status run(KernelBenchmark& result) {
    result_ = &result;
    result.rotation_bytes = scale_.rotation_bytes;
    std::vector<KvFormat> formats;  // a wrong one is an error before anything is measured
    for (const std::string& name : options_.formats.empty() ? kFormats : options_.formats) {
      KIVI_ASSIGN_OR_RETURN(const KvFormat format, format_of(name));
      formats.push_back(format);
    }
    KIVI_RETURN_IF_ERROR(measure_rates());
    KIVI_RETURN_IF_ERROR(make_data());
    for (const int t : scale_.rows) KIVI_RETURN_IF_ERROR(measure_dense(t));
    for (const KvFormat& format : formats) KIVI_RETURN_IF_ERROR(measure_format(format));
    return ok_status();
  }

 private:
  // --- the device's rates, and the inputs -------------------------------------------------------
  Status measure_rates();
  Status make_data();

  // --- ops without a cache, t rows --------------------------------------------------------------
  Status measure_dense(int t);
  void measure_embed(int t);
  void measure_norms(int t);
  Status measure_matmuls(int t);
  Status measure_quantized(const char* name, int t, int64_t k, int64_t n);
  void measure_matmul(const char* name, int t, int64_t k, int64_t n, const RandomData& out);
  Status measure_rope(int t);
  void measure_activation(int t);
  void measure_gather(int t);
  void measure_sample(int t);

  // --- ops upon a cache -------------------------------------------------------------------------
  Result<KvFormat> format_of(const std::string& name) const;
  Status measure_format(const KvFormat& format);
  Status measure_decode(const std::string& name, const KvFormat& format, const CacheCase& cache);
  Status measure_append_step(const std::string& name, const KvFormat& format, int sequences);
  Status measure_prompt(const std::string& name, const KvFormat& format, int past, int rows);
  void attend(const std::string& name, const BenchmarkStore& store, const BenchmarkStep& step,
              const char* op, const std::string& shape);
  void append(const std::string& name, const BenchmarkStore& store, const BenchmarkStep& step,
              const char* op, const std::string& shape);
  Status measure_page_copies(const std::string& name, const KvFormat& format);

  // --- recording --------------------------------------------------------------------------------
  bool wanted(const std::string& op) const {
    return options_.ops.empty() || std::ranges::find(options_.ops, op) != options_.ops.end();
  }
  void record(const std::string& op, const std::string& shape, const std::string& format,
              const OpCost& cost, double seconds) {
    add({op, shape, format, seconds, cost.bytes, cost.flops, ""});
  }
  void skip(const std::string& op, const std::string& shape, const std::string& format,
            const std::string& why) {
    add({op, shape, format, 0, 0, 0, why});
  }
  void add(KernelMeasurement m) {
    if (observer_) observer_(*result_, m);
    result_->rows.push_back(std::move(m));
  }

  // True if the products of the run read quantized rows, which the ops before them then write.
  bool quantizes_rows(int t) const {
    constexpr int kRowsMin = 9;  // docs/design/decisions/030-fp8-activations-from-9-rows.md
    return config_.quantization == "fp8" && backend_.asynchronous() && t >= kRowsMin;
  }
  Operand quantized_result(int copy, int64_t t, int64_t n) const {
    return quantized_in(results_.matrix(copy, t, n)).value();
  }

  int size_a() const { return int(size_of(a_)); }
  int size_w() const { return int(size_of(dtype_)); }
  int rows_max() const { return *std::ranges::max_element(scale_.rows); }
  Tensor ids(int copy, int64_t t) const {  // [t] i32, in [0, ids_bound_)
    return make_tensor(reinterpret_cast<int32_t*>(ids_.data()) + copy * int64_t(rows_max()),
                       DType::i32, t);
  }
  std::string matrix_text(int64_t t, int64_t n) const { return fmt::format("[{}, {}]", t, n); }

  Backend& backend_;
  const EngineConfig& config_;
  const DecoderSpec& spec_;
  const DType dtype_, a_;
  const KernelBenchmarkOptions& options_;
  const KernelObserver& observer_;
  KernelTimer timer_;
  Scale scale_;
  KernelBenchmark* result_ = nullptr;

  RandomData weights_;    // w
  RandomData inputs_;     // a: what ops read
  RandomData results_;    // a: what ops write
  RandomData residual_;   // a: what ops change in place
  RandomData logits_;     // f32
  RandomData queries_;    // [rows, hq d] query type
  RandomData kv_;         // [rows, 2 hk d] f16
  RandomData attention_;  // [rows, hq d] a
  Buffer ids_;            // [kIdSets, rows_max] i32
  int64_t ids_bound_ = 0;
  Buffer sampled_ids_;                                             // [rows] i32
  std::map<std::pair<int64_t, int64_t>, RandomWeight> quantized_;  // by n and k
  Buffer product_scratch_;
};

Status Benchmark::measure_rates() {
  {
    const int64_t bytes = scale_.copy_bytes;
    KIVI_ASSIGN_OR_RETURN(const RandomData from,
                          RandomData::create(backend_, bytes, DType::f16, 1));
    KIVI_ASSIGN_OR_RETURN(const Buffer to, backend_.allocate(size_t(bytes), "copies"));
    double seconds = 0;
    // Not recorded: in a CUDA graph a copy is the copy engines' work, which are a fifth slower than
    // the multiprocessors (2441 against 3010 GB/s on an H100).
    for (int i = 0; i < 2; ++i)  // the first brings the clocks up
      seconds = timer_.seconds_unrecorded([&](int calls) {
        for (int call = 0; call < calls; ++call)
          backend_.copy(to.data(), from.vector(0, bytes / 2).data, size_t(bytes));
      });
    result_->copy_bytes = bytes;
    result_->copy_bytes_per_s = 2 * double(bytes) / seconds;
  }
  const int64_t n = scale_.matrix_size;
  KIVI_ASSIGN_OR_RETURN(const RandomData x, RandomData::create(backend_, n * n * size_a(), a_, 1));
  KIVI_ASSIGN_OR_RETURN(const RandomData w,
                        RandomData::create(backend_, n * n * size_w(), dtype_, 1));
  KIVI_ASSIGN_OR_RETURN(const RandomData out,
                        RandomData::create(backend_, n * n * size_a(), a_, 1));
  const double seconds = timer_.seconds(1, [&](int) {
    backend_.matmul(x.matrix(0, n, n), w.matrix(0, n, n), {}, out.matrix(0, n, n));
  });
  result_->matrix_size = int(n);
  result_->matrix_flops_per_s = matmul_cost(n, n, n, size_w(), size_a(), size_a()).flops / seconds;
  return ok_status();
}

// Only what the wanted ops need: a large device is full of random numbers in no time, a CPU is not.
Status Benchmark::make_data() {
  const int64_t t = rows_max(), n = spec_.hidden, vocab = spec_.vocab;
  const auto any = [&](std::initializer_list<const char*> ops) {
    return std::ranges::any_of(ops, [&](const char* op) { return wanted(op); });
  };
  const auto make = [&](RandomData& data, int64_t rows, int64_t columns, DType type,
                        float deviation, int64_t bytes_min) -> Status {
    const int64_t bytes = std::max(bytes_min, rows * columns * int64_t(size_of(type)));
    KIVI_ASSIGN_OR_RETURN(data, RandomData::create(backend_, bytes, type, deviation));
    return ok_status();
  };
  const int64_t widest = std::max<int64_t>({n, spec_.qkv_size(), spec_.up_size()});
  const int64_t rotation = scale_.rotation_bytes;
  if (any({"embed", "norm", "add_norm", "matmul", "rope", "activation", "gather_rows"})) {
    const int64_t largest = std::max(vocab, widest);
    KIVI_RETURN_IF_ERROR(make(weights_, largest, n, dtype_, 1 / std::sqrt(float(n)), rotation));
    for (RandomData* data : {&inputs_, &results_, &residual_})
      KIVI_RETURN_IF_ERROR(make(*data, t, widest, a_, 1, rotation));
  }
  if (any({"matmul", "sample"})) {
    const int64_t rows = std::min<int64_t>(t, kSampledRowsMax);
    KIVI_RETURN_IF_ERROR(make(logits_, rows, vocab, DType::f32, 2, rotation));
    KIVI_ASSIGN_OR_RETURN(sampled_ids_, backend_.allocate(size_t(rows) * sizeof(int32_t), "ids"));
  }
  if (any({"kv_attend", "kv_append", "kv_append_step", "kv_attend_prompt", "kv_append_prompt"})) {
    int64_t rows = std::max<int64_t>(t, kFillRows), rows_kv = rows;
    const int layers = wanted("kv_append_step") ? spec_.layers : 1;
    if (any({"kv_attend_prompt", "kv_append_prompt"}))
      for (const PromptCase& prompt : scale_.prompts)
        rows = rows_kv = std::max<int64_t>(rows, prompt.rows);
    for (const CacheCase& cache : scale_.caches) {
      rows = std::max<int64_t>(rows, cache.sequences);
      rows_kv = std::max<int64_t>(rows_kv, int64_t(cache.sequences) * layers);
    }
    KIVI_RETURN_IF_ERROR(make(queries_, rows, spec_.query_size(), backend_.query_type(), 1, 0));
    KIVI_RETURN_IF_ERROR(make(kv_, rows_kv, spec_.kv_size(), DType::f16, 1, 0));
    KIVI_RETURN_IF_ERROR(make(attention_, rows, spec_.query_size(), a_, 1, 0));
  }
  // Rows of the embedding and rows of an [x, n] matrix of inputs: ids are valid for both.
  ids_bound_ = std::min<int64_t>(vocab, rotation / (n * size_a()));
  std::vector<int32_t> random_ids(size_t(kIdSets * t));
  std::mt19937 random(3);
  for (int32_t& id : random_ids) id = int32_t(random() % uint64_t(ids_bound_));
  KIVI_ASSIGN_OR_RETURN(ids_, upload_ids(backend_, random_ids));
  return ok_status();
}

Status Benchmark::measure_dense(int t) {
  if (wanted("embed")) measure_embed(t);
  if (wanted("norm") || wanted("add_norm")) measure_norms(t);
  if (wanted("matmul")) KIVI_RETURN_IF_ERROR(measure_matmuls(t));
  if (wanted("rope")) KIVI_RETURN_IF_ERROR(measure_rope(t));
  if (wanted("activation")) measure_activation(t);
  if (wanted("gather_rows") && t <= kSampledRowsMax) measure_gather(t);
  if (wanted("sample") && t <= kSampledRowsMax) measure_sample(t);
  return ok_status();
}

void Benchmark::measure_embed(int t) {
  const int64_t n = spec_.hidden;
  const int copies = std::min(results_.copies(t, n), kIdSets);
  record("embed", fmt::format("{} of {}", matrix_text(t, n), matrix_text(spec_.vocab, n)), "",
         embed_cost(t, n, size_w(), size_a()), timer_.seconds(copies, [&](int i) {
           backend_.embed(weights_.matrix(0, spec_.vocab, n), ids(i, t), results_.matrix(i, t, n));
         }));
}

void Benchmark::measure_norms(int t) {
  const int64_t n = spec_.hidden;
  const bool bias = spec_.norm == NormKind::layer;
  const Tensor weight = weights_.vector(0, n);
  const Tensor offset = bias ? weights_.vector(1, n) : Tensor{};
  const int copies = inputs_.copies(t, n);
  if (wanted("norm"))
    record("norm", matrix_text(t, n), "", norm_cost(t, n, size_w(), size_a(), bias),
           timer_.seconds(copies, [&](int i) {
             backend_.norm(inputs_.matrix(i, t, n), weight, offset, spec_.norm,
                           float(spec_.norm_eps), results_.matrix(i, t, n));
           }));
  if (wanted("add_norm"))
    record("add_norm", matrix_text(t, n), "", add_norm_cost(t, n, size_w(), size_a(), bias),
           timer_.seconds(copies, [&](int i) {
             backend_.add_norm(residual_.matrix(i, t, n), inputs_.matrix(i, t, n), weight, offset,
                               spec_.norm, float(spec_.norm_eps), results_.matrix(i, t, n));
           }));
  if (wanted("add_norm") && quantizes_rows(t))
    record("add_norm", matrix_text(t, n), "e4m3 rows",
           quantized_output(add_norm_cost(t, n, size_w(), size_a(), bias), t, n, size_a()),
           timer_.seconds(copies, [&](int i) {
             backend_.add_norm(residual_.matrix(i, t, n), inputs_.matrix(i, t, n), weight, offset,
                               spec_.norm, float(spec_.norm_eps), quantized_result(i, t, n));
           }));
}

Status Benchmark::measure_matmuls(int t) {
  const int64_t n = spec_.hidden;
  const bool quantized = config_.quantization == "fp8" || config_.quantization == "int4";
  const auto measure = [&](const char* name, int64_t k, int64_t rows) -> Status {
    if (quantized) return measure_quantized(name, t, k, rows);
    measure_matmul(name, t, k, rows, results_);
    return ok_status();
  };
  KIVI_RETURN_IF_ERROR(measure("q|k|v", n, spec_.qkv_size()));
  KIVI_RETURN_IF_ERROR(measure("output", spec_.query_size(), n));
  KIVI_RETURN_IF_ERROR(measure(spec_.gated ? "gate|up" : "up", n, spec_.up_size()));
  KIVI_RETURN_IF_ERROR(measure("down", spec_.intermediate, n));
  if (t <= kSampledRowsMax) measure_matmul("head", t, n, spec_.vocab, logits_);
  return ok_status();
}

Status Benchmark::measure_quantized(const char* name, int t, int64_t k, int64_t n) {
  const WeightFormat format = config_.quantization == "fp8"
                                  ? WeightFormat{WeightKind::e4m3}
                                  : WeightFormat{WeightKind::int4, kInt4Group};
  auto found = quantized_.find({n, k});
  if (found == quantized_.end()) {
    KIVI_ASSIGN_OR_RETURN(RandomWeight made,
                          RandomWeight::create(backend_, format, n, k, scale_.rotation_bytes));
    found = quantized_.emplace(std::pair(n, k), std::move(made)).first;
  }
  const RandomWeight& w = found->second;
  const int64_t scratch = backend_.product_scratch_bytes(w.copy(0), t);
  if (scratch > int64_t(product_scratch_.bytes())) {
    KIVI_ASSIGN_OR_RETURN(product_scratch_, backend_.allocate(size_t(scratch), "scratch"));
    backend_.use_product_scratch(product_scratch_.data(), scratch);
  }
  const int places =
      std::min({inputs_.copies(t, k), residual_.copies(t, k), results_.copies(t, n)});
  OpCost cost = matmul_cost(t, k, n, 0, size_a(), size_a());
  cost.bytes += w.bytes();
  const std::string shape = fmt::format("{} {} x {}", name, matrix_text(t, k), matrix_text(n, k));
  record("matmul", shape, name_of(format), cost, timer_.seconds(w.copies(), [&](int i) {
    backend_.matmul(inputs_.matrix(i % places, t, k), w.copy(i), {},
                    results_.matrix(i % places, t, n));
  }));
  if (!quantizes_rows(t)) return ok_status();
  // The op before has quantized the rows.
  for (int i = 0; i < places; ++i)
    backend_.norm(inputs_.matrix(i, t, k), weights_.vector(0, k), {}, NormKind::rms, 1e-5f,
                  quantized_in(residual_.matrix(i, t, k)).value());
  cost.bytes -= t * (k * (size_a() - 1) - 4);
  record("matmul", shape, "fp8, e4m3 rows", cost, timer_.seconds(w.copies(), [&](int i) {
    backend_.matmul(quantized_in(residual_.matrix(i % places, t, k)).value(), w.copy(i), {},
                    results_.matrix(i % places, t, n));
  }));
  return ok_status();
}

void Benchmark::measure_matmul(const char* name, int t, int64_t k, int64_t n,
                               const RandomData& out) {
  const int copies = weights_.copies(n, k);
  const int places = std::min(inputs_.copies(t, k), out.copies(t, n));
  const int out_size = &out == &logits_ ? 4 : size_a();
  record("matmul", fmt::format("{} {} x {}", name, matrix_text(t, k), matrix_text(n, k)), "",
         matmul_cost(t, k, n, size_w(), size_a(), out_size), timer_.seconds(copies, [&](int i) {
           backend_.matmul(inputs_.matrix(i % places, t, k), weights_.matrix(i, n, k), {},
                           out.matrix(i % places, t, n));
         }));
}

Status Benchmark::measure_rope(int t) {
  const int64_t columns_q = spec_.query_size(), columns_kv = spec_.kv_size();
  const std::vector<float> frequencies = inverse_frequencies(spec_.rope);
  KIVI_ASSIGN_OR_RETURN(const Buffer turns, backend_.allocate(frequencies.size() * 4 + 4, "rope"));
  backend_.upload(turns.data(), frequencies.data(), frequencies.size() * 4);
  std::vector<int32_t> positions(size_t(t), 0);
  std::iota(positions.begin(), positions.end(), 0);
  KIVI_ASSIGN_OR_RETURN(const Buffer at, upload_ids(backend_, positions));
  const DType query_type = backend_.query_type();
  const int copies = inputs_.copies(t, spec_.qkv_size());
  const auto outputs = [&](int64_t columns, DType type) {
    constexpr int64_t kAlignment = 256;
    return RandomData::create(
        backend_, copies * (t * columns * int64_t(size_of(type)) + kAlignment), type, 1);
  };
  KIVI_ASSIGN_OR_RETURN(const RandomData q, outputs(columns_q, query_type));
  KIVI_ASSIGN_OR_RETURN(const RandomData kv, outputs(columns_kv, DType::f16));
  const Rope rope{make_tensor(turns.data(), DType::f32, int64_t(frequencies.size())),
                  spec_.rope.rotary_dim, float(spec_.rope.attention_factor)};
  const KvShape shape = {1, spec_.heads_kv, spec_.head_dim};
  record("rope", matrix_text(t, spec_.qkv_size()), "",
         rope_cost(t, spec_.heads_q, spec_.heads_kv, spec_.head_dim, size_a(),
                   int(size_of(query_type))),
         timer_.seconds(copies, [&](int i) {
           backend_.rope(inputs_.matrix(i, t, spec_.qkv_size()),
                         make_tensor(at.data(), DType::i32, t), rope, shape,
                         q.matrix(i, t, columns_q), kv.matrix(i, t, columns_kv));
         }));
  return ok_status();
}

void Benchmark::measure_activation(int t) {
  const int64_t f = spec_.intermediate;
  const int copies = inputs_.copies(t, spec_.up_size());
  if (spec_.gated)
    record("activation", fmt::format("gated {}", matrix_text(t, 2 * f)), "",
           gated_activation_cost(t, f, size_a()), timer_.seconds(copies, [&](int i) {
             backend_.gated_activation(inputs_.matrix(i, t, 2 * f), spec_.activation,
                                       results_.matrix(i, t, f));
           }));
  else
    record("activation", matrix_text(t, f), "", activate_cost(t, f, size_a()),
           timer_.seconds(copies, [&](int i) {
             backend_.activate(residual_.matrix(i, t, f), spec_.activation);
           }));
  if (spec_.gated && quantizes_rows(t))
    record("activation", fmt::format("gated {}", matrix_text(t, 2 * f)), "e4m3 rows",
           quantized_output(gated_activation_cost(t, f, size_a()), t, f, size_a()),
           timer_.seconds(copies, [&](int i) {
             backend_.gated_activation(inputs_.matrix(i, t, 2 * f), spec_.activation,
                                       quantized_result(i, t, f));
           }));
}

void Benchmark::measure_gather(int t) {
  const int64_t n = spec_.hidden;
  const Tensor all = inputs_.matrix(0, ids_bound_, n);
  record("gather_rows", matrix_text(t, n), "", gather_rows_cost(t, n, size_a()),
         timer_.seconds(std::min(kIdSets, results_.copies(t, n)), [&](int i) {
           backend_.gather_rows(all, ids(i, t), results_.matrix(i, t, n));
         }));
}

// Two launches are under way at a time, as in the engine.
void Benchmark::measure_sample(int t) {
  const int copies = logits_.copies(t, spec_.vocab);
  const auto measure = [&](const char* how, const SampleRow& row) {
    const std::vector<SampleRow> rows(size_t(t), row);
    std::vector<SampledToken> sampled;
    int next = 0;
    const auto calls = [&](int count) {
      for (int i = 0; i < count; ++i) {
        backend_.sample(logits_.matrix(next = (next + 1) % copies, t, spec_.vocab), rows,
                        make_tensor(sampled_ids_.data(), DType::i32, t));
        sampled.clear();
        if (i > 0) backend_.collect_samples(sampled);
      }
      if (count > 0) backend_.collect_samples(sampled);
    };
    record("sample", fmt::format("{} {}", how, matrix_text(t, spec_.vocab)), "",
           sample_cost(t, spec_.vocab), timer_.seconds_unrecorded(calls));
  };
  measure("greedy", {.temperature = 0});
  measure("temperature 1", {.temperature = 1});
  measure("top-k 50 top-p 0.9", {.temperature = 1, .top_k = 50, .top_p = 0.9f});
}

Result<KvFormat> Benchmark::format_of(const std::string& name) const {
  EngineConfig config = config_;
  config.kv_cache_dtype = name;
  return kv_format_of(config, {1, spec_.heads_kv, spec_.head_dim}, spec_.heads_q);
}

Status Benchmark::measure_format(const KvFormat& format) {
  const std::string text = format.kind == KvKind::kivi ? fmt::format("{} G{} R{}", name_of(format),
                                                                     format.group, format.residual)
                                                       : name_of(format);
  if (wanted("kv_attend") || wanted("kv_append"))
    for (const CacheCase& cache : scale_.caches)
      KIVI_RETURN_IF_ERROR(measure_decode(text, format, cache));
  if (wanted("kv_append_step")) {
    std::set<int> batches;
    for (const CacheCase& cache : scale_.caches) batches.insert(cache.sequences);
    for (const int batch : batches) KIVI_RETURN_IF_ERROR(measure_append_step(text, format, batch));
  }
  if (wanted("kv_attend_prompt") || wanted("kv_append_prompt"))
    for (const PromptCase& prompt : scale_.prompts)
      KIVI_RETURN_IF_ERROR(measure_prompt(text, format, prompt.past, prompt.rows));
  if (wanted("kv_page_copy")) KIVI_RETURN_IF_ERROR(measure_page_copies(text, format));
  return ok_status();
}

Status Benchmark::measure_decode(const std::string& name, const KvFormat& format,
                                 const CacheCase& cache) {
  const std::string shape = fmt::format("({}, {})", cache.sequences, cache.tokens);
  const auto store = BenchmarkStore::create(
      backend_,
      {format, spec_.heads_kv, spec_.head_dim, cache.sequences, cache.tokens - 1, cache.tokens},
      kv_.matrix(0, std::max(kFillRows, cache.sequences), spec_.kv_size()), scale_.rotation_bytes);
  if (!store.ok()) {
    skip("kv_attend", shape, name, store.error().message);
    return ok_status();
  }
  const std::vector<int> pasts(size_t(cache.sequences), cache.tokens - 1);
  KIVI_ASSIGN_OR_RETURN(const BenchmarkStep step, store->step(pasts, 1));
  if (wanted("kv_attend")) attend(name, *store, step, "kv_attend", shape);
  if (!wanted("kv_append")) return ok_status();
  KIVI_ASSIGN_OR_RETURN(const BenchmarkStep staggered, store->step(staggered_pasts(pasts), 1));
  append(name, *store, staggered, "kv_append", shape + " staggered");
  // The worst case.
  if (format.kind == KvKind::kivi && cache.tokens % format.residual == 0)
    append(name, *store, step, "kv_append", shape + " all flush");
  return ok_status();
}

// What a decode step of the whole model stores, in one call: the history's length does not matter.
Status Benchmark::measure_append_step(const std::string& name, const KvFormat& format,
                                      int sequences) {
  const std::string shape = fmt::format("{} sequences, {} layers", sequences, spec_.layers);
  const int cached = 2 * std::max(128, format.residual) - 1;
  const BenchmarkStore::Shape wanted_store = {format,
                                              spec_.heads_kv,
                                              spec_.head_dim,
                                              sequences,
                                              cached,
                                              cached + 1,
                                              spec_.layers * kStepStores};
  const auto store = BenchmarkStore::create(
      backend_, wanted_store, kv_.matrix(0, std::max(kFillRows, sequences), spec_.kv_size()), 0);
  if (!store.ok()) {
    skip("kv_append_step", shape, name, store.error().message);
    return ok_status();
  }
  KIVI_ASSIGN_OR_RETURN(
      const BenchmarkStep step,
      store->step(staggered_pasts(std::vector<int>(size_t(sequences), cached)), 1));
  OpCost cost;
  for (const StepSequence& s : step.view().sequences)
    cost.bytes += spec_.layers * append_cost(store->layout(), s.past, 1).bytes;
  const Tensor kv = kv_.matrix(0, int64_t(spec_.layers) * sequences, spec_.kv_size());
  record("kv_append_step", shape, name, cost, timer_.seconds(kStepStores, [&](int i) {
    backend_.kv_append(kv, store->view(), step.view(), i * spec_.layers, spec_.layers);
  }));
  return ok_status();
}

Status Benchmark::measure_prompt(const std::string& name, const KvFormat& format, int past,
                                 int rows) {
  const std::string shape =
      past == 0 ? fmt::format("{} new", rows) : fmt::format("{} new upon {}", rows, past);
  const KvLayout layout = {format, {1, spec_.heads_kv, spec_.head_dim}};
  const int64_t scratch =
      std::min(config_.prefill_scratch_bytes, backend_.scratch_bytes_for(layout, past));
  const auto store = BenchmarkStore::create(
      backend_, {format, spec_.heads_kv, spec_.head_dim, 1, past, past + rows, 0, scratch},
      kv_.matrix(0, kFillRows, spec_.kv_size()), scale_.rotation_bytes);
  if (!store.ok()) {
    skip("kv_attend_prompt", shape, name, store.error().message);
    return ok_status();
  }
  KIVI_ASSIGN_OR_RETURN(const BenchmarkStep step, store->step({past}, rows));
  if (wanted("kv_attend_prompt")) attend(name, *store, step, "kv_attend_prompt", shape);
  if (wanted("kv_append_prompt")) append(name, *store, step, "kv_append_prompt", shape);
  return ok_status();
}

void Benchmark::attend(const std::string& name, const BenchmarkStore& store,
                       const BenchmarkStep& step, const char* op, const std::string& shape) {
  const int rows = step.view().rows;
  const auto sequences = step.view().sequences;
  OpCost cost;
  for (const StepSequence& s : sequences) {
    const OpCost one = attend_cost(store.layout(), spec_.heads_q, s.past, s.row_count);
    cost.bytes += one.bytes;
    cost.flops += one.flops;
  }
  const Tensor q = queries_.matrix(0, rows, spec_.query_size());
  const Tensor kv = kv_.matrix(0, rows, spec_.kv_size());
  const Tensor out = attention_.matrix(0, rows, spec_.query_size());
  const float scale = 1 / std::sqrt(float(spec_.head_dim));
  backend_.begin_step(step.view(), store.view(), spec_.heads_q);
  record(op, shape, name, cost, timer_.seconds(store.layers(), [&](int layer) {
    backend_.kv_attend(q, kv, store.view(), step.view(), layer, scale, out);
  }));
}

void Benchmark::append(const std::string& name, const BenchmarkStore& store,
                       const BenchmarkStep& step, const char* op, const std::string& shape) {
  OpCost cost;
  for (const StepSequence& s : step.view().sequences)
    cost.bytes += append_cost(store.layout(), s.past, s.row_count).bytes;
  const Tensor kv = kv_.matrix(0, step.view().rows, spec_.kv_size());
  record(op, shape, name, cost, timer_.seconds(store.layers(), [&](int layer) {
    backend_.kv_append(kv, store.view(), step.view(), layer);
  }));
}

// Pages have all layers of the model, as in service. Bytes count once: they cross in one direction.
Status Benchmark::measure_page_copies(const std::string& name, const KvFormat& format) {
  const KvLayout layout = {format, {spec_.layers, spec_.heads_kv, spec_.head_dim}};
  const auto times =
      time_page_copies(backend_, timer_, layout.page_bytes(), scale_.page_copy_bytes);
  if (!times.ok()) {
    skip("kv_page_copy", fmt::format("pages of {} bytes", layout.page_bytes()), name,
         times.error().message);
    return ok_status();
  }
  const auto shape = [&](const char* where) {
    return fmt::format("{} pages of {} bytes to {}", times->pages, layout.page_bytes(), where);
  };
  record("kv_page_copy", shape("host"), name, {times->bytes, 0}, times->to_host);
  record("kv_page_copy", shape("device"), name, {times->bytes, 0}, times->to_device);
  return ok_status();
}

Status check(const KernelBenchmarkOptions& options) {
  for (const std::string& op : options.ops)
    if (std::ranges::find(kernel_op_names(), op) == kernel_op_names().end())
      return Error{
          ErrorCode::invalid,
          fmt::format("ops holds \"{}\", must be of {}", op, fmt::join(kernel_op_names(), ", ")),
          "ops"};
  for (const int t : options.rows)
    if (t < 1 || t > 1 << 16)
      return Error{ErrorCode::invalid, fmt::format("rows holds {}, must be from 1 to 65536", t),
                   "rows"};
  for (const CacheCase& c : options.caches)
    if (c.sequences < 1 || c.sequences > kFillRows || c.tokens < 2 || c.tokens > 1 << 24)
      return Error{ErrorCode::invalid,
                   fmt::format("caches holds {}x{}, must be 1 to {} sequences of 2 to 16777216 "
                               "tokens",
                               c.sequences, c.tokens, kFillRows),
                   "caches"};
  return ok_status();
}

}  // namespace

const std::vector<std::string>& kernel_op_names() {
  static const std::vector<std::string> names = {"embed",
                                                 "norm",
                                                 "add_norm",
                                                 "matmul",
                                                 "rope",
                                                 "kv_attend",
                                                 "kv_attend_prompt",
                                                 "kv_append",
                                                 "kv_append_step",
                                                 "kv_append_prompt",
                                                 "kv_page_copy",
                                                 "activation",
                                                 "gather_rows",
                                                 "sample"};
  return names;
}

Result<KernelBenchmark> benchmark_kernels(const EngineConfig& config,
                                          const KernelBenchmarkOptions& options,
                                          const KernelObserver& observer) {
  KIVI_RETURN_IF_ERROR(check(options));
  KIVI_ASSIGN_OR_RETURN(const ModelConfig model, read_model_config(config.model));
  KIVI_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, make_backend(config));
  const DeviceInfo device = backend->info();
  KIVI_ASSIGN_OR_RETURN(const DType dtype, weight_dtype(config, model.dtype, device));
  KernelBenchmark result;
  const auto path = std::filesystem::path(config.model + "/").lexically_normal();
  result.model = path.parent_path().filename().string();
  result.device = fmt::format("{} ({})", device.kind, device.name);
  result.dtype = name_of(dtype);
  Benchmark benchmark(*backend, config, model.spec, dtype, options, observer);
  KIVI_RETURN_IF_ERROR(benchmark.run(result));
  return result;
}

}  // namespace kivi
