// SPDX-License-Identifier: Apache-2.0
// KvEventPublisher tells routers over ZeroMQ which blocks of tokens the prefix cache keeps
// (docs/fleet.md, section "KV events"). A thread of its own owns the sockets. The engine thread
// only appends to a bounded queue.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "engine/engine.h"

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

  // Publishes what the engine's prefix cache announces, under `topic`. Once, before
  // Engine::start(). The publisher must outlive the engine.
  virtual void start(Engine& engine, const std::string& topic) = 0;
  // Any thread.
  virtual KvEventCounts counts() const = 0;
};

}  // namespace kivi
