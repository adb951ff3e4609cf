// SPDX-License-Identifier: Apache-2.0
// KvCache knows which pages, residual slot and staging pages each sequence holds. It keeps the
// accounts, and Backend::kv_append writes the bytes. The accounts are exact: each sequence holds
// the whole pages and slots that its format needs, and a page that several sequences share counts
// once. Pages that are kept for later sequences are the prefix cache's (prefix_cache.h); they count
// as free. Engine thread only.
#pragma once

#include <cstdint>

#include "engine/batch_plan.h"
#include "engine/id_pool.h"
#include "engine/kv_tier.h"
#include "engine/prefix_cache.h"
#include "engine/sequence.h"
#include "kernels/kv_page.h"
#include "kernels/step_view.h"

namespace kivi {

// Sizes of the three regions; from the memory plan.
struct KvCapacity {
  int pages = 0;
  int slots = 0;
  int staging_pages = 0;
  int layerwise_tokens = 0;  // of one prompt that is computed layer by layer
};

class KvCache {
 public:
  KvCache(const KvLayout& layout, const KvCapacity& capacity, KvTierSetup tier = {});

  // Reserves what `tokens_more` more tokens need in `mode`, and a slot if the sequence has none.
  // Returns false and leaves kv unchanged if not everything is free.
  //   append: pages for the quantized part of kv.tokens + tokens_more tokens
  //   stage:  staging pages for kv.tokens + tokens_more tokens
  //   seal:   pages as in append; the staging pages stay held until commit()
  bool reserve(SequenceKv& kv, int tokens_more, KvMode mode);

  // Reserves the area for a prompt of `tokens` tokens that is computed layer by layer, its pages,
  // and a slot. Returns false and leaves kv unchanged if not everything is free.
  bool reserve_layerwise(SequenceKv& kv, int tokens);
  // One prompt at a time has the area.
  bool layerwise_free() const { return !layerwise_taken_; }

  // Records that the step has stored the tokens: kv.tokens grows. Mode seal gives the staging pages
  // and the layerwise area back.
  void commit(SequenceKv& kv, int tokens_more, KvMode mode);

  // Gives back everything that the sequence holds, if anything.
  void release(SequenceKv& kv);

  // Appends to `copies` what brings a sequence that was attached to a prefix (PrefixCache::attach)
  // and has reserved its pages and its slot to the state at the prefix's end.
  void restore(const SequenceKv& kv, std::vector<KvCopy>& copies) const;
  // Takes pages for a checkpoint and appends the copies that fill it from `slot`. Returns no pages
  // if there are not enough.
  std::vector<int32_t> capture(int32_t slot, std::vector<KvCopy>& copies);
  // Takes a slot that is free again at the end of the step; -1: none is free.
  int32_t take_slot();
  void give_back_slot(int32_t slot) { slots_.give_back(slot); }
  // The step's copies have been enqueued. The pages that they read may be evicted from now on.
  void unpin(SequenceKv& kv);

  PrefixCache& prefixes() { return prefixes_; }
  const PrefixCache& prefixes() const { return prefixes_; }
  KvTier& tier() { return tier_; }
  const KvTier& tier() const { return tier_; }

  // Returns true if a sequence of `tokens` tokens fits into the empty cache.
  bool fits_ever(int tokens) const;

  // Return the pages (staging pages) that `tokens` tokens of one sequence take.
  int pages_needed(int tokens) const;
  int staging_pages_needed(int tokens) const;

  const KvLayout& layout() const { return layout_; }
  const KvCapacity& capacity() const { return capacity_; }
  int pages_free() const { return prefixes_.free(); }  // free, or kept for later sequences
  int slots_free() const { return slots_.free(); }
  int staging_pages_free() const { return staging_.free(); }
  // Returns the bytes that sequences hold now. Pages are split into codes and parameters; slots
  // count as residual.
  KvBytes bytes_held() const;

 private:
  void release_staging(SequenceKv& kv);

  KvLayout layout_;
  KvCapacity capacity_;
  PrefixCache prefixes_;
  KvTier tier_;
  IdPool slots_, staging_;
  bool layerwise_taken_ = false;
};

}  // namespace kivi
