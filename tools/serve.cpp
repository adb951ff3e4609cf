// SPDX-License-Identifier: Apache-2.0
// kivi serve MODEL: both front ends over one model. What happens is in server/serve.h.
#include "server/serve.h"

#include <fmt/format.h>

#include "engine/serving/load.h"
#include "server/auth.h"
#include "server/gateway.h"
#include "tools/commands.h"

namespace kivi {
namespace {

// What the two halves of the settings must agree on.
Status check_kv_events(const Settings& settings) {
  const ServerConfig& server = settings.server;
  if (server.kv_events_endpoint.empty()) {
    if (server.kv_events_replay_endpoint.empty()) return ok_status();
    return Error{ErrorCode::invalid,
                 fmt::format("--kv-events-replay-endpoint is \"{}\" and --kv-events-endpoint is "
                             "empty: name both, or neither",
                             server.kv_events_replay_endpoint),
                 "kv-events-replay-endpoint"};
  }
  if (!settings.engine.enable_prefix_caching)
    return Error{ErrorCode::invalid,
                 "--kv-events-endpoint needs --enable-prefix-caching: without it no block is kept",
                 "kv-events-endpoint"};
  if (settings.engine.prefix_cache_per_key)
    return Error{ErrorCode::invalid,
                 "--kv-events-endpoint does not go with --prefix-cache-per-key: blocks that belong "
                 "to one key are not published",
                 "kv-events-endpoint"};
  return ok_status();
}

// What no client could use, or name.
Status check_front_ends(const ServerConfig& server) {
  if (server.port < 0 && server.grpc_port < 0)
    return Error{ErrorCode::invalid,
                 "--port and --grpc-port are both -1, so that nobody could reach the server: at "
                 "least one must be from 0 to 65535",
                 "port"};
  if (server.host.starts_with('['))
    return Error{ErrorCode::invalid,
                 fmt::format("--host is \"{}\", must be an IPv6 address without brackets, another "
                             "address or a name",
                             server.host),
                 "host"};
  for (const std::string& name : server.served_model_name)
    if (name.empty())
      return Error{ErrorCode::invalid,
                   "--served-model-name is \"\", must be a name of at least one character. Leave "
                   "the flag away to use the name of the model's folder or file",
                   "served-model-name"};
  return ok_status();
}

}  // namespace

int run_serve(const Arguments& args) {
  Settings settings;
  if (const auto code = read_settings(kServe, args, settings)) return *code;
  if (const Status status = check_front_ends(settings.server); !status.ok())
    return report(status.error());
  if (const Status status = check_access(settings.server); !status.ok())
    return report(status.error());
  if (const Status status = check_gateway(settings.server); !status.ok())
    return report(status.error());
  if (const Status status = check_kv_events(settings); !status.ok()) return report(status.error());
  const auto read_keys = [&]() -> Result<std::vector<std::string>> {
    Settings fresh;
    const auto outcome = parse_settings(kServe, args, process_environment(), fresh);
    if (!outcome.ok()) return outcome.error();
    return fresh.server.api_keys;
  };
  std::string notify_socket;
  for (const auto& [variable, value] : process_environment())
    if (variable == "NOTIFY_SOCKET") notify_socket = value;
  std::vector<std::string> names = settings.server.served_model_name;
  if (names.empty()) names.push_back(name_of_model(settings.engine.model));
  return serve(
      settings.server, names,
      [&](const LoadProgress& progress) { return load_model(settings.engine, progress); },
      read_keys, ServiceManager(notify_socket));
}

}  // namespace kivi
