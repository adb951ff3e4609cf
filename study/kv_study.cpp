// SPDX-License-Identifier: Apache-2.0
#include "study/kv_study.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "study/kv_layer_study.h"

namespace kivi {

namespace {

// The step's columns [begin, begin + heads d) of kv [t, 2 hk d].
KvRows rows_of(const std::vector<f16>& kv, int tokens, const KvShape& shape, bool values) {
  KvRows rows{tokens, shape.heads, shape.head_dim, {}};
  const size_t half = size_t(rows.columns());
  rows.data.resize(size_t(tokens) * half);
  for (size_t t = 0; t < size_t(tokens); ++t)
    std::copy_n(kv.begin() + std::ptrdiff_t((2 * t + (values ? 1 : 0)) * half), half,
                rows.data.begin() + std::ptrdiff_t(t * half));
  return rows;
}

// The inverse: kv [t, 2 hk d].
std::vector<f16> joined(const KvRows& keys, const KvRows& values) {
  const size_t half = size_t(keys.columns());
  std::vector<f16> kv(2 * keys.data.size());
  for (size_t t = 0; t < size_t(keys.tokens); ++t) {
    const auto at = std::ptrdiff_t(t * half);
    std::copy_n(keys.data.begin() + at, half, kv.begin() + 2 * at);
    std::copy_n(values.data.begin() + at, half, kv.begin() + 2 * at + std::ptrdiff_t(half));
  }
  return kv;
}

// Any float tensor without gaps, as f32 on the host.
std::vector<float> floats_of(Backend& backend, const Tensor& tensor) {
  KIVI_VERIFY(tensor.contiguous());
  std::vector<float> out(size_t(tensor.size()));
  if (tensor.dtype == DType::f32) {
    backend.download(out.data(), tensor.data, tensor.bytes());
    return out;
  }
  std::vector<uint16_t> bits(out.size());
  backend.download(bits.data(), tensor.data, tensor.bytes());
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = tensor.dtype == DType::f16 ? to_float(f16{bits[i]}) : to_float(bf16{bits[i]});
  return out;
}

std::vector<f16> download_kv(Backend& backend, const Tensor& kv) {
  KIVI_VERIFY(kv.contiguous());
  std::vector<f16> host(size_t(kv.size()));
  backend.download(host.data(), kv.data, kv.bytes());
  return host;
}

// Keys and values of the step are replaced by what a store would give back.
void replace(Backend& backend, const Tensor& kv, const KvShape& shape, const KvSimulation& s) {
  const std::vector<f16> host = download_kv(backend, kv);
  const int tokens = int(kv.rows());
  const std::vector<f16> moved = joined(simulated(rows_of(host, tokens, shape, false), s.key),
                                        simulated(rows_of(host, tokens, shape, true), s.value));
  backend.upload(kv.data, moved.data(), kv.bytes());
}

// A group along a token is of one head's channels.
Status check_group(int group, KvAxis axis, int head_dim) {
  const bool fits = axis == KvAxis::channel || head_dim % group == 0;
  if ((group == 32 || group == 64 || group == 128) && fits) return ok_status();
  return Error{ErrorCode::invalid,
               fmt::format("group is {}, must be 32, 64 or 128 and divide the model's head_dim {}",
                           group, head_dim),
               "group"};
}

// The product's attention over other keys and values.
std::vector<float> attend_with(Backend& backend, const AttentionCall& call, const KvRows& keys,
                               const KvRows& values) {
  const std::vector<f16> kv = joined(keys, values);
  const size_t kv_bytes = kv.size() * sizeof(f16);
  const size_t out_bytes = size_t(call.q.size()) * size_of(call.out);
  auto kv_buffer = backend.allocate(kv_bytes, "a study's keys and values");
  auto out_buffer = backend.allocate(out_bytes, "a study's attention");
  if (!kv_buffer.ok()) throw std::runtime_error(kv_buffer.error().message);
  if (!out_buffer.ok()) throw std::runtime_error(out_buffer.error().message);
  const Tensor kv_tensor =
      make_tensor(kv_buffer->data(), DType::f16, call.kv.rows(), call.kv.shape[1]);
  const Tensor out = make_tensor(out_buffer->data(), call.out, call.q.rows(), call.q.shape[1]);
  backend.upload(kv_tensor.data, kv.data(), kv_bytes);
  backend.kv_attend(call.q, kv_tensor, call.store, call.step, call.layer, call.scale, out);
  return floats_of(backend, out);
}

}  // namespace

struct KvStudy::Impl {
  std::unique_ptr<LoadedModel> model;
  int window = 0;
  KvStudyOptions options;
  std::vector<std::optional<KvLayerStudy>> layers;  // empty: not collecting
  std::optional<KvSimulation> simulation;

  int residual = 0;

