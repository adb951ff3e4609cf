// Where log lines go and what they look like.
#pragma once

#include "base/result.h"
#include "server/server_config.h"

namespace kivi {

// Sets up spdlog's default logger: standard error, `log_level`, and `log_format`: text lines, or
// one JSON object a line ({"time","level","thread","message"}). Errors name the field. Call once,
// before other threads log.
Status setup_logging(const ServerConfig& config);

}  // namespace kivi
