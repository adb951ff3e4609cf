// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/thread_pool.h"

#include <chrono>

#include "base/verify.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kivi {
namespace {

// Ops of a step follow each other within microseconds; a sleep and a wake-up cost ten times that.
// So a thread looks for this long before it sleeps, and an idle server still uses no CPU.
constexpr std::chrono::microseconds kSpin{30};

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Waits until ready() or the spin is over.
template <class Ready>
bool spin_until(Ready ready) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return ready();
}

uint32_t unclaimed(uint64_t state) { return uint32_t(state); }

}  // namespace

ThreadPool::ThreadPool(int threads) {
  KIVI_VERIFY(threads >= 1);
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  work_arrived_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

bool ThreadPool::run_one(int worker) {
  uint64_t state = state_.load(std::memory_order_acquire);
  do {
    if (unclaimed(state) == 0) return false;
  } while (!state_.compare_exchange_weak(state, state - 1, std::memory_order_acq_rel));
  const int64_t tasks = tasks_;
  function_(context_, tasks - unclaimed(state), worker);
  if (tasks_done_.fetch_add(1) + 1 == tasks && caller_sleeps_) {
    { std::lock_guard lock(mutex_); }
    job_done_.notify_one();
  }
  return true;
}

void ThreadPool::run(int64_t tasks, TaskFunction function, void* context) {
  KIVI_VERIFY(tasks < (int64_t(1) << 32) && unclaimed(state_.load()) == 0);
  tasks_ = tasks;
  function_ = function;
  context_ = context;
  tasks_done_ = 0;
  state_ = ((state_.load() >> 32) + 1) << 32 | uint64_t(tasks);
  if (sleepers_ > 0) {
    { std::lock_guard lock(mutex_); }  // a worker between its check and its wait gets the news
    work_arrived_.notify_all();
  }
  while (run_one(0)) {
  }
  const auto done = [&] { return tasks_done_ == tasks; };
  if (spin_until(done)) return;
  std::unique_lock lock(mutex_);
  caller_sleeps_ = true;
  job_done_.wait(lock, done);
  caller_sleeps_ = false;
}

void ThreadPool::work(int worker) {
  const auto arrived = [&] { return stop_ || unclaimed(state_) != 0; };
  while (!stop_) {
    while (run_one(worker)) {
    }
    if (spin_until(arrived)) continue;
    std::unique_lock lock(mutex_);
    ++sleepers_;
    work_arrived_.wait(lock, arrived);
    --sleepers_;
  }
}

}  // namespace kivi
