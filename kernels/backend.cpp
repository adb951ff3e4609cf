// SPDX-License-Identifier: Apache-2.0
// The public ops: what every device may rely on is checked here, once.
#include "kernels/backend.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/verify.h"
#include "kernels/weight_codec.h"

namespace kivi {
namespace {

bool is_float(DType t) { return t != DType::i32; }

bool is_vector(const Tensor& t, int64_t n) {
  return t.rank == 1 && t.data != nullptr && t.shape[0] == n && t.row_stride == 1;
}

bool is_matrix(const Tensor& t, int64_t rows, int64_t columns) {
  return t.rank == 2 && (t.data != nullptr || t.size() == 0) && t.shape[0] == rows &&
         t.shape[1] == columns && t.row_stride >= columns;
}

bool is_indices(const Tensor& t, int64_t n) {
  return t.dtype == DType::i32 && (n == 0 || is_vector(t, n));
}

// A bias may be absent; where present it has the weight's type.
bool is_bias(const Tensor& bias, DType type, int64_t n) {
  return bias.empty() || (bias.dtype == type && is_vector(bias, n));
}

// Quantized rows have whole 16-byte pieces.
bool is_operand(const Operand& x, DType type, int64_t rows, int64_t columns) {
  if (x.rows.dtype != type) return false;
  if (!x.quantized()) return is_matrix(x.rows, rows, columns);
  return x.rows.data == nullptr && x.scales != nullptr && x.rows.rank == 2 && x.count() == rows &&
         x.columns() == columns && columns % 16 == 0;
}

bool is_quantized(const Weight& w) {
  return w.codes != nullptr && w.scales != nullptr && w.rows >= 0 &&
         weight_fits(w.format, w.columns);
}

// Groups have members that may share the pages, and none twice.
void verify_groups(const StepView& step, const KvLayout& layout) {
  size_t members = 0;
  for (const StepGroup& g : step.groups) {
    KIVI_VERIFY(g.pages > 0 && g.member_count > 0 && size_t(g.members_begin) == members);
    members += size_t(g.member_count);
    KIVI_VERIFY(members <= step.group_members.size());
    KIVI_VERIFY(g.pages_begin >= 0 && size_t(g.pages_begin + g.pages) <= step.page_table.size());
    for (const int32_t i :
         step.group_members.subspan(size_t(g.members_begin), size_t(g.member_count))) {
      const StepSequence& s = step.sequences[size_t(i)];
      KIVI_VERIFY(s.is_decode() && s.shared_pages == g.pages);
      KIVI_VERIFY(g.pages * layout.page_tokens() <= values_paged(layout.format, s.past));
    }
  }
}

// Rows, sequences and page ranges of a step agree with each other and with the store.
// `sequences` are those of the step, or its captures: these may share rows.
void verify_step(const Tensor& kv, const KvView& store, const StepView& step, int layer) {
  const KvShape& shape = store.layout.shape;
  KIVI_VERIFY(kv.dtype == DType::f16 &&
              is_matrix(kv, step.rows, 2 * int64_t(shape.heads) * shape.head_dim));
  KIVI_VERIFY(layer >= 0 && layer < shape.layers && step.sliding_window >= 0);
  const auto entries = int64_t(step.page_table.size());
  const bool captures = step.sequences.data() == step.captures.data();
  int row = 0;
  for (const StepSequence& s : step.sequences) {
    if (s.row_count == 0) continue;
    KIVI_VERIFY(s.row_count > 0 && s.past >= 0);
    KIVI_VERIFY(captures ? s.row_begin >= 0 : s.row_begin == row);
    row = s.row_begin + s.row_count;
    KIVI_VERIFY(row <= step.rows);
    KIVI_VERIFY(s.pages_begin >= 0 && s.pages_count >= 0 &&
                s.pages_begin + s.pages_count <= entries);
    KIVI_VERIFY(s.staging_begin >= 0 && s.staging_count >= 0 &&
                s.staging_begin + s.staging_count <= entries);
    const int64_t total = int64_t(s.past) + s.row_count;
    if (s.mode != KvMode::stage) KIVI_VERIFY(s.pages_count >= store.layout.pages_for(int(total)));
    if (s.mode != KvMode::append)
      KIVI_VERIFY(int64_t(s.staging_count) * KvLayout::kStagingTokens >=
                  (s.mode == KvMode::stage ? total : s.past));
    if (s.mode != KvMode::stage && store.layout.format.kind == KvKind::kivi)
      KIVI_VERIFY(s.slot >= 0 && s.slot < store.slot_count);
    const int positions = int(total) - store.layout.format.sinks;
    KIVI_VERIFY(s.values_from >= 0 && s.values_from <= std::max(positions, 0));
    KIVI_VERIFY(s.values_to == 0 ||
                (s.values_to <= keys_paged(store.layout.format, int(total)) &&
                 store.layout.format.kind == KvKind::kivi && s.mode != KvMode::stage &&
                 (s.mode == KvMode::seal || s.row_count > 1)));
  }
}

}  // namespace

Result<Buffer> Backend::allocate(size_t bytes, std::string_view what) {
  Result<std::byte*> data = do_allocate(bytes);
  if (!data.ok())
    return Error{data.error().code,
                 fmt::format("no memory for {} ({} bytes): {}", what, bytes, data.error().message),
                 data.error().field};
  return Buffer(this, *data, bytes);
}

void Backend::embed(const Weight& table, const Tensor& ids, const Tensor& out) {
  KIVI_VERIFY(is_matrix(out, out.rows(), table.columns) && is_indices(ids, out.rows()));
  if (!table.is_plain()) {
    KIVI_VERIFY(is_quantized(table) && table.hadamard == 0 && table.order.empty());
    KIVI_VERIFY(multiplies(table.format) && out.dtype == activation_type(out.dtype));
    if (out.rows() > 0) do_embed_quantized(table, ids, out);
    return;
  }
  const DType type = table.plain.dtype;
  KIVI_VERIFY(is_float(type) && out.dtype == activation_type(type));
  KIVI_VERIFY(is_matrix(table.plain, table.rows, table.columns));
  if (out.rows() > 0) do_embed(table.plain, ids, out);
}

ProductInput Backend::product_input(const Tensor&, const Weight&, const Tensor&, const Tensor&) {
  return ProductInput::plain;
}

void Backend::run_recorded(uint64_t key, const std::function<void()>& ops) {
  if (observer_.before_attend || observer_.before_append)
    ops();
  else
    do_run_recorded(key, ops);
}

void Backend::do_run_recorded(uint64_t, const std::function<void()>& ops) { ops(); }

template <class Show>
void Backend::observed(const Show& show) {
  AttentionObserver observer = std::exchange(observer_, {});
  show(observer);
  observer_ = std::move(observer);
}

void Backend::resolve_ids(const Tensor& ids, const Tensor& sampled) {
  KIVI_VERIFY(ids.dtype == DType::i32 && ids.rank == 1 && sampled.dtype == DType::i32 &&
              sampled.rank == 1);
  if (ids.rows() > 0) do_resolve_ids(ids, sampled);
}

void Backend::norm(const Tensor& x, const Tensor& weight, const Tensor& bias, NormKind kind,
                   float eps, const Operand& out) {
  add_norm(x, Tensor{}, weight, bias, kind, eps, out);
}

void Backend::add_norm(const Tensor& x, const Tensor& delta, const Tensor& weight,
                       const Tensor& bias, NormKind kind, float eps, const Operand& out) {
  const int64_t t = x.rows(), n = x.shape[1];
  KIVI_VERIFY(x.dtype == activation_type(weight.dtype) && is_operand(out, x.dtype, t, n));
  KIVI_VERIFY(is_matrix(x, t, n) && is_vector(weight, n));
  KIVI_VERIFY(is_bias(bias, weight.dtype, n) && eps >= 0);
  KIVI_VERIFY(delta.empty() || (delta.dtype == x.dtype && is_matrix(delta, t, n)));
  if (t > 0) do_add_norm(x, delta, weight, bias, kind, eps, out);
}

void Backend::add(const Tensor& x, const Tensor& delta) {
  KIVI_VERIFY(x.dtype == activation_type(x.dtype) && delta.dtype == x.dtype);
  KIVI_VERIFY(is_matrix(x, x.rows(), x.shape[1]) && is_matrix(delta, x.rows(), x.shape[1]));
  if (x.size() > 0) do_add(x, delta);
}

void Backend::matmul(const Operand& x, const Weight& w, const Tensor& bias, const Tensor& out) {
  const int64_t t = x.count(), k = x.columns(), n = w.rows;
  const DType a = x.rows.dtype;
  KIVI_VERIFY(out.dtype == a || out.dtype == DType::f32);
  KIVI_VERIFY(is_operand(x, a, t, k) && is_matrix(out, t, n) && k > 0 && k == w.columns);
  if (w.is_plain()) {
    const DType type = w.plain.dtype;
    KIVI_VERIFY(is_float(type) && a == activation_type(type) && !x.quantized());
    KIVI_VERIFY(is_matrix(w.plain, n, k) && is_bias(bias, type, n));
    if (out.size() > 0) do_matmul(x.rows, w.plain, bias, out);
    return;
  }
  KIVI_VERIFY(is_quantized(w) && multiplies(w.format) && a == activation_type(a));
  KIVI_VERIFY(!x.quantized() || takes_quantized(w));
  KIVI_VERIFY(w.hadamard == 0 || ((w.hadamard & (w.hadamard - 1)) == 0 && k % w.hadamard == 0));
  KIVI_VERIFY(w.order.empty() != w.format.reordered && (w.order.empty() || is_indices(w.order, k)));
  KIVI_VERIFY(bias.empty() || (is_float(bias.dtype) && is_vector(bias, n)));
  if (out.size() > 0) do_matmul_quantized(x, w, bias, out);
}

void Backend::rope(const Tensor& qkv, const Tensor& positions, const Rope& rope,
                   const KvShape& shape, const Tensor& q, const Tensor& kv) {
  const int64_t t = qkv.rows(), d = shape.head_dim, kv_columns = 2 * int64_t(shape.heads) * d;
  KIVI_VERIFY(qkv.dtype == activation_type(qkv.dtype) && q.dtype == query_type());
  KIVI_VERIFY(kv.dtype == DType::f16 && is_matrix(kv, t, kv_columns) && is_indices(positions, t));
  const int64_t q_columns = q.shape[1];
  KIVI_VERIFY(is_matrix(q, t, q_columns) && q_columns > 0 && q_columns % (shape.heads * d) == 0);
  KIVI_VERIFY(is_matrix(qkv, t, q_columns + kv_columns));
  KIVI_VERIFY(rope.rotary_dim >= 0 && rope.rotary_dim <= d && rope.rotary_dim % 2 == 0);
  KIVI_VERIFY(rope.rotary_dim == 0 || (rope.inverse_frequencies.dtype == DType::f32 &&
                                       is_vector(rope.inverse_frequencies, rope.rotary_dim / 2)));
  if (rope.dynamic_factor > 0)
    KIVI_VERIFY(rope.trained > 0 && rope.rotary_dim > 2 && rope.lengths.dtype == DType::i32 &&
                is_vector(rope.lengths, t));
  KIVI_VERIFY(!rope.hadamard || (d & (d - 1)) == 0);
  for (const Tensor& weight : {rope.q_norm, rope.k_norm}) {
    if (rope.q_norm.empty() && rope.k_norm.empty()) break;
    KIVI_VERIFY(weight.dtype == rope.q_norm.dtype && is_vector(weight, d) && rope.norm_eps >= 0);
    KIVI_VERIFY(qkv.dtype == activation_type(weight.dtype));
  }
  if (t > 0) do_rope(qkv, positions, rope, shape, q, kv);
}

void Backend::begin_step(const StepView& step, const KvView& store, int heads_q) {
  KIVI_VERIFY(heads_q > 0 && heads_q % store.layout.shape.heads == 0);
  verify_groups(step, store.layout);
  begun_ = step.sequences.data();
  if (step.rows > 0) do_begin_step(step, store, heads_q);
}

void Backend::kv_attend(const Tensor& q, const Tensor& kv, const KvView& store,
                        const StepView& step, int layer, float scale, const Tensor& out) {
  verify_step(kv, store, step, layer);
  KIVI_VERIFY(begun_ == step.sequences.data());
  const int64_t columns = q.shape[1];
  KIVI_VERIFY(q.dtype == query_type() && is_matrix(q, step.rows, columns));
  KIVI_VERIFY(columns > 0 &&
              columns % (int64_t(store.layout.shape.heads) * store.layout.shape.head_dim) == 0);
  KIVI_VERIFY(is_float(out.dtype) && is_matrix(out, step.rows, columns));
  if (step.rows == 0) return;
  const KvView& own = store.of_layer(layer);
  if (observer_.before_attend)
    observed([&](const AttentionObserver& observer) {
      observer.before_attend(*this, {q, kv, own, step, layer, scale, out.dtype});
    });
  do_kv_attend(q, kv, own, step, layer, scale, out);
}

void Backend::kv_append(const Tensor& kv, const KvView& store, const StepView& step, int layer,
                        int layers) {
  KIVI_VERIFY(layers >= 1 && layer + layers <= store.layout.shape.layers);
  KIVI_VERIFY(kv.rows() == int64_t(layers) * step.rows);
  verify_step(kv.slice_rows(0, step.rows), store, step, layer);
  if (step.rows == 0) return;
  if (observer_.before_append)
    observed([&](const AttentionObserver& observer) {
      for (int i = 0; i < layers; ++i)
        observer.before_append(*this, kv.slice_rows(int64_t(i) * step.rows, step.rows),
                               store.of_layer(layer + i), layer + i);
    });
  // Layers that follow each other with the same bits are stored at once.
  const KvLayout& layout = store.layout;
  for (int first = layer, end = first; first < layer + layers; first = end) {
    while (end < layer + layers && layout.of_layer(end) == layout.of_layer(first)) ++end;
    do_kv_append(
        kv.slice_rows(int64_t(first - layer) * step.rows, int64_t(end - first) * step.rows),
        store.of_layer(first), step, first, end - first);
  }
}

void Backend::gated_activation(const Tensor& gate_up, Activation activation, const Operand& out) {
  const int64_t t = gate_up.rows(), f = out.columns();
  KIVI_VERIFY(gate_up.dtype == activation_type(gate_up.dtype));
  KIVI_VERIFY(is_operand(out, gate_up.dtype, t, f) && is_matrix(gate_up, t, 2 * f));
  if (t * f > 0) do_gated_activation(gate_up, activation, out);
}

void Backend::activate(const Tensor& x, Activation activation) {
  KIVI_VERIFY(x.dtype == activation_type(x.dtype) && is_matrix(x, x.rows(), x.shape[1]));
  if (x.size() > 0) do_activate(x, activation);
}

void Backend::gather_rows(const Tensor& x, const Tensor& rows, const Tensor& out) {
  KIVI_VERIFY(x.dtype == activation_type(x.dtype) && out.dtype == x.dtype);
  KIVI_VERIFY(is_matrix(x, x.rows(), x.shape[1]) && is_matrix(out, out.rows(), x.shape[1]));
  KIVI_VERIFY(is_indices(rows, out.rows()));
  if (out.size() > 0) do_gather_rows(x, rows, out);
}

void Backend::add_rows(const Tensor& x, const Tensor& sums) {
  KIVI_VERIFY(x.dtype == activation_type(x.dtype) && is_matrix(x, x.rows(), x.shape[1]));
  KIVI_VERIFY(sums.dtype == DType::f32 && is_vector(sums, x.shape[1]));
  if (x.size() > 0) do_add_rows(x, sums);
}

void Backend::sample(const Tensor& logits, std::span<const SampleRow> rows, const Tensor& ids) {
  const int64_t vocab = logits.shape[1];
  KIVI_VERIFY(logits.dtype == DType::f32 && is_matrix(logits, int64_t(rows.size()), vocab));
  KIVI_VERIFY(is_indices(ids, int64_t(rows.size())));
  for (const SampleRow& row : rows) {
    KIVI_VERIFY(row.temperature >= 0 && row.top_k >= 0 && row.top_p > 0 && row.top_p <= 1);
    KIVI_VERIFY(row.min_p >= 0 && row.min_p < 1 && row.repetition_penalty > 0);
    KIVI_VERIFY(row.forced_token < vocab);
    KIVI_VERIFY(row.logprobs >= -1 && row.logprobs <= logprobs_max());
    KIVI_VERIFY(row.mask.empty() || int64_t(row.mask.size()) == (vocab + 31) / 32);
    for (const PenaltyToken& p : row.penalties) KIVI_VERIFY(p.id >= 0 && p.id < vocab);
    for (const LogitBias& b : row.bias) KIVI_VERIFY(b.id >= 0 && b.id < vocab);
  }
  do_sample(logits, rows, ids);
}

}  // namespace kivi
