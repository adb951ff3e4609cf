// SPDX-License-Identifier: Apache-2.0
#include "engine/scheduler.h"

#include <algorithm>
#include <limits>

#include "base/verify.h"

namespace kivi {
namespace {

// Places for the hashes of blocks that were asked for. A newer hash takes the place of an older
// one.
constexpr size_t kSeenBlocks = size_t(1) << 18;
// Sequences that one plan passes over because their prefix is coming.
constexpr int kDeferredMax = 256;
// Forced tokens that a sequence computes in one step, at most.
constexpr int kForcedRowsMax = 32;

}  // namespace

Scheduler::Scheduler(const EngineConfig& config, KvCache& cache)
    : cache_(cache),
      seqs_max_(config.max_num_seqs),
      rows_max_(config.max_num_batched_tokens),
      chunk_tokens_(config.prefill_chunk_tokens),
      exact_(config.kivi_prefill == PrefillMode::exact &&
             cache.layout().format.kind == KvKind::kivi),
      staging_tokens_max_(exact_ ? config.prefill_staging_tokens : 0),
      forced_rows_(1 + std::clamp(rows_max_ - seqs_max_ - chunk_tokens_, 0, kForcedRowsMax - 1)),
      kv_fetch_(config.kv_fetch),
      caches_prefixes_(config.enable_prefix_caching),
      salts_tenants_(config.prefix_cache_per_key),
      aligns_chunks_(cache.layout().format.kind == KvKind::kivi &&
                     chunk_tokens_ >= cache.prefixes().blocks().first),
      queue_(config.scheduling_policy) {
  KIVI_VERIFY(chunk_tokens_ >= 1 && rows_max_ >= seqs_max_ + chunk_tokens_);
  if (caches_prefixes_) seen_.resize(kSeenBlocks);
  if (config.kivi_prefill == PrefillMode::exact || cache.layout().format.kind != KvKind::kivi)
    return;
  const int block = cache.prefixes().blocks().block;
  // Chunks that are too short for boundaries end anywhere: no prefix is a whole number of them.
  first_end_ = aligns_chunks_ ? chunk_end(0) : std::numeric_limits<int>::max();
  grid_ = aligns_chunks_ ? chunk_tokens_ / block * block : 1;
}

BatchPlan Scheduler::plan() {
  BatchPlan plan;
  cache_.tier().advance(transfers_done_, transfer_seconds_);
  for (const auto& [unused, s] : running_) remember(*s);
  if (Sequence* prompt = layerwise_prompt(); prompt != nullptr && layerwise_turn_) {
    layerwise_turn_ = false;
    plan_layerwise(plan, *prompt);
    cache_.tier().hand_over(plan);
    return plan;
  }
  layerwise_turn_ = true;
  const bool made_room = admit_starved_tenant();
  if (plan_running(plan) && !made_room) admit_waiting(plan);
  std::stable_partition(plan.sequences.begin(), plan.sequences.end(),
                        [](const PlannedSequence& p) { return !p.sequence->prefilling(); });
  for (const PlannedSequence& part : plan.sequences)
    if (!part.sequence->kv.pinned.empty()) cache_.restore(part.sequence->kv, plan.copies_before);
  if (caches_prefixes_) plan_captures(plan);
  if (Sequence* prompt = layerwise_prompt(); plan.empty() && prompt != nullptr)
    plan_layerwise(plan, *prompt);
  cache_.tier().hand_over(plan);
  KIVI_VERIFY(!plan.empty() || waiting() == 0 || !running_.empty() || cache_.tier().has_fetches());
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
  int spare = rows_left() + rows_kept();  // for forced tokens after the first ones
  // A victim of preemption comes after the one that needs pages, so it is never in the plan yet.
  for (size_t i = 0; i < order.size(); ++i) {
    Sequence& s = *order[i]->second;
    if (s.complete()) continue;    // its last token is under way
    if (s.kv.layerwise) continue;  // it has steps of its own
    const PlannedSequence part = next_part(s);
    const int forced = s.prefilling() ? 0 : part.count - 1;
    if (forced > spare) continue;
    spare -= forced;
    bool preempted = false;
    const bool reserved = reserve_or_preempt(order, i, part, preempted);
    had_pages = had_pages && reserved && !preempted;
    if (reserved) put(plan, part);
  }
  KIVI_VERIFY(plan.rows <= rows_max_);  // no part is larger than what was promised before
  return had_pages;
}

bool Scheduler::reserve_or_preempt(std::vector<Running::iterator>& turns, size_t needy,
                                   const PlannedSequence& part, bool& preempted) {
  while (!cache_.reserve(part.sequence->kv, part.count, part.mode)) {
    KIVI_VERIFY(part.mode != KvMode::stage);  // promised at admission
    if (cache_.tier().abandon_one()) continue;
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
  std::vector<Sequence*> deferred;
  int rows = std::min(rows_left(), rows_max_ - plan.rows);
  while (Sequence* s = queue_.first()) {
    const bool fetching = cache_.tier().fetching(*s);
    Candidate c = fetching ? Candidate{} : candidate(*s);
    Room left = room(rows);
    left.pages -= growth_pages(*s);
    const auto must_wait = [&] {
      return prefix_is_coming(c) || fetches(c, left) ||
             (c.part.layerwise && !cache_.layerwise_free());
    };
    if (fetching || (int(deferred.size()) < kDeferredMax && must_wait())) {
      s->deferred = true;
      deferred.push_back(s);
      continue;
    }
    if (!fits(c, left) && c.match.tokens > 0) {
      const int declined = c.declined;
      c = without_prefix(*s);
      c.declined = declined;
    }
    if (!fits(c, left)) {
      if (!running_.empty() || !cache_.tier().has_fetches()) break;
      cache_.tier().abandon_all();  // nobody runs, so nothing else will become free
      continue;
    }
    const int kept = rows_kept();
    admit(c);
    rows -= rows_kept() - kept;
    if (c.part.layerwise) continue;
    put(plan, c.part);
    rows -= rows_promised(c.part);
  }
  for (Sequence* s : deferred) s->deferred = false;
}

bool Scheduler::admit_starved_tenant() {
  Sequence* starved = queue_.first_without_running();
  if (starved == nullptr || running_.empty()) return false;
  if (cache_.tier().fetching(*starved)) return false;
  Room free = room(rows_left());
  std::vector<Running::iterator> victims;
  int64_t recomputed = 0;
  while (!fits(without_prefix(*starved), free)) {
    const auto victim = victim_for(*starved->tenant, victims, recomputed);
    if (victim == running_.end()) return false;
    const Room share = share_of(*victim->second);
    free.sequences += share.sequences;
    free.slots += share.slots;
    free.pages += share.pages;
    free.staging_pages += share.staging_pages;
    free.layerwise += share.layerwise;
    free.rows += share.rows;
    victims.push_back(victim);
  }
  // There is room: it goes by the order of the queue.
  if (victims.empty() && starved != queue_.first()) return false;
  preemptions_for_tenants_ += victims.size();
  for (const auto victim : victims) preempt(victim);
  const Candidate c = candidate(*starved);
  admit(fits(c, room(rows_left())) ? c : without_prefix(*starved));
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

Scheduler::Candidate Scheduler::without_prefix(Sequence& s) const {
  return {&s, {}, part_from(s, 0, false), cache_.pages_needed(s.prefill_tokens), staged_pages(s)};
}

void Scheduler::admit(const Candidate& c) {
  Sequence& s = *c.sequence;
  if (c.declined > 0) {
    ++fetch_counts_.declined;
    ++declined_since_probe_;
    fetch_counts_.tokens_declined += uint64_t(c.declined);
  }
  if (cacheable(s)) {
    if (s.cached_tokens < 0) {
      s.cached_tokens = std::min(c.match.tokens, s.prompt_tokens);
      prefix_counts_.queried += uint64_t(s.prompt_tokens);
      prefix_counts_.hit += uint64_t(s.cached_tokens);
      count_reachable(s);
    }
    if (c.match.tokens > 0) cache_.prefixes().attach(c.match, s.kv);
    want_checkpoints(s, c.match);
  }
  cache_.tier().release(s);  // it holds its first pages itself now
  const bool reserved = c.part.layerwise ? cache_.reserve_layerwise(s.kv, c.part.count)
                                         : cache_.reserve(s.kv, c.part.count, c.part.mode);
  KIVI_VERIFY(reserved);
  if (c.part.layerwise) hold_captures(s);
  s.state = SequenceState::running;
  running_.emplace(queue_.age(s), queue_.admit(s));
}

// Appended chunks have different lengths, up to chunk_tokens_.
int Scheduler::rows_promised(const PlannedSequence& part) const {
  if (part.layerwise) return 0;                // it has steps of its own
  if (!part.sequence->prefilling()) return 1;  // forced tokens have the rows that are kept
  const bool last = part.past + part.count >= part.sequence->prefill_tokens;
  return last || part.mode != KvMode::append ? part.count : chunk_tokens_;
}

int Scheduler::rows_left() const {
  int rows = rows_max_;
  for (const auto& [unused, s] : running_) rows -= s->complete() ? 0 : rows_promised(next_part(*s));
  return rows - rows_kept();
}

int Scheduler::rows_kept() const {
  const bool forces = std::ranges::any_of(
      running_, [](const auto& r) { return r.second->request.constraint != nullptr; });
  return forces ? forced_rows_ - 1 : 0;
}

Scheduler::Room Scheduler::room(int rows) const {
  Room room{seqs_max_ - running(),
            cache_.slots_free(),
            cache_.pages_free(),
            cache_.staging_pages_free(),
            cache_.layerwise_free() ? 1 : 0,
            rows};
  for (const auto& [unused, r] : running_) {
    if (!r->prefilling()) continue;  // what admitted prompts are still going to take
    room.pages -= cache_.pages_needed(r->prefill_tokens) - int(r->kv.pages.size());
    if (r->kv.reused == 0) room.staging_pages -= staged_pages(*r) - int(r->kv.staging_pages.size());
  }
  return room;
}

Scheduler::Room Scheduler::share_of(Sequence& s) const {
  Room share{
      1, 1, 0, int(s.kv.staging_pages.size()), s.kv.layerwise ? 1 : 0, rows_promised(next_part(s))};
  for (const int32_t page : s.kv.pages) share.pages += cache_.prefixes().exclusive(page) ? 1 : 0;
  if (s.prefilling()) {
    share.pages += cache_.pages_needed(s.prefill_tokens) - int(s.kv.pages.size());
    share.staging_pages = s.kv.reused > 0 ? 0 : staged_pages(s);
  }
  return share;
}

bool Scheduler::fits(const Candidate& c, const Room& room) const {
  const bool keeps = c.sequence->request.constraint != nullptr && rows_kept() == 0;
  const int rows = rows_promised(c.part) + (keeps ? forced_rows_ - 1 : 0);
  if (room.sequences < 1 || room.slots < 1 || room.rows < rows) return false;
  if (c.part.layerwise && room.layerwise < 1) return false;
  if (running_.empty() && !cache_.tier().has_fetches())
    return c.match.tokens == 0 || c.pages <= room.pages;
  return c.pages + watermark() <= room.pages && c.staging_pages <= room.staging_pages;
}

int Scheduler::chunk_end(int past) const {
  const PrefixBlocks& blocks = cache_.prefixes().blocks();
  const int end = past + chunk_tokens_;
  if (!aligns_chunks_ || blocks.whole(end) == 0) return end;
  const int boundary = blocks.end(blocks.whole(end) - 1);
  return boundary > past ? boundary : end;
}

PlannedSequence Scheduler::part_from(Sequence& s, int past, bool reuses) const {
  PlannedSequence part{.sequence = &s, .past = past};
  if (past >= s.prefill_tokens) {
    const int known = int(s.tokens.size()) - past;
    const PrefixBlocks& blocks = cache_.prefixes().blocks();
    // Up to the end of a block, so that its checkpoint is not missed.
    part.count = std::min({known, forced_rows_, blocks.end(blocks.whole(past)) - past});
    part.completes = part.samples = part.count == known;
    return part;
  }
  if (!reuses && layerwise(s)) {
    part.count = s.prefill_tokens;
    part.mode = KvMode::seal;
    part.layerwise = true;
    return part;
  }
  const bool stages = !reuses && staged(s);
  const int left = s.prefill_tokens - past;
  // In mode stream a chunk after the first ends at a boundary wherever one is near: a prompt that
  // is continued there has its chunks at the same places.
  const int chunk = stages ? chunk_tokens_ : chunk_end(past) - past;
  const bool one = left <= chunk_tokens_ && (stages || grid_ == 0 || past == 0);
  part.count = one ? left : std::min(left, chunk);
  const bool last = part.past + part.count == s.prefill_tokens;
  if (stages) part.mode = last ? KvMode::seal : KvMode::stage;
  part.completes = last;
  part.samples = last && s.request.sampling.max_tokens > 0;
  // Once there is output, the prompt's logprobs have been delivered.
  part.scores_prompt = s.request.sampling.prompt_logprobs >= 0 && s.output_tokens() == 0 &&
                       part.past + 1 < s.prompt_tokens;
  if (s.request.pooling == Pooling::mean) part.hidden = HiddenRows::all;
  if (s.request.pooling == Pooling::last && last) part.hidden = HiddenRows::last;
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
  remember(*s);
  cache_.tier().settle(s->kv);
  cache_.release(s->kv);
  s->state = SequenceState::waiting;
  s->prefill_tokens = int(s->tokens.size());
  if (s->output_tokens() == 0) s->prompt_logprobs.clear();  // scored again
  s->hidden.clear();
  ++s->preemptions;
  ++preemptions_;
  queue_.put_back(std::move(s));
}

void Scheduler::commit(const BatchPlan& plan) {
  if (!plan.layerwise.empty()) {
    const PlannedSequence& prompt = plan.sequences[0];
    prompt.sequence->kv.layerwise_units = plan.layerwise.end;
    if (!prompt.completes) return;
  }
  for (const PlannedSequence& part : plan.sequences) {
    SequenceKv& kv = part.sequence->kv;
    cache_.commit(kv, part.count, part.mode);
    cache_.unpin(kv);
    kv.values_stored = std::max(kv.values_stored, part.values_to);
  }
  for (const PlannedCapture& capture : plan.captures) {
    int& stored = plan.sequences[size_t(capture.planned)].sequence->kv.values_stored;
    stored = std::max(stored, capture.values_to);
  }
}

void Scheduler::settle(const BatchPlan& plan) {
  if (!plan.layerwise.empty() && !plan.sequences[0].completes) return;
  for (const PlannedSequence& part : plan.sequences) {
    SequenceKv& kv = part.sequence->kv;
    if (part.sequence->state != SequenceState::running) continue;
    const int end = part.past + part.count;
    if (part.mode != KvMode::stage) kv.settled = end;
    for (CapturedSlab& captured : kv.captured) captured.settled |= captured.tokens <= end;
  }
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
  remember(*removed);
  cache_.tier().release(*removed);
  cache_.tier().settle(removed->kv);
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
