// SPDX-License-Identifier: Apache-2.0
// kivi serve MODEL: both front ends over one model. What happens is in server/serve.h.
#include "server/serve.h"

#include "engine/serving/load.h"
#include "server/auth.h"
#include "tools/commands.h"

namespace kivi {
int run_serve(const Arguments& args) {
  Settings settings;
  if (const auto code = read_settings(kServe, args, settings)) return *code;
  if (const Status status = check_access(settings.server); !status.ok())
    return report(status.error());
  const auto read_keys = [&]() -> Result<std::vector<std::string>> {
    Settings fresh;
    const auto outcome = parse_settings(kServe, args, process_environment(), fresh);
    if (!outcome.ok()) return outcome.error();
    return fresh.server.api_keys;
  };
  std::vector<std::string> names = settings.server.served_model_name;
  if (names.empty()) names.push_back(name_of_model(settings.engine.model));
  return serve(
      settings.server, names,
      [&](const LoadProgress& progress) { return load_model(settings.engine, progress); },
      read_keys);
}

}  // namespace kivi
