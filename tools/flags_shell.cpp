// SPDX-License-Identifier: Apache-2.0
// Prints the manual page and the completions of bash, zsh and fish from the table of flags.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/version.h"
#include "tools/command_list.h"
#include "tools/flags.h"

namespace kivi {
namespace {

std::string replaced(std::string_view text, char from, std::string_view to) {
  std::string out;
  for (const char c : text) {
    if (c == from)
      out += to;
    else
      out += c;
  }
  return out;
}

// Text that roff prints as it is: a backslash and a hyphen have a meaning, and so has a period or
// an apostrophe at the beginning of a line.
std::string roff(std::string_view text) {
  std::string out = replaced(replaced(text, '\\', "\\(rs"), '-', "\\-");
  if (!out.empty() && (out[0] == '.' || out[0] == '\'')) out.insert(0, "\\&");
  return out;
}

std::string roff_heading(const Flag& flag) {
  if (flag.positional) return fmt::format("\\fI{}\\fR", roff(flag.value_hint));
  std::string text;
  if (!flag.short_name.empty()) text = fmt::format("\\fB\\-{}\\fR, ", flag.short_name);
  text += fmt::format("\\fB\\-\\-{}\\fR", roff(flag.name));
  if (!flag.value_hint.empty()) text += fmt::format(" \\fI{}\\fR", roff(flag.value_hint));
  return text;
}

std::string roff_default(const Flag& flag) {
  const nlohmann::ordered_json value = flag.value.get();
  const bool none = value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
                    (value.is_array() && value.empty()) ||
                    (value.is_string() && value.get<std::string>().empty());
  if (none) return "";
  const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
  return fmt::format(" The default is {}.", roff(text));
}

std::string command_names(unsigned commands) {
  std::vector<std::string> names;
  for (const CommandInfo& command : kCommandList)
    if ((command.flags & commands) != 0) names.push_back(roff(command.name));
  return fmt::format("{}", fmt::join(names, ", "));
}

// "'": the only character that single quotes of a shell do not keep.
std::string shell_quoted(std::string_view text) {
  return "'" + replaced(text, '\'', "'\\''") + "'";
}

bool takes_value(const Flag& flag) { return flag.value.kind != FlagKind::boolean; }

bool names_path(const Flag& flag) {
  return flag.value_hint == "FILE" || flag.value_hint == "DIR" || flag.positional;
}

// The words after which `flag` has a value, and those that are whole by themselves.
std::vector<std::string> spellings(const Flag& flag) {
  std::vector<std::string> words = {"--" + flag.name};
  if (!flag.short_name.empty()) words.push_back("-" + flag.short_name);
  if (!flag.alias.empty()) words.push_back("--" + flag.alias);
  if (!takes_value(flag)) words.push_back("--no-" + flag.name);
  return words;
}

std::vector<Flag> flags_of(const std::vector<Flag>& flags, unsigned command) {
  std::vector<Flag> own;
  for (const Flag& flag : flags)
    if ((flag.commands & command) != 0) own.push_back(flag);
  return own;
}

// The first words of all commands, and the second words after "bench".
std::pair<std::vector<std::string>, std::vector<std::string>> command_words() {
  std::vector<std::string> first, second;
  for (const CommandInfo& command : kCommandList) {
    const std::string name = command.name;
    const size_t space = name.find(' ');
    if (std::ranges::find(first, name.substr(0, space)) == first.end())
      first.push_back(name.substr(0, space));
    if (space != std::string::npos) second.push_back(name.substr(space + 1));
  }
  return {first, second};
}

std::string first_sentence(const std::string& text) {
  const size_t end = std::min(text.find(". "), text.find(" ("));
  return end == std::string::npos ? text : text.substr(0, end);
}

}  // namespace

std::string manual_page() {
  Settings defaults;
  const std::vector<Flag> flags = make_flags(defaults);
  std::string text = fmt::format(
      ".\\\" SPDX-License-Identifier: Apache-2.0\n"
      ".TH KIVI 1 \"\" \"kivi {}\" \"User Commands\"\n"
      ".SH NAME\nkivi \\- serve language models from a quantized key\\-value cache\n"
      ".SH SYNOPSIS\n.B kivi\n.I COMMAND\n.RI [ MODEL ]\n.RI [ flags ]\n"
      ".SH DESCRIPTION\n"
      "Kivi Server serves language models over HTTP and gRPC from a paged, quantized key\\-value "
      "cache.\nMODEL is a Hugging Face folder or a GGUF file.\n"
      ".SH COMMANDS\n",
      KIVI_VERSION);
  for (const CommandInfo& command : kCommandList)
    text += fmt::format(".TP\n.B kivi {}\n{}\n", roff(command.name), roff(command.summary));
  std::string group;
  text += ".SH OPTIONS\n";
  for (const Flag& flag : flags) {
    if (flag.group != group) text += fmt::format(".SS \"{}\"\n", roff(flag.group));
    group = flag.group;
    text += fmt::format(".TP\n{}\n{}{}\nCommands: {}.\n", roff_heading(flag), roff(flag.help),
                        roff_default(flag), command_names(flag.commands));
  }
  text +=
      ".SH ENVIRONMENT\n"
      "Every setting is also a variable: KIVI_ and the name of the flag in upper case, with _ for "
      "\\-.\n"
      "A flag wins over a variable, a variable over the file of \\-\\-config, and the file over "
      "the "
      "default.\n"
      ".PP\nIf NOTIFY_SOCKET is set, kivi serve tells systemd when it is ready and when it stops.\n"
      ".SH EXIT STATUS\n0: the command succeeded. 1: it failed. 2: usage error.\n"
      ".SH SIGNALS\n"
      "SIGTERM and SIGINT drain the server; a second one ends it at once. SIGHUP reads API keys "
      "and certificates again.\n"
      ".SH EXAMPLES\n.nf\n"
      "kivi serve /usr/share/kivi/models/tales\\-llama\n"
      "kivi generate MODEL \\-p \"Once upon a time\"\n.fi\n";
  return text;
}

std::string bash_completion() {
  Settings defaults;
  const std::vector<Flag> flags = make_flags(defaults);
  const auto [first, second] = command_words();
  std::string text = fmt::format(
      "# SPDX-License-Identifier: Apache-2.0\n"
      "# Completion of kivi's words in bash; `kivi flags --bash` prints it.\n"
      "_kivi() {{\n"
      "  local word=$2 before=$3 command=${{COMP_WORDS[1]}}\n"
      "  COMPREPLY=()\n"
      "  if ((COMP_CWORD == 1)); then\n"
      "    mapfile -t COMPREPLY < <(compgen -W {} -- \"$word\")\n    return\n  fi\n"
      "  if [[ $command == bench ]]; then\n"
      "    if ((COMP_CWORD == 2)); then\n"
      "      mapfile -t COMPREPLY < <(compgen -W {} -- \"$word\")\n      return\n    fi\n"
      "    command+=\" ${{COMP_WORDS[2]}}\"\n  fi\n"
      "  local words=\n"
      "  case $command in\n",
      shell_quoted(fmt::format("{}", fmt::join(first, " "))),
      shell_quoted(fmt::format("{}", fmt::join(second, " "))));
  for (const CommandInfo& command : kCommandList) {
    std::vector<std::string> words;
    for (const Flag& flag : flags_of(flags, command.flags))
      if (!flag.positional)
        for (const std::string& spelled : spellings(flag)) words.push_back(spelled);
    if (command.flags != 0) words.push_back("--help");
    text += fmt::format("    {}) words={} ;;\n", shell_quoted(command.name),
                        shell_quoted(fmt::format("{}", fmt::join(words, " "))));
  }
  text +=
      "  esac\n"
      "  case $before in\n";
  for (const Flag& flag : flags) {
    if (!takes_value(flag) || flag.positional) continue;
    const std::string before = fmt::format("{}", fmt::join(spellings(flag), "|"));
    if (!flag.value.choices.empty())
      text +=
          fmt::format("    {}) mapfile -t COMPREPLY < <(compgen -W {} -- \"$word\"); return ;;\n",
                      before, shell_quoted(fmt::format("{}", fmt::join(flag.value.choices, " "))));
    else if (names_path(flag))
      text += fmt::format(
          "    {}) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- \"$word\"); "
          "return ;;\n",
          before);
    else
      text += fmt::format("    {}) return ;;\n", before);
  }
  text +=
      "  esac\n"
      "  if [[ $word == -* ]]; then\n"
      "    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$word\")\n"
      "  else\n"
      "    compopt -o filenames\n"
      "    mapfile -t COMPREPLY < <(compgen -f -- \"$word\")\n"
      "  fi\n"
      "}\n"
      "complete -F _kivi kivi\n";
  return text;
}

std::string zsh_completion() {
  Settings defaults;
  const std::vector<Flag> flags = make_flags(defaults);
  const auto [first, second] = command_words();
  // Brackets and colons separate the parts of a specification.
  const auto plain = [](const std::string& text) {
    return replaced(replaced(replaced(text, '[', "("), ']', ")"), ':', ";");
  };
  std::string text = fmt::format(
      "#compdef kivi\n"
      "# SPDX-License-Identifier: Apache-2.0\n"
      "# Completion of kivi's words in zsh; `kivi flags --zsh` prints it.\n"
      "_kivi() {{\n"
      "  local command=${{words[2]}} first=3\n"
      "  if ((CURRENT == 2)); then\n    compadd -- {}\n    return\n  fi\n"
      "  if [[ $command == bench ]]; then\n"
      "    if ((CURRENT == 3)); then\n      compadd -- {}\n      return\n    fi\n"
      "    command+=\" ${{words[3]}}\"\n    first=4\n  fi\n"
      "  shift $((first - 2)) words\n  ((CURRENT -= first - 2))\n"
      "  case $command in\n",
      fmt::join(first, " "), fmt::join(second, " "));
  for (const CommandInfo& command : kCommandList) {
    text += fmt::format("    {})\n      _arguments", shell_quoted(command.name));
    for (const Flag& flag : flags_of(flags, command.flags)) {
      const std::string help = plain(first_sentence(flag.help));
      std::string value;
      if (!flag.value.choices.empty())
        value = fmt::format(":{}:({})", plain(flag.value_hint), fmt::join(flag.value.choices, " "));
      else if (names_path(flag))
        value = fmt::format(":{}:_files", plain(flag.value_hint));
      else if (takes_value(flag))
        value = fmt::format(":{}: ", plain(flag.value_hint));
      if (flag.positional) {
        text += fmt::format(" \\\n        {}", shell_quoted("1" + value));
        continue;
      }
      const std::string repeat = flag.value.kind == FlagKind::list ? "*" : "";
      for (const std::string& spelled : spellings(flag))
        text += fmt::format(" \\\n        {}",
                            shell_quoted(fmt::format("{}{}[{}]{}", repeat, spelled, help, value)));
    }
    text += command.flags != 0 ? " \\\n        '--help[Print the flags]'\n" : "\n";
    text += "      ;;\n";
  }
  return text + "  esac\n}\n_kivi \"$@\"\n";
}

std::string fish_completion() {
  Settings defaults;
  const std::vector<Flag> flags = make_flags(defaults);
  std::string text =
      "# SPDX-License-Identifier: Apache-2.0\n"
      "# Completion of kivi's words in fish; `kivi flags --fish` prints it.\n"
      "# Prints the command of the line so far: one word, or \"bench\" and a second one.\n"
      "function __kivi_command\n"
      "    set -l words (commandline -opc)\n"
      "    if test (count $words) -ge 3; and test \"$words[2]\" = bench\n"
      "        echo \"$words[2] $words[3]\"\n"
      "    else if test (count $words) -ge 2\n"
      "        echo \"$words[2]\"\n"
      "    end\n"
      "end\n"
      "function __kivi_is\n    test (__kivi_command) = \"$argv\"\nend\n"
      "complete -c kivi -n 'test (count (commandline -opc)) -eq 1' -f\n";
  for (const CommandInfo& command : kCommandList) {
    const std::string name = command.name;
    const size_t space = name.find(' ');
    const std::string when =
        space == std::string::npos ? "test (count (commandline -opc)) -eq 1" : "__kivi_is bench";
    text += fmt::format("complete -c kivi -n {} -f -a {} -d {}\n", shell_quoted(when),
                        shell_quoted(space == std::string::npos ? name : name.substr(space + 1)),
                        shell_quoted(command.summary));
  }
  text += "complete -c kivi -n 'test (count (commandline -opc)) -eq 1' -f -a bench -d 'Measure.'\n";
  for (const CommandInfo& command : kCommandList) {
    const std::string when = shell_quoted(fmt::format("__kivi_is {}", command.name));
    for (const Flag& flag : flags_of(flags, command.flags)) {
      if (flag.positional) continue;
      std::string line = fmt::format("complete -c kivi -n {} -l {}", when, flag.name);
      if (!flag.short_name.empty()) line += " -s " + flag.short_name;
      if (!flag.value.choices.empty())
        line += fmt::format(" -x -a {}",
                            shell_quoted(fmt::format("{}", fmt::join(flag.value.choices, " "))));
      else if (names_path(flag))
        line += " -r -F";
      else if (takes_value(flag))
        line += " -x";
      text += line + fmt::format(" -d {}\n", shell_quoted(first_sentence(flag.help)));
    }
  }
  return text;
}

}  // namespace kivi
