// SPDX-License-Identifier: Apache-2.0
// The bytes of one (sequence, KV head) of a step on the host, by their places (kv_place.h). Page
// ids are checked. Shared by kv_attend and kv_append.
#pragma once

#include "base/verify.h"
#include "kernels/half.h"
#include "kernels/kv_place.h"

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
  KvLocator locator() const { return {store, sequence, step.page_table.data(), layer, head}; }

  // The block of a page, by its index in the sequence's part of the page table.
  std::byte* page(int index) const {
    const int32_t id = step.page_table[size_t(sequence.pages_begin + index)];
    KIVI_VERIFY(id >= 0 && id < store.page_count);
    return store.page_block(layer, id, head);
  }

  // The f16 row at a place that is not `codes`.
  F16Row row(const KvPlace& place, Side side) const {
    if (place.region == KvRegion::own) {
      const f16* row = kv.row<f16>(sequence.row_begin + place.row);
      return {row +
              (int64_t(side == Side::key ? 0 : store.layout.shape.heads) + head) * head_dim()};
    }
    return {reinterpret_cast<const f16*>(rows(place, side)) + int64_t(place.row) * head_dim(),
            place.row};
  }
  std::byte* rows(const KvPlace& place, Side side) const {
    if (place.region == KvRegion::page) return page(place.page) + store.layout.codes_offset(side);
    if (place.region == KvRegion::staging) {
      const int32_t id = step.page_table[size_t(sequence.staging_begin + place.page)];
      KIVI_VERIFY(id >= 0 && id < store.staging_page_count);
    }
    return locator().rows(place, side);
  }
};

}  // namespace kivi
