// SPDX-License-Identifier: Apache-2.0
// Flags: one table lists what a user can set. Everything else about a setting is made from the
// table: the command line, KIVI_<FLAG> variables, the keys of --config files, --help,
// docs/configuration.md and configs/default.json. A flag wins over a variable, a variable over the
// file, the file over the default.
//
// Only process_environment() reads the environment of the process.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "tools/settings.h"

namespace kivi {

// The commands that take flags, as bits. A Flag names the commands that accept it.
enum Command : unsigned {
  kServe = 1,
  kGenerate = 2,
  kThroughput = 4,
  kInfo = 8,
  kKernels = 16,
  kBenchServe = 32,
  kEval = 64,
  kKvStats = 128,
  kTune = 256,
  kEngineCommands = kServe | kGenerate | kThroughput,
  kStudies = kEval | kKvStats | kTune,
  kModelCommands = kEngineCommands | kInfo | kKernels | kStudies,  // those that take MODEL
};

enum class FlagKind { boolean, integer, number, text, bytes, list };

// Converts between a flag's text and its field of Settings.
struct FlagValue {
  FlagKind kind = FlagKind::text;
  // Sets the field, or appends one element to a list. On failure, returns a description of the
  // allowed values: "an integer in [0, 9]".
  std::function<std::optional<std::string>(const std::string&)> set;
  std::function<void()> clear;  // lists only: removes the elements of a weaker source
  std::function<nlohmann::ordered_json()> get;
  std::vector<std::string> choices = {};  // all allowed values, where they are few; else none
};

struct Flag {
  std::string name;        // "kv-cache-dtype"; config key and variable follow from it
  std::string value_hint;  // "auto|fp16|...", "N", "FILE"; "" for booleans
  std::string help;
  std::string group;
  unsigned commands = 0;
  FlagValue value = {};
  std::string short_name = {};
  bool positional = false;
  bool in_config = true;       // a --config file may set it
  bool in_environment = true;  // a KIVI_ variable may set it
  std::string alias = {};      // another long name

  std::string config_key() const;   // "kv_cache_dtype"
  std::string environment() const;  // "KIVI_KV_CACHE_DTYPE"
};

// Returns the table. Its rows read and write `settings`, which must outlive them and not move.
std::vector<Flag> make_flags(Settings& settings);

using Environment = std::vector<std::pair<std::string, std::string>>;
Environment process_environment();

struct ParseOutcome {
  std::string help;  // not empty if --help was given: print it and exit
  std::vector<std::string> warnings;
};

// Fills `settings` for `command` from `args`, the words after the command's name. An error names
// the flag, the variable or the file and key, its value, and the allowed values.
Result<ParseOutcome> parse_settings(Command command, const std::vector<std::string>& args,
                                    const Environment& environment, Settings& settings);

// Applies the text of one --config file. Messages call the file `file`.
Status apply_config(const std::string& text, const std::string& file, Settings& settings);

// Returns every key of a --config file with its value in `settings`. The result for default
// Settings is configs/default.json. It holds API keys in clear, so do not log it.
nlohmann::ordered_json config_of(Settings& settings);

// Returns the --help text of a command. `flags` hold the defaults.
std::string help_text(Command command, const std::vector<Flag>& flags);
// Returns the text of docs/configuration.md.
std::string flags_markdown();
// Returns the manual page kivi(1) in the man macros of roff.
std::string manual_page();
// Return scripts that complete the words of a command line of `kivi` in a shell.
std::string bash_completion();
std::string zsh_completion();
std::string fish_completion();

// Returns the entry of `known` closest to `word` if it is close enough to be a typing error, else
// "".
std::string did_you_mean(std::string_view word, const std::vector<std::string>& known);

}  // namespace kivi
