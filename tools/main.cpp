// kivi: one program, a command a word.
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

// For the documentation and configs/default.json; not a command of the user's.
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
  const char* name;              // one word, or "bench" and one word
  const char* summary;           // null: not listed
  int (*run)(const Arguments&);  // null: not built in this version
};

constexpr Entry kCommands[] = {
    {"serve", "serve a model over HTTP (OpenAI's API) and gRPC", run_serve},
    {"generate", "continue a text, without a server", run_generate},
    {"health", "ask the server of this machine whether it is ready", run_health},
    {"info", "say what a model folder holds and what its cache costs", run_info},
    {"bench serve", "load a running server, ours or another: latencies, throughput, report",
     run_bench_serve},
    {"bench throughput", "measure the engine: tokens/s, latencies, batch sizes", run_throughput},
    {"bench kernels", "time each op of a step beside the device's copy and matrix rates",
     run_kernels},
    {"eval", "perplexity on a text, by format of the cache", run_eval},
    {"kv-stats", "how keys and values are distributed, and what quantizing them costs",
     run_kv_stats},
    {"version", "print the version", run_version},
    {"flags", nullptr, run_flags},
};

std::string usage() {
  std::string text =
      "kivi: serves language models from a paged, KIVI-quantized key-value cache.\n\n"
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
    if (name != entry.name) continue;
    if (entry.run != nullptr) return entry.run(words);
    fmt::print(stderr, "kivi: `kivi {}` is not built yet\n", name);
    return kExitUsage;
  }
  return unknown_command(name);
}

}  // namespace
}  // namespace kivi

int main(int argc, char** argv) {
  try {
    return kivi::run(kivi::Arguments(argv + 1, argv + argc));
  } catch (const std::exception& e) {  // out of memory, or a library's surprise
    std::fprintf(stderr, "kivi: %s\n", e.what());
    return kivi::kExitFailed;
  }
}
