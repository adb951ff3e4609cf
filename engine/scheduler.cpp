// SPDX-License-Identifier: Apache-2.0
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
      queue_(config.scheduling_policy) {
  KIVI_VERIFY(chunk_tokens_ >= 1 && rows_max_ >= seqs_max_ + chunk_tokens_);
}

BatchPlan Scheduler::plan() {
  BatchPlan plan;
  const bool made_room = admit_starved_tenant();
  if (plan_running(plan) && !made_room) admit_waiting(plan);
  std::stable_partition(plan.sequences.begin(), plan.sequences.end(),
                        [](const PlannedSequence& p) { return !p.sequence->prefilling(); });
  KIVI_VERIFY(!plan.empty() || waiting() == 0 || !running_.empty() ||
              queue_.first()->awaits_token());
  return plan;
}

std::vector<Scheduler::Running::iterator> Scheduler::turns() {
  std::vector<std::pair<int, Running::iterator>> ranked;
  ranked.reserve(running_.size());
  for (const auto& [unused, s] : running_) s->tenant->rank = 0;
  for (auto it = running_.begin(); it != running_.end(); ++it)
    ranked.emplace_back(it->second->tenant->rank++, it);
  if (queue_.tenants() > 1)
    std::ranges::stable_sort(ranked, {}, [](const auto& r) { return r.first; });
  std::vector<Running::iterator> turns;
  turns.reserve(ranked.size());
  for (const auto& [unused, it] : ranked) turns.push_back(it);
  return turns;
}

bool Scheduler::plan_running(BatchPlan& plan) {
  bool had_pages = true;
  std::vector<Running::iterator> order = turns();
  // A victim of preemption comes after the one that needs pages, so it is never in the plan yet.
  for (size_t i = 0; i < order.size(); ++i) {
    Sequence& s = *order[i]->second;
    if (s.complete()) continue;      // its last token is under way
    if (s.awaits_token()) continue;  // its next mask is not known yet; the others go on
    const PlannedSequence part = next_part(s);
    bool preempted = false;
    const bool reserved = reserve_or_preempt(order, i, part, preempted);
    had_pages = had_pages && reserved && !preempted;
    if (reserved) put(plan, part);
  }
  KIVI_VERIFY(plan.rows <= rows_max_);  // no part is larger than the one before
  return had_pages;
}

bool Scheduler::reserve_or_preempt(std::vector<Running::iterator>& turns, size_t needy,
                                   const PlannedSequence& part, bool& preempted) {
  while (!cache_.reserve(part.sequence->kv, part.count, part.mode)) {
    KIVI_VERIFY(part.mode != KvMode::stage);  // promised at admission
    size_t victim = turns.size() - 1;
    while (victim != needy && turns[victim]->second->kv.pages.empty()) --victim;
    if (victim == needy) return false;
    preempt(turns[victim]);
    turns.erase(turns.begin() + std::ptrdiff_t(victim));
    preempted = true;
  }
  return true;
}

void Scheduler::admit_waiting(BatchPlan& plan) {
  while (Sequence* s = queue_.first()) {
    if (s->awaits_token()) return;  // preempted while its last token is under way
    Room left = room(rows_max_ - plan.rows);
    left.pages -= growth_pages(*s);
    if (!fits(*s, left)) return;
    const PlannedSequence part = next_part(*s);
    admit(*s, part);
    put(plan, part);
  }
}

bool Scheduler::admit_starved_tenant() {
  Sequence* starved = queue_.first_without_running();
  if (starved == nullptr || running_.empty() || starved->awaits_token()) return false;
  int rows_left = rows_max_;
  for (const auto& [unused, s] : running_)
    rows_left -= s->complete() || s->awaits_token() ? 0 : next_part(*s).count;
  Room free = room(rows_left);
  std::vector<Running::iterator> victims;
  int64_t recomputed = 0;
  while (!fits(*starved, free)) {
    const auto victim = victim_for(*starved->tenant, victims, recomputed);
    if (victim == running_.end()) return false;
    const Room share = share_of(*victim->second);
    free.sequences += share.sequences;
    free.slots += share.slots;
    free.pages += share.pages;
    free.staging_pages += share.staging_pages;
    free.rows += share.rows;
    victims.push_back(victim);
  }
  // There is room: it goes by the order of the queue.
  if (victims.empty() && starved != queue_.first()) return false;
  preemptions_for_tenants_ += victims.size();
  for (const auto victim : victims) preempt(victim);
  admit(*starved, next_part(*starved));
  return !victims.empty();
}

