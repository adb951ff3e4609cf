// SPDX-License-Identifier: Apache-2.0
// PrefixCache: the pages of the store, who holds them, and which tokens the unheld ones still hold
// (docs/design/prefix-cache.md). It only keeps accounts and moves no bytes. Engine thread only.
//
// A page is free, held by one or more sequences, kept by the cache, or both held and kept. A kept
// page that nobody holds is *evictable*: it counts as free, and it is taken, oldest first, when
// free pages run out.
//
// Tokens are remembered in blocks. Block 0 has the sinks and `block` tokens, every other one
// `block` tokens, where `block` is a multiple of the page and of R. So at the end of a block
// (a *boundary*) the residual holds no keys. Blocks form a tree: a block's parent is the block
// before it, and a block is found by the hash of all tokens up to its end. Tokens are compared too,
// so equal hashes of different tokens do no harm.
//
// A sequence can be continued at a boundary if the blocks before it are there and, in a KIVI
// format, a *checkpoint*: the slab (residual and sinks) as it was at the boundary. A checkpoint is
// stored in pages of its own, `slab_pages` of them, piece after piece.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/id_pool.h"
#include "engine/prefix_events.h"
#include "engine/sequence.h"
#include "kernels/kv_page.h"

namespace kivi {

// How tokens are divided into blocks.
struct PrefixBlocks {
  int first = 0;        // tokens of block 0
  int block = 0;        // tokens of every other block
  int block_pages = 0;  // pages of a block
  int behind = 0;       // R: when this many tokens follow a block, its values are all in pages
  int slab_pages = 0;   // pages of a checkpoint; 0: the format needs none

  static PrefixBlocks of(const KvLayout& layout);
  // The number of tokens up to the end of block k.
  int end(int k) const { return first + k * block; }
  // The greatest number of tokens of which every block is a whole number.
  int unit() const { return std::gcd(first, block); }
  // The number of whole blocks in `tokens` tokens.
  int whole(int tokens) const { return tokens < first ? 0 : (tokens - first) / block + 1; }
};

// What the cache has of a sequence's tokens.
struct PrefixMatch {
  uint64_t node = 0;     // of the block after whose end the sequence can be continued; 0: none
  int tokens = 0;        // up to the end of that block: what need not be computed
  int matched = 0;       // tokens up to the last block that is known, with a checkpoint or without
  int held_pages = 0;    // pages of the match that other sequences hold
  int pinned_pages = 0;  // evictable pages that must stay until they have been copied
  bool checkpoint = false;  // the last known block has a checkpoint, or needs none
};

// Prompt tokens of sequences that were admitted for the first time and may use the cache.
struct PrefixCounts {
  uint64_t queried = 0;
  uint64_t hit = 0;        // of these, reused
  uint64_t reachable = 0;  // of these, what an unbounded cache could have reused (an estimate)
};

class PrefixCache {
 public:
  PrefixCache(const KvLayout& layout, int pages);

  const PrefixBlocks& blocks() const { return blocks_; }
  // The tokens of block k.
  std::span<const int32_t> tokens_of(int k, std::span<const int32_t> tokens) const;
  // The first block whose values are not all in pages at the end of block k.
  int first_behind(int k) const;
  int total() const { return pages_.total(); }
  int free() const { return pages_.free() + evictable_; }  // free or evictable
  int evictable() const { return evictable_; }
  // Pages that sequences hold.
  int held() const { return total() - free(); }

  // --- pages of sequences -----------------------------------------------------------------------
  // Appends `count` pages, held once, or returns false and changes nothing. Evicts as needed. A
  // step will write them, or a transfer, which is in order with other transfers by itself.
  enum class Writer : uint8_t { step, transfer };
  bool take(int count, std::vector<int32_t>& out, Writer writer = Writer::step);
  // A transfer of this batch reads or writes the page. A step that writes it must wait for it.
  void note_transfer(int32_t page, uint64_t batch) { transferred_[size_t(page)] = batch; }
  // The last batch that pages which were taken for a step, since the last call, must wait for; 0:
  // none.
  uint64_t take_awaited_batch() { return std::exchange(awaited_batch_, 0); }
  void hold(int32_t page);
  void drop(int32_t page);
  // True if `page` is held by one sequence and no more.
  bool exclusive(int32_t page) const { return holders_[size_t(page)] == 1; }

