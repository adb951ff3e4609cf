// SPDX-License-Identifier: Apache-2.0
#include "server/grpc/library_log.h"

#include <fmt/format.h>
#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>

#include <chrono>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/log.h"

namespace kivi {
namespace {

constexpr int kLinesPerSecond = 10;
constexpr size_t kLineBytesMax = 1024;

// Admits this many lines in each second.
class LineLimit {
 public:
  // Nothing where the line must not be logged; else how many were not since the last one.
  std::optional<int64_t> admit() {
    const std::lock_guard lock(mutex_);
    const auto now = std::chrono::steady_clock::now();
    if (now - begin_ >= std::chrono::seconds(1)) {
      begin_ = now;
      admitted_ = 0;
    }
    if (admitted_ == kLinesPerSecond) {
      ++suppressed_;
      return std::nullopt;
    }
    ++admitted_;
    return std::exchange(suppressed_, 0);
  }

 private:
  std::mutex mutex_;  // guards the rest
  std::chrono::steady_clock::time_point begin_ = {};
  int admitted_ = 0;
  int64_t suppressed_ = 0;
};

void log_line(LogLevel level, std::string_view library, std::string_view text) {
  static LineLimit limit;  // of the process, as the libraries' handlers are
  if (!logs(level)) return;
  const std::optional<int64_t> suppressed = limit.admit();
  if (!suppressed) return;
  const std::string note =
      *suppressed == 0 ? "" : fmt::format(" ({} such lines before it are not shown)", *suppressed);
  log_text(level, fmt::format("{}: {}{}", library, text.substr(0, kLineBytesMax), note));
}

void log_grpc(gpr_log_func_args* args) {
  const auto level = args->severity == GPR_LOG_SEVERITY_ERROR  ? LogLevel::error
                     : args->severity == GPR_LOG_SEVERITY_INFO ? LogLevel::info
                                                               : LogLevel::debug;
  log_line(level, "gRPC", args->message);
}

void log_protobuf(google::protobuf::LogLevel level, const char*, int, const std::string& text) {
  const auto ours = level == google::protobuf::LOGLEVEL_INFO      ? LogLevel::info
                    : level == google::protobuf::LOGLEVEL_WARNING ? LogLevel::warning
                                                                  : LogLevel::error;
  log_line(ours, "Protobuf", text);
}

}  // namespace

void redirect_library_logs() {
  gpr_set_log_function(log_grpc);
  google::protobuf::SetLogHandler(log_protobuf);
}

}  // namespace kivi
