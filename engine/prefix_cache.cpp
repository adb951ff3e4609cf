// SPDX-License-Identifier: Apache-2.0
#include "engine/prefix_cache.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <random>
#include <ranges>
#include <utility>

#include "base/verify.h"

namespace kivi {
namespace {

// SplitMix64's finalizer (Steele, Lea, Flood 2014).
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t hash_of(uint64_t secret, std::string_view salt) {
  uint64_t h = secret;
  for (const char c : salt) h = mix(h + uint8_t(c) + 1);
  return h;
}

// Four chains side by side, two tokens at a time: one chain waits for its multiplications.
uint64_t hash_of(uint64_t h, std::span<const int32_t> tokens) {
  std::array<uint64_t, 4> lanes = {h, ~h, h + 1, ~h + 1};
  size_t i = 0;
  for (; i + 8 <= tokens.size(); i += 8)
    for (size_t lane = 0; lane < 4; ++lane) {
      const uint64_t low = uint32_t(tokens[i + 2 * lane]);
      const uint64_t high = uint32_t(tokens[i + 2 * lane + 1]);
      lanes[lane] = mix(lanes[lane] + (high << 32 | low) + 0x9e3779b97f4a7c15u);
    }
  for (; i < tokens.size(); ++i) lanes[0] = mix(lanes[0] + uint64_t(uint32_t(tokens[i])) + 1);
  for (size_t lane = 1; lane < 4; ++lane) lanes[0] = mix(lanes[0] * 31 + lanes[lane]);
  return lanes[0];
}

}  // namespace

PrefixBlocks PrefixBlocks::of(const KvLayout& layout) {
  const KvFormat& f = layout.format;
  const int page = layout.page_tokens();
  if (f.kind != KvKind::kivi) return {page, page, 1, 0, 0};
  const int block = std::lcm(page, f.residual);
  const int64_t slab_pages = (layout.slot_bytes() + layout.page_bytes() - 1) / layout.page_bytes();
  return {f.sinks + block, block, block / page, f.residual, int(slab_pages)};
}

PrefixCache::PrefixCache(const KvLayout& layout, int pages)
    : blocks_(PrefixBlocks::of(layout)),
      secret_(uint64_t(std::random_device()()) << 32 | std::random_device()()),
      pages_(pages),
      holders_(size_t(pages), 0),
      transferred_(size_t(pages), 0),
      keeper_(size_t(pages), 0),
      kept_(size_t(pages), Kept::no) {}

// --- pages of sequences -------------------------------------------------------------------------

bool PrefixCache::take(int count, std::vector<int32_t>& out, Writer writer) {
  if (count > free()) return false;
  while (pages_.free() < count) evict_oldest();
  const size_t before = out.size();
  const bool taken = pages_.take(count, out);
  KIVI_VERIFY(taken);
  for (const int32_t page : std::span(out).subspan(before)) {
    holders_[size_t(page)] = 1;
    if (writer == Writer::step)
      awaited_batch_ = std::max(awaited_batch_, transferred_[size_t(page)]);
  }
  return true;
}

void PrefixCache::hold(int32_t page) {
  if (holders_[size_t(page)]++ == 0) update_age(keeper_[size_t(page)], kept_[size_t(page)]);
}

void PrefixCache::drop(int32_t page) {
  KIVI_VERIFY(page >= 0 && page < total() && holders_[size_t(page)] > 0);
  if (--holders_[size_t(page)] > 0) return;
  if (kept_[size_t(page)] == Kept::no)
    pages_.give_back(page);
  else
    update_age(keeper_[size_t(page)], kept_[size_t(page)]);
}

// --- the tree -----------------------------------------------------------------------------------

std::span<const int32_t> PrefixCache::tokens_of(int k, std::span<const int32_t> tokens) const {
  const int begin = k == 0 ? 0 : blocks_.end(k - 1);
  return tokens.subspan(size_t(begin), size_t(blocks_.end(k) - begin));
}

std::span<const int32_t> PrefixCache::pages_of(int k, const SequenceKv& kv) const {
  return std::span(kv.pages).subspan(size_t(k) * size_t(blocks_.block_pages),
                                     size_t(blocks_.block_pages));
}

void PrefixCache::extend_chains(SequenceKv& kv, std::span<const int32_t> tokens,
                                std::string_view salt) const {
  const int whole = blocks_.whole(int(tokens.size()));
  for (int k = int(kv.chains.size()); k < whole; ++k)
    kv.chains.push_back(
        hash_of(k == 0 ? hash_of(secret_, salt) : kv.chains[size_t(k) - 1], tokens_of(k, tokens)));
}

uint64_t PrefixCache::child(uint64_t parent, int k, uint64_t chain, std::span<const int32_t> tokens,
                            std::string_view salt) const {
  const auto found = by_chain_.find(chain);
  if (found == by_chain_.end()) return 0;
  const Node& node = nodes_.at(found->second);
  if (node.parent != parent || (k == 0 && node.salt != salt)) return 0;
  return std::ranges::equal(node.tokens, tokens_of(k, tokens)) ? found->second : 0;
}

int PrefixCache::first_behind(int k) const {
  return std::max(0, k + 1 - (blocks_.behind + blocks_.block - 1) / blocks_.block);
}

// The sequence can be continued at the end of block k of the path.
bool PrefixCache::continuable(const std::vector<uint64_t>& path, int k) const {
  if (blocks_.slab_pages > 0 && nodes_.at(path[size_t(k)]).checkpoint.empty()) return false;
  const int complete = first_behind(k);
  for (int i = 0; i < complete; ++i)
    if (!nodes_.at(path[size_t(i)]).complete) return false;
  return true;
}

int PrefixCache::shareable(const std::vector<uint64_t>& path, int k) const {
  int blocks = first_behind(k);
  while (blocks <= k && nodes_.at(path[size_t(blocks)]).complete) ++blocks;
  return blocks;
}

PrefixMatch PrefixCache::find(const SequenceKv& kv, std::span<const int32_t> tokens,
                              std::string_view salt, int limit, int first_end, int grid) const {
  PrefixMatch match;
  std::vector<uint64_t> path;
  const int whole = blocks_.whole(limit);
  KIVI_VERIFY(int(kv.chains.size()) >= whole);
  for (int k = 0; k < whole; ++k) {
    const uint64_t node = child(k == 0 ? 0 : path.back(), k, kv.chains[size_t(k)], tokens, salt);
    if (node == 0) break;
    path.push_back(node);
  }
  if (path.empty()) return match;
  match.matched = blocks_.end(int(path.size()) - 1);
  match.checkpoint = blocks_.slab_pages == 0 || !nodes_.at(path.back()).checkpoint.empty();
  for (int k = int(path.size()) - 1; k >= 0; --k) {
    const int end = blocks_.end(k);
    if (grid != 0 && (end < first_end || (end - first_end) % grid != 0)) continue;
    if (!continuable(path, k)) continue;
    match.node = path[size_t(k)];
    match.tokens = end;
    const int complete = shareable(path, k);
    const auto count = [&](const std::vector<int32_t>& pages, bool shared) {
      for (const int32_t page : pages) {
        const bool held = holders_[size_t(page)] > 0;
        match.held_pages += shared && held ? 1 : 0;
        match.pinned_pages += !shared && !held ? 1 : 0;
      }
    };
    for (int i = 0; i <= k; ++i) count(nodes_.at(path[size_t(i)]).pages, i < complete);
    count(nodes_.at(match.node).checkpoint, false);
    break;
  }
  return match;
}

void PrefixCache::attach(const PrefixMatch& match, SequenceKv& kv) {
  KIVI_VERIFY(match.node != 0 && kv.pages.empty() && kv.pinned.empty() && kv.tokens == 0);
  std::vector<uint64_t> path;
  for (uint64_t id = match.node; id != 0; id = nodes_.at(id).parent) path.push_back(id);
  std::ranges::reverse(path);
  const int k = int(path.size()) - 1;
  const int complete = shareable(path, k);
  for (int i = 0; i <= k; ++i)
    for (const int32_t page : nodes_.at(path[size_t(i)]).pages) {
      (i < complete ? kv.pages : kv.pinned).push_back(page);
      hold(page);
    }
  Node& last = nodes_.at(match.node);
  for (const int32_t page : last.checkpoint) {
    kv.pinned.push_back(page);
    hold(page);
  }
  ++last.hits;
  // A sequence went on from here, so it did not part from the others before. Checkpoints before
  // this one that one sequence used at most have served.
  for (int i = 0; i < k; ++i) {
    Node& before = nodes_.at(path[size_t(i)]);
    if (!before.branch && before.hits <= 1) drop_checkpoint(before);
  }
  kv.tokens = kv.reused = kv.settled = match.tokens;
  kv.remembered = complete;
  kv.path = complete == 0 ? 0 : path[size_t(complete) - 1];
  if (blocks_.slab_pages > 0) kv.values_stored = complete * blocks_.block;
}

// --- remembering --------------------------------------------------------------------------------

void PrefixCache::remember(SequenceKv& kv, std::span<const int32_t> known, std::string_view salt) {
  extend_chains(kv, known, salt);
  walk(kv, known, salt);
  std::erase_if(kv.captured, [&](CapturedSlab& captured) {
    if (!captured.settled || captured.tokens > int(known.size())) return false;
    put_checkpoint(kv, captured, known, salt);
    return true;
  });
}

// Moves kv.path over the blocks whose pages the sequence has filled.
void PrefixCache::walk(SequenceKv& kv, std::span<const int32_t> known, std::string_view salt) {
  if (kv.path != 0 && !nodes_.contains(kv.path)) kv.path = uint64_t(kv.remembered = 0);
  for (;; ++kv.remembered) {
    const int k = kv.remembered, end = blocks_.end(k);
    if (end > int(known.size()) || end + blocks_.behind > kv.settled) return;
    uint64_t id = child(kv.path, k, kv.chains[size_t(k)], known, salt);
    if (id == 0) {
      id = insert(kv.path, k, kv, known, salt, /*complete=*/true);
      if (id == 0) return;  // other tokens have the same hash
    } else if (const Node& node = nodes_.at(id); !node.complete) {
      complete(id, pages_of(k, kv));
    } else if (end <= kv.reused) {
      // The sequence copied this block and filled it as the other one did, with the same values.
      for (int i = 0; i < blocks_.block_pages; ++i) {
        int32_t& page = kv.pages[size_t(k * blocks_.block_pages + i)];
        const int32_t kept = node.pages[size_t(i)];
        if (page == kept) continue;
        hold(kept);
        drop(page);
        page = kept;
      }
    }
    kv.path = id;
  }
}

void PrefixCache::put_checkpoint(SequenceKv& kv, CapturedSlab& captured,
                                 std::span<const int32_t> known, std::string_view salt) {
  const auto give_back = [&] {
    for (const int32_t page : captured.pages) drop(page);
  };
  const int last = blocks_.whole(captured.tokens) - 1;
  uint64_t id = 0;
  for (int k = 0; k <= last; ++k) {
    const bool has_values = captured.complete || k < first_behind(last);
    const bool filled = (k + 1) * blocks_.block_pages <= int(kv.pages.size());
    uint64_t next = child(id, k, kv.chains[size_t(k)], known, salt);
    if (next == 0 && filled) next = insert(id, k, kv, known, salt, has_values);
    if (next == 0) return give_back();
    if (has_values && filled) complete(next, pages_of(k, kv));
    id = next;
  }
  Node& node = nodes_.at(id);
  node.branch = node.branch || captured.branch;
  if (node.checkpoint.empty()) {
    node.checkpoint = captured.pages;
    node.hits = 0;
    ++checkpoints_;
    keep(id, node.checkpoint, Kept::checkpoint);
  }
  give_back();
  if (!captured.rolling) return;
  if (const auto before = nodes_.find(kv.rolling); kv.rolling != id && before != nodes_.end() &&
                                                   !before->second.branch &&
                                                   before->second.hits == 0)
    drop_checkpoint(before->second);
  kv.rolling = id;
}

int PrefixCache::complete_blocks(const SequenceKv& kv, std::span<const int32_t> tokens,
                                 std::string_view salt, int limit) const {
  uint64_t id = 0;
  for (int k = 0; k < limit; ++k) {
    id = child(id, k, kv.chains[size_t(k)], tokens, salt);
    if (id == 0 || !nodes_.at(id).complete) return k;
  }
  return limit;
}

int PrefixCache::hold_complete(const SequenceKv& kv, std::span<const int32_t> tokens,
                               std::string_view salt, int limit, std::vector<int32_t>& pages) {
  const int complete = complete_blocks(kv, tokens, salt, limit);
  uint64_t id = 0;
  for (int k = 0; k < complete; ++k) {
    id = child(id, k, kv.chains[size_t(k)], tokens, salt);
    for (const int32_t page : nodes_.at(id).pages) {
      hold(page);
      pages.push_back(page);
    }
  }
  return complete;
}

void PrefixCache::adopt(const SequenceKv& kv, std::span<const int32_t> tokens,
                        std::string_view salt, int end, const std::vector<int32_t>& pages,
                        const std::vector<int32_t>& checkpoint) {
  SequenceKv filled;
  filled.chains = kv.chains;
  filled.pages = pages;
  if (blocks_.slab_pages > 0) {
    CapturedSlab captured{.tokens = end, .settled = true, .pages = checkpoint};
    return put_checkpoint(filled, captured, tokens, salt);
  }
  filled.settled = end;
  walk(filled, tokens.first(size_t(end)), salt);
}

uint64_t PrefixCache::insert(uint64_t parent, int k, const SequenceKv& kv,
                             std::span<const int32_t> tokens, std::string_view salt,
                             bool complete) {
  const uint64_t chain = kv.chains[size_t(k)];
  if (by_chain_.contains(chain)) return 0;
  const std::span<const int32_t> pages = pages_of(k, kv);
  // A page that is kept already is the page of another path: a block copied by nobody.
  for (const int32_t page : pages)
    if (kept_[size_t(page)] != Kept::no) return 0;
  const uint64_t id = next_node_++;
  Node& node = nodes_[id];
  node.parent = parent;
  node.chain = chain;
  if (k == 0) node.salt = salt;
  const auto own = tokens_of(k, tokens);
  node.tokens.assign(own.begin(), own.end());
  node.pages.assign(pages.begin(), pages.end());
  node.complete = complete;
  node.salted = parent == 0 ? !salt.empty() : nodes_.at(parent).salted;
  by_chain_.emplace(chain, id);
  if (parent != 0) {
    nodes_.at(parent).children.push_back(id);
    touch_path(parent);
  }
  keep(id, node.pages, Kept::block);
  tell_stored(id);
  return id;
}

void PrefixCache::complete(uint64_t id, std::span<const int32_t> pages) {
  Node& node = nodes_.at(id);
  if (node.complete) return;
  node.complete = true;
  if (std::ranges::equal(node.pages, pages)) return;
  for (const int32_t page : pages)
    if (kept_[size_t(page)] != Kept::no) return;
  unkeep(node.pages);
  node.pages.assign(pages.begin(), pages.end());
  keep(id, node.pages, Kept::block);
}

// --- keeping and evicting -----------------------------------------------------------------------

void PrefixCache::keep(uint64_t node, std::span<const int32_t> pages, Kept kind) {
  for (const int32_t page : pages) {
    KIVI_VERIFY(kept_[size_t(page)] == Kept::no && holders_[size_t(page)] > 0);
    kept_[size_t(page)] = kind;
    keeper_[size_t(page)] = node;
  }
}

// Takes pages out of a node. If nobody holds them they become free.
void PrefixCache::unkeep(std::span<const int32_t> pages) {
  if (pages.empty()) return;
  const Kept kind = kept_[size_t(pages.front())];
  const uint64_t id = keeper_[size_t(pages.front())];
  Node& node = nodes_.at(id);
  uint64_t& stamp = kind == Kept::block ? node.pages_stamp : node.checkpoint_stamp;
  if (stamp != 0) {
    by_age_.erase(stamp);
    evictable_ -= int(pages.size());
    stamp = 0;
  }
  for (const int32_t page : pages) {
    kept_[size_t(page)] = Kept::no;
    keeper_[size_t(page)] = 0;
    if (holders_[size_t(page)] == 0) pages_.give_back(page);
  }
}

void PrefixCache::update_age(uint64_t id, Kept kind) {
  if (kind == Kept::no) return;
  Node& node = nodes_.at(id);
  const bool of_block = kind == Kept::block;
  const std::vector<int32_t>& pages = of_block ? node.pages : node.checkpoint;
  uint64_t& stamp = of_block ? node.pages_stamp : node.checkpoint_stamp;
  const bool unheld =
      std::ranges::all_of(pages, [&](int32_t page) { return holders_[size_t(page)] == 0; });
  if (unheld == (stamp != 0)) return;
  if (!unheld) {
    by_age_.erase(stamp);
    stamp = 0;
    evictable_ -= int(pages.size());
    return;
  }
  // A block's checkpoint is of no use without it: it goes just before.
  if (of_block && node.checkpoint_stamp != 0) {
    by_age_.erase(node.checkpoint_stamp);
    node.checkpoint_stamp = next_stamp_++;
    by_age_.emplace(node.checkpoint_stamp, Evictable{id, true});
  }
  stamp = next_stamp_++;
  by_age_.emplace(stamp, Evictable{id, !of_block});
  evictable_ += int(pages.size());
}

// Evictable blocks become the youngest, so that no block is evicted before those below it.
void PrefixCache::touch_path(uint64_t id) {
  while (id != 0) {
    Node& node = nodes_.at(id);
    if (node.pages_stamp != 0) {
      by_age_.erase(node.pages_stamp);
      node.pages_stamp = next_stamp_++;
      by_age_.emplace(node.pages_stamp, Evictable{id, false});
    }
    id = node.parent;
  }
}

void PrefixCache::evict_oldest() {
  KIVI_VERIFY(!by_age_.empty());
  const Evictable oldest = by_age_.begin()->second;
  if (oldest.checkpoint)
    drop_checkpoint(nodes_.at(oldest.node));
  else
    remove(oldest.node);
}

void PrefixCache::drop_checkpoint(Node& node) {
  if (node.checkpoint.empty()) return;
  unkeep(node.checkpoint);
  node.checkpoint.clear();
  --checkpoints_;
}

// Forgets a block and all below it.
void PrefixCache::remove(uint64_t id) {
  const uint64_t parent = nodes_.at(id).parent;
  if (parent != 0) std::erase(nodes_.at(parent).children, id);
  std::vector<uint64_t> left{id};
  while (!left.empty()) {
    const uint64_t next = left.back();
    left.pop_back();
    Node& node = nodes_.at(next);
    left.insert(left.end(), node.children.begin(), node.children.end());
    drop_checkpoint(node);
    unkeep(node.pages);
    by_chain_.erase(node.chain);
    const auto gone = nodes_.extract(next);
    tell_removed(next, gone.mapped());
  }
}

void PrefixCache::forget_all() {
  PrefixObserver* const observer = std::exchange(observer_, nullptr);
  while (!nodes_.empty()) remove(nodes_.begin()->first);
  observer_ = observer;
  if (told_all()) return;
  observer_->cleared();
  if (more_) more_(*observer_);
}

// --- events -------------------------------------------------------------------------------------

StoredBlock PrefixCache::described(uint64_t id, const Node& node) const {
  return {.id = id, .parent = node.parent, .tokens = node.tokens, .unit = blocks_.unit()};
}

void PrefixCache::announce_blocks(PrefixObserver& observer) const {
  std::vector<uint64_t> left;
  for (const auto& [id, node] : nodes_)
    if (node.parent == 0 && !node.salted) left.push_back(id);
  while (!left.empty()) {
    const uint64_t id = left.back();
    left.pop_back();
    const Node& node = nodes_.at(id);
    observer.stored(described(id, node));
    left.insert(left.end(), node.children.begin(), node.children.end());
  }
}

bool PrefixCache::told_all() {
  if (observer_ == nullptr) return true;
  if (!observer_->needs_all()) return false;
  observer_->cleared();
  announce_blocks(*observer_);
  if (more_) more_(*observer_);
  return true;
}

void PrefixCache::tell_stored(uint64_t id) {
  const Node& node = nodes_.at(id);
  if (!node.salted && !told_all()) observer_->stored(described(id, node));
}

void PrefixCache::tell_removed(uint64_t id, const Node& node) {
  if (!node.salted && !told_all())
    observer_->removed(id, int(node.tokens.size()), blocks_.unit(), PrefixMedium::device);
}

}  // namespace kivi
