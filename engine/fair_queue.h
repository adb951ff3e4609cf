// SPDX-License-Identifier: Apache-2.0
// FairQueue: the sequences that wait, in one queue for each tenant, and how much each tenant has
// been served. A tenant is whoever pays for a request: an API key, or a client's address. The
// scheduler admits the oldest sequence of the tenant that has been served least.
//
// This is the Virtual Token Counter of "Fairness in Serving Large Language Models" (Sheng et al.,
// OSDI 2024). A tenant's counter grows by one for each prompt token and by two for each output
// token that is planned for it. A token that is computed again after a preemption is not counted
// again. A tenant whose queue was empty is lifted to the smallest counter of those that wait (to
// the largest counter of all if nobody waits), so that nobody saves up service while idle.
//
// Under the policies fcfs and priority all sequences belong to one tenant, so that the queue is a
// plain one. Engine thread only.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/config.h"
#include "engine/sequence.h"

namespace kivi {

// (priority, order). The priority is 0 for all but under policy `priority`. Smaller is older.
using SequenceAge = std::pair<int, uint64_t>;

struct Tenant {
  std::map<SequenceAge, std::unique_ptr<Sequence>> waiting;
  int running = 0;     // sequences
  int64_t served = 0;  // weighted tokens
  int rank = 0;        // used by the scheduler while it orders the running sequences
};

class FairQueue {
 public:
  static constexpr int kPromptWeight = 1;
  static constexpr int kOutputWeight = 2;
  // Tenants without sequences that are remembered, because they are ahead of those that wait.
  static constexpr int kIdleTenantsMax = 1024;

  explicit FairQueue(SchedulingPolicy policy);

  // Takes a new sequence and sets its tenant.
  void add(std::unique_ptr<Sequence> sequence);
  // Takes back a running sequence that was preempted. It keeps its age.
  void put_back(std::unique_ptr<Sequence> sequence);
  // Hands out a waiting sequence. From now on it counts as running.
  std::unique_ptr<Sequence> admit(Sequence& waiting);
  // Hands out a waiting sequence that ends without having run.
  std::unique_ptr<Sequence> remove(Sequence& waiting);
  // A running sequence has ended. Its tenant may be forgotten.
  void end_running(Sequence& running);

  // The oldest sequence of the tenant that has been served least; null if nothing waits. Sequences
  // that are `deferred` are passed over.
  Sequence* first() const { return first_of(/*without_running=*/false); }
  // The same among the tenants that run nothing; null if there is none.
  Sequence* first_without_running() const { return first_of(/*without_running=*/true); }
  // Counts the tokens [begin, end) of a sequence, but for those that were counted before.
  void charge(Sequence& sequence, int begin, int end);

  SequenceAge age(const Sequence& s) const;
  int size() const { return size_; }
  int64_t tokens() const { return tokens_; }  // of all waiting sequences
  int tenants() const { return int(tenants_.size()); }
  // Appends the waiting sequences: tenant by tenant, each tenant's oldest first.
  void append_to(std::vector<Sequence*>& all) const;

 private:
  using Tenants = std::map<std::string, Tenant>;

  Sequence* first_of(bool without_running) const;
  Tenant& tenant_of(const Sequence& s);
  int64_t floor() const;
  void insert(std::unique_ptr<Sequence> sequence);
  std::unique_ptr<Sequence> take(Sequence& waiting);
  void forget_idle();

  const bool by_priority_;
  const bool by_tenant_;
  Tenants tenants_;
  int size_ = 0;
  int64_t tokens_ = 0;
};

}  // namespace kivi
