// SPDX-License-Identifier: Apache-2.0
// Scheduler: which tokens of which sequences the next step computes (continuous batching with
// chunked prefill). Pure bookkeeping: no device, no clock, no text. Engine thread only.
//
// Order of a step: every running sequence that decodes gets its one token first; then prompt chunks
// of running sequences, oldest first; then waiting sequences are admitted while rows, slots, pages
// and staging pages last, strictly in order. A chunk has a fixed length (prefill_chunk_tokens, or
// what is left of the prompt), so that a request's numbers do not depend on its company: a prompt
// whose first chunk does not fit waits for the next step. A running sequence always gets its rows:
// each chunk counts as the longest one that may follow it, and newcomers get what is left.
//
// Whose turn it is: under fcfs the oldest sequence, by arrival. Under `priority` the priority goes
// before the arrival. Under `fair` the waiting sequence of the tenant that has been served least is
// admitted first (fair_queue.h), and the running sequences are ordered in rounds: first each
// tenant's oldest running sequence, then each tenant's second oldest, and so on. With one tenant
// this is the order of arrival, so that `fair` is then exactly fcfs.
//
// A sequence whose constraint has forced tokens computes them together, up to forced_rows_ of them
// in a step. While such a sequence runs, rows for one of them are kept free. If the rows of a step
// do not suffice, the sequence waits for the next step, so that its numbers do not depend on its
// company.
//
// When pages run out, the last running sequence in this order that holds pages is preempted. It
// gives everything back, returns to the queue at its old age and is computed again from its tokens.
// A sequence preempts only those that come after it. If none of them holds pages, it keeps what it
// holds and is skipped in this step.
//
// A tenant that runs nothing need not wait until another tenant's sequences end (`fair`). Its
// oldest sequence is admitted at the beginning of a step, at most one sequence a step, and takes
// what it needs from the youngest sequences of the tenant that is ahead the most. It takes nothing
// from a tenant's last running sequence, and only if that tenant's counter is ahead by the tokens
// that must be computed again, or by kLeadTokensMax. So a preemption costs a tenant no more than it
// has been served since, and the wait is bounded: a tenant with n decoding sequences gains 2 n a
// step, and is ahead by enough after kLeadTokensMax / (2 n) steps.
//
// Why everything moves: the oldest running sequence is never preempted. It can take the pages of
// all others, and alone it fits (KvCache::fits_ever). A step has rows for all decodes and one chunk
// (validate), so the head of the queue is not kept out by them. Staging pages of a whole prompt are
// promised at admission, so no chunk waits for them. Besides the one of a tenant that runs nothing,
// no sequence is admitted in a step that was short of pages, nor into the last hundredth of them,
// nor into pages that admitted prompts will need: what preemption has freed is not handed to a
// newcomer.
//
// Why a small cache does not compute everything again and again: each time a sequence is preempted,
// twice as many pages must be free for growth before it is admitted again (growth_pages). So the
// tokens that it gains between two preemptions double.
//
// Modes of prompt chunks (KvMode): a prompt of one chunk is appended at once, and its rows attend
// to each other in 16 bits. For longer ones, prefill mode exact stages all chunks but the last,
// which seals. In mode stream, in formats f16 and f8 (they have no residual, and a read history
// costs f16 nothing), and in prompts beyond prefill_layerwise_tokens, every chunk is appended. In
// KIVI formats such chunks end at boundaries of the prefix cache (prefix_cache.h) where they are
// long enough.
//
// A prompt of mode exact that does not fit into staging is computed layer by layer (LayerwiseUnits,
// docs/design/decisions/032-layer-by-layer.md). Every other step belongs to it alone. Only one such
// prompt is computed at a time: others of its kind are passed over until the area is free.
//
// Prefix cache: a sequence that is admitted begins after the longest prefix that it can be
// continued from. Its other tokens are appended to that, chunk by chunk. In mode stream only
// prompts of several chunks are continued, and only at an end of their chunks, so that the numbers
// are those of a prompt that is computed as a whole. Checkpoints are captured where later sequences
// are likely to go on: at the last boundary of a prompt, where a prompt parts from what is known,
// and, while a sequence decodes, at its newest boundary (not in mode stream). A sequence whose
// prefix is being computed by a running one waits for that, and lets others pass. So does one whose
// prefix comes back from the host tier (kv_tier.h). It comes back only as far as that is estimated
// to be faster than computing it (docs/design/decisions/037-fetch-or-compute.md).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/batch_plan.h"
#include "engine/config.h"
#include "engine/fair_queue.h"
#include "engine/kv_cache.h"
#include "engine/running_rate.h"
#include "engine/sequence.h"

