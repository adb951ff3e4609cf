// SPDX-License-Identifier: Apache-2.0
// PieceStore keeps pieces of the prefix cache beyond the host's memory (kv_disk.h is the one on
// disk; simulations have their own). A piece is a block's pages, or a checkpoint's. Pages are host
// pages, by index. Jobs run beside the engine thread, which alone calls these functions.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/block_name.h"

namespace kivi {

enum class PieceKind : uint8_t {
  block,       // a block's pages, complete
  checkpoint,  // the pages of the block that ends at the checkpoint, then the slab's
};

struct PieceKey {
  BlockName name;
  PieceKind kind = PieceKind::block;
  friend bool operator==(const PieceKey&, const PieceKey&) = default;
};

struct PieceKeyHash {
  size_t operator()(const PieceKey& key) const {
    return BlockNameHash()(key.name) * 2 + size_t(key.kind);
  }
};

struct PieceStoreStats {
  int64_t bytes = 0;        // stored
  int64_t bytes_limit = 0;  // 0: no store
  int64_t pieces = 0;
  uint64_t bytes_written = 0;
  uint64_t bytes_read = 0;
  uint64_t write_failures = 0;
  uint64_t read_failures = 0;  // pieces that could not be read, or were not what they must be
};

class PieceStore {
 public:
  struct Done {
    uint64_t job = 0;
    bool ok = false;
  };
  virtual ~PieceStore() = default;

  virtual bool writes() const = 0;
  // May return true for a piece that can no longer be read.
  virtual bool contains(const PieceKey& key) const = 0;
  // Begin a job and return its number. The job reads (writes) the pages until it is done.
  virtual uint64_t write(const PieceKey& key, const std::vector<int32_t>& pages) = 0;
  virtual uint64_t read(const PieceKey& key, const std::vector<int32_t>& pages) = 0;
  // Appends the jobs that have ended since the last call. A piece whose read was not ok is gone.
  virtual void poll(std::vector<Done>& done) = 0;
  virtual void erase(const PieceKey& key) = 0;
  // The pages that are read in a second while pieces are read one after the other; 0: not known.
  virtual double pages_read_per_second() const = 0;
  virtual PieceStoreStats stats() const = 0;
};

}  // namespace kivi
