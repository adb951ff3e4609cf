// SPDX-License-Identifier: Apache-2.0
// Where log lines go and what they look like.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"
#include "server/server_config.h"

namespace kivi {

// Sets up spdlog's default logger: standard error, `log_level`, and `log_format`: text lines, or
// one JSON object a line ({"time","level","thread","message"}). A message is always one line:
// control characters in it are escaped. Errors name the field. Call once, before other threads log.
Status setup_logging(const ServerConfig& config);

// A message as one line of text: backslash escapes for control characters (C0, DEL and C1), U+FFFD
// for bytes that are not UTF-8. A message of more than 8 KiB is cut, and says so.
std::string one_line(std::string_view message);

// While it lives, spdlog's default logger writes on a thread of its own, behind a bounded queue. A
// reader of standard error that stalls costs log lines, and no other thread waits for it. One
// owner, after setup_logging().
class AsyncLog {
 public:
  explicit AsyncLog(const ServerConfig& config);
  ~AsyncLog();  // flush(kFlushTime); later lines are written directly, and dropped where that waits
  AsyncLog(const AsyncLog&) = delete;
  AsyncLog& operator=(const AsyncLog&) = delete;

  static constexpr std::chrono::milliseconds kFlushTime{500};

  // Lines that were logged and never written. Any thread.
  int64_t lines_dropped() const;
  // Waits until every line so far is written; false where the reader needs longer than `timeout`.
  // Any thread.
  bool flush(std::chrono::milliseconds timeout);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kivi