namespace kivi {

class Scheduler {
 public:
  // `config` is valid (validate); `cache` outlives the scheduler.
  Scheduler(const EngineConfig& config, KvCache& cache);

  // Computes the hashes and names of the prompt's blocks, so that the engine thread need not. Any
  // thread, for a sequence that it owns. `like` (null: none) has them already: if prompt and salt
  // are the same ones, they are copied.
  void name_blocks(Sequence& sequence, const Sequence* like) const;

  // Takes a sequence in state waiting, its `order` set and unique. (What can never fit was refused
  // before: KvCache::fits_ever of prompt and max_tokens.)
  void add(std::unique_ptr<Sequence> sequence);

  // Plans a step and reserves its room. May preempt. The plan is empty only where there are no
  // sequences, or all of them wait for the last step, which is under way.
  BatchPlan plan();

  // The step has been launched: caches grow by the planned counts. Does not touch tokens.
  void commit(const BatchPlan& plan);
  // The step has been collected without an error: what it stored may be remembered.
  void settle(const BatchPlan& plan);

  // Takes a sequence out of wherever it is and gives back what it holds. What it has stored may be
  // reused, unless forget_prefixes follows.
  std::unique_ptr<Sequence> remove(Sequence* sequence);
  // Forgets what is kept of earlier sequences, because it may be wrong: a step with these sequences
  // failed.
  void forget_prefixes(std::span<Sequence* const> suspects);
  // Tells the next plan that this many batches of transfers are done (StepRunner::transfers_done),
  // and that they took `seconds` in all.
  void note_transfers(uint64_t batches, double seconds) {
    transfers_done_ = batches;
    transfer_seconds_ = seconds;
  }
  // Records that a step took `seconds`, without the time in which the step before still ran.
  void note_step(const BatchPlan& plan, double seconds);

  const PrefixCounts& prefix_counts() const { return prefix_counts_; }
  // The rates that the choice between fetching and computing goes by, and its results so far.
  FetchRates fetch_rates() const;
  const FetchCounts& fetch_counts() const { return fetch_counts_; }

  int running() const { return int(running_.size()); }
  int waiting() const { return queue_.size(); }
  int64_t waiting_tokens() const { return queue_.tokens(); }  // prompts and output to recompute
  uint64_t preemptions() const { return preemptions_; }
  // Preemptions in favor of a tenant that ran nothing; included in preemptions().
  uint64_t preemptions_for_tenants() const { return preemptions_for_tenants_; }
  // Every sequence, running ones first, oldest first; then the waiting ones, tenant by tenant,
  // oldest first. Valid until the next call of add, plan or remove.
  std::vector<Sequence*> sequences() const;

  // A tenant that is ahead by this many weighted tokens yields a running sequence to a tenant that
  // runs nothing, whatever it costs to compute it again.
  static constexpr int64_t kLeadTokensMax = 4096;
  // A step captures at most this many slabs within its chunks. Others are not captured.
  static constexpr int kCapturesMax = 8;

 private:
  using Running = std::map<SequenceAge, std::unique_ptr<Sequence>>;

  // What running sequences, with all that is promised to them, leave for others.
  struct Room {
    int sequences = 0;
    int slots = 0;
    int pages = 0;
    int staging_pages = 0;
    int layerwise = 0;  // prompts that may be computed layer by layer
    int rows = 0;
  };

  // A waiting sequence, and how it would begin.
  struct Candidate {
    Sequence* sequence = nullptr;
    PrefixMatch match;
    PlannedSequence part;  // its first
    int pages = 0;         // that must be free
    int staging_pages = 0;
    bool reuses = false;  // what is kept may be reused, if there is something
    int declined = 0;     // tokens that could be fetched, and are to be computed
  };

