// SPDX-License-Identifier: Apache-2.0
// IdPool knows which of n equal things (pages, slots, staging pages) are free. It is last in, first
// out, so that recently used memory is used again. Giving an id back twice fails a KIVI_VERIFY.
// Engine thread only.
#pragma once

#include <cstdint>
#include <vector>

namespace kivi {

class IdPool {
 public:
  explicit IdPool(int count);

  // Appends `count` ids to `out`, or returns false and changes nothing.
  bool take(int count, std::vector<int32_t>& out);
  void give_back(int32_t id);

  int free() const { return int(free_.size()); }
  int total() const { return int(taken_.size()); }

 private:
  std::vector<int32_t> free_;
  std::vector<bool> taken_;
};

}  // namespace kivi
