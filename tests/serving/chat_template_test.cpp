// SPDX-License-Identifier: Apache-2.0
// The template language against Jinja: golden files made by python3-jinja2 (make_cases.py beside
// them), what is refused, and what hostile templates cost.
#include "engine/serving/chat_template.h"

#include <catch2/catch.hpp>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

using namespace kivi;
using nlohmann::ordered_json;

namespace {

const std::string kData = KIVI_SOURCE_DIR "/tests/data/chat/";

std::string file_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE(file);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

Result<std::string> rendered(const std::string& text, const ordered_json& variables,
                             std::time_t now = 0) {
  KIVI_ASSIGN_OR_RETURN(const ChatTemplate parsed, ChatTemplate::parse({text, "test.jinja"}));
  return parsed.render(variables, now);
}

// What Jinja gave is what we give; where it failed, we fail, and with the same words where those
// are the template's.
void check(const std::string& text, const ordered_json& variables, std::time_t now,
           const ordered_json& expected) {
  const auto result = rendered(text, variables, now);
  INFO(text);
  INFO(expected.dump());
  if (expected.contains("output")) {
    if (!result.ok())
      FAIL_CHECK(result.error().message);
    else
      CHECK(*result == expected["output"].get<std::string>());
  } else if (result.ok()) {
    FAIL_CHECK("no error, but " + *result);
  } else if (expected["error"] == "raised") {
    CHECK(result.error().message ==
          "the chat template says: " + expected["message"].get<std::string>());
  }
}

void check_chats(const std::string& path) {
  const auto cases = ordered_json::parse(file_text(path));
  REQUIRE(cases.size() > 100);
  for (const ordered_json& c : cases)
    check(file_text(kData + "templates/" + c["template"].get<std::string>()), c["variables"], 0, c);
}

}  // namespace

TEST_CASE("random chats through the templates of model families give what Jinja gives") {
  check_chats(kData + "chats.json");
}

// KIVI_CHATS: a file of make_cases.py --out.
TEST_CASE("chats of a file give what Jinja gives", "[.file]") {
  const char* path = std::getenv("KIVI_CHATS");
  REQUIRE(path != nullptr);
  check_chats(path);
}

TEST_CASE("every construct of the language does what Jinja does") {
  setenv("TZ", "UTC", 1);
  const auto file = ordered_json::parse(file_text(kData + "snippets.json"));
  REQUIRE(file.size() > 200);
  for (size_t i = 1; i < file.size(); ++i)
    check(file[i]["template"], file[0]["variables"], file[0]["now"], file[i]);
}
