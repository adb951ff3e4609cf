// SPDX-License-Identifier: Apache-2.0
// The manual page and the completions hold the whole table of flags, and shells can read them.
#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <cstdio>
#include <string>

#include "tools/command_list.h"
#include "tools/flags.h"

namespace kivi {
namespace {

// The exit status of a shell that is fed `script` and only parses it.
int parse_status(const std::string& shell, const std::string& script) {
  FILE* pipe = popen((shell + " -n").c_str(), "w");
  REQUIRE(pipe != nullptr);
  std::fwrite(script.data(), 1, script.size(), pipe);
  return pclose(pipe);
}

int count(const std::string& text, const std::string& part) {
  int found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

// Rows of this name, of commands in `commands`. Two commands may have flags of one name.
int rows(const std::vector<Flag>& flags, const std::string& name, unsigned commands = ~0u) {
  int found = 0;
  for (const Flag& flag : flags)
    found += flag.name == name && !flag.positional && (flag.commands & commands) != 0;
  return found;
}

TEST_CASE("The manual page describes every flag and every command once") {
  Settings defaults;
  const std::string page = manual_page();
  const std::vector<Flag> flags = make_flags(defaults);
  for (const Flag& flag : flags) {
    if (flag.positional) continue;
    std::string name;
    for (const char c : flag.name) name += c == '-' ? std::string("\\-") : std::string(1, c);
    INFO(flag.name);
    CHECK(count(page, "\n" +
                          (flag.short_name.empty() ? "" : "\\fB\\-" + flag.short_name + "\\fR, ") +
                          "\\fB\\-\\-" + name + "\\fR") == rows(flags, flag.name));
  }
  CHECK(count(page, "\n.B kivi bench throughput\n") == 1);
  CHECK(page.find("\n.\n") == std::string::npos);
}

TEST_CASE("The completions know every flag of serve, and no flag of another command alone") {
  Settings defaults;
  const std::string bash = bash_completion(), zsh = zsh_completion(), fish = fish_completion();
  const size_t begin = bash.find("'serve') words='");
  REQUIRE(begin != std::string::npos);
  const std::string words =
      " " + bash.substr(begin + 16, bash.find("'", begin + 16) - begin - 16) + " ";
  const std::vector<Flag> flags = make_flags(defaults);
  for (const Flag& flag : flags) {
    if (flag.positional) continue;
    const bool of_serve = rows(flags, flag.name, kServe) > 0;
    INFO(flag.name);
    CHECK((words.find(" --" + flag.name + " ") != std::string::npos) == of_serve);
    CHECK((fish.find(fmt::format("'__kivi_is serve' -l {} ", flag.name)) != std::string::npos) ==
          of_serve);
    CHECK(zsh.find(fmt::format("--{}[", flag.name)) != std::string::npos);
  }
  CHECK(words.find(" --no-playground ") != std::string::npos);
  CHECK(bash.find("--device) mapfile -t COMPREPLY < <(compgen -W 'auto cuda cpu'") !=
        std::string::npos);
}

TEST_CASE("bash can parse its completion") {
  CHECK(parse_status("bash", bash_completion()) == 0);
  CHECK(parse_status("bash 2>/dev/null", "case x in") != 0);
}

TEST_CASE(
    "A flag with few values offers them all, and its value is checked against the same list") {
  Settings settings;
  for (const Flag& flag : make_flags(settings)) {
    for (const std::string& choice : flag.value.choices) {
      INFO(flag.name << " " << choice);
      CHECK_FALSE(flag.value.set(choice));
    }
  }
}

}  // namespace
}  // namespace kivi
