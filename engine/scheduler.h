// Scheduler: which tokens of which sequences the next step computes (continuous batching with
// chunked prefill). Pure bookkeeping: no device, no clock, no text. Engine thread only.
//
// Order of a step: every running sequence that decodes gets its one token first; then prompt chunks
// of running sequences, oldest first; then waiting sequences are admitted while rows, slots and
// pages last. A chunk has a fixed length (prefill_chunk_tokens, or what is left of the prompt), so
// that a request's numbers do not depend on its company; a chunk that does not fit waits for the
// next step. Where pages run out, the youngest running sequence is preempted: it gives everything
// back, returns to the head of the queue and is computed again from its tokens.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "engine/batch_plan.h"
#include "engine/config.h"
#include "engine/kv_cache.h"
#include "engine/sequence.h"

namespace kivi {

class Scheduler {
 public:
  Scheduler(const EngineConfig& config, KvCache& cache);

  // Takes a sequence in state waiting. (What can never fit was refused before: KvCache::fits_ever.)
  void add(std::unique_ptr<Sequence> sequence);

  // Plans a step and reserves its room. May preempt. An empty plan with sequences waiting cannot
  // happen: the oldest always moves.
  BatchPlan plan();

  // The step has been computed: caches grow by the planned counts. Does not append sampled tokens.
  void commit(const BatchPlan& plan);

  // Takes a sequence out of wherever it is and gives back what it holds.
  std::unique_ptr<Sequence> remove(Sequence* sequence);

  int running() const;
  int waiting() const;
  int64_t waiting_tokens() const;
  uint64_t preemptions() const;
  // Every sequence, running ones first. Valid until the next call of add, plan or remove.
  std::vector<Sequence*> sequences() const;

 private:
  // The implementer's.
  struct Impl;
};

}  // namespace kivi
