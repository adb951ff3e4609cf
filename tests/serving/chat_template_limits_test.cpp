// SPDX-License-Identifier: Apache-2.0
// Templates are other people's files: what is refused by name, and what a hostile one can cost.
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "engine/serving/chat_template.h"
#include "tests/cpu_time.h"

using namespace kivi;
using nlohmann::ordered_json;

namespace {

Error parse_error(const std::string& text) {
  const auto parsed = ChatTemplate::parse({text, "some/file"});
  INFO(text);
  REQUIRE_FALSE(parsed.ok());
  return parsed.error();
}

Error render_error(const std::string& text,
                   const ordered_json& variables = ordered_json::object()) {
  const auto parsed = ChatTemplate::parse({text, "some/file"});
  INFO(text);
  if (!parsed.ok()) FAIL(parsed.error().message);
  const auto result = parsed->render(variables, 0);
  REQUIRE_FALSE(result.ok());
  return result.error();
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string repeated(const std::string& text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

}  // namespace

TEST_CASE("what is not supported is refused when it is read, by name and line") {
  const std::pair<const char*, const char*> cases[] = {
      {"{% include 'x' %}", "the tag {% include %}"},
      {"{% extends 'x' %}", "the tag {% extends %}"},
      {"{% import 'x' as y %}", "the tag {% import %}"},
      {"{% block x %}{% endblock %}", "the tag {% block %}"},
      {"{% autoescape true %}{% endautoescape %}", "the tag {% autoescape %}"},
      {"{% do x %}", "the tag {% do %}"},
      {"{% trans %}x{% endtrans %}", "the tag {% trans %}"},
      {"{% for x in y recursive %}{% endfor %}", "a recursive loop"},
      {"{{ x|xmlattr }}", "the filter xmlattr"},
      {"{{ x|map('urlize') }}", "the filter urlize"},
      {"{{ x|selectattr('a', 'nothing') }}", "the test nothing"},
      {"{{ x is escaped }}", "the test escaped"},
      {"{{ cycler(1) }}", "the function cycler"},
      {"{{ 'a'.format(1) }}", "the method format"},
      {"{{ x.encode() }}", "the method encode"},
      {"{{ '%s' % 1 }}", "formatting a string with %"},
      {"{{ x[1, 2] }}", "an index of several parts"},
      {"{{ 0x10 }}", "the number 0x"},
      {"{{ '\\N{DASH}' }}", "the escape \\N"}};
  for (const auto& [text, named] : cases) {
    const Error error = parse_error(std::string("line 1\nline 2\n") + text);
    CHECK(error.code == ErrorCode::unsupported);
    CHECK(error.field == "chat_template");
    INFO(error.message);
    CHECK(has(error.message, std::string("some/file: chat template, line 3: ") + named));
    CHECK(has(error.message, "is not supported"));
  }
}

TEST_CASE("a tag that closes nothing is told apart from one that is not supported") {
  for (const std::string tag : {"endif", "endnothing", "else", "elif"}) {
    const Error error = parse_error("{% " + tag + " %}");
    CHECK(error.code == ErrorCode::invalid);
    CHECK(has(error.message, "{% " + tag + " %} closes nothing here"));
  }
}

TEST_CASE("every line break of a template is read as a line feed, and the last one goes") {
  const auto parsed = ChatTemplate::parse({"a\r\nb\rc\n\r\n", "some/file"});
  REQUIRE(parsed.ok());
  CHECK(*parsed->render(ordered_json::object(), 0) == "a\nb\nc\n");
}

TEST_CASE("errors of a rendering name the line and what was wrong") {
  CHECK(render_error("a\n{{ 1 + 'x' }}").message ==
        "the chat template failed in line 2: int + str cannot be computed");
  CHECK(render_error("\n\n{% for x in y.z %}{% endfor %}").message ==
        "the chat template failed in line 3: 'y' is undefined");
  CHECK(render_error("{{ x.a.b }}", {{"x", {{"c", 1}}}}).message ==
        "the chat template failed in line 1: the object has no attribute 'a'");
  for (const char* name : {"clear", "pop", "popitem", "setdefault", "update"})
    CHECK(has(render_error("{{ {'a': 1}." + std::string(name) + "('a') }}").message,
              "would change a dict, which a template must not"));
  for (const char* name :
       {"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"})
    CHECK(has(render_error("{{ [1]." + std::string(name) + "(1) }}").message,
              "would change a list, which a template must not"));
  CHECK(render_error("{{ {'a': 1}.append(1) }}").message ==
        "the chat template failed in line 1: the object has no attribute 'append'");
  CHECK(render_error("{{ raise_exception('no ' ~ 1) }}").message == "the chat template says: no 1");
  CHECK(render_error("{{ x }}", {{"x", UINT64_MAX}}).code == ErrorCode::invalid);
}

TEST_CASE("time, memory and depth of a hostile template are bounded") {
  const std::string texts[] = {
      "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
      "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
      "{% macro f(n) %}{{ f(n + 1) ~ f(n + 1) }}{% endmacro %}{{ f(0) }}",
      "{% set ns = namespace(s='aaaaaaaaaaaaaaaa') %}{% for i in range(99) %}"
      "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
      "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}"
      "{% endfor %}",
      "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = [ns.l] %}{% endfor "
      "%}",
      "{% set ns = namespace(l=[1]) %}{% for i in range(90) %}{% set ns.l = [ns.l, ns.l] %}"
      "{% endfor %}{{ ns.l == ns.l[0] }}{{ ns.l }}",
      "{% set ns = namespace(l=[]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}"
      "{% endfor %}{{ ns.l|tojson }}",
      "{{ 'a' * 999999999999 }}",
      "{{ [1] * 999999999999 }}",
      "{{ ('a' * 9999999).replace('a', 'a' * 9999999) }}",
      "{{ 9 ** 99 ** 9 }}",
      "{{ 'x'|indent(99999999999) }}",
      "{{ [1]|tojson(indent=99999999999) }}",
      "{% set s = 'ab' * 999999 %}{% for i in range(99999) %}{% if s == s ~ '' %}{% endif %}"
      "{% endfor %}",
      "{% set s = 'a' * 9999999 %}{% for i in range(99999) %}{{ s.rfind('b' ~ s[:999999]) }}"
      "{% endfor %}",
      "{% set s = 'a' * 9999999 %}{% for i in range(99999) %}{{ s[i] }}{% endfor %}",
      "{% set s = 'a' * 999 %}{% for i in range(99999) %}{{ s }}{% endfor %}",
      "{{ range(99999)|map('string')|unique|list|length }}",
      "{{ " + repeated("(", 5000) + "1" + repeated(")", 5000) + " }}",
      "{{ " + repeated("[", 5000) + " }}",
      "{{ " + repeated("-", 50000) + "1 }}",
      "{{ " + repeated("not ", 50000) + "1 }}",
      "{{ 1" + repeated("+1", 50000) + " }}",
      "{{ x" + repeated(".y", 50000) + " }}",
      "{{ x" + repeated("|e", 50000) + " }}",
      "{{ x" + repeated("|list", 50000) + " }}",
      "{{ x" + repeated("()", 50000) + " }}",
      "{{ x" + repeated(" if x else y", 50000) + " }}",
      repeated("{% if x %}", 50000),
      repeated("{% for a in b %}", 50000),
      "{% set " + repeated("(", 50000) + "a %}",
      "{{ x" + repeated("[", 50000) + " }}"};
  for (const std::string& text : texts) {
    INFO(text.substr(0, 200));
    const double begin = cpu_seconds();
    const auto parsed = ChatTemplate::parse({text, "hostile"});
    if (parsed.ok()) {
      const auto result = parsed->render(ordered_json::object(), 0);
      CHECK_FALSE(result.ok());
    }
    const double took = cpu_seconds() - begin;
    CHECK(took < 10);  // with sanitizers; 0.5 s without
  }
}

TEST_CASE("namespaces, loops and macros that refer to each other do not outlive the rendering") {
  // What would leak or dangle shows under AddressSanitizer.
  const char* text =
      "{% set ns = namespace() %}{% set ns.self = ns %}{% set ns.list = [ns, [ns]] %}"
      "{% for i in [1, 2, 3] if i != 2 %}{% macro m() %}{{ i }}{% endmacro %}{% set ns.m = m %}"
      "{% set ns.loop = loop %}{% if i == 1 %}{% break %}{% endif %}{% endfor %}"
      "{{ ns.m() }}{{ ns.loop.last }}{{ ns.loop.index }}{{ ns.self.self.m() }}";
  const auto parsed = ChatTemplate::parse({text, "x"});
  REQUIRE(parsed.ok());
  for (int i = 0; i < 3; ++i) {
    const auto result = parsed->render(ordered_json::object(), 0);
    REQUIRE(result.ok());
    CHECK(*result == "1True11");
  }
  CHECK(has(render_error("{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}").message,
            "namespace cannot be printed"));
}

TEST_CASE("10,000 mutations of templates neither crash nor hang") {
  std::vector<std::string> seeds;
  for (const auto& entry :
       std::filesystem::directory_iterator(KIVI_SOURCE_DIR "/tests/data/chat/templates")) {
    std::ifstream file(entry.path(), std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    seeds.push_back(text.str());
  }
  std::ifstream snippets(KIVI_SOURCE_DIR "/tests/data/chat/snippets.txt");
  for (std::string line; std::getline(snippets, line);) seeds.push_back(line);
  const ordered_json variables = {
      {"messages",
       {{{"role", "user"}, {"content", "hi"}}, {{"role", "assistant"}, {"content", "a"}}}},
      {"list", {3, 1, 2}},
      {"s", "text"},
      {"d", {{"k", 1}}},
      {"bos_token", "<s>"}};
  static constexpr const char* kPieces[] = {
      "{{",   "}}",    "{%",   "%}",           "{#", "#}", "-",   "(",   ")",      "[",    "]",
      ".",    "|",     "'",    "\"",           "\\", "if", "for", "in",  "endfor", "set",  "macro",
      "loop", "x",     "9",    "99999999999",  "*",  "~",  "is",  "not", "\xff",   "\xe2", "\n",
      " ",    "endif", "else", "range(99999)", "ns", "="};
  constexpr uint32_t kSeed = 20260101;
  INFO("seed " << kSeed);
  std::mt19937 random(kSeed);
  int parsed_count = 0, rendered_count = 0;
  const double begin = cpu_seconds();
  for (int round = 0; round < 10'000; ++round) {
    std::string text = seeds[random() % seeds.size()];
    for (uint32_t i = 0, edits = 1 + random() % 4; i < edits && !text.empty(); ++i) {
      const size_t at = random() % text.size(), size = random() % 12;
      switch (random() % 4) {
        case 0:
          text.erase(at, size);
          break;
        case 1:
          text.insert(at, kPieces[random() % std::size(kPieces)]);
          break;
        case 2:
          text[at] = char(random());
          break;
        default:
          text.insert(random() % text.size(), text.substr(at, size));
      }
    }
    const auto parsed = ChatTemplate::parse({text, "mutated"});
    if (!parsed.ok()) continue;
    ++parsed_count;
    if (parsed->render(variables, 0).ok()) ++rendered_count;
  }
  const double took = cpu_seconds() - begin;
  CHECK(took < 300);
  CHECK(parsed_count > 1000);  // else the mutations would test the lexer alone
  CHECK(rendered_count > 500);
}
