// SPDX-License-Identifier: Apache-2.0
#include "engine/kv_cache.h"

#include "base/verify.h"

namespace kivi {
namespace {

// Returns the number of pages to allocate so that `held` has `needed`.
int missing(int needed, const std::vector<int32_t>& held) {
  const int have = int(held.size());
  return needed > have ? needed - have : 0;
}

}  // namespace

KvCache::KvCache(const KvLayout& layout, const KvCapacity& capacity)
    : layout_(layout),
      capacity_(capacity),
      pages_(capacity.pages),
      slots_(capacity.slots),
      staging_(capacity.staging_pages) {}

int KvCache::pages_needed(int tokens) const { return layout_.pages_for(tokens); }

int KvCache::staging_pages_needed(int tokens) const { return KvLayout::staging_pages_for(tokens); }

bool KvCache::reserve(SequenceKv& kv, int tokens_more, KvMode mode) {
  KIVI_VERIFY(tokens_more >= 0);
  const int tokens = kv.tokens + tokens_more;
  const bool stage = mode == KvMode::stage;
  const int pages = stage ? 0 : missing(pages_needed(tokens), kv.pages);
  const int staging = stage ? missing(staging_pages_needed(tokens), kv.staging_pages) : 0;
  const int slots = kv.slot < 0 ? 1 : 0;
  if (pages > pages_.free() || staging > staging_.free() || slots > slots_.free()) return false;

  std::vector<int32_t> slot;
  const bool taken = pages_.take(pages, kv.pages) && staging_.take(staging, kv.staging_pages) &&
                     slots_.take(slots, slot);
  KIVI_VERIFY(taken);
  if (slots == 1) kv.slot = slot[0];
  return true;
}

void KvCache::commit(SequenceKv& kv, int tokens_more, KvMode mode) {
  KIVI_VERIFY(tokens_more >= 0 && kv.slot >= 0);
  kv.tokens += tokens_more;
  if (mode == KvMode::stage) {
    KIVI_VERIFY(int(kv.staging_pages.size()) >= staging_pages_needed(kv.tokens));
    return;
  }
  KIVI_VERIFY(int(kv.pages.size()) >= pages_needed(kv.tokens));
  if (mode == KvMode::seal) release_staging(kv);
}

void KvCache::release_staging(SequenceKv& kv) {
  for (const int32_t page : kv.staging_pages) staging_.give_back(page);
  kv.staging_pages.clear();
}

void KvCache::release(SequenceKv& kv) {
  release_staging(kv);
  for (const int32_t page : kv.pages) pages_.give_back(page);
  kv.pages.clear();
  if (kv.slot >= 0) slots_.give_back(kv.slot);
  kv.slot = -1;
  kv.tokens = 0;
}

bool KvCache::fits_ever(int tokens) const {
  return capacity_.slots >= 1 && pages_needed(tokens) <= capacity_.pages;
}

KvBytes KvCache::bytes_held() const {
  const int64_t blocks =
      int64_t(pages_.total() - pages_.free()) * layout_.shape.layers * layout_.shape.heads;
  const int64_t slots = slots_.total() - slots_.free();
  return {blocks * (layout_.key_codes_bytes() + layout_.value_codes_bytes()),
          blocks * (layout_.key_parameters_bytes() + layout_.value_parameters_bytes()),
          slots * (layout_.slot_bytes() - layout_.slot_sinks_bytes()),
          slots * layout_.slot_sinks_bytes()};
}

}  // namespace kivi
