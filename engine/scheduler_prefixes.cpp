// SPDX-License-Identifier: Apache-2.0
// The scheduler's part for the prefix cache and its tiers (docs/design/prefix-cache.md): how a
// waiting sequence would begin, what it waits for, and where checkpoints are captured.
#include <fmt/format.h>

#include <algorithm>

#include "base/verify.h"
#include "engine/scheduler.h"

namespace kivi {
namespace {

// A sequence asks for its first tokens at most this often: a fetch may be abandoned, or fail.
constexpr int kFetchesOfOneMax = 4;
// Of so many sequences that should compute tokens which they could fetch, one fetches them all:
// what is never fetched is never measured again.
constexpr uint64_t kProbeEvery = 16;

}  // namespace

void Scheduler::name_blocks(Sequence& s, const Sequence* like) const {
  if (!cacheable(s)) return;
  const std::string salt = salt_of(s);
  if (like != nullptr && cacheable(*like) && salt_of(*like) == salt && like->tokens == s.tokens) {
    s.kv.chains = like->kv.chains;
    s.kv.names = like->kv.names;
    return;
  }
  cache_.prefixes().extend_chains(s.kv, s.tokens, salt);
  cache_.tier().extend_names(s.kv, s.tokens, salt);
}

Scheduler::Candidate Scheduler::candidate(Sequence& s) {
  if (!cacheable(s)) return without_prefix(s);
  const std::string salt = salt_of(s);
  cache_.prefixes().extend_chains(s.kv, s.tokens, salt);
  cache_.tier().extend_names(s.kv, s.tokens, salt);
  // One chunk is computed as one.
  if (s.needs_whole_prompt() || (grid_ != 0 && s.prefill_tokens <= chunk_tokens_))
    return without_prefix(s);
  const PrefixMatch match =
      cache_.prefixes().find(s.kv, s.tokens, salt, s.prefill_tokens - 1, first_end_, grid_);
  Candidate c = without_prefix(s);
  c.match = match;
  c.reuses = true;
  if (match.tokens == 0) return c;
  c.part = part_from(s, match.tokens, true);
  c.pages += match.pinned_pages - match.held_pages;
  c.staging_pages = 0;
  return c;
}

bool Scheduler::fetches(Candidate& c, const Room& room) {
  KvTier& tier = cache_.tier();
  if (!tier.on() || !c.reuses || c.sequence->fetches >= kFetchesOfOneMax) return false;
  Sequence& s = *c.sequence;
  const std::string salt = salt_of(s);
  const FetchRates rates = kv_fetch_ == KvFetch::automatic ? fetch_rates() : FetchRates{};
  const FetchReach reach =
      tier.reach(s.kv, s.tokens, salt, c.match, s.prefill_tokens - 1, first_end_, grid_, rates);
  if (reach.longest == 0) return false;
  fetch_counts_.last = reach;
  const bool probes = kv_fetch_ == KvFetch::automatic && declined_since_probe_ >= kProbeEvery - 1;
  const int end = kv_fetch_ == KvFetch::compute ? 0 : probes ? reach.longest : reach.end;
  c.declined = reach.longest - std::max(end, c.match.tokens);
  if (end == 0) return false;
  if (tier.fetched_by_other(s, end)) return true;
  tier.release(s);  // an earlier fetch, of which too little was left
  Candidate fetched = without_prefix(s);
  fetched.part = part_from(s, end, true);
  fetched.pages += tier.extra_pages();
  fetched.staging_pages = 0;
  fetched.match.tokens = end;
  if (!fits(fetched, room) || !tier.fetch(s, end, salt)) return false;
  if (end > reach.end) declined_since_probe_ = 0;
  return true;
}

FetchRates Scheduler::fetch_rates() const {
  FetchRates rates = cache_.tier().rates();
  rates.tokens = prompt_rate_.per_second();
  return rates;
}

// A step without results is collected at once, while the device still computes it. So its rows and
// its time are those of the next step with results. A short chunk takes nearly as long as a whole
// one, so it says little of a long prompt.
void Scheduler::note_step(const BatchPlan& plan, double seconds) {
  step_seconds_ += seconds;
  if (!plan.layerwise.empty()) step_rows_ += plan.rows;
  bool has_results = false;
  for (const PlannedSequence& part : plan.sequences) {
    if (plan.layerwise.empty() && (part.count > forced_rows_ || part.mode != KvMode::append))
      step_rows_ += part.count;
    has_results |= part.samples || part.scores_prompt || part.hidden != HiddenRows::none;
  }
  if (!has_results) return;
  if (2 * step_rows_ >= chunk_tokens_) prompt_rate_.add(step_rows_, step_seconds_);
  step_rows_ = 0;
  step_seconds_ = 0;
}

bool Scheduler::cacheable(const Sequence& s) const { return caches_prefixes_ && s.request.cache; }

std::string Scheduler::salt_of(const Sequence& s) const {
  if (!salts_tenants_) return s.request.cache_salt;
  return fmt::format("{}:{}{}", s.request.tenant.size(), s.request.tenant, s.request.cache_salt);
}

// The last tokens may be those of steps under way.
std::span<const int32_t> Scheduler::known_tokens(const Sequence& s) const {
  size_t count = s.tokens.size();
  while (count > 0 && s.tokens[count - 1] < 0) --count;
  return std::span(s.tokens).first(count);
}

void Scheduler::remember(Sequence& s) {
  if (!cacheable(s) || s.kv.slot < 0) return;
  std::span<const int32_t> known = known_tokens(s);
  // In mode stream an answer is not reused: as a prompt its tokens would have other numbers.
  if (grid_ != 0) known = known.first(std::min(known.size(), size_t(s.prefill_tokens)));
  const std::string salt = salt_of(s);
  cache_.tier().offer(s.kv, known, salt);
  cache_.prefixes().remember(s.kv, known, salt);
}

void Scheduler::forget_prefixes(std::span<Sequence* const> suspects) {
  cache_.tier().forget_all();
  cache_.prefixes().forget_all();
  for (const Sequence* s : suspects) cache_.tier().forget_on_disk(s->kv.names);
}

// Where later prompts may part from this one, or go on.
void Scheduler::want_checkpoints(Sequence& s, const PrefixMatch& match) const {
  const PrefixBlocks& blocks = cache_.prefixes().blocks();
  s.kv.wanted.clear();
  if (blocks.slab_pages == 0) return;
  const auto boundary = [&](int tokens) {
    if (grid_ == 0) return blocks.whole(tokens) == 0 ? 0 : blocks.end(blocks.whole(tokens) - 1);
    return tokens < first_end_ ? 0 : first_end_ + (tokens - first_end_) / grid_ * grid_;
  };
  const int last = boundary(s.prefill_tokens - 1);
  const int parting = match.checkpoint ? 0 : boundary(match.matched);
  if (parting > match.tokens && parting < last) s.kv.wanted.push_back({parting, true});
  if (last > match.tokens) s.kv.wanted.push_back({last, parting == last});
}

bool Scheduler::prefix_is_coming(const Candidate& c) const {
  const Sequence& s = *c.sequence;
  if (!c.reuses || s.kv.chains.empty()) return false;
  const PrefixBlocks& blocks = cache_.prefixes().blocks();
  for (const auto& entry : running_) {
    const Sequence& r = *entry.second;  // a lambda of Clang 14 captures no structured binding
    const auto comes = [&](int tokens) {
      const size_t k = size_t(blocks.whole(tokens)) - 1;
      return tokens > c.match.tokens && tokens < s.prefill_tokens && k < s.kv.chains.size() &&
             k < r.kv.chains.size() && s.kv.chains[k] == r.kv.chains[k];
    };
    if (std::ranges::any_of(r.kv.wanted, comes, &WantedCheckpoint::tokens) ||
        std::ranges::any_of(r.kv.captured, comes, &CapturedSlab::tokens))
      return true;
    // Without checkpoints, the last block of both prompts that is not there yet.
    const int common = blocks.whole(std::min(r.prefill_tokens, s.prefill_tokens - 1));
    if (blocks.slab_pages == 0 && common > 0 && r.kv.settled < blocks.end(common - 1) &&
        comes(blocks.end(common - 1)))
      return true;
  }
  return false;
}

void Scheduler::plan_captures(BatchPlan& plan) {
  const PrefixBlocks& blocks = cache_.prefixes().blocks();
  if (blocks.slab_pages == 0) return;
  std::vector<int32_t> slots;
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    const PlannedSequence part = plan.sequences[i];
    SequenceKv& kv = part.sequence->kv;
    const int end = part.past + part.count;
    while (!kv.wanted.empty() && kv.wanted.front().tokens <= end) {
      const WantedCheckpoint wanted = kv.wanted.front();
      kv.wanted.erase(kv.wanted.begin());
      if (wanted.tokens > part.past)
        capture(plan, int(i), {.tokens = wanted.tokens, .branch = wanted.branch}, slots);
    }
    const bool decodes = !part.sequence->prefilling();
    const int whole = blocks.whole(end);
    if (decodes && grid_ == 0 && cacheable(*part.sequence) && whole > 0 &&
        blocks.end(whole - 1) == end)
      capture(plan, int(i), {.tokens = end, .rolling = true}, slots);
  }
  for (const int32_t slot : slots) cache_.give_back_slot(slot);
}

