// SPDX-License-Identifier: Apache-2.0
// KvEventPublisher tells routers over ZeroMQ which blocks of tokens the prefix cache keeps
// (docs/fleet.md, section "KV events"). A thread of its own owns the sockets. The engine thread
// only appends to a bounded queue.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "engine/prefix_events.h"

namespace kivi {

struct KvEventCounts {
  uint64_t batches = 0;  // published; the next sequence number is at least this
  uint64_t events = 0;   // in these batches
  uint64_t dropped = 0;  // found the queue full
};

class KvEventPublisher {
 public:
  // Opens the sockets. `endpoint` is tcp://HOST:PORT or ipc://PATH. It is bound if HOST is *,
  // 0.0.0.0, [::] or a loopback address, and connected to a subscriber otherwise. `replay_endpoint`
  // is bound ("": no replay). Error invalid: an endpoint that cannot be opened, named by its flag.
  // Error unsupported: this build has no ZeroMQ.
  static Result<std::unique_ptr<KvEventPublisher>> open(const std::string& endpoint,
                                                        const std::string& replay_endpoint);
  virtual ~KvEventPublisher() = default;

  // What the prefix cache announces to this observer is published. The publisher must outlive the
  // cache.
  virtual PrefixObserver& observer() = 0;
  // Starts to publish under `topic`. Once, before the first event. `blocks_max` is the number of
  // blocks that the cache can keep.
  virtual void start(const std::string& topic, size_t blocks_max) = 0;
  // Any thread.
  virtual KvEventCounts counts() const = 0;
};

}  // namespace kivi
