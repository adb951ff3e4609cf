// `kivi serve`: both front ends over one model, from the first socket to the last reply.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "engine/serving/load.h"
#include "server/server_config.h"

namespace kivi {

// Loads the model; called once, on a thread of its own, when the sockets are already open.
using LoadFunction = std::function<Result<std::unique_ptr<LoadedModel>>(const LoadProgress&)>;

// Opens the sockets (health: loading), loads, serves, and drains at SIGTERM or SIGINT: health says
// draining, new work is refused, running work has shutdown_timeout seconds and ends with finish
// reason abort after them. A second signal ends the process at once. `model_name` is the name in
// replies and metrics. Returns the process's exit status: 0 after a drain, 1 where the start failed
// (logged). Logs through spdlog's default logger (setup_logging). Call it once, from the main
// thread, before there are other threads: it blocks the two signals in the threads that it starts.
int serve(const ServerConfig& config, const std::string& model_name, const LoadFunction& load);

}  // namespace kivi
