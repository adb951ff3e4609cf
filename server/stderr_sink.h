// SPDX-License-Identifier: Apache-2.0
// StderrSink: spdlog's sink for standard error that a stalled reader cannot hold for ever.
#pragma once

#include <spdlog/async_logger.h>
#include <spdlog/details/thread_pool.h>
#include <spdlog/sinks/base_sink.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <string_view>

namespace kivi {

// Waits for the reader of standard error before it writes, without changing the descriptor's flags
// (other processes may share it). Any thread.
class StderrSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  // `queue`: the queue that the lines come from, which drops the oldest ones when it is full. Null
  // where callers write directly. After drops, the sink says how many there were.
  explicit StderrSink(spdlog::details::thread_pool* queue);

  // From `end` on, a line that the reader does not take at once is dropped.
  void stop_waiting_at(std::chrono::steady_clock::time_point end);

  int64_t lines_dropped() const;
  // How many flush requests have arrived here: everything before them has been written or dropped.
  int64_t flushes() const { return flushes_; }

 protected:
  void sink_it_(const spdlog::details::log_msg& msg) override;
  void flush_() override { ++flushes_; }

 private:
  // False where the reader is gone, or did not read in time. A part may have been written.
  bool write(std::string_view text);
  bool wait_for_reader() const;
  void report_drops();

  spdlog::details::thread_pool* queue_;
  const bool color_;
  std::atomic<int64_t> end_;  // of waiting, in the steady clock's ticks
  std::atomic<int64_t> unwritten_{0}, flushes_{0};
  int64_t reported_ = 0;  // drops that have been told
};

}  // namespace kivi
