// SPDX-License-Identifier: Apache-2.0
// HostBlocks says which blocks of tokens lie on the host, for whoever follows the prefix cache by
// its events (prefix_events.h). A block is announced while it and all blocks before it are there,
// because a block is of no use without those. Engine thread only.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/block_name.h"
#include "engine/prefix_cache.h"

namespace kivi {

class HostBlocks {
 public:
  // `device` has the observer, and must outlive this object.
  explicit HostBlocks(PrefixCache& device);

  // True if somebody follows. Otherwise nothing need be added.
  bool observed() const { return device_.observed(); }
  // The block is on the host now. `parent` names the block before it; null: it is the first one.
  // No effect if it was there already.
  void add(const BlockName& name, const BlockName* parent, std::span<const int32_t> tokens);
  // The block is there no longer. No effect if it was not there.
  void remove(const BlockName& name);
  // No block is there.
  void clear();
  // Calls observer.stored() for every block that is announced, parents first.
  void announce_to(PrefixObserver& observer) const;

 private:
  struct Block {
    BlockName parent{};
    bool first = false;
    std::vector<int32_t> tokens;
    uint64_t id = 0;  // 0: not announced
  };
  StoredBlock described(const Block& block) const;
  // Those that are on the host, of the blocks behind this one.
  const std::vector<BlockName>& children(const BlockName& name) const;
  // The block and what can be reached from it.
  void announce(const BlockName& name);
  void withdraw(const BlockName& name);

  PrefixCache& device_;
  std::unordered_map<BlockName, Block, BlockNameHash> blocks_;
  // By the name of the block before them, which need not be there.
  std::unordered_map<BlockName, std::vector<BlockName>, BlockNameHash> children_;
  uint64_t next_id_;
};

}  // namespace kivi
