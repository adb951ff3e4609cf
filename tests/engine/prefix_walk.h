// SPDX-License-Identifier: Apache-2.0
// A random walk of sequences through a KvCache: they begin alike, part, grow, leave checkpoints and
// end, and the cache evicts. Nothing is computed. Used where somebody follows what the cache keeps.
#pragma once

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/verify.h"
#include "engine/kv_cache.h"

namespace kivi::testing {

using TokenPath = std::vector<int32_t>;  // all tokens up to the end of a block

// Mirrors the cache by its events alone.
class PrefixMirror : public PrefixObserver {
 public:
  void stored(const StoredBlock& block) override {
    TokenPath path = block.parent == 0 ? TokenPath{} : paths_.at(block.parent);
    path.insert(path.end(), block.tokens.begin(), block.tokens.end());
    if (block.parent != 0) KIVI_VERIFY(media_.at(block.parent) == block.medium);
    const bool is_new = paths_.emplace(block.id, std::move(path)).second;
    KIVI_VERIFY(is_new);
    media_[block.id] = block.medium;
  }
  void removed(uint64_t id, int, int, PrefixMedium medium) override {
    if (paths_.erase(id) > 0) KIVI_VERIFY(media_.at(id) == medium);
  }
  void cleared() override { paths_.clear(); }
  bool needs_all() override { return false; }

  std::set<TokenPath> paths(PrefixMedium medium = PrefixMedium::device) const {
    std::set<TokenPath> out;
    for (const auto& [id, path] : paths_) {
      if (media_.at(id) != medium) continue;
      const bool is_new = out.insert(path).second;
      KIVI_VERIFY(is_new);
    }
    return out;
  }

 private:
  std::map<uint64_t, TokenPath> paths_;     // by block
  std::map<uint64_t, PrefixMedium> media_;  // by block, of those that are gone too
};

// What the cache keeps for requests without a salt, as it announces it to a newcomer.
inline std::set<TokenPath> kept_paths(const PrefixCache& cache) {
  PrefixMirror mirror;
  cache.announce_blocks(mirror);
  return mirror.paths();
}

class PrefixWalk {
 public:
  PrefixWalk(const KvLayout& layout, int pages, uint64_t seed, int host_pages = 0)
      : cache_(layout, {.pages = pages, .slots = kSequencesMax + 1, .staging_pages = 0},
               {.host_pages = host_pages, .secret = "secret"}),
        random_(seed) {}
  ~PrefixWalk() {
    for (Walker& walker : walkers_) cache_.release(walker.kv);
  }

  KvCache& cache() { return cache_; }

  // One operation: a sequence begins, grows, is remembered or ends, or everything is forgotten.
  void step() {
    BatchPlan plan;
    cache_.tier().advance(batches_, 0);
    cache_.tier().hand_over(plan);
    batches_ += plan.transfers.empty() ? 0 : 1;
    const int choice = draw(1000);
    if (choice == 0) {
      cache_.tier().forget_all();
      return cache_.prefixes().forget_all();
    }
    if (walkers_.size() < kSequencesMax && (walkers_.empty() || choice < 300)) return begin();
    Walker& walker = walkers_[size_t(draw(int(walkers_.size())))];
    if (choice < 800) return grow(walker, 1 + draw(90));
    if (choice < 900) return remember(walker);
    end(walker);
  }

  // The number of leading tokens that the cache finds, asked as a request would ask.
  int matched(const TokenPath& tokens) const {
    SequenceKv kv;
    cache_.prefixes().extend_chains(kv, tokens, "");
    return cache_.prefixes().find(kv, tokens, "", int(tokens.size())).matched;
  }

  // The paths of all blocks that are on the host with all blocks before them, as the tier says when
  // it is asked for each one.
  std::set<TokenPath> on_host() const {
    std::set<TokenPath> paths;
    for (const TokenPath& path : offered_) {
      SequenceKv kv;
      cache_.tier().extend_names(kv, path, "");
      if (std::ranges::all_of(kv.names, [&](const BlockName& n) { return cache_.tier().holds(n); }))
        paths.insert(path);
    }
    return paths;
  }

 private:
  static constexpr size_t kSequencesMax = 6;

  struct Walker {
    TokenPath tokens;
    std::string salt;
    SequenceKv kv;
  };

  int draw(int count) { return int(random_() % uint64_t(count)); }

  // Few different tokens, each for 40 places, so that sequences often begin alike.
  void extend(TokenPath& tokens, size_t length) {
    while (tokens.size() < length)
      tokens.insert(tokens.end(), std::min<size_t>(40 - tokens.size() % 40, length - tokens.size()),
                    tokens.size() % 40 == 0 ? draw(2) : tokens.back());
  }

  void begin() {
    Walker walker;
    extend(walker.tokens, size_t(1 + draw(500)));
    if (draw(8) == 0) walker.salt = "salt";
    PrefixCache& prefixes = cache_.prefixes();
    prefixes.extend_chains(walker.kv, walker.tokens, walker.salt);
    const PrefixMatch match =
        prefixes.find(walker.kv, walker.tokens, walker.salt, int(walker.tokens.size()) - 1);
    if (match.tokens > 0) prefixes.attach(match, walker.kv);
    const int more = int(walker.tokens.size()) - match.tokens;
    if (!store(walker, more)) return cache_.release(walker.kv);
    walkers_.push_back(std::move(walker));
  }

  bool store(Walker& walker, int more) {
    if (!cache_.reserve(walker.kv, more, KvMode::append)) return false;
    cache_.unpin(walker.kv);
    cache_.commit(walker.kv, more, KvMode::append);
    walker.kv.settled = walker.kv.tokens;
    return true;
  }

  void grow(Walker& walker, int more) {
    // Stop at the boundary, where a checkpoint may be captured.
    const PrefixBlocks& blocks = cache_.prefixes().blocks();
    const int next = blocks.end(blocks.whole(walker.kv.tokens));
    more = std::min(more, next - walker.kv.tokens);
    extend(walker.tokens, walker.tokens.size() + size_t(more));
    if (!store(walker, more)) {
      walker.tokens.resize(size_t(walker.kv.tokens));
      return end(walker);
    }
    if (walker.kv.tokens != next || blocks.slab_pages == 0 || draw(2) == 0) return;
    std::vector<KvCopy> copies;
    std::vector<int32_t> pages = cache_.capture(walker.kv.slot, copies);
    if (!pages.empty())
      walker.kv.captured.push_back({next, draw(2) == 0, draw(2) == 0, true, std::move(pages)});
  }

  void remember(Walker& walker) {
    if (cache_.tier().on()) {
      cache_.tier().offer(walker.kv, walker.tokens, walker.salt);
      const PrefixBlocks& blocks = cache_.prefixes().blocks();
      for (int k = 0; walker.salt.empty() && k < blocks.whole(int(walker.tokens.size())); ++k)
        offered_.emplace(walker.tokens.begin(), walker.tokens.begin() + blocks.end(k));
    }
    cache_.prefixes().remember(walker.kv, walker.tokens, walker.salt);
  }

  void end(Walker& walker) {
    remember(walker);
    cache_.tier().settle(walker.kv);
    cache_.release(walker.kv);
    std::swap(walker, walkers_.back());
    walkers_.pop_back();
  }

  KvCache cache_;
  std::set<TokenPath> offered_;  // of blocks, to the tier
  uint64_t batches_ = 0;         // of transfers
  std::mt19937_64 random_;
  std::vector<Walker> walkers_;
};

}  // namespace kivi::testing