  // Of a sequence that was not continued from a prefix.
  bool staged(const Sequence& s) const;
  int staged_pages(const Sequence& s) const;
  PlannedSequence next_part(Sequence& s) const {
    return part_from(s, s.kv.tokens, s.kv.reused > 0);
  }
  PlannedSequence part_from(Sequence& s, int past, bool reuses) const;
  // The prompts that are computed layer by layer (scheduler_layerwise.cpp).
  bool layerwise(const Sequence& s) const;  // of a sequence that was not continued from a prefix
  Sequence* layerwise_prompt() const;       // the one that is being computed; null: none
  void hold_captures(Sequence& s);
  void plan_layerwise(BatchPlan& plan, Sequence& s);
  // The end of an appended chunk that begins at `past`.
  int chunk_end(int past) const;
  // Running sequences in the order in which a step serves them.
  std::vector<Running::iterator> turns();
  // True if every running sequence had its pages, without preempting another.
  bool plan_running(BatchPlan& plan);
  bool reserve_or_preempt(std::vector<Running::iterator>& turns, size_t needy,
                          const PlannedSequence& part, bool& preempted);
  void admit_waiting(BatchPlan& plan);
  // True if it preempted. Then nothing else is admitted in this step: the token that a victim
  // awaits from a step under way is not known yet.
  bool admit_starved_tenant();
  Running::iterator victim_for(const Tenant& starved, const std::vector<Running::iterator>& others,
                               int64_t& recomputed);
  void put(BatchPlan& plan, const PlannedSequence& part);
  Candidate without_prefix(Sequence& s) const;
  void admit(const Candidate& c);
  // The rows that this part or a later one of its sequence takes at most.
  int rows_promised(const PlannedSequence& part) const;
  int rows_left() const;
  // Rows beside those that are promised which are kept for forced tokens.
  int rows_kept() const;
  Room room(int rows) const;
  // What a running sequence holds and is promised.
  Room share_of(Sequence& s) const;
  bool fits(const Candidate& c, const Room& room) const;
  // Pages that must stay free when a sequence is admitted beside others, or a checkpoint captured.
  int watermark() const { return (cache_.capacity().pages + 99) / 100; }
  // The prefix cache's part in a step (scheduler_prefixes.cpp).
  Candidate candidate(Sequence& s);
  // The candidate's first tokens are being fetched, or begin to be, if that is faster than
  // computing them. Otherwise c.declined is set.
  bool fetches(Candidate& c, const Room& room);
  // A running sequence computes a longer prefix of the candidate's tokens than is known now.
  bool prefix_is_coming(const Candidate& c) const;
  bool cacheable(const Sequence& s) const;
  std::string salt_of(const Sequence& s) const;
  std::span<const int32_t> known_tokens(const Sequence& s) const;
  void remember(Sequence& s);
  void want_checkpoints(Sequence& s, const PrefixMatch& match) const;
  void plan_captures(BatchPlan& plan);
  // There are pages for a checkpoint that nobody has been promised.
  bool has_checkpoint_room() const;
  // Captures a checkpoint of part `index` (its pages are still to be taken) if there is room. Slots
  // that are free again after the step are appended to `slots`.
  void capture(BatchPlan& plan, int index, const CapturedSlab& wanted, std::vector<int32_t>& slots);
  // Gives the checkpoint pages, and copies the slab in `slot` to them after the step. Returns false
  // if there are not enough pages.
  bool copy_slab(BatchPlan& plan, SequenceKv& kv, int32_t slot, CapturedSlab captured);
  void count_reachable(const Sequence& s);
  // Pages that must also be free before a preempted sequence is admitted again, so that it is not
  // preempted at once: after its first preemption one for each running sequence and for itself,
  // after each further one twice as many. No more than the sequences can need.
  int growth_pages(const Sequence& s) const;
  void preempt(Running::iterator victim);

  KvCache& cache_;
  const int seqs_max_;
  const int rows_max_;
  const int chunk_tokens_;
  const bool exact_;              // mode exact, and the format quantizes
  const int staging_tokens_max_;  // 0: prompts are never staged
  const int forced_rows_;         // most rows of a sequence with forced tokens
  const KvFetch kv_fetch_;
  const bool caches_prefixes_;
  const bool salts_tenants_;
  const bool aligns_chunks_;  // appended chunks end at boundaries
  // Mode stream: sequences are continued at first_end_ + n grid_ alone. 0: at every boundary.
  int first_end_ = 0;
  int grid_ = 0;
  PrefixCounts prefix_counts_;
  FetchCounts fetch_counts_;
  uint64_t declined_since_probe_ = 0;  // sequences, since one fetched more than seemed worth it
  RunningRate prompt_rate_;            // tokens
  int step_rows_ = 0;                  // of prompts, in steps since the last one with results
  double step_seconds_ = 0;            // of these steps, the last one included
  uint64_t transfers_done_ = 0;
  double transfer_seconds_ = 0;
  std::vector<uint64_t> seen_;  // hashes of blocks of earlier prompts, each in its only place
  Running running_;
  FairQueue queue_;
  bool layerwise_turn_ = false;  // the next step goes on with the prompt of layerwise_prompt()
  uint64_t preemptions_ = 0;
  uint64_t preemptions_for_tenants_ = 0;
};

}  // namespace kivi
