// SPDX-License-Identifier: Apache-2.0
// Copier makes the CPU backend's copies beside the ops (Backend::copy_beside): one thread, which
// starts with the first batch and copies batch after batch. So the memory rules of a device with a
// copy engine hold on the CPU too, and ThreadSanitizer sees code that breaks them.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

namespace kivi {

struct HostCopy;

class Copier {
 public:
  Copier() = default;
  ~Copier();  // waits for the batches under way
  Copier(const Copier&) = delete;
  Copier& operator=(const Copier&) = delete;

  // Returns the batch's number, from 1.
  uint64_t enqueue(std::span<const HostCopy> copies);
  uint64_t enqueued() const;
  uint64_t done();
  // The time of the copies that the last call of done() counted.
  double seconds() const { return reported_seconds_; }
  void wait(uint64_t batches);
  void delay(std::chrono::microseconds each);

 private:
  void run(const std::stop_token& stop);

  mutable std::mutex mutex_;  // guards all below but reported_seconds_ and thread_
  std::condition_variable_any arrived_;
  std::condition_variable copied_;
  std::deque<std::vector<HostCopy>> batches_;  // not begun yet
  uint64_t enqueued_ = 0;
  uint64_t done_ = 0;
  double seconds_ = 0;  // of done_ batches
  std::chrono::microseconds delay_{0};
  double reported_seconds_ = 0;  // the caller's
  std::jthread thread_;
};

}  // namespace kivi
