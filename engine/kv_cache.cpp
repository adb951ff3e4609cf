// SPDX-License-Identifier: Apache-2.0
#include "engine/kv_cache.h"

#include <ranges>
#include <utility>

#include "base/verify.h"

namespace kivi {
namespace {

// Returns the number of pages to allocate so that `held` has `needed`.
int missing(int needed, const std::vector<int32_t>& held) {
  const int have = int(held.size());
  return needed > have ? needed - have : 0;
}

}  // namespace

KvCache::KvCache(const KvLayout& layout, const KvCapacity& capacity, KvTierSetup tier)
    : layout_(layout),
      capacity_(capacity),
      prefixes_(layout, capacity.pages),
      tier_(prefixes_, std::move(tier)),
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
  if (pages > prefixes_.free() || staging > staging_.free() || slots > slots_.free()) return false;

  std::vector<int32_t> slot;
  const bool taken = prefixes_.take(pages, kv.pages) && staging_.take(staging, kv.staging_pages) &&
                     slots_.take(slots, slot);
  KIVI_VERIFY(taken);
  if (slots == 1) kv.slot = slot[0];
  return true;
}

bool KvCache::reserve_layerwise(SequenceKv& kv, int tokens) {
  KIVI_VERIFY(kv.tokens == 0 && tokens <= capacity_.layerwise_tokens);
  if (layerwise_taken_ || !reserve(kv, tokens, KvMode::append)) return false;
  layerwise_taken_ = kv.layerwise = true;
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
  if (kv.layerwise) layerwise_taken_ = false;
  kv.layerwise = false;
}

void KvCache::release(SequenceKv& kv) {
  release_staging(kv);
  unpin(kv);
  for (const CapturedSlab& captured : kv.captured)
    for (const int32_t page : captured.pages) prefixes_.drop(page);
  // The last page first: kept pages are evicted in the order in which they were dropped.
  for (const int32_t page : std::views::reverse(kv.pages)) prefixes_.drop(page);
  if (kv.slot >= 0) slots_.give_back(kv.slot);
  for (const HeldCapture& held : kv.held) slots_.give_back(held.slot);
  SequenceKv empty;
  empty.chains = std::move(kv.chains);
  empty.names = std::move(kv.names);
  kv = std::move(empty);
}

void KvCache::restore(const SequenceKv& kv, std::vector<KvCopy>& copies) const {
  const int slab = prefixes_.blocks().slab_pages;
  const int behind = int(kv.pinned.size()) - slab;  // pages whose values are not all there
  const int pages = pages_needed(kv.tokens);
  KIVI_VERIFY(behind >= 0 && int(kv.pages.size()) >= pages && kv.slot >= 0);
  for (int i = 0; i < behind; ++i)
    copies.push_back({KvCopy::Kind::page_to_page, kv.pinned[size_t(i)],
                      kv.pages[size_t(pages - behind + i)], 0});
  for (int i = 0; i < slab; ++i)
    copies.push_back({KvCopy::Kind::page_to_slot, kv.pinned[size_t(behind + i)], kv.slot, i});
}

std::vector<int32_t> KvCache::capture(int32_t slot, std::vector<KvCopy>& copies) {
  std::vector<int32_t> pages;
  const int slab = prefixes_.blocks().slab_pages;
  if (!prefixes_.take(slab, pages)) return {};
  for (int i = 0; i < slab; ++i)
    copies.push_back({KvCopy::Kind::slot_to_page, slot, pages[size_t(i)], i});
  return pages;
}

int32_t KvCache::take_slot() {
  std::vector<int32_t> slot;
  return slots_.take(1, slot) ? slot[0] : -1;
}

void KvCache::unpin(SequenceKv& kv) {
  for (const int32_t page : kv.pinned) prefixes_.drop(page);
  kv.pinned.clear();
}

bool KvCache::fits_ever(int tokens) const {
  return capacity_.slots >= 1 && pages_needed(tokens) <= capacity_.pages;
}

KvBytes KvCache::bytes_held() const {
  const int64_t pages = prefixes_.held(), parameters = layout_.page_parameters_bytes();
  const int64_t slots = slots_.total() - slots_.free();
  return {pages * (layout_.page_bytes() - parameters), pages * parameters,
          slots * (layout_.slot_bytes() - layout_.slot_sinks_bytes()),
          slots * layout_.slot_sinks_bytes()};
}

}  // namespace kivi
