// SPDX-License-Identifier: Apache-2.0
// Which of a folder's files the chat template is taken from.
#include "engine/serving/chat_template_source.h"

#include <catch2/catch.hpp>

#include "tests/model/temporary_folder.h"

using namespace kivi;

namespace {

std::string text_of(const TemporaryFolder& folder, const std::string& wanted = "") {
  const auto found = find_chat_template(folder.path(), wanted);
  if (!found.ok()) return "error: " + found.error().message;
  return *found ? (*found)->text : "none";
}

}  // namespace

TEST_CASE(
    "the template is the first of chat_template.jinja, tokenizer_config, chat_template.json") {
  TemporaryFolder folder;
  CHECK(text_of(folder) == "none");
  folder.write("chat_template.json", R"({"chat_template": "third"})");
  CHECK(text_of(folder) == "third");
  folder.write("tokenizer_config.json", R"({"chat_template": null})");
  CHECK(text_of(folder) == "third");
  folder.write("tokenizer_config.json", R"({"chat_template": "second"})");
  CHECK(text_of(folder) == "second");
  folder.write("chat_template.jinja", "first");
  CHECK(text_of(folder) == "first");
  folder.write("own", "wanted");
  CHECK(text_of(folder, folder.path() + "/own") == "wanted");
  CHECK(text_of(folder, "none") == "none");
}

TEST_CASE("of a list of named templates the default one is taken") {
  TemporaryFolder folder;
  folder.write("tokenizer_config.json",
               R"({"chat_template": [{"name": "tool_use", "template": "a"},
                                     {"name": "default", "template": "b"}]})");
  CHECK(text_of(folder) == "b");
}

TEST_CASE("a template that cannot be had is an error that names the file") {
  TemporaryFolder folder;
  for (const char* wrong : {R"({"chat_template": 7})", R"({"chat_template": ["x"]})",
                            R"({"chat_template": [{"name": "x", "template": "y"}]})", "{"}) {
    folder.write("tokenizer_config.json", wrong);
    const auto found = find_chat_template(folder.path(), "");
    REQUIRE_FALSE(found.ok());
    CHECK(found.error().field == "chat_template");
    CHECK(found.error().message.find("tokenizer_config.json") != std::string::npos);
  }
  const auto missing = find_chat_template(folder.path(), folder.path() + "/nothing");
  REQUIRE_FALSE(missing.ok());
  CHECK(missing.error().code == ErrorCode::not_found);
  CHECK(missing.error().message.starts_with("chat_template is \"" + folder.path() + "/nothing\""));
}
