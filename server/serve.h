// SPDX-License-Identifier: Apache-2.0
// `kivi serve`: both front ends over one model, from the first socket to the last reply.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/serving/load.h"
#include "server/server_config.h"

namespace kivi {

// Loads the model; called once, on a thread of its own, when the sockets are already open.
using LoadFunction = std::function<Result<std::unique_ptr<LoadedModel>>(const LoadProgress&)>;

// Reads the API keys again, for SIGHUP. Called on the thread that waits for signals.
using KeysFunction = std::function<Result<std::vector<std::string>>()>;

// Opens the sockets (health: loading), loads, serves, and drains at SIGTERM or SIGINT: health says
// draining, new work is refused, running work has shutdown_timeout seconds and ends with finish
// reason abort after them. A second signal ends the process at once. `model_name` is the name in
// replies and metrics. Returns the process's exit status: 0 after a drain, 1 where the start failed
// (logged). Logs through spdlog's default logger (setup_logging). Call it once, from the main
// thread, before there are other threads: it blocks the two signals and SIGHUP in the threads that
// it starts. SIGHUP replaces the API keys by those of `read_keys`; where these cannot be read, the
// old ones stay. SIGPIPE is ignored from now on.
int serve(const ServerConfig& config, const std::string& model_name, const LoadFunction& load,
          const KeysFunction& read_keys);

}  // namespace kivi
