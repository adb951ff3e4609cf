// SPDX-License-Identifier: Apache-2.0
// What an inference gateway (llm-d, the Gateway API Inference Extension) says of a request in
// headers: its objective, which stands for a priority, and its tenant. With gRPC they are metadata
// of the same names. Whoever reaches the server can send them, so they count only if the operator
// says that a gateway sets them.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "server/server_config.h"

namespace kivi {

inline constexpr std::string_view kObjectiveHeader = "x-llm-d-inference-objective";
inline constexpr std::string_view kFairnessHeader = "x-gateway-inference-fairness-id";

// Checks gateway_headers and objective_priorities. The error names the flag.
Status check_gateway(const ServerConfig& config);

// The priority that `objective` stands for; none if gateway headers do not count here, or if no
// entry of objective_priorities names it.
std::optional<int> priority_of_objective(const ServerConfig& config, std::string_view objective);

// The tenant that `fairness_id` names; "" if gateway headers do not count here or it is empty.
std::string tenant_of_fairness_id(const ServerConfig& config, std::string_view fairness_id);

}  // namespace kivi
