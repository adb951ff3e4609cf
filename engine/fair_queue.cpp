// SPDX-License-Identifier: Apache-2.0
#include "engine/fair_queue.h"

#include <algorithm>

#include "base/verify.h"

namespace kivi {

FairQueue::FairQueue(SchedulingPolicy policy)
    : by_priority_(policy == SchedulingPolicy::priority),
      by_tenant_(policy == SchedulingPolicy::fair) {}

void FairQueue::add(std::unique_ptr<Sequence> sequence) {
  Tenant& tenant = tenant_of(*sequence);
  if (tenant.waiting.empty()) tenant.served = std::max(tenant.served, floor());
  sequence->tenant = &tenant;
  insert(std::move(sequence));
}

void FairQueue::put_back(std::unique_ptr<Sequence> sequence) {
  --sequence->tenant->running;
  insert(std::move(sequence));
}

std::unique_ptr<Sequence> FairQueue::admit(Sequence& waiting) {
  ++waiting.tenant->running;
  return take(waiting);
}

std::unique_ptr<Sequence> FairQueue::remove(Sequence& waiting) {
  std::unique_ptr<Sequence> removed = take(waiting);
  removed->tenant = nullptr;
  forget_idle();
  return removed;
}

void FairQueue::end_running(Sequence& running) {
  --running.tenant->running;
  running.tenant = nullptr;
  forget_idle();
}

Sequence* FairQueue::first_of(bool without_running) const {
  const Tenant* least = nullptr;
  Sequence* first = nullptr;
  for (const auto& [unused, tenant] : tenants_) {
    if (without_running && tenant.running > 0) continue;
    const auto oldest = std::ranges::find_if(
        tenant.waiting, [](const auto& entry) { return !entry.second->deferred; });
    if (oldest == tenant.waiting.end()) continue;
    if (least == nullptr || tenant.served < least->served ||
        (tenant.served == least->served && oldest->first < age(*first))) {
      least = &tenant;
      first = oldest->second.get();
    }
  }
  return first;
}

void FairQueue::charge(Sequence& s, int begin, int end) {
  begin = std::max(begin, s.charged_tokens);
  if (end <= begin) return;
  const int prompt = std::clamp(s.prompt_tokens - begin, 0, end - begin);
  const int output = end - begin - prompt;
  s.tenant->served += int64_t(prompt) * kPromptWeight + int64_t(output) * kOutputWeight;
  s.charged_tokens = end;
}

SequenceAge FairQueue::age(const Sequence& s) const {
  return {by_priority_ ? s.request.priority : 0, s.order};
}

void FairQueue::append_to(std::vector<Sequence*>& all) const {
  for (const auto& [unused, tenant] : tenants_)
    for (const auto& [unused_too, s] : tenant.waiting) all.push_back(s.get());
}

Tenant& FairQueue::tenant_of(const Sequence& s) {
  return tenants_[by_tenant_ ? s.request.tenant : std::string()];
}

// Where a tenant that comes to the queue begins.
int64_t FairQueue::floor() const {
  int64_t least_waiting = INT64_MAX;
  int64_t largest = 0;
  for (const auto& [unused, tenant] : tenants_) {
    if (!tenant.waiting.empty()) least_waiting = std::min(least_waiting, tenant.served);
    if (tenant.running > 0) largest = std::max(largest, tenant.served);
  }
  return least_waiting == INT64_MAX ? largest : least_waiting;
}

void FairQueue::insert(std::unique_ptr<Sequence> sequence) {
  ++size_;
  tokens_ += int64_t(sequence->tokens.size());
  auto& waiting = sequence->tenant->waiting;
  const SequenceAge key = age(*sequence);
  const bool inserted = waiting.emplace(key, std::move(sequence)).second;
  KIVI_VERIFY(inserted);
}

std::unique_ptr<Sequence> FairQueue::take(Sequence& s) {
  auto& waiting = s.tenant->waiting;
  const auto place = waiting.find(age(s));
  KIVI_VERIFY(place != waiting.end() && place->second.get() == &s);
  std::unique_ptr<Sequence> taken = std::move(place->second);
  waiting.erase(place);
  --size_;
  tokens_ -= int64_t(taken->tokens.size());
  return taken;
}

// A tenant without sequences is remembered while its counter is above the floor: it would begin
// there anyway. With too many of them the ones that are least ahead are forgotten.
void FairQueue::forget_idle() {
  const auto idle = [](const Tenant& t) { return t.waiting.empty() && t.running == 0; };
  const bool all_idle =
      std::ranges::all_of(tenants_, [&](const auto& entry) { return idle(entry.second); });
  if (all_idle) return tenants_.clear();
  const int64_t start = floor();
  std::erase_if(tenants_, [&](const auto& entry) {
    return idle(entry.second) && entry.second.served <= start;
  });
  int idle_tenants = 0;
  auto least = tenants_.end();
  for (auto it = tenants_.begin(); it != tenants_.end(); ++it) {
    if (!idle(it->second)) continue;
    ++idle_tenants;
    if (least == tenants_.end() || it->second.served < least->second.served) least = it;
  }
  if (idle_tenants > kIdleTenantsMax) tenants_.erase(least);
}

}  // namespace kivi
