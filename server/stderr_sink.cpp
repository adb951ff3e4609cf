// SPDX-License-Identifier: Apache-2.0
#include "server/stderr_sink.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>

namespace kivi {
namespace {

using SteadyClock = std::chrono::steady_clock;

// A pipe that poll() calls writable takes this much without blocking (PIPE_BUF).
constexpr size_t kChunkBytes = 4096;
constexpr int kPollMs = 50;

std::string_view color_of(spdlog::level::level_enum level) {
  switch (level) {
    case spdlog::level::err:
    case spdlog::level::critical:
      return "\x1b[31m";
    case spdlog::level::warn:
      return "\x1b[33m";
    default:
      return "\x1b[32m";
  }
}

}  // namespace

StderrSink::StderrSink(spdlog::details::thread_pool* queue)
    : queue_(queue),
      color_(isatty(STDERR_FILENO) != 0),
      end_(std::numeric_limits<int64_t>::max()) {}

void StderrSink::stop_waiting_at(SteadyClock::time_point end) {
  end_ = end.time_since_epoch().count();
}

int64_t StderrSink::lines_dropped() const {
  return unwritten_ + (queue_ == nullptr ? 0 : int64_t(queue_->overrun_counter()));
}

bool StderrSink::wait_for_reader() const {
  for (;;) {
    const bool over = SteadyClock::now().time_since_epoch().count() >= end_;
    pollfd descriptor = {.fd = STDERR_FILENO, .events = POLLOUT, .revents = 0};
    const int ready = ::poll(&descriptor, 1, over ? 0 : kPollMs);
    if (ready > 0) return true;  // an error too: write() tells it
    if (ready < 0 && errno != EINTR) return false;
    if (over) return false;
  }
}

bool StderrSink::write(std::string_view text) {
  while (!text.empty()) {
    if (!wait_for_reader()) return false;
    const ssize_t n = ::write(STDERR_FILENO, text.data(), std::min(text.size(), kChunkBytes));
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n <= 0) return false;
    text.remove_prefix(size_t(n));
  }
  return true;
}

void StderrSink::sink_it_(const spdlog::details::log_msg& msg) {
  spdlog::memory_buf_t line;
  formatter_->format(msg, line);
  std::string_view text(line.data(), line.size());
  std::string colored;
  if (color_ && msg.color_range_end > msg.color_range_start) {
    colored.append(text.substr(0, msg.color_range_start))
        .append(color_of(msg.level))
        .append(text.substr(msg.color_range_start, msg.color_range_end - msg.color_range_start))
        .append("\x1b[m")
        .append(text.substr(msg.color_range_end));
    text = colored;
  }
  if (!write(text))
    ++unwritten_;
  else if (lines_dropped() > reported_)
    report_drops();
}

// The line stands behind one that has been written, so the reader is there again.
void StderrSink::report_drops() {
  if (queue_ != nullptr && queue_->queue_size() > 0) return;  // more may be dropped meanwhile
  const int64_t dropped = lines_dropped();
  const std::string text = fmt::format(
      "{} log lines were dropped, because nobody read standard error in time", dropped - reported_);
  spdlog::memory_buf_t line;
  formatter_->format(spdlog::details::log_msg("", spdlog::level::warn, text), line);
  if (write(std::string_view(line.data(), line.size()))) reported_ = dropped;
}

}  // namespace kivi
