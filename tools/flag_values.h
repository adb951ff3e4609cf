// SPDX-License-Identifier: Apache-2.0
// The kinds of values that flags have: each function makes the FlagValue of one field. Included by
// the files of the table alone.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "tools/flags.h"

namespace kivi {

using nlohmann::ordered_json;

inline constexpr int kIntMax = std::numeric_limits<int>::max();

template <class T>
std::optional<T> parse_number(const std::string& text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// T: an integer type, or std::optional of one.
template <class T>
FlagValue integer(T& field, int64_t min, int64_t max) {
  return {.kind = FlagKind::integer,
          .set = [&field, min, max](const std::string& text) -> std::optional<std::string> {
            const auto value = parse_number<int64_t>(text);
            if (!value || *value < min || *value > max)
              return max == std::numeric_limits<int64_t>::max() || max == kIntMax
                         ? fmt::format("an integer of at least {}", min)
                         : fmt::format("an integer in [{}, {}]", min, max);
            field = static_cast<T>(*value);
            return std::nullopt;
          },
          .get = [&field]() -> ordered_json {
            if constexpr (std::is_integral_v<T>) {
              return field;
            } else {
              return field ? ordered_json(*field) : ordered_json(nullptr);
            }
          }};
}

inline FlagValue seed(uint64_t& field) {
  return {.kind = FlagKind::integer,
          .set = [&field](const std::string& text) -> std::optional<std::string> {
            const auto value = parse_number<uint64_t>(text);
            if (!value) return "an integer in [0, 2^64)";
            field = *value;
            return std::nullopt;
          },
          .get = [&field] { return ordered_json(field); }};
}

// T: double, or std::optional<double>. NaN is in no range.
template <class T>
FlagValue number(T& field, double min, double max) {
  return {.kind = FlagKind::number,
          .set = [&field, min, max](const std::string& text) -> std::optional<std::string> {
            const auto value = parse_number<double>(text);
            if (!value || !(*value >= min && *value <= max))
              return std::isinf(max) ? fmt::format("a number of at least {}", min)
                                     : fmt::format("a number in [{}, {}]", min, max);
            field = *value;
            return std::nullopt;
          },
          .get = [&field]() -> ordered_json {
            if constexpr (std::is_same_v<T, double>) {
              return field;
            } else {
              return field ? ordered_json(*field) : ordered_json(nullptr);
            }
          }};
}

inline FlagValue text(std::string& field) {
  return {.kind = FlagKind::text,
          .set = [&field](const std::string& text) -> std::optional<std::string> {
            field = text;
            return std::nullopt;
          },
          .get = [&field] { return ordered_json(field); }};
}

// The plain names of cache formats; additions can be appended to them.
inline std::vector<std::string> format_choices() {
  std::vector<std::string> names = {"auto"};
  for (const std::string_view name : kv_format_names()) names.emplace_back(name);
  return names;
}

// The name of a cache format, additions included.
inline FlagValue cache_format(std::string& field) {
  return {.kind = FlagKind::text,
          .set = [&field](const std::string& text) -> std::optional<std::string> {
            if (!is_kv_format_name(text)) return kv_format_expectation();
            field = text;
            return std::nullopt;
          },
          .get = [&field] { return ordered_json(field); },
          .choices = format_choices()};
}

inline FlagValue choice(std::string& field, std::vector<std::string> choices) {
  return {.kind = FlagKind::text,
          .set = [&field, choices](const std::string& text) -> std::optional<std::string> {
            if (std::find(choices.begin(), choices.end(), text) == choices.end())
              return fmt::format("one of {}", fmt::join(choices, ", "));
            field = text;
            return std::nullopt;
          },
          .get = [&field] { return ordered_json(field); },
          .choices = choices};
}

template <class Enum>
FlagValue choice(Enum& field, std::vector<std::pair<std::string, Enum>> choices) {
  std::vector<std::string> allowed;
  for (const auto& [name, value] : choices) allowed.push_back(name);
  return {.kind = FlagKind::text,
          .set = [&field, choices, allowed](const std::string& text) -> std::optional<std::string> {
            for (const auto& [name, value] : choices) {
              if (name == text) {
                field = value;
                return std::nullopt;
              }
            }
            return fmt::format("one of {}", fmt::join(allowed, ", "));
          },
          .get = [&field, choices]() -> ordered_json {
            for (const auto& [name, value] : choices)
              if (value == field) return name;
            return nullptr;
          },
          .choices = allowed};
}

inline FlagValue boolean(bool& field) {
  return {.kind = FlagKind::boolean,
          .set = [&field](const std::string& text) -> std::optional<std::string> {
            const bool yes = text == "true" || text == "1" || text == "yes" || text == "on";
            const bool no = text == "false" || text == "0" || text == "no" || text == "off";
            if (!yes && !no) return "true or false";
            field = yes;
            return std::nullopt;
          },
          .get = [&field] { return ordered_json(field); }};
}

inline FlagValue list(std::vector<std::string>& field) {
  return {.kind = FlagKind::list,
          .set = [&field](const std::string& text) -> std::optional<std::string> {
            field.push_back(text);
            return std::nullopt;
          },
          .clear = [&field] { field.clear(); },
          .get = [&field] { return ordered_json(field); }};
}

// "BEGIN,END", auto or none.
inline FlagValue tags(std::string& field) {
  return {.kind = FlagKind::text,
          .set = [&field](const std::string& text) -> std::optional<std::string> {
            const size_t comma = text.find(',');
            const bool pair = comma != std::string::npos && comma > 0 && comma + 1 < text.size() &&
                              text.find(',', comma + 1) == std::string::npos;
            if (!pair && text != "auto" && text != "none")
              return "auto, none or two tags with a comma between, such as <think>,</think>";
            field = text;
            return std::nullopt;
          },
          .get = [&field] { return ordered_json(field); }};
}

// Calls take(part) for each part between commas, until one returns false.
template <class F>
bool each_part(const std::string& text, F&& take) {
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    if (!take(text.substr(begin, end - begin))) return false;
    begin = end + 1;
  }
  return true;
}

// "embed,norm".
inline FlagValue words(std::vector<std::string>& field) {
  return {.kind = FlagKind::text,
          .set = [&field](const std::string& text) -> std::optional<std::string> {
            std::vector<std::string> values;
            if (!each_part(text, [&](const std::string& part) {
                  values.push_back(part);
                  return !part.empty();
                }))
              return "a list of words, separated by commas";
            field = std::move(values);
            return std::nullopt;
          },
          .get = [&field] { return ordered_json(fmt::format("{}", fmt::join(field, ","))); }};
}

// "1,2,4" of integers, "0.1,0.5" of doubles.
template <class T>
FlagValue numbers(std::vector<T>& field, T min, T max = std::numeric_limits<T>::max()) {
  return {.kind = FlagKind::text,
          .set = [&field, min, max](const std::string& text) -> std::optional<std::string> {
            std::vector<T> values;
            if (!each_part(text, [&](const std::string& part) {
                  const auto value = parse_number<T>(part);
                  values.push_back(value.value_or(min));
                  return value && *value >= min && *value <= max;
                }))
              return fmt::format(
                  "a list of {} of at least {}{}, separated by commas",
                  std::is_integral_v<T> ? "integers" : "numbers", min,
                  max == std::numeric_limits<T>::max() ? "" : fmt::format(" and at most {}", max));
            field = std::move(values);
            return std::nullopt;
          },
          .get = [&field] { return ordered_json(fmt::format("{}", fmt::join(field, ","))); }};
}

// "1073741824", "512MiB", "8GiB", "40GB".
template <class T>
FlagValue bytes(T& field, int64_t min) {
  return {.kind = FlagKind::bytes,
          .set = [&field, min](const std::string& text) -> std::optional<std::string> {
            static constexpr std::pair<std::string_view, int64_t> kUnits[] = {
                {"KiB", 1LL << 10}, {"MiB", 1LL << 20}, {"GiB", 1LL << 30},
                {"KB", 1'000},      {"MB", 1'000'000},  {"GB", 1'000'000'000}};
            std::string digits = text;
            int64_t unit = 1;
            for (const auto& [name, size] : kUnits) {
              if (!digits.ends_with(name)) continue;
              digits.resize(digits.size() - name.size());
              unit = size;
              break;
            }
            const auto count = parse_number<int64_t>(digits);
            if (!count || *count < 0 || *count > (int64_t(1) << 50) / unit || *count * unit < min)
              return fmt::format(
                  "a number of bytes of at least {} (suffixes KiB, MiB, GiB, KB, MB, GB)", min);
            field = static_cast<T>(*count * unit);
            return std::nullopt;
          },
          .get = [&field] { return ordered_json(field); }};
}

// The rows of benchmarks and studies; make_flags() includes them.
std::vector<Flag> flags_of_measurements(Settings& settings);

}  // namespace kivi
