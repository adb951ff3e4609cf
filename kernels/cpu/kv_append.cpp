// kv_append: stores a step's keys and values.
//
// A sequence's tokens are appended one after the other, so the store after T tokens is a function
// of the T tokens alone, however they were divided into steps (kivi.md, section 1). Appending token
// p: the value of token p - R leaves the residual for its page, token p takes its row, and where
// p + 1 is a multiple of R the R keys in the residual become page codes.
#include <cstring>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/kv_codec.h"

namespace kivi {
namespace {

// One (sequence, KV head) of a step.
struct Appender {
  const Tensor& kv;
  const KvView& store;
  const StepView& step;
  const StepSequence& sequence;
  int layer;
  int head;

  int d() const { return store.layout.shape.head_dim; }
  std::byte* page(int token) const {
    const int32_t index = sequence.pages_begin + token / store.layout.page_tokens();
    return store.page_block(layer, step.page_table[size_t(index)], head);
  }
  std::byte* staging(int token) const {
    const int32_t index = sequence.staging_begin + token / KvLayout::kStagingTokens;
    return store.staging_block(layer, step.page_table[size_t(index)], head);
  }
  void read_swizzled(const std::byte* rows, int row, f16* to) const {
    const f16* from = reinterpret_cast<const f16*>(rows) + int64_t(row) * d();
    for (int c = 0; c < d(); c += 8) std::memcpy(to + c, from + swizzled_channel(row, c, d()), 16);
  }
  void write_swizzled(std::byte* rows, int row, const f16* from) const {
    f16* to = reinterpret_cast<f16*>(rows) + int64_t(row) * d();
    for (int c = 0; c < d(); c += 8) std::memcpy(to + swizzled_channel(row, c, d()), from + c, 16);
  }
  // Key and value of a token of this step or of the staging area.
  void read_token(int token, f16* key, f16* value) const {
    if (token < sequence.past) {
      const int row = token % KvLayout::kStagingTokens;
      read_swizzled(staging(token), row, key);
      read_swizzled(staging(token) + store.layout.staging_values_offset(), row, value);
      return;
    }
    const f16* row = kv.row<f16>(sequence.row_begin + token - sequence.past);
    std::memcpy(key, row + head * d(), size_t(d()) * 2);
    std::memcpy(value, row + (store.layout.shape.heads + head) * d(), size_t(d()) * 2);
  }

  void quantize_value(int token, const f16* value) const {
    const KvLayout& layout = store.layout;
    const int g = layout.format.group, t = token % layout.page_tokens();
    uint8_t codes[128];
    for (int c = 0; c < d(); c += g) {
      const auto p =
          quantize_group({value + c, size_t(g)}, layout.format.value_bits, {codes, size_t(g)});
      for (int i = 0; i < g; ++i) write_value_code(layout, page(token), t, c + i, codes[i]);
      write_value_parameters(layout, page(token), t, c, p);
    }
  }
  void flush_keys(int begin) const {
    const KvLayout& layout = store.layout;
    const int g = layout.format.group;
    const std::byte* slab = store.residual_slab(layer, sequence.slot, head);
    std::vector<f16> rows(static_cast<size_t>(g * d()));
    f16 column[128];
    uint8_t codes[128];
    for (int first = begin; first < begin + layout.format.residual; first += g) {
      const int t = first % layout.page_tokens();
      for (int i = 0; i < g; ++i)
        read_swizzled(slab, (first + i) % layout.format.residual, &rows[size_t(i * d())]);
      for (int c = 0; c < d(); ++c) {
        for (int i = 0; i < g; ++i) column[i] = rows[size_t(i * d() + c)];
        const auto p =
            quantize_group({column, size_t(g)}, layout.format.key_bits, {codes, size_t(g)});
        for (int i = 0; i < g; ++i) write_key_code(layout, page(first), t + i, c, codes[i]);
        write_key_parameters(layout, page(first), t, c, p);
      }
    }
  }

  void append(int token) const {
    const KvLayout& layout = store.layout;
    f16 key[256], value[256], old[256];
    read_token(token, key, value);
    const int t = token % layout.page_tokens();
    if (layout.format.kind == KvKind::f16) {
      write_swizzled(page(token) + layout.key_codes_offset(), t, key);
      write_swizzled(page(token) + layout.value_codes_offset(), t, value);
      return;
    }
    if (layout.format.kind == KvKind::f8) {
      for (int c = 0; c < d(); ++c) {
        write_key_code(layout, page(token), t, c, to_e4m3(to_float(key[c])));
        write_value_code(layout, page(token), t, c, to_e4m3(to_float(value[c])));
      }
      return;
    }
    const int r = layout.format.residual, row = token % r;
    std::byte* slab = store.residual_slab(layer, sequence.slot, head);
    std::byte* values = slab + layout.residual_values_offset();
    if (token >= r) {
      read_swizzled(values, row, old);
      quantize_value(token - r, old);
    }
    write_swizzled(slab, row, key);
    write_swizzled(values, row, value);
    if (row == r - 1) flush_keys(token + 1 - r);
  }
  void stage(int token) const {
    f16 key[256], value[256];
    read_token(token, key, value);
    const int row = token % KvLayout::kStagingTokens;
    write_swizzled(staging(token), row, key);
    write_swizzled(staging(token) + store.layout.staging_values_offset(), row, value);
  }
  void run() const {
    const int end = sequence.past + sequence.row_count;
    if (sequence.mode == KvMode::stage) {
      for (int token = sequence.past; token < end; ++token) stage(token);
      return;
    }
    for (int token = sequence.mode == KvMode::commit ? 0 : sequence.past; token < end; ++token)
      append(token);
  }
};

}  // namespace

void CpuBackend::do_kv_append(const Tensor& kv, const KvView& store, const StepView& step,
                              int layer) {
  const int heads = store.layout.shape.heads;
  pool_.parallel_for(int64_t(step.sequences.size()) * heads, kv.size() * 16,
                     [&](int64_t task, int) {
                       const StepSequence& s = step.sequences[size_t(task / heads)];
                       Appender{kv, store, step, s, layer, int(task % heads)}.run();
                     });
}

}  // namespace kivi
