// SPDX-License-Identifier: Apache-2.0
#include "engine/id_pool.h"

#include "base/verify.h"

namespace kivi {

IdPool::IdPool(int count) : taken_(size_t(count), false) {
  free_.reserve(size_t(count));
  for (int id = count - 1; id >= 0; --id) free_.push_back(id);  // id 0 is taken first
}

bool IdPool::take(int count, std::vector<int32_t>& out) {
  KIVI_VERIFY(count >= 0);
  if (count > free()) return false;
  for (int i = 0; i < count; ++i) {
    const int32_t id = free_.back();
    free_.pop_back();
    taken_[size_t(id)] = true;
    out.push_back(id);
  }
  return true;
}

void IdPool::give_back(int32_t id) {
  KIVI_VERIFY(id >= 0 && id < total());
  KIVI_VERIFY(taken_[size_t(id)]);
  taken_[size_t(id)] = false;
  free_.push_back(id);
}

}  // namespace kivi
