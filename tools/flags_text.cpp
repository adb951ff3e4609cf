// SPDX-License-Identifier: Apache-2.0
// Prints --help and docs/configuration.md from the table of flags.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tools/flags.h"

namespace kivi {
namespace {

constexpr size_t kHelpColumn = 34;  // where help texts begin
constexpr size_t kHelpWidth = 100;

std::string replaced(std::string text, char from, char to) {
  std::replace(text.begin(), text.end(), from, to);
  return text;
}

// Wraps `text` at `width` columns. Every line after the first begins at column `indent`.
std::string wrapped(const std::string& text, size_t indent, size_t width) {
  std::string out;
  size_t column = indent;
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    const size_t length = end - begin;
    if (column > indent && column + 1 + length > width) {
      out += "\n" + std::string(indent, ' ');
      column = indent;
    }
    if (column > indent) {
      out += ' ';
      ++column;
    }
    out += text.substr(begin, length);
    column += length;
    begin = end + 1;
  }
  return out;
}

// Returns "" if the default needs no mention: an empty text or list, false, unset.
std::string default_text(const Flag& flag) {
  const nlohmann::ordered_json value = flag.value.get();
  if (value.is_null() || (value.is_boolean() && !value.get<bool>())) return "";
  if (value.is_array()) return value.empty() ? "" : value.dump();
  return value.is_string() ? value.get<std::string>() : value.dump();
}

std::string help_line(const Flag& flag) {
  std::string head = "  ";
  if (!flag.short_name.empty()) head += "-" + flag.short_name + ", ";
  head += flag.positional ? flag.value_hint : "--" + flag.name;
  if (!flag.positional && !flag.value_hint.empty()) head += " " + flag.value_hint;
  if (head.size() + 2 > kHelpColumn) {
    head += "\n" + std::string(kHelpColumn, ' ');
  } else {
    head.resize(kHelpColumn, ' ');
  }
  std::string help = flag.help;
  if (const std::string value = default_text(flag); !value.empty())
    help += " (default " + value + ")";
  return head + wrapped(help, kHelpColumn, kHelpWidth) + "\n";
}

const char* usage(Command command) {
  switch (command) {
    case kServe:
      return "kivi serve MODEL [flags]\n\nServes a model over HTTP (OpenAI's API) and gRPC.\n";
    case kGenerate:
      return "kivi generate MODEL -p TEXT [flags]\n\nContinues a text on the terminal, without a "
             "server.\n";
    case kThroughput:
      return "kivi bench throughput MODEL [flags]\n\n"
             "Runs random requests through the engine, without a server. Prints tokens/s, "
             "latencies,\n"
             "batch sizes and cache bytes.\n";
    case kKernels:
      return "kivi bench kernels MODEL [flags]\n\n"
             "Times each op of a step with the shapes of MODEL's config.json, in every cache "
             "format.\n"
             "The weights are not read. Each time stands beside the time that the device's copy "
             "rate\n"
             "and matrix rate allow. On the CPU, the default shapes are small.\n";
    case kInfo:
      return "kivi info MODEL [flags]\n\nPrints what a model folder or GGUF file holds, and how "
             "many bytes "
             "a token takes in each\n"
             "cache format.\n";
    case kBenchServe:
      return "kivi bench serve [flags]\n\nSends load to a running server and measures what its "
             "clients "
             "see.\n";
    case kEval:
      return "kivi eval MODEL --text FILE [flags]\n\nMeasures what each format of the KV cache "
             "costs a "
             "model in quality.\n";
    case kKvStats:
      return "kivi kv-stats MODEL --text FILE [flags]\n\n"
             "Studies how the keys and values of a model are distributed and what quantizing them "
             "costs.\n";
    case kTune:
      return "kivi tune MODEL --text FILE --budget LIST [flags]\n\n"
             "Chooses how many bits the keys and values of each layer get under a budget of bytes, "
             "by\n"
             "measured divergence, and writes the table for --kv-layer-bits.\n";
    default:
      return "";
  }
}

// Returns the names of the groups, in the table's order.
std::vector<std::string> groups_of(const std::vector<Flag>& flags) {
  std::vector<std::string> groups;
  for (const Flag& flag : flags)
    if (std::find(groups.begin(), groups.end(), flag.group) == groups.end())
      groups.push_back(flag.group);
  return groups;
}

std::string commands_text(unsigned commands) {
  if (commands == kModelCommands) return "all but bench serve";
  std::string text;
  const auto add = [&](unsigned bit, const char* name) {
    if ((commands & bit) != 0) text += (text.empty() ? "" : ", ") + std::string(name);
  };
  add(kServe, "serve");
  add(kGenerate, "generate");
  add(kThroughput, "bench throughput");
  add(kKernels, "bench kernels");
  add(kInfo, "info");
  add(kBenchServe, "bench serve");
  add(kEval, "eval");
  add(kKvStats, "kv-stats");
  add(kTune, "tune");
  return text;
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '|') out += '\\';
    out += c;
  }
  return out;
}

}  // namespace

