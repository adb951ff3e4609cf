// SPDX-License-Identifier: Apache-2.0
// Reasoning between tags, whatever the text is split into.
#include "server/openai/answer_parser.h"

#include <catch2/catch.hpp>

using namespace kivi;

namespace {

AnswerSetup setup_of(bool open = false, bool tools = false) {
  AnswerSetup setup;
  setup.reasoning = ReasoningTags{"<think>", "</think>", open};
  if (tools) setup.tools = ToolSetup{ToolFormat::hermes, {"look"}, true};
  return setup;
}

// What comes of a text that is fed in pieces of `step` bytes.
ToolDelta fed(const AnswerSetup& setup, const std::string& text, size_t step) {
  const auto parser = make_answer_parser(setup);
  ToolDelta out;
  for (size_t i = 0; i < text.size(); i += step)
    parser->feed(std::string_view(text).substr(i, step), out);
  parser->finish(out);
  return out;
}

void check(const AnswerSetup& setup, const std::string& text, const std::string& reasoning,
           const std::string& content, size_t calls = 0) {
  for (size_t step = 1; step <= text.size() + 1; ++step) {
    INFO(text << " in pieces of " << step);
    const ToolDelta out = fed(setup, text, step);
    CHECK(out.reasoning == reasoning);
    CHECK(out.content == content);
    CHECK((out.calls.empty() ? 0 : out.calls.back().index + 1) == int(calls));
  }
  CHECK(parse_answer(setup, text).reasoning == reasoning);
  CHECK(parse_answer(setup, text).content == content);
}

}  // namespace

TEST_CASE("reasoning between the tags is apart from the content, for every split") {
  check(setup_of(), "<think>\na b\n c </think>\n\nyes <b>", "a b\n c", "yes <b>");
  check(setup_of(), " \n<think>a</think>", "a", "");
  check(setup_of(), "<think></think>yes", "", "yes");
  check(setup_of(), "<think>\n\n</think>\n\nyes\n", "", "yes\n");
  // A tag that is none, a text that ends in the reasoning, and one that ends in a tag.
  check(setup_of(), "<thinking> about it", "", "<thinking> about it");
  check(setup_of(), "  plain <think>x</think>", "", "  plain <think>x</think>");
  check(setup_of(), "<think>a < b </thin", "a < b </thin", "");
  check(setup_of(), "<thi", "", "<thi");
  check(setup_of(), "  ", "", "  ");
}

TEST_CASE("where the prompt has the first tag, the answer begins inside") {
  check(setup_of(/*open=*/true), "a b</think>yes", "a b", "yes");
  check(setup_of(/*open=*/true), "a b", "a b", "");
}

TEST_CASE("calls are found behind the reasoning, and not in it") {
  const std::string call = "<tool_call>{\"name\": \"look\", \"arguments\": {}}</tool_call>";
  check(setup_of(false, /*tools=*/true), "<think>" + call + "</think>" + call, call, "", 1);
  check(setup_of(false, /*tools=*/true), "no " + call, "", "no ", 1);
}

TEST_CASE("the setting of the tags is two tags, none, or what the template says") {
  CHECK((*reasoning_tags_of("<a>,</a>", ""))->end == "</a>");
  CHECK((*reasoning_tags_of("auto", "... </think> ..."))->begin == "<think>");
  CHECK((*reasoning_tags_of("auto", "[THINK]"))->end == "[/THINK]");
  CHECK_FALSE(reasoning_tags_of("auto", "nothing")->has_value());
  CHECK_FALSE(reasoning_tags_of("none", "<think>")->has_value());
  for (const char* wrong : {"<a>", "<a>,", ",</a>", "a,b,c"}) {
    const auto tags = reasoning_tags_of(wrong, "");
    REQUIRE_FALSE(tags.ok());
    CHECK(tags.error().field == "reasoning_tags");
  }
}

TEST_CASE("an answer without tools and tags needs no parser") {
  CHECK(make_answer_parser({}) == nullptr);
  CHECK(parse_answer({}, " x ").content == " x ");
}
