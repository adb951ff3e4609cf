// SPDX-License-Identifier: Apache-2.0
// Reads flags, variables and files into Settings, by the table.
#include "tools/flags.h"

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/json_file.h"
#include "base/regular_file.h"
#include "server/auth.h"

namespace kivi {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

Error invalid(const Flag& flag, std::string message) {
  return Error{ErrorCode::invalid, std::move(message), flag.name};
}

const Flag* find_by_key(const std::vector<Flag>& flags, const std::string& key) {
  for (const Flag& flag : flags)
    if (flag.in_config && flag.config_key() == key) return &flag;
  return nullptr;
}

std::string suggestion(std::string_view word, const std::vector<std::string>& known) {
  const std::string best = did_you_mean(word, known);
  return best.empty() ? "" : fmt::format("; did you mean {}?", best);
}

// A JSON value as the text that Flag::set takes; nothing where the type is wrong.
std::optional<std::string> text_of(const json& value, FlagKind kind) {
  switch (kind) {
    case FlagKind::boolean:
      if (value.is_boolean()) return value.dump();
      break;
    case FlagKind::integer:
      if (value.is_number_integer()) return value.dump();
      break;
    case FlagKind::number:
      if (value.is_number()) return value.dump();
      break;
    case FlagKind::bytes:
      if (value.is_number_integer()) return value.dump();
      [[fallthrough]];
    case FlagKind::text:
    case FlagKind::list:
      if (value.is_string()) return value.get<std::string>();
      break;
  }
  return std::nullopt;
}

const char* name_of(FlagKind kind) {
  switch (kind) {
    case FlagKind::boolean:
      return "true or false";
    case FlagKind::integer:
      return "an integer";
    case FlagKind::number:
      return "a number";
    case FlagKind::bytes:
      return "an integer or a string such as \"8GiB\"";
    case FlagKind::text:
      return "a string";
    case FlagKind::list:
      return "a list of strings";
  }
  return "";
}

// One key of a file. Null leaves the default.
Status apply_key(const Flag& flag, const json& value, const std::string& file) {
  const std::string spelled = fmt::format("{}: \"{}\"", file, flag.config_key());
  // Files of version 0.2 hold one name.
  const bool one_name = flag.name == "served-model-name" && value.is_string();
  if (one_name) flag.value.clear();
  if (one_name && value == "") return ok_status();
  const bool is_list = flag.value.kind == FlagKind::list && !one_name;
  if (is_list && !value.is_array())
    return invalid(flag, fmt::format("{} is {}, must be a list of strings", spelled, value.dump()));
  if (is_list) flag.value.clear();
  for (const json& element : is_list ? value : json::array({value})) {
    const std::optional<std::string> text = text_of(element, flag.value.kind);
    std::optional<std::string> expected;
    if (text) {
      expected = flag.value.set(*text);
    } else {
      expected = name_of(flag.value.kind);
    }
    if (expected)
      return invalid(flag, fmt::format("{} is {}, must be {}", spelled, element.dump(), *expected));
  }
  return ok_status();
}

Result<std::string> read_text(const std::string& path, const Flag& flag) {
  const auto refuse = [&](const Error& error) {
    return Error{error.code,
                 fmt::format("--{} is \"{}\", must be a file that can be read: {}", flag.name, path,
                             error.message),
                 flag.name};
  };
  const Result<RegularFile> file = RegularFile::open(path);
  if (!file.ok()) return refuse(file.error());
  Result<std::string> text = file->read();
  if (!text.ok()) return refuse(text.error());
  return text;
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, separator);)
    if (!part.empty()) parts.push_back(part);
  return parts;
}

// KIVI_* variables. An empty one counts as absent (compose files pass those on).
Status apply_environment(const std::vector<Flag>& flags, const Environment& environment,
                         std::vector<std::string>& warnings) {
  std::vector<std::string> known;
  for (const Flag& flag : flags) known.push_back(flag.in_environment ? flag.environment() : "");
  for (const auto& [name, text] : environment) {
    if (!name.starts_with("KIVI_") || text.empty()) continue;
    const auto found = std::find(known.begin(), known.end(), name);
    if (found == known.end()) {
      warnings.push_back(
          fmt::format("unknown variable {} is ignored{}", name, suggestion(name, known)));
      continue;
    }
    const Flag& flag = flags[size_t(found - known.begin())];
    const bool is_list = flag.value.kind == FlagKind::list;
    if (is_list) flag.value.clear();
    const std::vector<std::string> parts = is_list ? split(text, ',') : std::vector{text};
    if (parts.empty())
      return invalid(flag, fmt::format("{} has no value, must have values separated by commas. "
                                       "An empty variable counts as absent",
                                       name));
    for (const std::string& part : parts) {
      if (const auto expected = flag.value.set(part))
        return invalid(flag, fmt::format("{} is \"{}\", must be {}", name, part, *expected));
    }
  }
  return ok_status();
}