  // --- prefixes ---------------------------------------------------------------------------------
  // Extends kv.chains by the hashes of the whole blocks of `tokens`. Any thread that owns `kv`.
  void extend_chains(SequenceKv& kv, std::span<const int32_t> tokens, std::string_view salt) const;
  // Finds the longest prefix of at most `limit` tokens that the sequence can be continued from.
  // kv.chains is extended. If `grid` is not 0, only every boundary at `first_end` + n `grid`
  // counts.
  PrefixMatch find(const SequenceKv& kv, std::span<const int32_t> tokens, std::string_view salt,
                   int limit, int first_end = 0, int grid = 0) const;
  // The sequence holds the match's complete pages from now on, and pins what is to be copied: the
  // pages whose values are not all there, then the checkpoint.
  void attach(const PrefixMatch& match, SequenceKv& kv);
  // Remembers the blocks of `known` tokens of a sequence whose pages hold them, and attaches the
  // checkpoints in kv.captured that lie within them.
  void remember(SequenceKv& kv, std::span<const int32_t> known, std::string_view salt);
  // Appends the pages of the first blocks that are complete, block after block, and holds them.
  // Returns the number of these blocks, at most `limit`.
  int hold_complete(const SequenceKv& kv, std::span<const int32_t> tokens, std::string_view salt,
                    int limit, std::vector<int32_t>& pages);
  // The same number.
  int complete_blocks(const SequenceKv& kv, std::span<const int32_t> tokens, std::string_view salt,
                      int limit) const;
  // Remembers the first blocks of `tokens`, whose pages the caller has filled and holds, up to
  // `end`, and the checkpoint there. The caller still holds the pages, and gives the checkpoint's
  // away.
  void adopt(const SequenceKv& kv, std::span<const int32_t> tokens, std::string_view salt, int end,
             const std::vector<int32_t>& pages, const std::vector<int32_t>& checkpoint);
  // Forgets everything. Pages that sequences hold stay theirs.
  void forget_all();

  int checkpoints_kept() const { return checkpoints_; }

  // --- events -----------------------------------------------------------------------------------
  // Tells `observer` from now on which blocks are kept; null: nobody. It must outlive the cache.
  void observe(PrefixObserver* observer) { observer_ = observer; }
  // Calls observer.stored() for every block that is kept, parents first.
  void announce_blocks(PrefixObserver& observer) const;
  // Calls `more` whenever an observer is told everything anew: it announces what lies elsewhere.
  void announce_also(std::function<void(PrefixObserver&)> more) { more_ = std::move(more); }
  bool observed() const { return observer_ != nullptr; }
  // Returns the observer, for one event; null if there is none, or if it was just told everything.
  PrefixObserver* observer_to_tell() { return told_all() ? nullptr : observer_; }

 private:
  struct Node {
    uint64_t parent = 0;
    uint64_t chain = 0;
    std::string salt;  // of block 0 alone
    std::vector<int32_t> tokens;
    std::vector<int32_t> pages;
    bool complete = false;  // the pages hold the values of all tokens
    std::vector<int32_t> checkpoint;
    int hits = 0;         // times that a sequence was continued from the checkpoint
    bool branch = false;  // sequences are known to part here
    bool salted = false;  // the path begins with a salt
    std::vector<uint64_t> children;
    uint64_t pages_stamp = 0;       // place in by_age_; 0: not evictable
    uint64_t checkpoint_stamp = 0;  // the same
  };
  struct Evictable {
    uint64_t node;
    bool checkpoint;
  };
  enum class Kept : uint8_t { no, block, checkpoint };

  std::span<const int32_t> pages_of(int k, const SequenceKv& kv) const;
  // The node of block k below `parent`; 0 if there is none.
  uint64_t child(uint64_t parent, int k, uint64_t chain, std::span<const int32_t> tokens,
                 std::string_view salt) const;
  uint64_t insert(uint64_t parent, int k, const SequenceKv& kv, std::span<const int32_t> tokens,
                  std::string_view salt, bool complete);
  bool continuable(const std::vector<uint64_t>& path, int k) const;
  // The number of first blocks that a sequence which is continued at the end of block k can hold
  // together with others. It copies the blocks after them, whose values are not all there.
  int shareable(const std::vector<uint64_t>& path, int k) const;
  void walk(SequenceKv& kv, std::span<const int32_t> known, std::string_view salt);
  void put_checkpoint(SequenceKv& kv, CapturedSlab& captured, std::span<const int32_t> known,
                      std::string_view salt);
  void drop_checkpoint(Node& node);
  void keep(uint64_t node, std::span<const int32_t> pages, Kept kind);
  void unkeep(std::span<const int32_t> pages);
  // Gives an incomplete block the pages of a sequence that has filled them.
  void complete(uint64_t id, std::span<const int32_t> pages);
  // The page of a node has been held or dropped: the node's place in by_age_ follows.
  void update_age(uint64_t id, Kept kind);
  void touch_path(uint64_t id);
  void evict_oldest();
  void remove(uint64_t id);
  StoredBlock described(uint64_t id, const Node& node) const;
  void tell_stored(uint64_t id);
  void tell_removed(uint64_t id, const Node& node);
  // Returns true if there is no observer, or if it was just told everything.
  bool told_all();

  const PrefixBlocks blocks_;
  const uint64_t secret_;  // hashes begin with it, so that nobody can make two of them equal
  IdPool pages_;
  std::vector<int32_t> holders_;       // sequences, by page
  std::vector<uint64_t> transferred_;  // the last batch of transfers, by page; 0: none
  uint64_t awaited_batch_ = 0;
  std::vector<uint64_t> keeper_;  // node, by page; 0: not kept
  std::vector<Kept> kept_;        // by page
  std::unordered_map<uint64_t, Node> nodes_;
  std::unordered_map<uint64_t, uint64_t> by_chain_;
  std::map<uint64_t, Evictable> by_age_;  // by stamp: the first is the oldest
  uint64_t next_node_ = 1;
  uint64_t next_stamp_ = 1;
  int evictable_ = 0;
  int checkpoints_ = 0;
  PrefixObserver* observer_ = nullptr;
  std::function<void(PrefixObserver&)> more_;
};

}  // namespace kivi
