// SPDX-License-Identifier: Apache-2.0
// Text functions that the files of the load generator share.
#pragma once

#include <charconv>
#include <cmath>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kivi::load {

inline constexpr int kTokensMax = 1 << 20;  // of one prompt or output; a longer one is a slip

// Returns the whole of `text` as a finite number, or nothing.
template <class T>
std::optional<T> parse_number(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  if (!std::isfinite(double(value))) return std::nullopt;
  return value;
}

// Returns at least one part, and keeps empty ones.
inline std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  for (size_t begin = 0;;) {
    const size_t end = text.find(separator, begin);
    parts.emplace_back(text.substr(begin, end - begin));
    if (end == std::string_view::npos) return parts;
    begin = end + 1;
  }
}

}  // namespace kivi::load
