#include "engine/scheduler.h"

#include <algorithm>

#include "base/verify.h"

namespace kivi {
namespace {

int staging_tokens_max(const EngineConfig& config, const KvCache& cache) {
  const bool quantizes = cache.layout().format.kind == KvKind::kivi;
  return config.kivi_prefill == PrefillMode::exact && quantizes ? config.prefill_staging_tokens : 0;
}

}  // namespace

Scheduler::Scheduler(const EngineConfig& config, KvCache& cache)
    : cache_(cache),
      seqs_max_(config.max_num_seqs),
      rows_max_(config.max_num_batched_tokens),
      chunk_tokens_(config.prefill_chunk_tokens),
      staging_tokens_max_(staging_tokens_max(config, cache)),
      by_priority_(config.scheduling_policy == SchedulingPolicy::priority) {
  KIVI_VERIFY(chunk_tokens_ >= 1 && rows_max_ >= seqs_max_ + chunk_tokens_);
}

BatchPlan Scheduler::plan() {
  BatchPlan plan;
  if (plan_running(plan)) admit_waiting(plan);
  std::stable_partition(plan.sequences.begin(), plan.sequences.end(),
                        [](const PlannedSequence& p) { return !p.sequence->prefilling(); });
  KIVI_VERIFY(!plan.empty() || waiting_.empty() || !running_.empty());
  return plan;
}

bool Scheduler::plan_running(BatchPlan& plan) {
  bool had_pages = true;
  // Oldest first, so a victim of preemption (younger) is never in the plan yet.
  for (auto it = running_.begin(); it != running_.end(); ++it) {
    if (it->second->complete()) continue;  // its last token is under way
    const PlannedSequence part = next_part(*it->second);
    bool preempted = false;
    const bool reserved = reserve_or_preempt(it, part, preempted);
    had_pages = had_pages && reserved && !preempted;
    if (!reserved) continue;
    plan.rows += part.count;
    plan.sequences.push_back(part);
  }
  KIVI_VERIFY(plan.rows <= rows_max_);  // no part is larger than the one before
  return had_pages;
}

bool Scheduler::reserve_or_preempt(Queue::iterator needy, const PlannedSequence& part,
                                   bool& preempted) {
  while (!cache_.reserve(needy->second->kv, part.count, part.mode)) {
    KIVI_VERIFY(part.mode != KvMode::stage);  // promised at admission
    auto victim = std::prev(running_.end());
    while (victim != needy && victim->second->kv.pages.empty()) --victim;
    if (victim == needy) return false;
    preempt(victim);
    preempted = true;
  }
  return true;
}

void Scheduler::admit_waiting(BatchPlan& plan) {
  while (!waiting_.empty() && running() < seqs_max_) {
    Sequence& s = *waiting_.begin()->second;
    const PlannedSequence part = next_part(s);
    if (plan.rows + part.count > rows_max_ || !has_room_for(s)) return;
    const bool reserved = cache_.reserve(s.kv, part.count, part.mode);
    KIVI_VERIFY(reserved);
    s.state = SequenceState::running;
    running_.emplace(age(s), dequeue(waiting_.begin()));
    plan.rows += part.count;
    plan.sequences.push_back(part);
  }
}

bool Scheduler::has_room_for(const Sequence& s) const {
  if (cache_.slots_free() == 0) return false;
  if (running_.empty()) return true;
  // What admitted prompts are still going to take.
  int pages_promised = 0;
  int staging_promised = 0;
  for (const auto& [unused, r] : running_) {
    if (!r->prefilling()) continue;
    pages_promised += cache_.pages_needed(r->prefill_tokens) - int(r->kv.pages.size());
    staging_promised += staged_pages(*r) - int(r->kv.staging_pages.size());
  }
  const int watermark = (cache_.capacity().pages + 99) / 100;
  return cache_.pages_needed(s.prefill_tokens) + watermark <=
             cache_.pages_free() - pages_promised &&
         staged_pages(s) <= cache_.staging_pages_free() - staging_promised;
}

PlannedSequence Scheduler::next_part(Sequence& s) const {
  PlannedSequence part{.sequence = &s, .past = s.kv.tokens};
  if (!s.prefilling()) {
    KIVI_VERIFY(s.kv.tokens + 1 == int(s.tokens.size()));
    part.count = 1;
    part.completes = part.samples = true;
    return part;
  }
  part.count = std::min(chunk_tokens_, s.prefill_tokens - part.past);
  const bool last = part.past + part.count == s.prefill_tokens;
  if (staged(s)) part.mode = last ? KvMode::seal : KvMode::stage;
  part.completes = last;
  part.samples = last && s.request.sampling.max_tokens > 0;
  // Once there is output, the prompt's logprobs have been delivered.
  part.scores_prompt = s.request.sampling.prompt_logprobs >= 0 && s.output_tokens() == 0 &&
                       part.past + 1 < s.prompt_tokens;
  return part;
}

// The tokens before the last chunk are staged; pages hold the rest and, at the end, everything.
bool Scheduler::staged(const Sequence& s) const {
  return s.prefill_tokens > chunk_tokens_ && s.prefill_tokens <= staging_tokens_max_ &&
         cache_.staging_pages_needed((s.prefill_tokens - 1) / chunk_tokens_ * chunk_tokens_) <=
             cache_.capacity().staging_pages;
}

int Scheduler::staged_pages(const Sequence& s) const {
  if (!staged(s)) return 0;
  return cache_.staging_pages_needed((s.prefill_tokens - 1) / chunk_tokens_ * chunk_tokens_);
}

void Scheduler::preempt(Queue::iterator victim) {
  std::unique_ptr<Sequence> s = std::move(victim->second);
  running_.erase(victim);
  cache_.release(s->kv);
  s->state = SequenceState::waiting;
  s->prefill_tokens = int(s->tokens.size());
  if (s->output_tokens() == 0) s->prompt_logprobs.clear();  // scored again
  ++s->preemptions;
  ++preemptions_;
  enqueue(std::move(s));
}

void Scheduler::commit(const BatchPlan& plan) {
  for (const PlannedSequence& part : plan.sequences)
    cache_.commit(part.sequence->kv, part.count, part.mode);
}

void Scheduler::add(std::unique_ptr<Sequence> sequence) {
  KIVI_VERIFY(sequence->state == SequenceState::waiting && sequence->kv.slot < 0);
  enqueue(std::move(sequence));
}

std::unique_ptr<Sequence> Scheduler::remove(Sequence* sequence) {
  std::unique_ptr<Sequence> removed;
  if (sequence->state == SequenceState::running) {
    const auto place = running_.find(age(*sequence));
    KIVI_VERIFY(place != running_.end());
    removed = std::move(place->second);
    running_.erase(place);
  } else {
    const auto place = waiting_.find(age(*sequence));
    KIVI_VERIFY(place != waiting_.end());
    removed = dequeue(place);
  }
  KIVI_VERIFY(removed.get() == sequence);
  cache_.release(removed->kv);
  removed->state = SequenceState::finished;
  return removed;
}

std::vector<Sequence*> Scheduler::sequences() const {
  std::vector<Sequence*> all;
  all.reserve(running_.size() + waiting_.size());
  for (const auto& [unused, s] : running_) all.push_back(s.get());
  for (const auto& [unused, s] : waiting_) all.push_back(s.get());
  return all;
}

Scheduler::Age Scheduler::age(const Sequence& s) const {
  return {by_priority_ ? s.request.priority : 0, s.order};
}

void Scheduler::enqueue(std::unique_ptr<Sequence> sequence) {
  waiting_tokens_ += int64_t(sequence->tokens.size());
  const Age key = age(*sequence);
  const bool inserted = waiting_.emplace(key, std::move(sequence)).second;
  KIVI_VERIFY(inserted);
}

std::unique_ptr<Sequence> Scheduler::dequeue(Queue::iterator place) {
  std::unique_ptr<Sequence> sequence = std::move(place->second);
  waiting_.erase(place);
  waiting_tokens_ -= int64_t(sequence->tokens.size());
  return sequence;
}

}  // namespace kivi
