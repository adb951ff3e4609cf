// SPDX-License-Identifier: Apache-2.0
#include "engine/model/decoder_model.h"

#include <algorithm>
#include <cmath>

namespace kivi {

namespace {

Rope rope_of(const DecoderSpec& spec, const Tensor& inverse_frequencies) {
  Rope rope;
  rope.inverse_frequencies = inverse_frequencies;
  rope.rotary_dim = spec.rope.rotary_dim;
  rope.attention_factor = float(spec.rope.attention_factor);
  rope.hadamard = spec.rotated_heads;
  rope.norm_eps = float(spec.norm_eps);
  if (spec.rope.scaling != RopeScaling::dynamic) return rope;
  rope.dynamic_factor = float(spec.rope.factor);
  rope.trained = spec.rope.original_max_position_embeddings;
  return rope;
}

// The rows of a product that one part of its matrix makes, from row `row` of the matrix on.
Tensor part_of(const Tensor& bias, int64_t row, const Weight& part) {
  return bias.empty() ? bias : bias.slice_rows(row, part.rows);
}
Tensor columns_of(const Tensor& out, const WeightMatrix& w, int64_t row, const Weight& part) {
  return w.parts.size() == 1 ? out : out.slice_columns(row, part.rows);
}

}  // namespace

int64_t DecoderModel::lay_out(Activations& a, std::byte* base, const Backend& backend,
                              const DecoderSpec& spec, DType weight, const Limits& limits) {
  int64_t offset = 0;
  const auto take = [&](Tensor& tensor, int64_t rows, int64_t columns, DType dtype) {
    constexpr int64_t kAlignment = 256;
    tensor = make_tensor(base == nullptr ? nullptr : base + offset, dtype, rows, columns);
    offset += (int64_t(tensor.bytes()) + kAlignment - 1) / kAlignment * kAlignment;
  };
  const DType type = backend.activation_type(weight);
  const int64_t t = limits.rows, m = limits.logits_rows, n = spec.hidden;
  take(a.x, t, n, type);
  take(a.h, t, n, type);
  if (spec.parallel_attention && spec.norms_per_layer == 2) take(a.h_mlp, t, n, type);
  take(a.qkv, t, spec.qkv_size(), type);
  take(a.q, t, spec.query_size(), backend.query_type());
  take(a.kv, t, spec.kv_size(), DType::f16);
  take(a.attention, t, spec.query_size(), type);
  take(a.up, t, spec.up_size(), type);
  if (spec.gated) take(a.gated, t, spec.intermediate, type);
  take(a.delta, t, n, type);
  take(a.gathered, m, n, type);
  take(a.normed, m, n, type);
  take(a.logits, m, spec.vocab, DType::f32);
  take(a.sums, m, n, DType::f32);
  a.product_scratch = base == nullptr ? nullptr : base + offset;
  return offset + limits.product_scratch;
}

int64_t DecoderModel::workspace_bytes(const Backend& backend, const DecoderSpec& spec, DType weight,
                                      const Limits& limits) {
  Activations unused;
  return lay_out(unused, nullptr, backend, spec, weight, limits);
}

DecoderModel::DecoderModel(Backend& backend, const DecoderSpec& spec, DecoderWeights weights)
    : backend_(backend),
      spec_(spec),
      weights_(std::move(weights)),
      rope_(rope_of(spec, weights_.inverse_frequencies)) {}

Result<std::unique_ptr<DecoderModel>> DecoderModel::create(Backend& backend,
                                                           const DecoderSpec& spec,
                                                           DecoderWeights weights,
                                                           const Limits& limits) {
  const DType dtype = weights.final_norm.dtype;
  std::unique_ptr<DecoderModel> model(new DecoderModel(backend, spec, std::move(weights)));
  const int64_t bytes = workspace_bytes(backend, spec, dtype, limits);
  KIVI_ASSIGN_OR_RETURN(model->memory_, backend.allocate(size_t(bytes), "the activations"));
  lay_out(model->all_, model->memory_.data(), backend, spec, dtype, limits);
  backend.use_product_scratch(model->all_.product_scratch, limits.product_scratch);
  return model;
}

void DecoderModel::forward(const StepView& step, const KvView& store) {
  forward_layers(step, store, 0, int(weights_.layers.size()), all_.x.slice_rows(0, step.rows));
}

void DecoderModel::forward_layers(const StepView& step, const KvView& store, int begin, int end,
                                  const Tensor& hidden) {
  const int64_t t = step.rows;
  step_ = all_;
  step_.x = hidden;
  for (Tensor* tensor : {&step_.h, &step_.h_mlp, &step_.qkv, &step_.q, &step_.attention, &step_.up,
                         &step_.gated, &step_.delta})
    if (!tensor->empty()) *tensor = tensor->slice_rows(0, t);

  const auto& layers = weights_.layers;
  backend_.begin_step(with_window(step, begin), store, spec_.heads_q);
  const LayerWeights& first = layers[size_t(begin)];
  if (begin == 0) backend_.embed(weights_.embedding.whole(), step.token_ids, step_.x);  // x [t, n]
  Operand h = attention_input(first);
  backend_.norm(step_.x, first.attention_norm, first.attention_norm_bias, spec_.norm,
                float(spec_.norm_eps), h);  // h [t, n]
  for (int i = begin; i < end; ++i) {
    const LayerWeights& w = layers[size_t(i)];
    const Operand for_mlp =
        spec_.parallel_attention && spec_.norms_per_layer == 1 ? h : mlp_input(w);  // [t, n]
    if (spec_.parallel_attention && spec_.norms_per_layer == 2)
      backend_.norm(step_.x, w.mlp_norm, w.mlp_norm_bias, spec_.norm, float(spec_.norm_eps),
                    for_mlp);                  // h_mlp [t, n]
    attention(i, begin, end, h, step, store);  // delta [t, n]
    if (spec_.parallel_attention)
      backend_.add(step_.x, step_.delta);  // x [t, n]
    else
      add_norm(w.mlp_norm, w.mlp_norm_bias, for_mlp);  // x, h [t, n]
    mlp(w, for_mlp);                                   // delta [t, n]
    if (i + 1 == end) {
      backend_.add(step_.x, step_.delta);  // x [t, n]
    } else {
      const LayerWeights& next = layers[size_t(i) + 1];
      h = attention_input(next);
      add_norm(next.attention_norm, next.attention_norm_bias, h);  // x, h [t, n]
    }
  }
}

Operand DecoderModel::input_of(const Tensor& rows, const WeightMatrix& w, const Tensor& bias,
                               const Tensor& out) const {
  int64_t row = 0;
  for (const Weight& part : w.parts) {
    if (!takes_quantized(part) ||
        backend_.product_input(rows, part, part_of(bias, row, part),
                               columns_of(out, w, row, part)) != ProductInput::e4m3_rows)
      return rows;
    row += part.rows;
  }
  return quantized_in(rows).value_or(rows);
}

Operand DecoderModel::attention_input(const LayerWeights& w) const {
  const Operand h = input_of(step_.h, w.qkv, w.qkv_bias, step_.qkv);
  // One norm for both: the MLP must want the same.
  const bool shared = spec_.parallel_attention && spec_.norms_per_layer == 1;
  return shared && !input_of(step_.h, w.up, w.up_bias, step_.up).quantized() ? step_.h : h;
}

Operand DecoderModel::mlp_input(const LayerWeights& w) const {
  return input_of(spec_.parallel_attention ? step_.h_mlp : step_.h, w.up, w.up_bias, step_.up);
}

StepView DecoderModel::with_window(const StepView& step, int layer) const {
  StepView of_layer = step;
  of_layer.sliding_window = spec_.window_of(layer);
  return of_layer;
}

void DecoderModel::multiply(const Operand& x, const WeightMatrix& w, const Tensor& bias,
                            const Tensor& out) {
  int64_t row = 0;
  for (const Weight& part : w.parts) {
    backend_.matmul(x, part, part_of(bias, row, part), columns_of(out, w, row, part));
    row += part.rows;
  }
}

void DecoderModel::attention(int layer, int begin, int end, const Operand& input,
                             const StepView& step, const KvView& store) {
  const LayerWeights& w = weights_.layers[size_t(layer)];
  const float scale = 1 / std::sqrt(float(spec_.head_dim));
  multiply(input, w.qkv, w.qkv_bias, step_.qkv);  // qkv [t, (hq + 2 hk) d]
  Rope rope = rope_;
  rope.lengths = step.rope_lengths;
  rope.q_norm = w.q_norm;
  rope.k_norm = w.k_norm;
  // As many layers as there is room for are stored at once: a step of few rows, whose append is
  // latency and not bytes, then has one of it.
  const int64_t t = step.rows;
  const int layers_at_once = int(std::clamp<int64_t>(all_.kv.rows() / std::max<int64_t>(t, 1), 1,
                                                     int64_t(weights_.layers.size())));
  const int pending =
      (layer - begin) % layers_at_once;  // layers before this one that are not stored yet
  const Tensor kv = all_.kv.slice_rows(pending * t, t);
  backend_.rope(step_.qkv, step.positions, rope, spec_.kv_shape(), step_.q,
                kv);  // q [t, hq d], kv [t, 2 hk d]
  backend_.kv_attend(step_.q, kv, store, with_window(step, layer), layer, scale,
                     step_.attention);  // attention [t, hq d]
  if (pending + 1 == layers_at_once || layer + 1 == end) {
    const Tensor layers_kv = all_.kv.slice_rows(0, (pending + 1) * t);
    if (!step.captures.empty()) {  // the same rows, up to earlier tokens and into other slots
      StepView captures = step;
      captures.sequences = step.captures;
      captures.device_sequences = step.device_captures;
      backend_.kv_append(layers_kv, store, captures, layer - pending, pending + 1);
    }
    backend_.kv_append(layers_kv, store, step, layer - pending, pending + 1);  // the store
  }
  multiply(step_.attention, w.output, w.output_bias, step_.delta);  // delta [t, n]
}

void DecoderModel::mlp(const LayerWeights& w, const Operand& input) {
  multiply(input, w.up, w.up_bias, step_.up);  // up [t, 2 f] or [t, f]
  if (spec_.gated) {
    const Operand gated = input_of(step_.gated, w.down, w.down_bias, step_.delta);
    backend_.gated_activation(step_.up, spec_.activation, gated);  // gated [t, f]
    multiply(gated, w.down, w.down_bias, step_.delta);             // delta [t, n]
  } else {
    backend_.activate(step_.up, spec_.activation);         // up [t, f]
    multiply(step_.up, w.down, w.down_bias, step_.delta);  // delta [t, n]
  }
}

void DecoderModel::add_norm(const Tensor& weight, const Tensor& bias, const Operand& h) {
  backend_.add_norm(step_.x, step_.delta, weight, bias, spec_.norm, float(spec_.norm_eps),
                    h);  // x += delta, h [t, n]
}

Tensor DecoderModel::logits(const Tensor& rows) {
  const Tensor gathered = all_.gathered.slice_rows(0, rows.rows());  // [m, n]
  const Tensor normed = all_.normed.slice_rows(0, rows.rows());      // [m, n]
  const Tensor logits = all_.logits.slice_rows(0, rows.rows());      // [m, vocab]
  backend_.gather_rows(step_.x, rows, gathered);
  backend_.norm(gathered, weights_.final_norm, weights_.final_norm_bias, spec_.norm,
                float(spec_.norm_eps), normed);
  multiply(normed, weights_.head, {}, logits);
  return logits;
}

void DecoderModel::add_hidden(int64_t begin, int64_t count, int64_t sum) {
  const Tensor normed = all_.h.slice_rows(0, count);  // [count, n], free after the layers
  backend_.norm(step_.x.slice_rows(begin, count), weights_.final_norm, weights_.final_norm_bias,
                spec_.norm, float(spec_.norm_eps), normed);
  backend_.add_rows(normed, hidden_sums(sum));
}

Tensor DecoderModel::hidden_sums(int64_t sum) const {
  const Tensor row = all_.sums.slice_rows(sum, 1);
  return make_tensor(row.data, DType::f32, spec_.hidden);
}

void DecoderModel::clear_hidden(int64_t sum) {
  const Tensor row = hidden_sums(sum);
  backend_.fill_zero(row.data, size_t(row.bytes()));
}

}  // namespace kivi
