// SPDX-License-Identifier: Apache-2.0
// The program `kivi`: its first words name a command, and this file finds that command.
#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <nlohmann/json.hpp>

#include "base/version.h"
#include "tools/commands.h"

namespace kivi {
namespace {

int run_version(const Arguments&) {
  fmt::print("kivi {}\n", KIVI_VERSION);
  return 0;
}

// Prints docs/configuration.md or configs/default.json. Maintainers run this command; users do not.
int run_flags(const Arguments& args) {
  Settings defaults;
  if (args == Arguments{"--markdown"}) {
    fmt::print("{}", flags_markdown());
  } else if (args == Arguments{"--json"}) {
    fmt::print("{}\n", config_of(defaults).dump(2));
  } else {
    fmt::print(stderr, "kivi: usage: kivi flags --markdown|--json\n");
    return kExitUsage;
  }
  return 0;
}

struct Entry {
  const char* name;     // one word, or "bench" and a second word
  const char* summary;  // null = the usage text does not list it
  int (*run)(const Arguments&);
};

constexpr Entry kCommands[] = {
    {"serve", "Serve a model over HTTP (OpenAI's API) and gRPC.", run_serve},
    {"generate", "Continue a text on the terminal, without a server.", run_generate},
    {"health", "Ask the server on this machine whether it is ready.", run_health},
    {"info", "Print what a model folder holds and how many bytes its KV cache takes.", run_info},
    {"bench serve", "Send load to a running server and report latencies and throughput.",
     run_bench_serve},
    {"bench throughput", "Measure the engine without a server: tokens/s, latencies, batch sizes.",
     run_throughput},
    {"bench kernels", "Time each op of a step and compare it with the device's peak rates.",
     run_kernels},
    {"eval", "Measure what each cache format costs a model in quality.", run_eval},
    {"kv-stats", "Study how keys and values are distributed and what quantizing them costs.",
     run_kv_stats},
    {"version", "Print the version.", run_version},
    {"flags", nullptr, run_flags},
};

std::string usage() {
  std::string text =
      "kivi serves language models from a paged, KIVI-quantized key-value cache.\n\n"
      "Usage: kivi COMMAND MODEL [flags]\n\n";
  for (const Entry& entry : kCommands)
    if (entry.summary != nullptr) text += fmt::format("  {:<20}{}\n", entry.name, entry.summary);
  return text + "\nkivi COMMAND --help lists the flags of a command.\n";
}

int unknown_command(const std::string& name) {
  std::vector<std::string> known;
  for (const Entry& entry : kCommands)
    if (entry.summary != nullptr) known.push_back(entry.name);
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
    return kivi::run(kivi::Arguments(argv + 1, argv + argc));
  } catch (const std::exception& e) {  // out of memory, or an exception that a library let out
    std::fprintf(stderr, "kivi: %s\n", e.what());
    return kivi::kExitFailed;
  }
}
