// Flags: one table says what a user can set, and everything that concerns a setting is made from
// it: the command line, KIVI_<FLAG> variables, the keys of --config files, --help,
// docs/configuration.md and configs/default.json. Precedence: flag > environment > file > default.
//
// Nothing here reads the process's environment by itself but process_environment().
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

// The commands that take flags; a Flag says to which it belongs (bits).
enum Command : unsigned {
  kServe = 1,
  kGenerate = 2,
  kThroughput = 4,
  kInfo = 8,
  kKernels = 16,
  kEngineCommands = kServe | kGenerate | kThroughput,
  kAllCommands = kEngineCommands | kInfo | kKernels,
};

enum class FlagKind { boolean, integer, number, text, bytes, list };

// How a flag's text reaches its field of Settings, and back.
struct FlagValue {
  FlagKind kind = FlagKind::text;
  // Sets the field (lists: appends one element). On failure: what was expected.
  std::function<std::optional<std::string>(const std::string&)> set;
  std::function<void()> clear;  // lists: forgets what a weaker source has set
  std::function<nlohmann::ordered_json()> get;
};

struct Flag {
  std::string name;        // "kv-cache-dtype"; config key and variable follow from it
  std::string value_hint;  // "auto|fp16|...", "N", "FILE"; "" for booleans
  std::string help;
  std::string group;
  unsigned commands = 0;
  FlagValue value = {};  // without `set`: known by name, but not built in this version
  std::string short_name = {};
  bool positional = false;
  bool in_config = true;  // may stand in a --config file

  bool built() const { return value.set != nullptr; }
  std::string config_key() const;   // "kv_cache_dtype"
  std::string environment() const;  // "KIVI_KV_CACHE_DTYPE"
};

// The table. The rows read and write `settings`, which must outlive them at its address.
std::vector<Flag> make_flags(Settings& settings);

using Environment = std::vector<std::pair<std::string, std::string>>;
Environment process_environment();

struct ParseOutcome {
  std::string help;  // not empty: --help was given; print it and stop
  std::vector<std::string> warnings;
};

// Fills `settings` for `command`; `args` are the words after the command's name. The error's
// message names the flag (or variable, or file and key), its value and what was expected.
Result<ParseOutcome> parse_settings(Command command, const std::vector<std::string>& args,
                                    const Environment& environment, Settings& settings);

// Applies the text of one --config file. `file` is its name, for messages.
Status apply_config(const std::string& text, const std::string& file, Settings& settings);

// Every key of a --config file with its value in `settings`; for default Settings this is
// configs/default.json. Holds API keys in clear: not for logs.
nlohmann::ordered_json config_of(Settings& settings);

// --help of a command; `flags` hold its defaults.
std::string help_text(Command command, const std::vector<Flag>& flags);
// The text of docs/configuration.md.
std::string flags_markdown();

// The entry of `known` closest to `word`, if it is close enough to be a slip; else "".
std::string did_you_mean(std::string_view word, const std::vector<std::string>& known);

}  // namespace kivi