// The words of the command line, sorted by CLI11; the values are still text.
class CommandLine {
 public:
  CommandLine(Command command, const std::vector<Flag>& flags) : command_(command) {
    app_.allow_extras();
    app_.set_help_flag("-h,--help", "Print this help and exit.");
    for (const Flag& flag : flags) options_.push_back(add(flag));
  }

  // Error where a word is no flag of the command.
  Status parse(std::vector<std::string> args, const std::vector<Flag>& flags) {
    std::reverse(args.begin(), args.end());  // CLI11 takes them from the back
    try {
      app_.parse(args);
    } catch (const CLI::CallForHelp&) {
      help_ = true;
      return ok_status();
    } catch (const CLI::ArgumentMismatch& e) {
      // "--port: 1 required INT missing". No other number of values can be wrong.
      const std::string message = e.what();
      return Error{ErrorCode::invalid, fmt::format("{} has no value, must have one",
                                                   message.substr(0, message.find(':')))};
    } catch (const CLI::ParseError& e) {
      return Error{ErrorCode::invalid, fmt::format("command line: {}", e.what())};
    }
    const std::vector<std::string> extras = app_.remaining();
    if (extras.empty()) return ok_status();
    const std::string word = extras.front().substr(0, extras.front().find('='));
    if (!word.starts_with('-'))
      return Error{ErrorCode::invalid, fmt::format("unexpected argument \"{}\"", word)};
    std::vector<std::string> known;
    for (size_t i = 0; i < flags.size(); ++i)
      if (options_[i] != nullptr) known.push_back("--" + flags[i].name);
    return Error{ErrorCode::invalid,
                 fmt::format("unknown flag {}{}", word, suggestion(word, known))};
  }

  // The values given for flags[i], in order; empty: not given.
  std::vector<std::string> values(size_t i) const {
    return options_[i] == nullptr ? std::vector<std::string>{} : options_[i]->results();
  }

  bool help() const { return help_; }

 private:
  CLI::Option* add(const Flag& flag) {
    if ((flag.commands & command_) == 0) return nullptr;
    if (flag.positional) return app_.add_option(flag.name)->expected(1);
    std::string names = "--" + flag.name;
    if (!flag.short_name.empty()) names = "-" + flag.short_name + "," + names;
    if (!flag.alias.empty()) names += ",--" + flag.alias;
    if (flag.value.kind == FlagKind::boolean) return app_.add_flag(names + ",!--no-" + flag.name);
    return app_.add_option(names)->expected(1)->multi_option_policy(
        CLI::MultiOptionPolicy::TakeAll);
  }

  CLI::App app_;
  unsigned command_;
  std::vector<CLI::Option*> options_;  // by flag; null: not of this command
  bool help_ = false;
};

Status apply_command_line(const CommandLine& line, const std::vector<Flag>& flags) {
  for (size_t i = 0; i < flags.size(); ++i) {
    const Flag& flag = flags[i];
    const std::vector<std::string> values = line.values(i);
    if (values.empty()) continue;
    const std::string spelled = flag.positional ? flag.value_hint : "--" + flag.name;
    if (flag.value.kind == FlagKind::list) flag.value.clear();
    for (const std::string& value : values) {
      if (const auto expected = flag.value.set(value))
        return invalid(flag, fmt::format("{} is \"{}\", must be {}", spelled, value, *expected));
    }
  }
  return ok_status();
}

// Where the keys of Settings come from: the strongest source that names any.
std::string source_of_keys(const std::vector<std::string>& given, const Environment& environment,
                           const Settings& settings) {
  if (!given.empty()) return "--api-key";
  for (const auto& [name, text] : environment)
    if (name == "KIVI_API_KEY" && !text.empty()) return name;
  return fmt::format("{}: \"api_key\"", settings.config_file);
}

// Each key alone must be one; blanks around it are dropped. Errors do not tell the key.
Status check_keys(const std::string& source, std::vector<std::string>& keys) {
  for (size_t i = 0; i < keys.size(); ++i) {
    const std::string name =
        keys.size() == 1 ? source : fmt::format("{}, key {} of {}", source, i + 1, keys.size());
    KIVI_ASSIGN_OR_RETURN(const std::vector<std::string> parsed, parse_api_keys(keys[i], name));
    if (parsed.size() != 1)
      return Error{ErrorCode::invalid,
                   fmt::format("{} has {} lines, must be one key", name, parsed.size()), "api-key"};
    keys[i] = parsed.front();
  }
  return ok_status();
}

}  // namespace

