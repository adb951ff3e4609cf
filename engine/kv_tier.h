// SPDX-License-Identifier: Apache-2.0
// KvTier: the prefix cache's pages on the host, and what lies beyond them
// (docs/design/kv-tiers.md). It only keeps accounts: a StepRunner moves the bytes between store and
// host, and a PieceStore those between host and disk. Engine thread only.
//
// What the prefix cache remembers is also copied to host pages ("written behind") as soon as it can
// not change any more. So nothing has to be saved when the store's pages are taken. A *piece* is a
// block or a checkpoint (piece_store.h). Pieces have names that say all that their bytes depend on,
// so a piece never changes. The least recently used one is dropped when host pages run out.
//
// If the tier has more of a waiting sequence's first tokens than the store, the sequence *fetches*
// them: pages of the store are taken and filled beside the steps, and then the prefix cache
// remembers them as if they had been computed. The sequence finds them there. Until then it lets
// others pass.
//
// Order: transfers go in batches, one a plan. Batches run one after the other, each after the steps
// launched before it. So host pages need no protection against other transfers, and a page of the
// store that a transfer reads or writes may be given away at once: the step that writes it waits
// for the batch, on the device (PrefixCache::note_transfer, BatchPlan::after_transfers). No page is
// held only because it is copied, so no copy ever causes a preemption. Pages of a fetch are held by
// it, and the fetch is abandoned before a running sequence is preempted.
#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/batch_plan.h"
#include "engine/host_blocks.h"
#include "engine/id_pool.h"
#include "engine/piece_store.h"
#include "engine/prefix_cache.h"
#include "engine/running_rate.h"
#include "engine/sequence.h"
#include "kernels/backend.h"

namespace kivi {

// What a KvTier is made of. The default is none.
struct KvTierSetup {
  int host_pages = 0;                   // 0: no tier
  std::string secret;                   // of the names
  std::string fingerprint;              // what besides tokens a page's bytes depend on
  HostMemory memory{nullptr, nullptr};  // the host pages; null in simulations
  std::unique_ptr<PieceStore> disk;     // null: none
};

// The rates by which the time of fetching is compared with that of computing. All are rates of
// recent work; 0: not known.
struct FetchRates {
  double tokens = 0;      // computed in a second, of prompts
  double pages = 0;       // copied between the host and the store in a second
  double disk_pages = 0;  // read from disk in a second
};

// How far a sequence's first tokens can be fetched, and how far they should be.
struct FetchReach {
  int longest = 0;  // tokens at which the sequence can be continued if all is fetched; 0: none
  int end = 0;      // the same, of what is worth it; 0: nothing is
  // Of the tokens up to `end`, or up to `longest` if end is 0.
  double fetch_seconds = 0;
  double compute_seconds = 0;
};

// Sequences whose first tokens could have come from the host or from disk, and were computed,
// because that was estimated to be faster.
struct FetchCounts {
  uint64_t declined = 0;         // sequences
  uint64_t tokens_declined = 0;  // that they computed instead
  FetchReach last;               // of the last sequence that had the choice; longest 0: none had it
};

struct KvTierStats {
  int64_t host_pages_total = 0, host_pages_used = 0;
  int64_t page_bytes = 0;            // 0: no tier; the engine's
  uint64_t pages_to_host = 0;        // written behind
  uint64_t pages_to_device = 0;      // brought back
  uint64_t tokens_fetched = 0;       // of sequences, brought back
  uint64_t tokens_fetched_disk = 0;  // of these, from disk
  uint64_t fetches = 0;
  uint64_t fetches_failed = 0;  // abandoned for pages, cancelled, or a piece was gone
  FetchRates rates;             // the scheduler's
  PieceStoreStats disk;
};

class KvTier {
 public:
  KvTier(PrefixCache& device, KvTierSetup setup);
  ~KvTier();

  bool on() const { return host_.total() > 0; }

  // --- writing behind ---------------------------------------------------------------------------
  // Extends kv.names by the whole blocks of `tokens`. Any thread that owns `kv`.
  void extend_names(SequenceKv& kv, std::span<const int32_t> tokens, std::string_view salt) const;
  // Copies to the host what the sequence's pages hold of `known` tokens and is not there: complete
  // blocks, and the checkpoints in kv.captured that are about to be remembered.
  void offer(SequenceKv& kv, std::span<const int32_t> known, std::string_view salt);
  // The sequence leaves its pages: its last rolling checkpoint will not be replaced, and goes on to
  // disk.
  void settle(SequenceKv& kv);

