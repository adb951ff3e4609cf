// SPDX-License-Identifier: Apache-2.0
// kivi serve MODEL: both front ends over one model. What happens is in server/serve.h.
#include "server/serve.h"

#include <filesystem>

#include "server/auth.h"
#include "tools/commands.h"

namespace kivi {
namespace {

// "models/tales-llama/" -> "tales-llama".
std::string folder_name(const std::string& path) {
  const std::filesystem::path normal = std::filesystem::absolute(path).lexically_normal();
  return normal.has_filename() ? normal.filename() : normal.parent_path().filename();
}

}  // namespace

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
  const std::string& name = settings.server.served_model_name;
  return serve(
      settings.server, name.empty() ? folder_name(settings.engine.model) : name,
      [&](const LoadProgress& progress) { return load_model(settings.engine, progress); },
      read_keys);
}

}  // namespace kivi
