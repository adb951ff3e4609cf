// SPDX-License-Identifier: Apache-2.0
// MaskMaker makes the masks of compiled grammars before a text needs them, on threads of the lowest
// priority. Without it the engine's thread would make each mask when a text first comes to its
// state, and a first use of a large grammar would slow down every sequence.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <mutex>
#include <stop_token>
#include <thread>
#include <vector>

#include "engine/grammar/compiled_grammar.h"

namespace kivi::grammar {

class MaskMaker {
 public:
  // What one grammar may take ahead of its use. Masks beyond it are made on use.
  static constexpr size_t kBytesMax = 32 << 20;
  static constexpr double kSecondsMax = 5;

  // The threads begin with the first grammar. 0: nothing is made ahead. Nor is it while all
  // grammars of the vocabulary together take more than `all_bytes_max`.
  explicit MaskMaker(int threads, int64_t all_bytes_max = std::numeric_limits<int64_t>::max())
      : threads_max_(threads), all_bytes_max_(all_bytes_max) {}
  // Waits for the masks that are being made, which takes some milliseconds.
  ~MaskMaker();
  MaskMaker(const MaskMaker&) = delete;
  MaskMaker& operator=(const MaskMaker&) = delete;

  // A grammar that nobody holds any more is skipped. Any thread.
  void add(const std::shared_ptr<const CompiledGrammar>& grammar);

 private:
  struct Job {
    std::weak_ptr<const CompiledGrammar> grammar;
    size_t next = 0;  // in its order()
    size_t bytes = 0;
    double seconds = 0;
  };
  void run(const std::stop_token& stop);

  const int threads_max_;
  const int64_t all_bytes_max_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable_any added_;
  std::deque<std::shared_ptr<Job>> jobs_;
  std::vector<std::jthread> threads_;
};

}  // namespace kivi::grammar
