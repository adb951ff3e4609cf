// SPDX-License-Identifier: Apache-2.0
// BodyBudget: the bytes of request bodies and messages that both front ends hold at a time.
#pragma once

#include <atomic>
#include <cstddef>

namespace kivi {

// Any thread.
class BodyBudget {
 public:
  explicit BodyBudget(size_t limit) : limit_(limit) {}

  // Takes the bytes, or returns false and takes nothing if the sum would exceed the limit.
  bool take(size_t bytes) {
    if (used_.fetch_add(bytes) + bytes <= limit_) return true;
    used_ -= bytes;
    return false;
  }
  void give_back(size_t bytes) { used_ -= bytes; }

  size_t limit() const { return limit_; }
  size_t used() const { return used_; }

 private:
  const size_t limit_;
  std::atomic<size_t> used_{0};
};

// The share of one request. Given back by the destructor. One thread at a time.
class BodyShare {
 public:
  explicit BodyShare(BodyBudget& budget) : budget_(budget) {}
  ~BodyShare() { release(); }
  BodyShare(const BodyShare&) = delete;
  BodyShare& operator=(const BodyShare&) = delete;

  // Whether the share could grow to `bytes` now.
  bool has_room_for(size_t bytes) const {
    return bytes <= bytes_ || budget_.used() + (bytes - bytes_) <= budget_.limit();
  }
  // What all shares together may hold.
  size_t limit() const { return budget_.limit(); }
  // Grows the share to `bytes`, or returns false and changes nothing if that exceeds the budget.
  bool grow_to(size_t bytes) {
    if (bytes <= bytes_) return true;
    if (!budget_.take(bytes - bytes_)) return false;
    bytes_ = bytes;
    return true;
  }
  void release() {
    budget_.give_back(bytes_);
    bytes_ = 0;
  }

 private:
  BodyBudget& budget_;
  size_t bytes_ = 0;
};

}  // namespace kivi
