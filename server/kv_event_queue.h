// SPDX-License-Identifier: Apache-2.0
// KvEventQueue carries what the prefix cache announces from the engine thread to the thread that
// publishes it. The queue is bounded. If it is full, events are dropped and counted, and once there
// is room again the cache announces everything that it keeps. So a reader is always exact again
// after a loss.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "engine/prefix_events.h"

namespace kivi {

struct KvEvent {
  enum class Kind : uint8_t {
    stored,
    removed,
    cleared,
    lost,  // events before this one were dropped; cleared and everything that is kept follow
  };
  Kind kind = Kind::cleared;
  uint64_t id = 0;
  uint64_t parent = 0;                         // stored: 0 if there is none
  std::vector<int32_t> tokens;                 // stored
  int token_count = 0;                         // stored, removed
  int unit = 0;                                // tokens; the block is a whole number of units
  PrefixMedium medium = PrefixMedium::device;  // stored, removed
};

class KvEventQueue : public PrefixObserver {
 public:
  // `capacity` is the number of events that wait at most. For a loss to heal, it must exceed the
  // number of blocks that the cache can keep.
  explicit KvEventQueue(size_t capacity);
  ~KvEventQueue() override;
  KvEventQueue(const KvEventQueue&) = delete;
  KvEventQueue& operator=(const KvEventQueue&) = delete;

  // Before the first event.
  void set_capacity(size_t capacity) { capacity_ = capacity; }

  // Engine thread.
  void stored(const StoredBlock& block) override;
  void removed(uint64_t id, int tokens, int unit, PrefixMedium medium) override;
  void cleared() override;
  bool needs_all() override;

  // The reader's thread. A descriptor that is readable while events wait or after wake().
  int descriptor() const { return descriptor_; }
  // Returns all events that wait, oldest first, and makes the descriptor unreadable.
  std::vector<KvEvent> take();

  // Any thread.
  void wake();
  uint64_t dropped() const;

 private:
  void push(KvEvent event);

  const int descriptor_;  // an eventfd
  size_t capacity_;
  mutable std::mutex mutex_;  // guards the rest
  std::vector<KvEvent> events_;
  bool losing_ = false;  // every event is dropped until the cache announces everything
  uint64_t dropped_ = 0;
};

}  // namespace kivi
