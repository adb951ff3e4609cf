// SPDX-License-Identifier: Apache-2.0
// ThreadPool: the threads of the CPU backend. One caller at a time hands it a job of equal tasks;
// the caller works too and returns when all tasks are done. Idle workers sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace kivi {

class ThreadPool {
 public:
  // `threads` counts the caller: threads - 1 workers are started.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return int(workers_.size()) + 1; }

  // A job below this much work (in vector-friendly element operations: a multiply-add, a
  // conversion) is not worth a hand-over, which costs about a microsecond.
  static constexpr int64_t kInlineWork = 16'384;

  // Calls fn(task, worker) once for each task in [0, tasks); worker in [0, threads()) tells apart
  // the threads that run at the same time (for scratch memory). `work` estimates the whole job.
  // Not reentrant: fn must not call it.
  template <class F>
  void parallel_for(int64_t tasks, int64_t work, F&& fn) {
    if (tasks <= 1 || workers_.empty() || work < kInlineWork) {
      for (int64_t i = 0; i < tasks; ++i) fn(i, 0);
      return;
    }
    using Function = std::remove_reference_t<F>;
    run(
        tasks,
        [](void* f, int64_t task, int worker) { (*static_cast<Function*>(f))(task, worker); },
        const_cast<void*>(static_cast<const void*>(&fn)));
  }

 private:
  using TaskFunction = void (*)(void* context, int64_t task, int worker);

  void run(int64_t tasks, TaskFunction function, void* context);
  void work(int worker);
  // Claims and runs one task of the job in `state`; false where none is left.
  bool run_one(int worker);

  // Job number << 32 | tasks not yet claimed. Whoever claims a task (one compare-and-swap) pins the
  // job: it cannot end, and the three fields below cannot change, before that task is done.
  std::atomic<uint64_t> state_ = 0;
  int64_t tasks_ = 0;
  TaskFunction function_ = nullptr;
  void* context_ = nullptr;
  std::atomic<int64_t> tasks_done_ = 0;

  std::mutex mutex_;  // guards the two waits; never held while a task runs
  std::condition_variable work_arrived_, job_done_;
  std::atomic<int> sleepers_ = 0;
  std::atomic<bool> caller_sleeps_ = false;
  std::atomic<bool> stop_ = false;
  std::vector<std::thread> workers_;
};

}  // namespace kivi