  void before_attend(Backend& backend, const AttentionCall& call);
  void collect(Backend& backend, const AttentionCall& call);
};

// One sequence a step, whole: that is what load() configures.
void KvStudy::Impl::before_attend(Backend& backend, const AttentionCall& call) {
  if (residual > 0 || (layers.empty() && !simulation)) return;
  KIVI_VERIFY(call.step.sequences.size() == 1 && call.step.sequences[0].past == 0);
  if (simulation)
    replace(backend, call.kv, call.store.layout.shape, *simulation);
  else if (layers[size_t(call.layer)])
    collect(backend, call);
}

void KvStudy::Impl::collect(Backend& backend, const AttentionCall& call) {
  const std::vector<f16> kv = download_kv(backend, call.kv);
  const KvShape& shape = call.store.layout.shape;
  const KvRows keys = rows_of(kv, call.step.rows, shape, false);
  const KvRows values = rows_of(kv, call.step.rows, shape, true);
  QueryRows q;
  q.tokens = call.step.rows;
  q.head_dim = keys.head_dim;
  q.heads = int(call.q.shape[1]) / q.head_dim;
  q.data = floats_of(backend, call.q);
  q.scale = call.scale;
  q.window = call.step.sliding_window;
  layers[size_t(call.layer)]->add(q, keys, values, [&](const KvRows& k, const KvRows& v) {
    return attend_with(backend, call, k, v);
  });
}

KvStudy::KvStudy(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
KvStudy::~KvStudy() = default;

Result<std::unique_ptr<KvStudy>> KvStudy::load(const EngineConfig& config, int window,
                                               int residual) {
  const int step = residual > 0 ? residual : window;
  EngineConfig c = config;
  c.kv_cache_dtype = "fp16";
  c.enable_prefix_caching = false;
  c.enforce_eager = true;
  c.max_num_seqs = 1;
  c.prefill_chunk_tokens = step;
  c.max_num_batched_tokens = step + 1;
  c.max_num_queued_reqs = 1 << 20;
  c.max_num_queued_tokens = int64_t(1) << 40;
  KIVI_ASSIGN_OR_RETURN(const ModelSummary summary, summarize_model(c.model));
  if (window > summary.max_len)
    return Error{ErrorCode::invalid,
                 fmt::format("window is {}, must be at most the model's context of {}", window,
                             summary.max_len),
                 "window"};
  const int64_t token_bytes = int64_t(4) * summary.layers * summary.heads_kv * summary.head_dim;
  c.kv_cache_memory_bytes = token_bytes * (window + 2 * KvLayout::kStagingTokens);
  c.max_model_len = window + 1 <= summary.max_len ? window + 1 : window;
  auto impl = std::make_unique<Impl>();
  impl->window = window;
  impl->residual = residual;
  const auto observe = [study = impl.get()](Backend& device) {
    AttentionObserver observer;
    observer.before_attend = [study](Backend& backend, const AttentionCall& call) {
      study->before_attend(backend, call);
    };
    observer.before_append = [study](Backend& backend, const Tensor& kv, const KvView& store, int) {
      if (study->residual > 0 && study->simulation)
        replace(backend, kv, store.layout.shape, *study->simulation);
    };
    device.observe(std::move(observer));
  };
  KIVI_ASSIGN_OR_RETURN(impl->model, load_model(c, {}, observe));
  return std::unique_ptr<KvStudy>(new KvStudy(std::move(impl)));
}

LoadedModel& KvStudy::model() { return *impl_->model; }

Status KvStudy::collect(const KvStudyOptions& options) {
  KIVI_VERIFY(impl_->residual == 0);
  const ModelSummary& summary = impl_->model->summary;
  KIVI_RETURN_IF_ERROR(check_group(options.group, KvAxis::token, summary.head_dim));
  std::vector<std::optional<KvLayerStudy>> layers(size_t(summary.layers));
  for (int i = 0; i < summary.layers && options.layers.empty(); ++i)
    layers[size_t(i)].emplace(i, options);
  for (const int layer : options.layers) {
    if (layer < 0 || layer >= summary.layers)
      return Error{ErrorCode::invalid,
                   fmt::format("layers has {}, must be from 0 to {}", layer, summary.layers - 1),
                   "layers"};
    layers[size_t(layer)].emplace(layer, options);
  }
  rest();
  impl_->options = options;
  impl_->layers = std::move(layers);
  return ok_status();
}

Status KvStudy::simulate(const KvSimulation& simulation) {
  for (const KvQuantizer& q : {simulation.key, simulation.value}) {
    if (q.bits > 4) continue;
    KIVI_RETURN_IF_ERROR(check_group(q.group, q.axis, impl_->model->summary.head_dim));
    KIVI_VERIFY(impl_->residual % q.group == 0);
  }
  rest();
  impl_->simulation = simulation;
  return ok_status();
}

void KvStudy::rest() {
  impl_->simulation.reset();
  impl_->layers.clear();
}

KvStatistics KvStudy::statistics() const {
  const ModelSummary& summary = impl_->model->summary;
  KvStatistics s;
  s.heads_q = summary.heads_q;
  s.heads_kv = summary.heads_kv;
  s.head_dim = summary.head_dim;
  s.window = impl_->window;
  s.group = impl_->options.group;
  s.outlier_factor = impl_->options.outlier_factor;
  for (const auto& layer : impl_->layers) {
    if (!layer) continue;
    s.windows = layer->windows();
    s.layers.push_back(layer->result());
  }
  return s;
}

}  // namespace kivi
