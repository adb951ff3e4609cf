// --help and docs/configuration.md, from the table.
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

// The words of `text` in lines; every line after the first begins at `indent`.
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

// "" where the default says nothing: empty text or list, false, unset.
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
      return "kivi generate MODEL -p TEXT [flags]\n\nContinues a text, without a server.\n";
    case kThroughput:
      return "kivi bench throughput MODEL [flags]\n\n"
             "Runs a set of requests through the engine, without a server, and prints tokens/s,\n"
             "latencies, batch sizes and cache bytes.\n";
    case kKernels:
      return "kivi bench kernels MODEL [flags]\n\n"
             "Times each op of a step over the shapes of MODEL's config.json (its weights are not\n"
             "read), in every cache format, beside the device's copy rate and matrix rate. On the\n"
             "CPU the shapes are small by default.\n";
    case kInfo:
      return "kivi info MODEL\n\nSays what a model folder holds and what its cache costs.\n";
    default:
      return "";
  }
}

// Names of groups, in the table's order.
std::vector<std::string> groups_of(const std::vector<Flag>& flags) {
  std::vector<std::string> groups;
  for (const Flag& flag : flags)
    if (std::find(groups.begin(), groups.end(), flag.group) == groups.end())
      groups.push_back(flag.group);
  return groups;
}

std::string commands_text(unsigned commands) {
  if (commands == kAllCommands) return "all";
  std::string text;
  const auto add = [&](unsigned bit, const char* name) {
    if ((commands & bit) != 0) text += (text.empty() ? "" : ", ") + std::string(name);
  };
  add(kServe, "serve");
  add(kGenerate, "generate");
  add(kThroughput, "bench");
  add(kKernels, "kernels");
  add(kInfo, "info");
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
      if (flag.group == group && (flag.commands & command) != 0 && flag.built())
        lines += help_line(flag);
    if (!lines.empty()) text += fmt::format("\n{}:\n{}", group, lines);
  }
  return text +
         "\nEvery flag is also a variable (KIVI_MAX_NUM_SEQS) and a key of a --config file\n"
         "(max_num_seqs); flag > variable > file > default. Booleans: --x, --no-x, --x=false.\n";
}

std::string flags_markdown() {
  Settings defaults;
  const std::vector<Flag> flags = make_flags(defaults);
  std::string text =
      "# Configuration\n\n"
      "Made from the table of flags by `kivi flags --markdown > docs/configuration.md`; a test "
      "holds it\ncurrent.\n\n"
      "Every setting is a flag (`--max-num-seqs 32`), a variable (`KIVI_MAX_NUM_SEQS=32`) and, "
      "unless marked\n\"not in files\", a key of a `--config` file (`\"max_num_seqs\": 32`). "
      "A flag wins over a variable, a variable\nover the file, the file over the default. "
      "Booleans are switched off by `--no-x` or `--x=false`.\nLists repeat the flag; in a "
      "variable the elements are separated by commas.\n"
      "BYTES is a number, or one with a suffix: KiB, MiB, GiB, KB, MB, GB (`8GiB`).\n"
      "Unknown flags and keys are errors; unknown `KIVI_` variables are warned of.\n\n"
      "This is so of the commands that the tables name, and of `kivi health`, which reads those of "
      "serve.\n`kivi eval`, `kivi kv-stats` and `kivi bench serve` have flags alone, no variables "
      "and no files;\ntheir `--help` lists them.\n";
  for (const std::string& group : groups_of(flags)) {
    text += fmt::format("\n## {}\n\n| flag | default | commands | meaning |\n|---|---|---|---|\n",
                        group);
    for (const Flag& flag : flags) {
      if (flag.group != group || !flag.built()) continue;
      const std::string spelled = flag.positional ? flag.value_hint : "--" + flag.name;
      const std::string value = default_text(flag);
      text += fmt::format(
          "| `{}{}` | {} | {} | {}{} |\n", spelled,
          flag.positional || flag.value_hint.empty() ? "" : " " + escaped(flag.value_hint),
          value.empty() ? "" : "`" + value + "`", commands_text(flag.commands), escaped(flag.help),
          flag.in_config ? "" : " (not in files)");
    }
  }
  text +=
      "\n## Known, but not built in this version\n\n"
      "Refused by name, in every source:\n\n";
  for (const Flag& flag : flags)
    if (!flag.built()) text += fmt::format("- `--{}`: {}\n", flag.name, flag.help);
  return text;
}

}  // namespace kivi
