// kv_attend: out = softmax(q K^T * scale) V over pages, residual or staging, and the step's own
// tokens.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/kv_codec.h"

namespace kivi {
namespace {

constexpr int kTile = 64;  // tokens, aligned to absolute positions

// Reads keys and values of one (sequence, KV head) from wherever they are.
struct History {
  const Tensor& kv;
  const KvView& store;
  const StepView& step;
  const StepSequence& sequence;
  int layer;
  int head;

  const std::byte* page(int token) const {
    const int32_t index = sequence.pages_begin + token / store.layout.page_tokens();
    return store.page_block(layer, step.page_table[size_t(index)], head);
  }
  void swizzled(const std::byte* rows, int row, float* to) const {
    const int d = store.layout.shape.head_dim;
    const f16* from = reinterpret_cast<const f16*>(rows) + int64_t(row) * d;
    for (int c = 0; c < d; ++c) to[c] = to_float(from[swizzled_channel(row, c, d)]);
  }
  // which: 0 keys, 1 values.
  void read(int which, int token, float* to) const {
    const KvLayout& layout = store.layout;
    const int d = layout.shape.head_dim;
    if (token >= sequence.past) {
      const f16* row = kv.row<f16>(sequence.row_begin + token - sequence.past) +
                       (which * layout.shape.heads + head) * d;
      for (int c = 0; c < d; ++c) to[c] = to_float(row[c]);
      return;
    }
    if (sequence.mode != KvMode::store) {
      const int32_t index = sequence.staging_begin + token / KvLayout::kStagingTokens;
      const std::byte* block = store.staging_block(layer, step.page_table[size_t(index)], head);
      swizzled(block + which * layout.staging_values_offset(), token % kTile, to);
      return;
    }
    const int quantized = which == 0 ? key_tokens_quantized(layout.format, sequence.past)
                                     : value_tokens_quantized(layout.format, sequence.past);
    if (token >= quantized) {
      swizzled(
          store.residual_slab(layer, sequence.slot, head) + which * layout.residual_values_offset(),
          token % layout.format.residual, to);
      return;
    }
    const int t = token % layout.page_tokens();
    for (int c = 0; c < d; ++c)
      to[c] =
          which == 0 ? read_key(layout, page(token), t, c) : read_value(layout, page(token), t, c);
  }
};

void attend_row(const History& history, const float* q, int position, float scale, float* out) {
  const int d = history.store.layout.shape.head_dim, window = history.step.sliding_window;
  const int begin = window > 0 ? std::max(0, position + 1 - window) : 0;
  float row[256], score[kTile];
  float max = -std::numeric_limits<float>::infinity(), sum = 0;
  std::fill_n(out, d, 0.0f);
  for (int tile = begin / kTile * kTile; tile <= position; tile += kTile) {
    const int first = std::max(tile, begin), last = std::min(tile + kTile - 1, position);
    float tile_max = max;
    for (int token = first; token <= last; ++token) {
      history.read(0, token, row);
      float s = 0;
      for (int c = 0; c < d; ++c) s += q[c] * row[c];
      score[token - tile] = s * scale;
      tile_max = std::max(tile_max, score[token - tile]);
    }
    const float old = std::exp(max - tile_max);
    for (int c = 0; c < d; ++c) out[c] *= old;
    sum *= old;
    max = tile_max;
    for (int token = first; token <= last; ++token) {
      history.read(1, token, row);
      const float p = std::exp(score[token - tile] - max);
      sum += p;
      for (int c = 0; c < d; ++c) out[c] += p * row[c];
    }
  }
  for (int c = 0; c < d; ++c) out[c] /= sum;
}

}  // namespace

void CpuBackend::do_kv_attend(const Tensor& q, const Tensor& kv, const KvView& store,
                              const StepView& step, int layer, float scale, const Tensor& out) {
  const int d = store.layout.shape.head_dim, heads = store.layout.shape.heads;
  const int group = int(q.shape[1] / d) / heads;
  pool_.parallel_for(int64_t(step.sequences.size()) * heads, int64_t(1) << 40,
                     [&](int64_t task, int) {
                       const StepSequence& s = step.sequences[size_t(task / heads)];
                       const History history{kv, store, step, s, layer, int(task % heads)};
                       for (int i = 0; i < s.row_count; ++i)
                         for (int h = 0; h < group; ++h) {
                           const int64_t column = (int64_t(history.head) * group + h) * d;
                           attend_row(history, q.row<float>(s.row_begin + i) + column, s.past + i,
                                      scale, out.row<float>(s.row_begin + i) + column);
                         }
                     });
}

}  // namespace kivi
