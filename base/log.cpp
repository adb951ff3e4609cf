// SPDX-License-Identifier: Apache-2.0
#include "base/log.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

namespace kivi {
namespace {

spdlog::level::level_enum spdlog_level(LogLevel level) {
  switch (level) {
    case LogLevel::debug:
      return spdlog::level::debug;
    case LogLevel::info:
      return spdlog::level::info;
    case LogLevel::warning:
      return spdlog::level::warn;
    case LogLevel::error:
      break;
  }
  return spdlog::level::err;
}

}  // namespace

bool logs(LogLevel level) { return spdlog::should_log(spdlog_level(level)); }

void log_text(LogLevel level, std::string_view text) {
  spdlog::default_logger_raw()->log(spdlog_level(level),
                                    spdlog::string_view_t(text.data(), text.size()));
}

void log_formatted(LogLevel level, fmt::string_view format, fmt::format_args values) {
  if (!logs(level)) return;
  fmt::memory_buffer text;
  fmt::vformat_to(std::back_inserter(text), format, values);
  log_text(level, std::string_view(text.data(), text.size()));
}

}  // namespace kivi
