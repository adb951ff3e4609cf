// SPDX-License-Identifier: Apache-2.0
// Where a token's key or value lies. This is the one place that answers the question, for the host,
// the CPU kernels and the CUDA kernels (docs/design/kv-format.md, section 3).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kv_page.h"
#include "kernels/step_view.h"

namespace kivi {

enum class KvRegion : uint8_t {
  codes,     // a page of a quantized format: codes of 2, 4 or 8 bits
  page,      // a page of f16 rows
  sinks,     // f16 rows of the slab
  residual,  // f16 rows of the slab
  staging,   // a staging block of f16 rows
  own,       // the step's own rows, not swizzled
};

struct KvPlace {
  KvRegion region;
  int page;  // codes, page, staging: index in the sequence's part of the page table; else 0
  int row;   // in the page, in the part of the slab, in the staging block, or in the step's rows

  friend constexpr bool operator==(const KvPlace&, const KvPlace&) = default;
};

// Returns where kv_append puts token `token` when it arrives, before any eviction.
KIVI_HOST_DEVICE constexpr KvPlace arrival_place(const KvLayout& layout, KvMode mode, int token) {
  const KvFormat& f = layout.format;
  if (mode == KvMode::stage)
    return {KvRegion::staging, token / KvLayout::kStagingTokens, token % KvLayout::kStagingTokens};
  if (f.kind != KvKind::kivi)
    return {f.kind == KvKind::f16 ? KvRegion::page : KvRegion::codes, token / layout.page_tokens(),
            token % layout.page_tokens()};
  if (token < f.sinks) return {KvRegion::sinks, 0, token};
  return {KvRegion::residual, 0, (token - f.sinks) % f.residual};
}

// Returns where one side of `token` is read in a step, before kv_append of that step.
// 0 <= token < past + row_count.
KIVI_HOST_DEVICE constexpr KvPlace read_place(const KvLayout& layout, const StepSequence& s,
                                              int token, Side side) {
  if (token >= s.past) return {KvRegion::own, 0, token - s.past};
  if (s.mode != KvMode::append)
    return {KvRegion::staging, token / KvLayout::kStagingTokens, token % KvLayout::kStagingTokens};
  const int position = token - layout.format.sinks;
  if (layout.format.kind == KvKind::kivi && position >= 0 &&
      position < tokens_paged(layout.format, s.past, side))
    return {KvRegion::codes, position / layout.page_tokens(), position % layout.page_tokens()};
  return arrival_place(layout, s.mode, token);
}

// One layer and KV head of one sequence of a step.
struct KvLocator {
  const KvView& store;
  const StepSequence& sequence;
  const int32_t* page_table;  // of the step
  int layer;
  int head;

  // Returns the page's block. `page` is an index in the sequence's part of the page table.
  KIVI_HOST_DEVICE std::byte* page_block(int page) const {
    return store.page_block(layer, page_table[sequence.pages_begin + page], head);
  }
  KIVI_HOST_DEVICE std::byte* staging_block(int page) const {
    return store.staging_block(layer, page_table[sequence.staging_begin + page], head);
  }
  KIVI_HOST_DEVICE std::byte* slab() const { return store.slab(layer, sequence.slot, head); }

  // Returns the first of the f16 rows among which a place lies. Not for `codes` and `own`.
  KIVI_HOST_DEVICE std::byte* rows(const KvPlace& place, Side side) const {
    const KvLayout& l = store.layout;
    switch (place.region) {
      case KvRegion::page:
        return page_block(place.page) + l.codes_offset(side);
      case KvRegion::staging:
        return staging_block(place.page) + l.staging_offset(side);
      case KvRegion::sinks:
        return slab() + l.sinks_offset(side);
      case KvRegion::residual:
        return slab() + l.residual_offset(side);
      case KvRegion::codes:
      case KvRegion::own:
        break;
    }
    return nullptr;
  }
};

}  // namespace kivi
