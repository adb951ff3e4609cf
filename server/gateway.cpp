// SPDX-License-Identifier: Apache-2.0
#include "server/gateway.h"

#include <fmt/format.h>

#include <charconv>

namespace kivi {
namespace {

// "premium=-10": none if the text is no such pair.
std::optional<int> priority_in(std::string_view entry) {
  const size_t equals = entry.find('=');
  if (equals == 0 || equals == std::string_view::npos) return std::nullopt;
  const std::string_view digits = entry.substr(equals + 1);
  int value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return value;
}

}  // namespace

Status check_gateway(const ServerConfig& config) {
  for (const std::string& entry : config.objective_priorities)
    if (!priority_in(entry))
      return Error{ErrorCode::invalid,
                   fmt::format("--objective-priority is \"{}\", must be NAME=N with an integer N, "
                               "such as premium=-10",
                               entry),
                   "objective-priority"};
  if (!config.objective_priorities.empty() && !config.gateway_headers)
    return Error{ErrorCode::invalid, "--objective-priority has no effect without --gateway-headers",
                 "objective-priority"};
  return ok_status();
}

std::optional<int> priority_of_objective(const ServerConfig& config, std::string_view objective) {
  if (!config.gateway_headers || objective.empty()) return std::nullopt;
  for (const std::string& entry : config.objective_priorities)
    if (std::string_view(entry).substr(0, entry.find('=')) == objective) return priority_in(entry);
  return std::nullopt;
}

std::string tenant_of_fairness_id(const ServerConfig& config, std::string_view fairness_id) {
  if (!config.gateway_headers || fairness_id.empty()) return "";
  return fmt::format("gateway:{}", fairness_id);
}

}  // namespace kivi
