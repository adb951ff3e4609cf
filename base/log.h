// SPDX-License-Identifier: Apache-2.0
// Log lines. server/logging.h says where they go and what they look like. This header stands
// between the code and spdlog because a call of spdlog's own templates takes three seconds to
// compile.
#pragma once

#include <fmt/core.h>

#include <string_view>

namespace kivi {

enum class LogLevel { debug, info, warning, error };

// All functions: any thread.
bool logs(LogLevel level);
void log_text(LogLevel level, std::string_view text);
void log_formatted(LogLevel level, fmt::string_view format, fmt::format_args values);

template <class... T>
void log_debug(fmt::format_string<T...> format, T&&... values) {
  log_formatted(LogLevel::debug, format, fmt::make_format_args(values...));
}
template <class... T>
void log_info(fmt::format_string<T...> format, T&&... values) {
  log_formatted(LogLevel::info, format, fmt::make_format_args(values...));
}
template <class... T>
void log_warning(fmt::format_string<T...> format, T&&... values) {
  log_formatted(LogLevel::warning, format, fmt::make_format_args(values...));
}
template <class... T>
void log_error(fmt::format_string<T...> format, T&&... values) {
  log_formatted(LogLevel::error, format, fmt::make_format_args(values...));
}

}  // namespace kivi
