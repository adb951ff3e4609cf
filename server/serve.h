// SPDX-License-Identifier: Apache-2.0
// `kivi serve`: both front ends over one model, from the first socket to the last reply.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/serving/load.h"
#include "server/server_config.h"
#include "server/service_manager.h"

namespace kivi {

// Loads the model; called once, on a thread of its own, when the sockets are already open.
using LoadFunction = std::function<Result<std::unique_ptr<LoadedModel>>(const LoadProgress&)>;

// Reads the API keys again, for SIGHUP. Called on the thread that waits for signals.
using KeysFunction = std::function<Result<std::vector<std::string>>()>;

// Opens the sockets (health: loading), loads the model and serves it. At SIGTERM or SIGINT the
// server drains: health says draining, new work is refused after drain_delay seconds, and running
// work has shutdown_timeout seconds from then on. What runs after that ends with finish reason
// abort. A second signal ends the process at once. SIGHUP replaces the API keys by those of
// `read_keys`. If these cannot be read, the old keys stay.
//
// `model_names` is not empty. The first name is in replies and metrics. `manager` hears when the
// server is ready and when it stops. Returns the exit status of the process: 0 after a drain, 1 if
// the start failed (the log says why). Call this once, from the main thread, before there are other
// threads, because it blocks the signals in the threads that it starts. It ignores SIGPIPE.
int serve(const ServerConfig& config, const std::vector<std::string>& model_names,
          const LoadFunction& load, const KeysFunction& read_keys,
          const ServiceManager& manager = ServiceManager());

}  // namespace kivi
