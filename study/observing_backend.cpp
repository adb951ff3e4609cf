// SPDX-License-Identifier: Apache-2.0
#include "study/observing_backend.h"

namespace kivi {

Result<std::byte*> ObservingBackend::do_allocate(size_t bytes) {
  KIVI_ASSIGN_OR_RETURN(Buffer buffer, inner_->allocate(bytes, "a part of a study's model"));
  std::byte* const data = buffer.data();
  buffers_.emplace(data, std::move(buffer));
  return data;
}

void ObservingBackend::do_free(std::byte* data, size_t) { buffers_.erase(data); }

void ObservingBackend::do_embed(const Tensor& table, const Tensor& ids, const Tensor& out) {
  inner_->embed(table, ids, out);
}

void ObservingBackend::do_resolve_ids(const Tensor& ids, const Tensor& sampled) {
  inner_->resolve_ids(ids, sampled);
}

void ObservingBackend::do_add_norm(const Tensor& x, const Tensor& delta, const Tensor& weight,
                                   const Tensor& bias, NormKind kind, float eps,
                                   const Operand& out) {
  if (delta.empty())
    inner_->norm(x, weight, bias, kind, eps, out);
  else
    inner_->add_norm(x, delta, weight, bias, kind, eps, out);
}

void ObservingBackend::do_add(const Tensor& x, const Tensor& delta) { inner_->add(x, delta); }

void ObservingBackend::do_matmul(const Tensor& x, const Tensor& w, const Tensor& bias,
                                 const Tensor& out) {
  inner_->matmul(x, w, bias, out);
}

void ObservingBackend::do_embed_quantized(const Weight& table, const Tensor& ids,
                                          const Tensor& out) {
  inner_->embed(table, ids, out);
}

void ObservingBackend::do_matmul_quantized(const Operand& x, const Weight& w, const Tensor& bias,
                                           const Tensor& out) {
  inner_->matmul(x, w, bias, out);
}

void ObservingBackend::do_rope(const Tensor& qkv, const Tensor& positions, const Rope& rope,
                               const KvShape& shape, const Tensor& q, const Tensor& kv) {
  inner_->rope(qkv, positions, rope, shape, q, kv);
}

void ObservingBackend::do_begin_step(const StepView& step, const KvView& store, int heads_q) {
  inner_->begin_step(step, store, heads_q);
}

void ObservingBackend::do_kv_attend(const Tensor& q, const Tensor& kv, const KvView& store,
                                    const StepView& step, int layer, float scale,
                                    const Tensor& out) {
  if (observer_.before_attend)
    observer_.before_attend(*inner_, {q, kv, store, step, layer, scale, out.dtype});
  inner_->kv_attend(q, kv, store, step, layer, scale, out);
}

void ObservingBackend::do_kv_append(const Tensor& kv, const KvView& store, const StepView& step,
                                    int layer, int layers) {
  if (observer_.before_append)
    for (int i = 0; i < layers; ++i)
      observer_.before_append(*inner_, kv.slice_rows(int64_t(i) * step.rows, step.rows), store,
                              layer + i);
  inner_->kv_append(kv, store, step, layer, layers);
}

void ObservingBackend::do_gated_activation(const Tensor& gate_up, Activation activation,
                                           const Operand& out) {
  inner_->gated_activation(gate_up, activation, out);
}

void ObservingBackend::do_activate(const Tensor& x, Activation activation) {
  inner_->activate(x, activation);
}

void ObservingBackend::do_gather_rows(const Tensor& x, const Tensor& rows, const Tensor& out) {
  inner_->gather_rows(x, rows, out);
}

void ObservingBackend::do_add_rows(const Tensor& x, const Tensor& sums) {
  inner_->add_rows(x, sums);
}

void ObservingBackend::do_sample(const Tensor& logits, std::span<const SampleRow> rows,
                                 const Tensor& ids) {
  inner_->sample(logits, rows, ids);
}

}  // namespace kivi
