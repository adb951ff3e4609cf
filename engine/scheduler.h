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
// Where pages run out, the youngest running sequence that holds pages is preempted: it gives
// everything back, returns to the queue at its old place (which is the head, under fcfs) and is
// computed again from its tokens. Only an older sequence preempts a younger one; who finds no
// younger one keeps what it holds and waits a step. "Older" is the order of arrival; under policy
// `priority` the priority goes before it.
//
// Why everything moves: the oldest running sequence can take the pages of all others, and alone it
// fits (KvCache::fits_ever); a step has rows for all decodes and one chunk (validate), so the head
// of the queue is not kept out by them; staging pages of a whole prompt are promised at admission,
// so no chunk waits for them. Nothing is admitted in a step that was short of pages, nor into the
// last hundredth of them, nor into pages that admitted prompts will need: what preemption has freed
// is not handed to a newcomer.
//
// Modes of prompt chunks (KvMode): a prompt of one chunk is stored at once (`store`: its rows
// attend each other in 16 bits). Longer ones: prefill mode exact stages all chunks but the last,
// which commits; mode stream, formats f16 and f8 (they have no residual, and a read history costs
// f16 nothing), and prompts beyond prefill_staging_tokens store every chunk.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "engine/batch_plan.h"
#include "engine/config.h"
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
  int waiting() const { return int(waiting_.size()); }
  int64_t waiting_tokens() const { return waiting_tokens_; }  // prompts and output to recompute
  uint64_t preemptions() const { return preemptions_; }
  // Every sequence, running ones first, each oldest first. Valid until the next call of add, plan
  // or remove.
  std::vector<Sequence*> sequences() const;

 private:
  // (priority, order); the priority is 0 for all under fcfs. Smaller is older.
  using Age = std::pair<int, uint64_t>;
  using Queue = std::map<Age, std::unique_ptr<Sequence>>;

  Age age(const Sequence& s) const;
  bool staged(const Sequence& s) const;
  int staged_pages(const Sequence& s) const;
  PlannedSequence next_part(Sequence& s) const;
  // True if every running sequence had its pages, without preempting another.
  bool plan_running(BatchPlan& plan);
  bool reserve_or_preempt(Queue::iterator needy, const PlannedSequence& part, bool& preempted);
  void admit_waiting(BatchPlan& plan);
  bool has_room_for(const Sequence& s) const;
  void preempt(Queue::iterator victim);
  void enqueue(std::unique_ptr<Sequence> sequence);
  std::unique_ptr<Sequence> dequeue(Queue::iterator place);

  KvCache& cache_;
  const int seqs_max_;
  const int rows_max_;
  const int chunk_tokens_;
  const int staging_tokens_max_;  // 0: prompts are never staged
  const bool by_priority_;
  Queue running_;
  Queue waiting_;
  int64_t waiting_tokens_ = 0;
  uint64_t preemptions_ = 0;
};

}  // namespace kivi
