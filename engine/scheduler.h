// SPDX-License-Identifier: Apache-2.0
// Scheduler: which tokens of which sequences the next step computes (continuous batching with
// chunked prefill). Pure bookkeeping: no device, no clock, no text. Engine thread only.
//
// Order of a step: every running sequence that decodes gets its one token first; then prompt chunks
// of running sequences, oldest first; then waiting sequences are admitted while rows, slots, pages
// and staging pages last, strictly in order. A chunk has a fixed length (prefill_chunk_tokens, or
// what is left of the prompt), so that a request's numbers do not depend on its company: a prompt
// whose first chunk does not fit waits for the next step. Who runs always has its rows: the parts
// of a sequence never grow, and newcomers get what is left.
//
// Whose turn it is: under fcfs the oldest sequence, by arrival. Under `priority` the priority goes
// before the arrival. Under `fair` the waiting sequence of the tenant that has been served least is
// admitted first (fair_queue.h), and the running sequences are ordered in rounds: first each
// tenant's oldest running sequence, then each tenant's second oldest, and so on. With one tenant
// this is the order of arrival, so that `fair` is then exactly fcfs.
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
// Modes of prompt chunks (KvMode): a prompt of one chunk is stored at once (`store`: its rows
// attend each other in 16 bits). Longer ones: prefill mode exact stages all chunks but the last,
// which commits; mode stream, formats f16 and f8 (they have no residual, and a read history costs
// f16 nothing), and prompts beyond prefill_staging_tokens store every chunk.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "engine/batch_plan.h"
#include "engine/config.h"
#include "engine/fair_queue.h"
#include "engine/kv_cache.h"
#include "engine/sequence.h"

namespace kivi {

class Scheduler {
 public:
  // `config` is valid (validate); `cache` outlives the scheduler.
  Scheduler(const EngineConfig& config, KvCache& cache);

  // Takes a sequence in state waiting, its `order` set and unique. (What can never fit was refused
  // before: KvCache::fits_ever of prompt and max_tokens.)
  void add(std::unique_ptr<Sequence> sequence);

  // Plans a step and reserves its room. May preempt. The plan is empty only where there are no
  // sequences, or none whose next token does not wait for a step under way.
  BatchPlan plan();

  // The step has been launched: caches grow by the planned counts. Does not touch tokens.
  void commit(const BatchPlan& plan);

  // Takes a sequence out of wherever it is and gives back what it holds.
  std::unique_ptr<Sequence> remove(Sequence* sequence);

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

 private:
  using Running = std::map<SequenceAge, std::unique_ptr<Sequence>>;

  // What running sequences, with all that is promised to them, leave for others.
  struct Room {
    int sequences = 0;
    int slots = 0;
    int pages = 0;
    int staging_pages = 0;
    int rows = 0;
  };

  bool staged(const Sequence& s) const;
  int staged_pages(const Sequence& s) const;
  PlannedSequence next_part(Sequence& s) const;
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
  void admit(Sequence& s, const PlannedSequence& part);
  Room room(int rows) const;
  // What a running sequence holds and is promised.
  Room share_of(Sequence& s) const;
  bool fits(Sequence& s, const Room& room) const;
  // Pages that must also be free before a preempted sequence is admitted again, so that it is not
  // preempted at once: after its first preemption one for each running sequence and for itself,
  // after each further one twice as many. No more than the sequences can need.
  int growth_pages(const Sequence& s) const;
  void preempt(Running::iterator victim);

  KvCache& cache_;
  const int seqs_max_;
  const int rows_max_;
  const int chunk_tokens_;
  const int staging_tokens_max_;  // 0: prompts are never staged
  Running running_;
  FairQueue queue_;
  uint64_t preemptions_ = 0;
  uint64_t preemptions_for_tenants_ = 0;
};

}  // namespace kivi
