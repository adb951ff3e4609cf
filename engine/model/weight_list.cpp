// SPDX-License-Identifier: Apache-2.0
#include "engine/model/weight_list.h"

#include "engine/model/weights.h"
#include "kernels/weight_codec.h"

namespace kivi {

namespace {

std::vector<WeightPart> stacked(const std::string& at, const std::vector<std::string>& names,
                                const std::vector<int64_t>& rows) {
  std::vector<WeightPart> parts;
  for (size_t i = 0; i < names.size(); ++i) parts.push_back({at + names[i], rows[i]});
  return parts;
}

std::vector<WeightPart> suffixed(std::vector<WeightPart> parts, const char* suffix) {
  for (WeightPart& part : parts) part.name += suffix;
  return parts;
}

// The checkpoint's row of a q|k|v matrix that is row `row` of ours (QkvOrder).
int64_t grouped_row(const DecoderSpec& spec, int64_t row) {
  const int64_t d = spec.head_dim, per_kv = spec.heads_q / spec.heads_kv;
  const int64_t head = row / d, channel = row % d;
  int64_t kv = 0, place = 0;  // KV head, and head inside its group
  if (head < spec.heads_q) {
    kv = head / per_kv;
    place = head % per_kv;
  } else if (head < spec.heads_q + spec.heads_kv) {
    kv = head - spec.heads_q;
    place = per_kv;
  } else {
    kv = head - spec.heads_q - spec.heads_kv;
    place = per_kv + 1;
  }
  return (kv * (per_kv + 2) + place) * d + channel;
}

// The same for a q or k matrix whose heads hold their channels as pairs.
int64_t paired_row(const DecoderSpec& spec, int64_t row) {
  const int64_t half = spec.head_dim / 2;
  const int64_t head = row / spec.head_dim, channel = row % spec.head_dim;
  return head * spec.head_dim + channel % half * 2 + channel / half;
}

}  // namespace

int64_t WeightItem::rows() const {
  int64_t n = 0;
  for (const WeightPart& part : parts) n += part.rows;
  return n;
}

WeightList::WeightList(const DecoderSpec& spec, const TensorNames& names, DecoderWeights& weights)
    : spec_(spec), names_(names) {
  const int64_t n = spec.hidden;
  matrix(&weights.embedding, {{names.embedding, spec.vocab}}, n);
  weights.layers.resize(size_t(spec.layers));
  for (int i = 0; i < spec.layers; ++i) add_layer(weights.layers[size_t(i)], i);
  norm(&weights.final_norm, &weights.final_norm_bias, names.final_norm);
  if (!spec.tied_embeddings) matrix(&weights.head, {{names.head, spec.vocab}}, n);
}

void WeightList::add_layer(LayerWeights& layer, int index) {
  const std::string at = names_.layers + std::to_string(index) + ".";
  const int64_t n = spec_.hidden, f = spec_.intermediate;
  const int64_t q = spec_.query_size(), kv = spec_.kv_size();
  norm(&layer.attention_norm, &layer.attention_norm_bias, at + names_.attention_norm);
  if (spec_.norms_per_layer == 2) norm(&layer.mlp_norm, &layer.mlp_norm_bias, at + names_.mlp_norm);

  auto qkv = names_.qkv.size() == 3 ? stacked(at, names_.qkv, {q, kv / 2, kv / 2})
                                    : stacked(at, names_.qkv, {q + kv});
  if (names_.qkv.size() == 3)
    qkv[0].rotary_pairs = qkv[1].rotary_pairs = names_.rotary_pairs;  // q and k turn
  linear(&layer.qkv, spec_.qkv_bias ? &layer.qkv_bias : nullptr, qkv, n, names_.qkv_order);
  if (spec_.qk_norm) {
    vector(&layer.q_norm, {{at + names_.q_norm + ".weight", spec_.head_dim}}, WeightUse::norm);
    vector(&layer.k_norm, {{at + names_.k_norm + ".weight", spec_.head_dim}}, WeightUse::norm);
  }
  linear(&layer.output, spec_.output_bias ? &layer.output_bias : nullptr, {{at + names_.output, n}},
         q);
  for (WeightItem& item : items_)
    if (item.matrix == &layer.output) item.rotated = spec_.rotated_heads;
  Tensor* up_bias = spec_.mlp_bias ? &layer.up_bias : nullptr;
  const int64_t each = spec_.up_size() / int64_t(names_.up.size());
  linear(&layer.up, up_bias, stacked(at, names_.up, std::vector(names_.up.size(), each)), n);
  linear(&layer.down, spec_.mlp_bias ? &layer.down_bias : nullptr, {{at + names_.down, n}}, f);
}

void WeightList::matrix(WeightMatrix* target, const std::vector<WeightPart>& parts, int64_t columns,
                        QkvOrder order) {
  WeightItem item;
  item.matrix = target;
  item.parts = suffixed(parts, ".weight");
  item.columns = columns;
  item.order = order;
  items_.push_back(std::move(item));
}

void WeightList::linear(WeightMatrix* target, Tensor* bias, const std::vector<WeightPart>& parts,
                        int64_t columns, QkvOrder order) {
  matrix(target, parts, columns, order);
  if (bias != nullptr) vector(bias, suffixed(parts, ".bias"), WeightUse::bias, order);
}

void WeightList::norm(Tensor* weight, Tensor* bias, const std::string& name) {
  vector(weight, {{name + ".weight", spec_.hidden}}, WeightUse::norm);
  if (spec_.norm == NormKind::layer)
    vector(bias, {{name + ".bias", spec_.hidden}}, WeightUse::bias);
}

void WeightList::vector(Tensor* target, std::vector<WeightPart> parts, WeightUse use,
                        QkvOrder order) {
  WeightItem item;
  item.vector = target;
  item.parts = std::move(parts);
  item.use = use;
  item.order = order;
  items_.push_back(std::move(item));
}

std::vector<WeightRun> runs_of(const WeightItem& item, const WeightFormats& formats) {
  std::vector<WeightRun> runs;
  for (size_t i = 0; i < item.parts.size(); ++i) {
    const WeightPart& part = item.parts[i];
    const auto found = formats.find(part.name);
    const WeightFormat format = found == formats.end() ? WeightFormat{} : found->second;
    const bool joins = !runs.empty() && runs.back().format == format && !format.reordered &&
                       (format.kind == WeightKind::plain || format.kind == WeightKind::e4m3 ||
                        runs.back().rows % kWeightTileRows == 0);
    if (!joins) runs.push_back({i, 0, 0, format});
    ++runs.back().count;
    runs.back().rows += part.rows;
  }
  return runs;
}

int64_t source_row(const DecoderSpec& spec, const WeightItem& item, const WeightPart& part,
                   int64_t row) {
  if (item.order == QkvOrder::groups) return grouped_row(spec, row);
  return part.rotary_pairs ? paired_row(spec, row) : row;
}

TensorNames any_names(const DecoderSpec& spec) {
  TensorNames names;
  names.qkv = {"qkv"};
  names.up = spec.gated ? std::vector<std::string>{"gate", "up"} : std::vector<std::string>{"up"};
  return names;
}

}  // namespace kivi
