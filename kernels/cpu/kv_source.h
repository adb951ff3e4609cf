// SPDX-License-Identifier: Apache-2.0
// Where the bytes of one (sequence, KV head) of a step lie: pages, residual, staging, or the step's
// own rows. Shared by kv_attend and kv_append.
#pragma once

#include "base/verify.h"
#include "kernels/half.h"
#include "kernels/kv_page.h"
#include "kernels/step_view.h"

namespace kivi {

// One token's d numbers in f16: plain, or in 16-byte chunks permuted by XOR (swizzled_channel).
struct F16Row {
  const f16* data = nullptr;
  int swizzle = 0;  // row number of the permutation; 0: plain

  // Where the 8 channels from c on (c % 8 == 0) stand.
  const f16* chunk(int c, int head_dim) const {
    return data + swizzled_channel(swizzle, c, head_dim);
  }
};

struct KvSource {
  const Tensor& kv;  // [t, 2 hk d] f16: the step's own keys and values
  const KvView& store;
  const StepView& step;
  const StepSequence& sequence;
  int layer;
  int head;

  int head_dim() const { return store.layout.shape.head_dim; }

  std::byte* page(int token) const {
    const int index = sequence.pages_begin + token / store.layout.page_tokens();
    const int32_t id = step.page_table[size_t(index)];
    KIVI_VERIFY(id >= 0 && id < store.page_count);
    return store.page_block(layer, id, head);
  }
  std::byte* staging(int token) const {
    const int index = sequence.staging_begin + token / KvLayout::kStagingTokens;
    const int32_t id = step.page_table[size_t(index)];
    KIVI_VERIFY(id >= 0 && id < store.staging_page_count);
    return store.staging_block(layer, id, head);
  }
  std::byte* residual() const { return store.residual_slab(layer, sequence.slot, head); }

  // Rows of the three regions that hold f16, as places to read or to write.
  std::byte* staging_rows(int token, bool keys) const {
    return staging(token) + (keys ? 0 : store.layout.staging_values_offset());
  }
  std::byte* page_rows(int token, bool keys) const {
    const KvLayout& l = store.layout;
    return page(token) + (keys ? l.key_codes_offset() : l.value_codes_offset());
  }
  std::byte* residual_rows(bool keys) const {
    return residual() + (keys ? 0 : store.layout.residual_values_offset());
  }

  F16Row own(int token, bool keys) const {
    const f16* row = kv.row<f16>(sequence.row_begin + token - sequence.past);
    return {row + (int64_t(keys ? 0 : store.layout.shape.heads) + head) * head_dim()};
  }
  F16Row swizzled(const std::byte* rows, int row) const {
    return {reinterpret_cast<const f16*>(rows) + int64_t(row) * head_dim(), row};
  }
  F16Row staged(int token, bool keys) const {
    return swizzled(staging_rows(token, keys), token % KvLayout::kStagingTokens);
  }
};

}  // namespace kivi