  // --- bringing back ----------------------------------------------------------------------------
  // Returns how far the sequence's tokens can be fetched: more than `match` has, at most `limit`,
  // and as PrefixCache::find says. The end is the one that spares the most time at these rates;
  // where one of them is not known, it is the longest.
  FetchReach reach(const SequenceKv& kv, std::span<const int32_t> tokens, std::string_view salt,
                   const PrefixMatch& match, int limit, int first_end, int grid,
                   const FetchRates& rates) const;
  // The rates of copies and of reads so far. Those of prompts are the scheduler's.
  FetchRates rates() const;
  // Returns the pages that a fetch up to `end` takes beyond those of the sequence itself.
  int extra_pages() const;
  // Begins to fetch the first `end` tokens of a waiting sequence. Returns false, and changes
  // nothing, if there are not enough pages.
  bool fetch(Sequence& s, int end, std::string_view salt);
  // The sequence's pages are on their way.
  bool fetching(const Sequence& s) const;
  // Another sequence is fetching the first `end` tokens of this one.
  bool fetched_by_other(const Sequence& s, int end) const;
  bool has_fetches() const { return !fetches_.empty(); }
  // The sequence needs its fetch no longer: it has been admitted, or has ended.
  void release(const Sequence& s);
  // Gives back the pages of the youngest fetch. Returns false if there is none.
  bool abandon_one();
  void abandon_all();

  // --- steps ------------------------------------------------------------------------------------
  // The first `batches` batches of transfers are done, and were copied in `seconds` seconds in all
  // (0: not known). Call it before each plan.
  void advance(uint64_t batches, double seconds);
  // Moves the transfers since the last plan into this one, and says which of them its step awaits.
  void hand_over(BatchPlan& plan);
  // There is something to do without any sequence: transfers to hand over, or jobs to wait for.
  bool busy() const;

  // Call it if what was computed may be wrong. Drops everything on the host, and what lies on disk
  // under these names.
  void forget_all();
  void forget_on_disk(std::span<const BlockName> names);

  KvTierStats stats() const;
  // For tests: whether a block is on the host, by itself or with a checkpoint at its end; the pages
  // of the store that fetches hold; and the host pages of all pieces.
  bool holds(const BlockName& name) const;
  std::vector<int32_t> pages_of_fetches() const;
  std::vector<int32_t> pages_of_pieces() const;

 private:
  struct Piece {
    std::vector<int32_t> pages;  // host pages
    uint64_t batch = 0;          // that fills them
    int pins = 0;                // jobs that read or write them
    bool loading = false;        // from disk
    bool from_disk = false;
    bool rolling = false;  // the sequence's next one replaces it
    bool doomed = false;   // dropped when the last job ends
    std::list<PieceKey>::iterator age;
  };
  using Pieces = std::unordered_map<PieceKey, Piece, PieceKeyHash>;
  struct Part {  // of a fetch
    PieceKey key;
    std::vector<int32_t> pages;  // of the store
    int tokens = 0;
    bool copied = false;  // handed over
  };
  struct Fetch {
    const Sequence* sequence = nullptr;
    std::string salt;
    int end = 0;
    std::vector<int32_t> pages;       // of the store, of all blocks up to the end; held
    std::vector<int32_t> checkpoint;  // of the store; held
    std::vector<Part> parts;
    uint64_t batch = 0;  // the last one that fills pages
    bool ready = false;  // the prefix cache has it
  };
  struct Job {
    PieceKey key;
    bool writes = false;
  };

  enum class Place : uint8_t { none, host, disk };
  Place place_of(const PieceKey& key) const;
  void touch(Piece& piece);
  void touch_path(const SequenceKv& kv, int blocks);
  // Takes host pages. Drops old pieces for them. False if pages of jobs are in the way.
  bool take_host(int count, std::vector<int32_t>& pages);
  Pieces::iterator add_piece(const PieceKey& key, std::vector<int32_t> pages);
  void drop(Pieces::iterator piece);
  void put(const PieceKey& key, std::span<const int32_t> block, std::span<const int32_t> slab,
           bool may_change, bool to_disk);
  void write_later(const PieceKey& key);
  void put_checkpoint(SequenceKv& kv, std::span<const int32_t> known, std::string_view salt,
                      const CapturedSlab& captured);
  // Block k of the sequence may be on the host now: those who follow may know of it.
  void announce(const SequenceKv& kv, int k, std::span<const int32_t> known, std::string_view salt);
  uint64_t next_batch() const { return handed_over_ + 1; }
  int piece_pages(PieceKind kind) const;
  void finish_jobs();
  void copy_parts(Fetch& fetch);
  // False if a part is nowhere any more.
  bool load_parts(const Fetch& fetch);
  void adopt(Fetch& fetch);
  void give_back(Fetch& fetch);
  void start_writes();

  PrefixCache& device_;
  const HostMemory memory_;
  const std::unique_ptr<PieceStore> disk_;  // ends its jobs before the memory goes
  BlockNamer namer_;
  HostBlocks announced_;
  IdPool host_;
  Pieces pieces_;
  std::list<PieceKey> by_age_;  // the first is the oldest
  std::list<Fetch> fetches_;    // the last is the youngest
  std::vector<KvTransfer> transfers_;
  uint64_t handed_over_ = 0;  // batches
  uint64_t done_ = 0;         // batches
  double copied_seconds_ = 0;
  struct Batch {
    int pages = 0;
    bool fetches = false;
  };
  std::deque<Batch> batches_;  // handed over and not done
  RunningRate copies_;         // pages of batches that fetch
  uint64_t awaited_ = 0;       // a batch that the next step waits for
  std::deque<PieceKey> to_write_;
  std::unordered_map<uint64_t, Job> jobs_;
  KvTierStats counted_;
};

}  // namespace kivi
