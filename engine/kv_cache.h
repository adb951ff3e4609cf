// KvCache: which pages, residual slot and staging pages a sequence holds. Bookkeeping only: the
// bytes are written by Backend::kv_append. Accounting is exact: what is held is the sum over
// sequences of what the format says, in whole pages and slots. Engine thread only.
#pragma once

#include <cstdint>

#include "engine/id_pool.h"
#include "engine/sequence.h"
#include "kernels/kv_page.h"
#include "kernels/step_view.h"

namespace kivi {

// Sizes of the three regions; from the memory plan.
struct KvCapacity {
  int pages = 0;
  int slots = 0;
  int staging_pages = 0;
};

class KvCache {
 public:
  KvCache(const KvLayout& layout, const KvCapacity& capacity);

  // Reserves what `tokens_more` tokens need in `mode`, and a slot where the sequence has none.
  // All or nothing: on false, kv is unchanged.
  //   store: pages for what is quantized of kv.tokens + tokens_more
  //   stage: staging pages up to kv.tokens + tokens_more
  //   commit: pages as in store, for all tokens; the staging pages stay held until commit()
  bool reserve(SequenceKv& kv, int tokens_more, KvMode mode);

  // The step has stored the tokens: kv.tokens grows; mode commit gives the staging pages back.
  void commit(SequenceKv& kv, int tokens_more, KvMode mode);

  // Gives back everything. Safe on a sequence that holds nothing.
  void release(SequenceKv& kv);

  // Could a sequence of `tokens` tokens ever run, alone?
  bool fits_ever(int tokens) const;

  // Pages (staging pages) that `tokens` tokens of one sequence take.
  int pages_needed(int tokens) const;
  int staging_pages_needed(int tokens) const;

  const KvLayout& layout() const { return layout_; }
  const KvCapacity& capacity() const { return capacity_; }
  int pages_free() const { return pages_.free(); }
  int slots_free() const { return slots_.free(); }
  int staging_pages_free() const { return staging_.free(); }
  // Held now: whole pages split into codes and parameters, slots as residual.
  KvBytes bytes_held() const;

 private:
  void release_staging(SequenceKv& kv);

  KvLayout layout_;
  KvCapacity capacity_;
  IdPool pages_, slots_, staging_;
};

}  // namespace kivi