std::string Flag::config_key() const { return replaced(name, '-', '_'); }

std::string Flag::environment() const {
  std::string variable = "KIVI_" + config_key();
  for (char& c : variable) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return variable;
}

std::string help_text(Command command, const std::vector<Flag>& flags) {
  std::string text = fmt::format("Usage: {}", usage(command));
  for (const std::string& group : groups_of(flags)) {
    std::string lines;
    for (const Flag& flag : flags)
      if (flag.group == group && (flag.commands & command) != 0) lines += help_line(flag);
    if (!lines.empty()) text += fmt::format("\n{}:\n{}", group, lines);
  }
  if ((command & (kBenchServe | kStudies)) != 0)
    return text + "\nTo turn a boolean flag off, write --no-x or --x=false.\n";
  return text +
         "\nEvery flag is also an environment variable (KIVI_MAX_NUM_SEQS) and a key of a --config "
         "file\n"
         "(max_num_seqs). A flag wins over a variable, a variable over the file, and the file "
         "over\n"
         "the default. To turn a boolean flag off, write --no-x or --x=false.\n";
}

std::string flags_markdown() {
  Settings defaults;
  const std::vector<Flag> flags = make_flags(defaults);
  std::string text =
      "# Configuration\n\n"
      "This page lists every setting of every command of `kivi`, for those who run it. The "
      "command\n"
      "`kivi flags --markdown` prints it from the table of flags, and a test checks that it is "
      "current.\n\n"
      "You can give a setting in three ways:\n\n"
      "1. as a flag: `--max-num-seqs 32`;\n"
      "2. as an environment variable: `KIVI_MAX_NUM_SEQS=32`;\n"
      "3. as a key of a JSON file that `--config` names: `\"max_num_seqs\": 32`. A setting marked "
      "\"not in\n   files\" has no key.\n\n"
      "A flag wins over a variable, a variable over the file, and the file over the default.\n\n"
      "- Write `--no-x` or `--x=false` to turn a boolean setting off.\n"
      "- Repeat the flag to give a list several elements. In a variable, separate them by commas.\n"
      "- BYTES is a number, alone or with a suffix: KiB, MiB, GiB, KB, MB, GB (`8GiB`).\n"
      "- An unknown flag or key is an error. An unknown `KIVI_` variable is a warning.\n\n"
      "`kivi health` reads the settings of `kivi serve`. A setting marked \"flag only\" has "
      "neither "
      "variable\nnor key.\n";
  for (const std::string& group : groups_of(flags)) {
    text += fmt::format("\n## {}\n\n| flag | default | commands | meaning |\n|---|---|---|---|\n",
                        group);
    for (const Flag& flag : flags) {
      if (flag.group != group) continue;
      const std::string spelled = flag.positional ? flag.value_hint : "--" + flag.name;
      const std::string value = default_text(flag);
      text += fmt::format(
          "| `{}{}` | {} | {} | {}{} |\n", spelled,
          flag.positional || flag.value_hint.empty() ? "" : " " + escaped(flag.value_hint),
          value.empty() ? "" : "`" + value + "`", commands_text(flag.commands), escaped(flag.help),
          flag.in_config        ? ""
          : flag.in_environment ? " (not in files)"
                                : " (flag only)");
    }
  }
  return text;
}

}  // namespace kivi
