// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/copier.h"

#include <cstring>
#include <utility>

#include "base/verify.h"
#include "kernels/backend.h"

namespace kivi {

Copier::~Copier() { wait(enqueued()); }

uint64_t Copier::enqueue(std::span<const HostCopy> copies) {
  const std::lock_guard lock(mutex_);
  if (!thread_.joinable())
    thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
  batches_.emplace_back(copies.begin(), copies.end());
  arrived_.notify_one();
  return ++enqueued_;
}

uint64_t Copier::enqueued() const {
  const std::lock_guard lock(mutex_);
  return enqueued_;
}

uint64_t Copier::done() {
  const std::lock_guard lock(mutex_);
  reported_seconds_ = seconds_;
  return done_;
}

void Copier::wait(uint64_t batches) {
  std::unique_lock lock(mutex_);
  KIVI_VERIFY(batches <= enqueued_);
  copied_.wait(lock, [&] { return done_ >= batches; });
}

void Copier::delay(std::chrono::microseconds each) {
  const std::lock_guard lock(mutex_);
  delay_ = each;
}

void Copier::run(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (arrived_.wait(lock, stop, [this] { return !batches_.empty(); })) {
    const std::vector<HostCopy> batch = std::move(batches_.front());
    batches_.pop_front();
    const auto delay = delay_;
    lock.unlock();
    const auto begin = std::chrono::steady_clock::now();
    std::this_thread::sleep_for(delay);
    for (const HostCopy& copy : batch) std::memcpy(copy.to, copy.from, copy.bytes);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    lock.lock();
    seconds_ += took.count();
    ++done_;
    copied_.notify_all();
  }
}

}  // namespace kivi
