// SPDX-License-Identifier: Apache-2.0
// PrefixObserver: whoever wants to know which blocks of tokens the prefix cache keeps. A router
// that follows these events sends a prompt to the server that has computed most of it.
#pragma once

#include <cstdint>
#include <span>

namespace kivi {

// Where a block lies: in pages of the store, or in copies of them on the host. What lies in both
// places is two blocks.
enum class PrefixMedium : uint8_t { device, host };

// A block that the cache keeps. A block's id is never used again, so a block that is stored anew
// after its removal has another id.
struct StoredBlock {
  uint64_t id = 0;
  uint64_t parent = 0;              // the block before it, in the same place; 0: none
  std::span<const int32_t> tokens;  // of this block alone; valid during the call
  int unit = 0;                     // tokens; every block is a whole number of units
  PrefixMedium medium = PrefixMedium::device;
};

// The cache calls every member on the engine thread, which waits until the call returns. So copy
// what you need and return at once. Blocks of requests with a salt are not announced, because only
// requests of the same salt may know of them.
class PrefixObserver {
 public:
  virtual ~PrefixObserver() = default;

  // A parent is stored before its children.
  virtual void stored(const StoredBlock& block) = 0;
  // The block of `tokens` tokens is gone, and all below it are or will be within the same call.
  virtual void removed(uint64_t id, int tokens, int unit, PrefixMedium medium) = 0;
  // No block is left anywhere.
  virtual void cleared() = 0;
  // Returns true if the observer has lost events and can take them again. The cache then calls
  // cleared(), and stored() for every block that it keeps.
  virtual bool needs_all() = 0;
};

}  // namespace kivi
