// SPDX-License-Identifier: Apache-2.0
// The wire format of KV events: vLLM's, a MessagePack array [time, [event...], rank] where an event
// is a tagged array (docs/fleet.md, section "KV events"). Pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "server/kv_event_queue.h"

namespace kivi {

// Gives the parts of blocks hashes that differ between processes. A router keeps one index for all
// servers, so equal hashes must mean equal tokens. `secret` is random for each process.
class BlockHashes {
 public:
  explicit BlockHashes(uint64_t secret) : secret_(secret) {}
  // `from_end` 0 is the last unit of the block.
  uint64_t of(uint64_t block, int from_end) const;

 private:
  uint64_t secret_;
};

// Returns the payload of one batch. `time` is in seconds of unix time. Blocks are cut into units,
// so that all hashes of a server stand for the same number of tokens. `lost` events have no bytes.
std::string encode_kv_batch(double time, std::span<const KvEvent> events,
                            const BlockHashes& hashes);

}  // namespace kivi
