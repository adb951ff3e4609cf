// SPDX-License-Identifier: Apache-2.0
// Tool calls in recorded texts of models, split at every byte.
#include "server/openai/tool_parser.h"

#include <catch2/catch.hpp>
#include <chrono>

namespace kivi {
namespace {

struct Call {
  std::string name, arguments;
  friend bool operator==(const Call&, const Call&) = default;
};

struct Parsed {
  std::string content;
  std::vector<Call> calls;
  friend bool operator==(const Parsed&, const Parsed&) = default;
};

void add(const ToolDelta& delta, Parsed& out) {
  out.content += delta.content;
  for (const ToolCallDelta& call : delta.calls) {
    if (!call.name.empty()) {
      REQUIRE(call.index == int(out.calls.size()));
      out.calls.push_back({call.name, ""});
    }
    REQUIRE(call.index + 1 == int(out.calls.size()));  // calls come one after another
    out.calls.back().arguments += call.arguments;
  }
}

const std::vector<std::string> kNames = {"get_weather", "get_time", "f", "ns.get-time"};

Parsed parse(ToolFormat format, const std::vector<std::string>& pieces) {
  const auto parser = make_tool_parser(format, kNames);
  Parsed out;
  for (const std::string& piece : pieces) {
    ToolDelta delta;
    parser->feed(piece, delta);
    add(delta, out);
  }
  ToolDelta delta;
  parser->finish(delta);
  add(delta, out);
  REQUIRE(parser->calls() == int(out.calls.size()));
  return out;
}

std::string shown(const Parsed& p) {
  std::string text = "content <" + p.content + ">";
  for (const Call& call : p.calls) text += " " + call.name + " <" + call.arguments + ">";
  return text;
}

// Whole, in two pieces split at every byte, and byte by byte.
void check(ToolFormat format, const std::string& text, const Parsed& expected) {
  CAPTURE(text, shown(expected));
  const Parsed whole = parse(format, {text});
  CHECK(shown(whole) == shown(expected));
  for (size_t i = 0; i <= text.size(); ++i) {
    CAPTURE(i);
    REQUIRE(shown(parse(format, {text.substr(0, i), text.substr(i)})) == shown(expected));
  }
  std::vector<std::string> bytes;
  for (const char c : text) bytes.emplace_back(1, c);
  REQUIRE(shown(parse(format, bytes)) == shown(expected));
}

TEST_CASE("Hermes and Qwen 2.5: objects in tags") {
  const auto h = ToolFormat::hermes;
  check(h,
        "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln }\\\"\", \"n\": "
        "[1, 2]}}\n</tool_call>",
        {"", {{"get_weather", "{\"city\": \"Köln }\\\"\", \"n\": [1, 2]}"}}});
  check(h,
        "Let me look.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": "
        "\"Paris\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"get_time\", \"arguments\": "
        "{}}\n</tool_call>",
        {"Let me look.\n", {{"get_weather", "{\"city\": \"Paris\"}"}, {"get_time", "{}"}}});
  check(h,
        "<tool_call>{\"id\": 12 , \"name\": \"f\", \"arguments\" :  {\"a\" : [ 1 ]} }</tool_call>",
        {"", {{"f", "{\"a\" : [ 1 ]}"}}});
  // Without an end tag, without arguments, with the arguments first, in a string.
  check(h, "<tool_call>{\"name\": \"f\"}", {"", {{"f", "{}"}}});
  check(h, "<tool_call>{\"arguments\": {\"a\": 1}, \"name\": \"f\"}</tool_call> done",
        {"done", {{"f", "{\"a\": 1}"}}});
  check(h,
        "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": \\\"\\u00e9\\\"}\"}</tool_call>",
        {"", {{"f", "{\"a\": \"é\"}"}}});
  // Around the surrogates, a pair of them, and one alone.
  check(h,
        "<tool_call>{\"name\": \"f\", \"arguments\": "
        "\"[\\ud7ff\\ue000\\ud83d\\ude00\\ud800]\"}</tool_call>",
        {"", {{"f", "[\uD7FF\uE000\U0001F600\uFFFD]"}}});
}

TEST_CASE("SmolLM2: a list in tags") {
  check(ToolFormat::hermes,
        "<tool_call>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}, {\"name\": "
        "\"get_time\", \"arguments\": {\"zone\": null}}]</tool_call>",
        {"", {{"get_weather", "{\"city\": \"Oslo\"}"}, {"get_time", "{\"zone\": null}"}}});
}

TEST_CASE("what only looks like a call stays content") {
  const auto h = ToolFormat::hermes;
  for (const char* text :
       {"", "Hello <tool", "a < b and <tool_calls>", "<tool_call>I can not</tool_call>",
        "<tool_call>{\"nam\": 1}</tool_call>", "<tool_call>", "<tool_call>{\"name\": 3}",
        "<<tool_call"})
    check(h, text, {text, {}});
  for (const char* text :
       {"{\"name\": \"Bob\", \"age\": 3}", "{\"a\": {\"name\": \"f\"}}", "Hi {\"name\": \"f\"}",
        "{", " {\"name\": \"f", "<|python_tag", "[1, 2]"})
    check(ToolFormat::llama3, text, {text, {}});
  for (const char* text : {"[1, 2, 3]", "[unknown(a=1)]", "f(a=1)", "[f", "[", "- [f(a=1)]", "[f"})
    check(ToolFormat::pythonic, text, {text, {}});
  check(ToolFormat::mistral, "[TOOL_CALL] no", {"[TOOL_CALL] no", {}});
  // Without a name (found by tests/fuzz/answer_target.cpp).
  for (const char* text :
       {"<tool_call>{\"name\": \"\", \"arguments\": {}}</tool_call>",
        "<tool_call>{\"arguments\": {\"a\": 1}, \"name\": \"\"}</tool_call> done"})
    check(h, text, {text, {}});
  for (const char* text :
       {"[TOOL_CALLS][{\"name\": \"\", \"arguments\": {}}]", "[TOOL_CALLS][ARGS]{\"a\": 1}"})
    check(ToolFormat::mistral, text, {text, {}});
  check(ToolFormat::none, "<tool_call>{\"name\": \"f\"}</tool_call>",
        {"<tool_call>{\"name\": \"f\"}</tool_call>", {}});
}

TEST_CASE("Llama 3.x: objects without a mark") {
  const auto l = ToolFormat::llama3;
  check(l, "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Rome\"}}",
        {"", {{"get_weather", "{\"city\": \"Rome\"}"}}});
  check(l,
        "<|python_tag|>{\"type\": \"function\", \"name\": \"f\", \"parameters\": {}}; {\"name\": "
        "\"get_time\", \"parameters\": {\"z\": -1.5}}",
        {"", {{"f", "{}"}, {"get_time", "{\"z\": -1.5}"}}});
}

TEST_CASE("Llama pythonic: calls in a list") {
  const auto p = ToolFormat::pythonic;
  check(
      p, "[get_weather(city='San \\'F\\'', metric=\"celsius\"), get_time()]",
      {"",
       {{"get_weather", "{\"city\": \"San 'F'\", \"metric\": \"celsius\"}"}, {"get_time", "{}"}}});
  check(p, "[f(a=1, b=-2.5e3, c=True, d=None, e=[1, 'x'], g={'k': (1, 2)})]",
        {"",
         {{"f",
           "{\"a\": 1, \"b\": -2.5e3, \"c\": true, \"d\": null, \"e\": [1, \"x\"], \"g\": {\"k\": "
           "[1, 2]}}"}}});
  check(p, "[f(a=0, b=-0.5, c=10E+2)]", {"", {{"f", "{\"a\": 0, \"b\": -0.5, \"c\": 10E+2}"}}});
  // What looks like a number and is none of JSON's is a string.
  for (const char* number : {"+1", "1.", ".5", "007", "--1", "1e", "1e+", "-", "1-2"}) {
    const std::string n = number;
    check(p, "[f(a=" + n + ")]", {"", {{"f", "{\"a\": \"" + n + "\"}"}}});
  }
  check(p, "[ns.get-time(f=())]", {"", {{"ns.get-time", "{\"f\": []}"}}});
  check(p, "[f()] \n and more", {"and more", {{"f", "{}"}}});
  check(p, "[f()] \n", {"", {{"f", "{}"}}});
  // Blanks wherever Python takes them, and brackets and commas inside of strings.
  check(p, " [ f ( a =  'x, )]}' ,b\t=\n[ ')' , \"'\" ] ) ] ",
        {" [ f ( a =  'x, )]}' ,b\t=\n[ ')' , \"'\" ] ) ] ", {}});
  check(p, " [f( a =  'x, )]}' ,b\t=\n[ ')' , \"'\" ], c= -1 ) ]",
        {"", {{"f", "{\"a\": \"x, )]}\", \"b\": [\")\", \"'\"], \"c\": -1}"}}});
}

TEST_CASE("a long argument is read in time that grows with its length") {
  std::string text = "[f(a=[";
  for (int i = 0; i < 40'000; ++i) text += "'word', ";
  text += "])]";
  const auto time_of = [&](ToolFormat format, const std::string& whole) {
    const auto parser = make_tool_parser(format, kNames);
    ToolDelta delta;
    const auto begin = std::chrono::steady_clock::now();
    for (size_t i = 0; i < whole.size(); i += 4) parser->feed(whole.substr(i, 4), delta);
    parser->finish(delta);
    CHECK(parser->calls() == 1);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  // Reading the literal again for each piece would take minutes.
  CHECK(time_of(ToolFormat::pythonic, text) < 5);
}

TEST_CASE("Mistral: a list behind a mark, or names") {
  const auto m = ToolFormat::mistral;
  check(m,
        "[TOOL_CALLS][{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Nice\"}}, {\"name\": "
        "\"f\", \"arguments\": {}}]",
        {"", {{"get_weather", "{\"city\": \"Nice\"}"}, {"f", "{}"}}});
  check(m, "Sure. [TOOL_CALLS] [{\"arguments\": {\"a\": [\"]\"]}, \"name\": \"f\"}]",
        {"Sure. ", {{"f", "{\"a\": [\"]\"]}"}}});
  check(m, "[TOOL_CALLS]get_weather{\"city\": \"Nice\"}[TOOL_CALLS]f[ARGS]{}",
        {"", {{"get_weather", "{\"city\": \"Nice\"}"}, {"f", "{}"}}});
}

TEST_CASE("what the masks of tool_choice write") {
  check(ToolFormat::list,
        "[{\"name\": \"f\", \"parameters\": {\"a\": 1}},\n  {\"name\": \"get_time\", "
        "\"parameters\": {}}]",
        {"", {{"f", "{\"a\": 1}"}, {"get_time", "{}"}}});
  check(ToolFormat::arguments, " {\"a\": 1}", {"", {{"get_weather", "{\"a\": 1}"}}});
}

TEST_CASE("the format is that of the template") {
  CHECK(tool_format_of_template("{% if tools %}<tool_call>{% endif %}") == ToolFormat::hermes);
  CHECK(tool_format_of_template("{% if tools %}[AVAILABLE_TOOLS][TOOL_CALLS]") ==
        ToolFormat::mistral);
  CHECK(tool_format_of_template("{{ tools }} Environment: ipython") == ToolFormat::llama3);
  CHECK(tool_format_of_template("{{ tools }} [func_name1(params_name1=params_value1)]") ==
        ToolFormat::pythonic);
  CHECK(tool_format_of_template("{{ messages }}") == ToolFormat::none);
}

}  // namespace
}  // namespace kivi