// The youngest sequence of the tenant that has been served most. Not one of `others`, and not its
// tenant's oldest running one. End if that tenant is not ahead by enough. `recomputed` counts the
// tokens of all victims.
Scheduler::Running::iterator Scheduler::victim_for(const Tenant& starved,
                                                   const std::vector<Running::iterator>& others,
                                                   int64_t& recomputed) {
  for (const auto& [unused, s] : running_) s->tenant->rank = 0;
  auto victim = running_.end();
  for (auto it = running_.begin(); it != running_.end(); ++it) {
    const Sequence& s = *it->second;
    if (s.tenant->rank++ == 0 || s.complete() || std::ranges::find(others, it) != others.end())
      continue;
    if (victim == running_.end() || s.tenant->served >= victim->second->tenant->served) victim = it;
  }
  if (victim == running_.end()) return victim;
  recomputed += victim->second->kv.tokens;
  const int64_t lead = victim->second->tenant->served - starved.served;
  return lead >= std::min(recomputed, kLeadTokensMax) ? victim : running_.end();
}

void Scheduler::put(BatchPlan& plan, const PlannedSequence& part) {
  plan.rows += part.count;
  plan.sequences.push_back(part);
  queue_.charge(*part.sequence, part.past, part.past + part.count);
}

void Scheduler::admit(Sequence& s, const PlannedSequence& part) {
  const bool reserved = cache_.reserve(s.kv, part.count, part.mode);
  KIVI_VERIFY(reserved);
  s.state = SequenceState::running;
  running_.emplace(queue_.age(s), queue_.admit(s));
}

Scheduler::Room Scheduler::room(int rows) const {
  Room room{seqs_max_ - running(), cache_.slots_free(), cache_.pages_free(),
            cache_.staging_pages_free(), rows};
  for (const auto& [unused, r] : running_) {
    if (!r->prefilling()) continue;  // what admitted prompts are still going to take
    room.pages -= cache_.pages_needed(r->prefill_tokens) - int(r->kv.pages.size());
    room.staging_pages -= staged_pages(*r) - int(r->kv.staging_pages.size());
  }
  return room;
}

Scheduler::Room Scheduler::share_of(Sequence& s) const {
  Room share{1, 1, int(s.kv.pages.size()), int(s.kv.staging_pages.size()), next_part(s).count};
  if (s.prefilling()) {
    share.pages = cache_.pages_needed(s.prefill_tokens);
    share.staging_pages = staged_pages(s);
  }
  return share;
}

bool Scheduler::fits(Sequence& s, const Room& room) const {
  if (room.sequences < 1 || room.slots < 1 || room.rows < next_part(s).count) return false;
  if (running_.empty()) return true;
  const int watermark = (cache_.capacity().pages + 99) / 100;
  return cache_.pages_needed(s.prefill_tokens) + watermark <= room.pages &&
         staged_pages(s) <= room.staging_pages;
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

int Scheduler::growth_pages(const Sequence& s) const {
  if (s.preemptions == 0) return 0;
  const int each = 1 << std::min(s.preemptions - 1, 20);
  const auto growth = [&](const Sequence& r) {
    const int tokens_max =
        std::max(int(r.tokens.size()), r.prompt_tokens + r.request.sampling.max_tokens);
    return std::min(each,
                    cache_.pages_needed(tokens_max) - cache_.pages_needed(int(r.tokens.size())));
  };
  int pages = growth(s);
  for (const auto& [unused, r] : running_) pages += growth(*r);
  return pages;
}

void Scheduler::preempt(Running::iterator victim) {
  std::unique_ptr<Sequence> s = std::move(victim->second);
  running_.erase(victim);
  cache_.release(s->kv);
  s->state = SequenceState::waiting;
  s->prefill_tokens = int(s->tokens.size());
  if (s->output_tokens() == 0) s->prompt_logprobs.clear();  // scored again
  ++s->preemptions;
  ++preemptions_;
  queue_.put_back(std::move(s));
}

void Scheduler::commit(const BatchPlan& plan) {
  for (const PlannedSequence& part : plan.sequences)
    cache_.commit(part.sequence->kv, part.count, part.mode);
}

void Scheduler::add(std::unique_ptr<Sequence> sequence) {
  KIVI_VERIFY(sequence->state == SequenceState::waiting && sequence->kv.slot < 0);
  queue_.add(std::move(sequence));
}

std::unique_ptr<Sequence> Scheduler::remove(Sequence* sequence) {
  std::unique_ptr<Sequence> removed;
  if (sequence->state == SequenceState::running) {
    const auto place = running_.find(queue_.age(*sequence));
    KIVI_VERIFY(place != running_.end());
    removed = std::move(place->second);
    running_.erase(place);
    queue_.end_running(*removed);
  } else {
    removed = queue_.remove(*sequence);
  }
  KIVI_VERIFY(removed.get() == sequence);
  cache_.release(removed->kv);
  removed->state = SequenceState::finished;
  return removed;
}

std::vector<Sequence*> Scheduler::sequences() const {
  std::vector<Sequence*> all;
  all.reserve(running_.size() + size_t(waiting()));
  for (const auto& [unused, s] : running_) all.push_back(s.get());
  queue_.append_to(all);
  return all;
}

}  // namespace kivi
