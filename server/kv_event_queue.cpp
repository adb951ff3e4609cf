// SPDX-License-Identifier: Apache-2.0
#include "server/kv_event_queue.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <utility>

#include "base/verify.h"

namespace kivi {

KvEventQueue::KvEventQueue(size_t capacity)
    : descriptor_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)), capacity_(capacity) {
  KIVI_VERIFY(descriptor_ >= 0);
}

KvEventQueue::~KvEventQueue() { close(descriptor_); }

void KvEventQueue::stored(const StoredBlock& block) {
  push({.kind = KvEvent::Kind::stored,
        .id = block.id,
        .parent = block.parent,
        .tokens = {block.tokens.begin(), block.tokens.end()},
        .token_count = int(block.tokens.size()),
        .unit = block.unit,
        .medium = block.medium});
}

void KvEventQueue::removed(uint64_t id, int tokens, int unit, PrefixMedium medium) {
  push({.kind = KvEvent::Kind::removed,
        .id = id,
        .tokens = {},
        .token_count = tokens,
        .unit = unit,
        .medium = medium});
}

void KvEventQueue::cleared() { push({.kind = KvEvent::Kind::cleared, .tokens = {}}); }

// The reader must have emptied the queue, so that everything finds room in it.
bool KvEventQueue::needs_all() {
  const std::lock_guard lock(mutex_);
  if (!losing_ || !events_.empty()) return false;
  losing_ = false;
  events_.push_back({.kind = KvEvent::Kind::lost, .tokens = {}});
  return true;
}

void KvEventQueue::push(KvEvent event) {
  {
    const std::lock_guard lock(mutex_);
    losing_ = losing_ || events_.size() >= capacity_;
    if (losing_) {
      ++dropped_;
      return;
    }
    events_.push_back(std::move(event));
    if (events_.size() > 2) return;  // the reader has been woken (the first may be `lost`)
  }
  wake();
}

std::vector<KvEvent> KvEventQueue::take() {
  uint64_t wakes = 0;
  [[maybe_unused]] const auto bytes = read(descriptor_, &wakes, sizeof wakes);
  const std::lock_guard lock(mutex_);
  return std::exchange(events_, {});
}

void KvEventQueue::wake() {
  const uint64_t one = 1;
  [[maybe_unused]] const auto bytes = write(descriptor_, &one, sizeof one);
}

uint64_t KvEventQueue::dropped() const {
  const std::lock_guard lock(mutex_);
  return dropped_;
}

}  // namespace kivi
