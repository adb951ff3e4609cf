// SPDX-License-Identifier: Apache-2.0
// The program `kivi`: its first words name a command, and this file finds that command.
#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <nlohmann/json.hpp>

#include "base/version.h"
#include "tools/command_list.h"
#include "tools/commands.h"

namespace kivi {
namespace {

int run_version(const Arguments&) {
  fmt::print("kivi {}\n", KIVI_VERSION);
  return 0;
}

// Prints what is made from the table of flags. Maintainers and the build run this command; users do
// not.
int run_flags(const Arguments& args) {
  Settings defaults;
  const std::string wanted = args.size() == 1 ? args[0] : "";
  if (wanted == "--markdown") {
    fmt::print("{}", flags_markdown());
  } else if (wanted == "--json") {
    fmt::print("{}\n", config_of(defaults).dump(2));
  } else if (wanted == "--man") {
    fmt::print("{}", manual_page());
  } else if (wanted == "--bash") {
    fmt::print("{}", bash_completion());
  } else if (wanted == "--zsh") {
    fmt::print("{}", zsh_completion());
  } else if (wanted == "--fish") {
    fmt::print("{}", fish_completion());
  } else {
    fmt::print(stderr, "kivi: usage: kivi flags --markdown|--json|--man|--bash|--zsh|--fish\n");
    return kExitUsage;
  }
  return 0;
}

struct Entry {
  const char* name;  // as in kCommandList
  int (*run)(const Arguments&);
};

constexpr Entry kCommands[] = {
    {"serve", run_serve},
    {"generate", run_generate},
    {"health", run_health},
    {"info", run_info},
    {"bench serve", run_bench_serve},
    {"bench throughput", run_throughput},
    {"bench kernels", run_kernels},
    {"eval", run_eval},
    {"kv-stats", run_kv_stats},
    {"tune", run_tune},
    {"clear-kv-disk", run_kv_disk_clear},
    {"version", run_version},
    {"flags", run_flags},
};

std::string usage() {
  std::string text =
      "kivi serves language models from a paged, KIVI-quantized key-value cache.\n\n"
      "Usage: kivi COMMAND MODEL [flags]\n\n";
  for (const CommandInfo& command : kCommandList)
    text += fmt::format("  {:<20}{}\n", command.name, command.summary);
  return text + "\nkivi COMMAND --help lists the flags of a command.\n";
}

int unknown_command(const std::string& name) {
  std::vector<std::string> known;
  for (const CommandInfo& command : kCommandList) known.push_back(command.name);
  const std::string meant = did_you_mean(name, known);
  fmt::print(stderr, "kivi: unknown command \"{}\"{}\n\n{}", name,
             meant.empty() ? "" : fmt::format("; did you mean {}?", meant), usage());
  return kExitUsage;
}

int run(Arguments words) {
  if (words.empty()) {
    fmt::print(stderr, "{}", usage());
    return kExitUsage;
  }
  std::string name = words.front();
  words.erase(words.begin());
  if (name == "--help" || name == "-h" || name == "help") {
    fmt::print("{}", usage());
    return 0;
  }
  if (name == "--version") name = "version";
  if (name == "bench" && !words.empty()) {
    name += " " + words.front();
    words.erase(words.begin());
  }
  for (const Entry& entry : kCommands) {
    if (name == entry.name) return entry.run(words);
  }
  return unknown_command(name);
}

}  // namespace
}  // namespace kivi

int main(int argc, char** argv) {
  try {
    const int code = kivi::run(kivi::Arguments(argv + 1, argv + argc));
    // The last bytes are written here, and a write before may have failed.
    const bool failed_before = std::ferror(stdout) != 0;
    if (std::fflush(stdout) == 0 && !failed_before) return code;
    std::fprintf(stderr, "kivi: standard output cannot be written: %s\n",
                 failed_before ? "a write failed" : std::strerror(errno));
    return code == 0 ? kivi::kExitFailed : code;
  } catch (const std::exception& e) {  // out of memory, or an exception that a library let out
    std::fprintf(stderr, "kivi: %s\n", e.what());
    return kivi::kExitFailed;
  }
}