// What is promised to others is not taken for checkpoints.
bool Scheduler::has_checkpoint_room() const {
  return room(0).pages >= cache_.prefixes().blocks().slab_pages + watermark();
}

bool Scheduler::copy_slab(BatchPlan& plan, SequenceKv& kv, int32_t slot, CapturedSlab captured) {
  captured.pages = cache_.capture(slot, plan.copies_after);
  if (captured.pages.empty()) return false;
  kv.captured.push_back(std::move(captured));
  return true;
}

void Scheduler::capture(BatchPlan& plan, int index, const CapturedSlab& wanted,
                        std::vector<int32_t>& slots) {
  PlannedSequence& part = plan.sequences[size_t(index)];
  SequenceKv& kv = part.sequence->kv;
  if (!has_checkpoint_room()) return;
  const bool at_end = wanted.tokens == part.past + part.count && part.mode != KvMode::stage;
  // A step of one row writes a value when its place in the residual is needed, and not before.
  CapturedSlab captured = wanted;
  captured.complete = part.mode != KvMode::append || wanted.tokens - part.past > 1;
  const int values_to = captured.complete ? keys_paged(cache_.layout().format, captured.tokens) : 0;
  int32_t slot = kv.slot;
  if (!at_end) {
    if (plan.captures.size() >= size_t(kCapturesMax)) return;
    // Two captures of one part would write the same pages at the same time.
    if (std::ranges::count(plan.captures, index, &PlannedCapture::planned) > 0) return;
    slot = cache_.take_slot();
    if (slot < 0) return;
    slots.push_back(slot);
    // Pages that the prompt has been promised, a little early.
    if (!cache_.reserve(kv, wanted.tokens - kv.tokens, KvMode::append)) return;
  }
  if (!copy_slab(plan, kv, slot, captured)) return;
  if (at_end) {
    part.values_to = values_to;
    return;
  }
  if (part.mode == KvMode::append && part.past > 0)
    plan.copies_before.push_back({KvCopy::Kind::slot_to_slot, kv.slot, slot, 0});
  plan.captures.push_back({index, wanted.tokens, slot, values_to});
}

// An estimate: a place holds one hash, and hashes are not compared by their tokens.
void Scheduler::count_reachable(const Sequence& s) {
  const PrefixBlocks& blocks = cache_.prefixes().blocks();
  const int whole = std::min(int(s.kv.chains.size()), blocks.whole(s.prompt_tokens - 1));
  for (int k = 0; k < whole; ++k) {
    uint64_t& place = seen_[s.kv.chains[size_t(k)] % seen_.size()];
    if (place == s.kv.chains[size_t(k)])
      prefix_counts_.reachable += uint64_t(k == 0 ? blocks.first : blocks.block);
    place = s.kv.chains[size_t(k)];
  }
}

}  // namespace kivi