Environment process_environment() {
  Environment environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const size_t equals = text.find('=');
    if (equals != std::string::npos)
      environment.emplace_back(text.substr(0, equals), text.substr(equals + 1));
  }
  return environment;
}

Status apply_config(const std::string& text, const std::string& file, Settings& settings) {
  const Result<json> parsed = parse_json(text, file);
  if (!parsed.ok()) return Error{parsed.error().code, parsed.error().message, "config"};
  const json& document = *parsed;
  if (!document.is_object())
    return Error{ErrorCode::invalid, fmt::format("{}: the file must hold one JSON object", file),
                 "config"};
  const std::vector<Flag> flags = make_flags(settings);
  for (const auto& [key, value] : document.items()) {
    if (const Flag* flag = find_by_key(flags, key)) {
      KIVI_RETURN_IF_ERROR(apply_key(*flag, value, file));
      continue;
    }
    std::vector<std::string> known;
    for (const Flag& flag : flags)
      if (flag.in_config) known.push_back(flag.config_key());
    return Error{ErrorCode::invalid,
                 fmt::format("{}: unknown key \"{}\"{}", file, key, suggestion(key, known)),
                 "config"};
  }
  return ok_status();
}

Result<ParseOutcome> parse_settings(Command command, const std::vector<std::string>& args,
                                    const Environment& environment, Settings& settings) {
  const std::vector<Flag> flags = make_flags(settings);
  const auto flag_named = [&](const std::string& name) -> const Flag& {
    const auto found = std::find_if(flags.begin(), flags.end(),
                                    [&](const Flag& flag) { return flag.name == name; });
    KIVI_VERIFY(found != flags.end());
    return *found;
  };
  CommandLine line(command, flags);
  KIVI_RETURN_IF_ERROR(line.parse(args, flags));
  ParseOutcome outcome;
  if (line.help()) {
    outcome.help = help_text(command, flags);
    return outcome;
  }

  // Weakest first. The file's name itself is a flag or a variable.
  KIVI_RETURN_IF_ERROR(apply_environment(flags, environment, outcome.warnings));
  KIVI_RETURN_IF_ERROR(apply_command_line(line, flags));
  if (!settings.config_file.empty()) {
    const std::string file = settings.config_file;
    KIVI_ASSIGN_OR_RETURN(const std::string text, read_text(file, flag_named("config")));
    KIVI_RETURN_IF_ERROR(apply_config(text, file, settings));
    outcome.warnings.clear();
    KIVI_RETURN_IF_ERROR(apply_environment(flags, environment, outcome.warnings));
    KIVI_RETURN_IF_ERROR(apply_command_line(line, flags));
  }
  const size_t key_flag = size_t(&flag_named("api-key") - flags.data());
  KIVI_RETURN_IF_ERROR(check_keys(source_of_keys(line.values(key_flag), environment, settings),
                                  settings.server.api_keys));
  if (!settings.api_key_file.empty()) {
    KIVI_ASSIGN_OR_RETURN(const std::string text,
                          read_text(settings.api_key_file, flag_named("api-key-file")));
    KIVI_ASSIGN_OR_RETURN(
        const std::vector<std::string> keys,
        parse_api_keys(text, fmt::format("--api-key-file {}", settings.api_key_file)));
    settings.server.api_keys.insert(settings.server.api_keys.end(), keys.begin(), keys.end());
  }
  if ((command & kModelCommands) != 0 && settings.engine.model.empty())
    return Error{ErrorCode::invalid,
                 "MODEL is missing. Name a Hugging Face folder or a GGUF file after the command",
                 "model"};
  return outcome;
}

ordered_json config_of(Settings& settings) {
  ordered_json config;
  for (const Flag& flag : make_flags(settings))
    if (flag.in_config) config[flag.config_key()] = flag.value.get();
  return config;
}

std::string did_you_mean(std::string_view word, const std::vector<std::string>& known) {
  std::string wanted(word);
  std::string best;
  size_t best_distance = wanted.size() / 3 + 1;  // more edits than a third are another word
  for (const std::string& candidate : known) {
    // Levenshtein's distance, one row at a time; '-' and '_' are the same.
    const auto same = [](char a, char b) {
      return a == b || ((a == '-' || a == '_') && (b == '-' || b == '_'));
    };
    std::vector<size_t> row(candidate.size() + 1);
    for (size_t j = 0; j < row.size(); ++j) row[j] = j;
    for (size_t i = 1; i <= wanted.size(); ++i) {
      size_t diagonal = row[0];
      row[0] = i;
      for (size_t j = 1; j < row.size(); ++j) {
        const size_t replaced = diagonal + (same(wanted[i - 1], candidate[j - 1]) ? 0 : 1);
        diagonal = row[j];
        row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = candidate;
    }
  }
  return best;
}

}  // namespace kivi
