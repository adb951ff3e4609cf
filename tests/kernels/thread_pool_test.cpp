// SPDX-License-Identifier: Apache-2.0
// Every task runs once, on one thread at a time, however many jobs follow each other.
#include "kernels/cpu/thread_pool.h"

#include <catch2/catch.hpp>
#include <ctime>

using namespace kivi;

TEST_CASE("Every task of every job runs exactly once and is seen when the call returns") {
  for (const int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    REQUIRE(pool.threads() == threads);
    std::vector<int> count(1000);
    std::vector<int64_t> busy(static_cast<size_t>(threads));
    for (int job = 1; job <= 300; ++job) {
      const int tasks = 1 + job * 7 % 1000;
      std::fill(count.begin(), count.end(), 0);
      pool.parallel_for(tasks, int64_t(1) << 30, [&](int64_t task, int worker) {
        ++count[size_t(task)];
        ++busy[size_t(worker)];  // plain: two threads never share a worker number
      });
      for (int i = 0; i < 1000; ++i) REQUIRE(count[size_t(i)] == (i < tasks ? 1 : 0));
    }
    int64_t total = 0;
    for (const int64_t n : busy) total += n;
    int64_t want = 0;
    for (int job = 1; job <= 300; ++job) want += 1 + job * 7 % 1000;
    CHECK(total == want);
  }
}

TEST_CASE("A pool that has nothing to do uses no processor time") {
  ThreadPool pool(4);
  pool.parallel_for(8, int64_t(1) << 30, [](int64_t, int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const std::clock_t begin = std::clock();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  CHECK(double(std::clock() - begin) / CLOCKS_PER_SEC < 0.02);
}

TEST_CASE("Work that is too small for a hand-over stays on the caller's thread") {
  ThreadPool pool(3);
  const auto caller = std::this_thread::get_id();
  bool same = true;
  pool.parallel_for(100, ThreadPool::kInlineWork - 1, [&](int64_t, int worker) {
    same = same && worker == 0 && std::this_thread::get_id() == caller;
  });
  CHECK(same);
}
