// SPDX-License-Identifier: Apache-2.0
// Grammars against texts that they must take and must not take, and masks against a plain trial of
// every token.
#include <fmt/format.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cctype>
#include <chrono>
#include <nlohmann/json.hpp>
#include <random>

#include "engine/grammar/compiler.h"
#include "engine/grammar/matcher.h"

namespace kivi::grammar {
namespace {

std::vector<std::string> test_tokens() {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, char(byte));
  for (const char* more :
       {"ab",       "abc", "\":", "\",",  "\"}",     "\", \"",     "{\"",  "12",
        "1,",       "1}",  "12]", " the", " the \"", "the end\"}", "\xC3", "\xA9\"",
        "\xE2\x82", "}}",  "]]",  "],[",  "yes",     "yesno",      "no",   ",\n  "})
    tokens.emplace_back(more);
  // Families of words, of letters alone and with other bytes, which a walk may take at once.
  for (const char* stem : {"stone", " stone", "mill_", "Q7"})
    for (const char* end :
         {"", "s", "sand", "age", "age!", "\xC3\xA9", "\": ", "9", " and no end of it"})
      tokens.push_back(stem + std::string(end));
  tokens.emplace_back();  // a special token
  return tokens;
}

constexpr int kVocabulary = 340;

Compiler& compiler() {
  static Compiler made(test_tokens(), kVocabulary);
  return made;
}

std::shared_ptr<const CompiledGrammar> compiled(const Source& source) {
  auto made = compiler().compile(source);
  INFO(source.text);
  if (!made.ok()) FAIL(made.error().message);
  return *made;
}

bool takes(const Source& source, std::string_view text) {
  Matcher matcher(compiled(source));
  return matcher.accept(text) && matcher.may_end();
}

Source schema(std::string text) { return {SourceKind::json_schema, std::move(text), {}}; }
Source regex(std::string text) { return {SourceKind::regex, std::move(text), {}}; }
Source grammar_text(std::string text) { return {SourceKind::grammar, std::move(text), {}}; }

std::string refusal(const Source& source) {
  const auto made = compiler().compile(source);
  return made.ok() ? "" : made.error().message;
}

struct Case {
  const char* source;
  std::vector<std::string> yes, no;
};

void check_cases(const std::vector<Case>& cases, Source (*make)(std::string)) {
  for (const Case& c : cases) {
    CAPTURE(c.source);
    for (const std::string& text : c.yes) {
      CAPTURE(text);
      CHECK(takes(make(c.source), text));
    }
    for (const std::string& text : c.no) {
      CAPTURE(text);
      CHECK_FALSE(takes(make(c.source), text));
    }
  }
}

TEST_CASE("a schema takes the JSON that fits it and no other") {
  check_cases(
      {{R"({"type":"integer"})", {"0", "-12", "900"}, {"01", "1.0", "", "--1", "1e3", "\"1\""}},
       {R"({"type":"number"})", {"0.5", "-1e+9", "12"}, {".5", "1.", "1e", "+1"}},
       {R"({"type":["boolean","null"]})", {"true", "false", "null"}, {"0", "tru"}},
       {R"({"type":"string"})",
        {R"("")", R"("é€😀")", R"("\n\"\\\u00e9")", R"("\ud83d\ude00")"},
        {R"("a)", "\"a\nb\"", R"("\x")", R"("\ud83d")", "\"\xC3\"", "\"\xED\xA0\x80\""}},
       {R"({"type":"string","minLength":1,"maxLength":3})",
        {R"("a")", R"("é€😀")", R"("\n\"\\")"},
        {R"("")", R"("abcd")"}},
       {R"({"type":"string","pattern":"^a+b$"})", {R"("ab")", R"("aaab")"}, {R"("b")", R"("xab")"}},
       {R"({"type":"string","pattern":"[0-9]"})", {R"("a1b")", R"("1")"}, {R"("ab")"}},
       {R"({"type":"string","pattern":"^[^x]*$","maxLength":2})",
        {R"("")", R"("\"")", R"("yz")"},
        {R"("x")", R"("yzy")"}},
       {R"({"type":"string","format":"date"})",
        {R"("2024-02-29")", R"("1999-12-31")"},
        {R"("2023-02-29")", R"("2024-13-01")", R"("2024-04-31")"}},
       {R"({"type":"string","format":"uuid"})",
        {R"("00000000-0000-4000-8000-00000000000f")"},
        {R"("0000000-0000-4000-8000-00000000000f")"}},
       {R"({"type":"string","format":"ipv6"})",
        {R"("::1")", R"("1:2:3:4:5:6:7:8")", R"("fe80::")", R"("::")"},
        {R"("1:2")", R"("1::2::3")", R"("1:2:3:4:5:6:7:8:9")"}},
       {R"({"enum":["a","b\"",1,null,[1,{"x":2}]]})",
        {R"("a")", R"("b\"")", "1", "null", R"([1,{"x":2}])"},
        {"2", R"("c")"}},
       {R"({"const":{"a":1}})", {R"({"a":1})"}, {R"({"a":2})"}},
       // A control character without a short escape.
       {R"({"const":"\u0001\u001f"})", {R"("\u0001\u001f")"}, {"\"\x01\x1F\"", R"("")"}},
       {R"({"type":"string","enum":["ab","b",1],"maxLength":1})", {R"("b")"}, {R"("ab")", "1"}}},
      schema);
}

TEST_CASE("bounds of numbers hold on both sides of zero and of every digit") {
  struct Bounds {
    const char* schema;
    double least, most;
    bool integers;
    int multiple = 1;
  };
  for (const Bounds& b : std::vector<Bounds>{
           {R"({"type":"integer","minimum":0,"maximum":0})", 0, 0, true},
           {R"({"type":"integer","minimum":-5,"maximum":120})", -5, 120, true},
           {R"({"type":"integer","exclusiveMinimum":9,"exclusiveMaximum":101})", 10, 100, true},
           {R"({"type":"integer","minimum":-210,"maximum":-9})", -210, -9, true},
           {R"({"type":"integer","minimum":2.5,"maximum":1e2})", 3, 100, true},
           {R"({"type":"integer","minimum":-20,"maximum":60,"multipleOf":7})", -20, 60, true, 7},
           {R"({"type":"number","minimum":-1.25,"maximum":10.5})", -1.25, 10.5, false},
           {R"({"type":"number","exclusiveMinimum":0,"exclusiveMaximum":1})", 1e-9, 1 - 1e-9,
            false},
           {R"({"type":"number","maximum":-0.5})", -1e9, -0.5, false}}) {
    CAPTURE(b.schema);
    for (int value = -300; value <= 300; ++value) {
      const std::string text = std::to_string(value);
      INFO(text);
      REQUIRE(takes(schema(b.schema), text) ==
              (value >= b.least && value <= b.most && value % b.multiple == 0));
    }
    for (int value = -1300; value <= 1300; ++value) {  // hundredths
      if (b.integers) break;
      std::string text = fmt::format("{:.2f}", value / 100.0);
      if (text.starts_with("-0.00")) continue;
      INFO(text);
      REQUIRE(takes(schema(b.schema), text) ==
              (value / 100.0 >= b.least && value / 100.0 <= b.most));
    }
  }
}

TEST_CASE("objects keep the order of their properties, and demand the required ones") {
  check_cases(
      {{R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"integer"},"c":{"type":"integer"}},"required":["b"]})",
        {R"({"b":1})", R"({"a": 1, "b": 2, "c": 3})", R"({"a":1,"b":2})", "{\n  \"b\": 1\n}",
         R"({"b":1,"c":2})"},
        {R"({})", R"({"a":1})", R"({"b":1,"a":2})", R"({"b":1,})", R"({,"b":1})",
         R"({"b":1,"d":2})", R"({"b":1 ,"c":1})"}},
       {R"({"type":"object","properties":{"a":{"type":"integer"}},"additionalProperties":{"type":"boolean"}})",
        {R"({})", R"({"a":1})", R"({"x":true})", R"({"a":1,"x":true,"y":false})"},
        {R"({"a":true})", R"({"x":1})", R"({"\u0061":true})"}},
       {R"({"type":"object"})", {"{}", R"({"a":[1,{"b":null}]})"}, {"[]", R"({"a"})"}},
       {R"({"type":"object","patternProperties":{"^n_":{"type":"integer"}},"additionalProperties":false})",
        {R"({"n_a":1})", "{}"},
        {R"({"a":1})", R"({"n_a":"x"})"}},
       {R"({"type":"object","required":["z"]})", {R"({"z":[1]})"}, {"{}"}},
       {R"({"type":"object","additionalProperties":{"type":"integer"},"minProperties":1,"maxProperties":2})",
        {R"({"a":1})", R"({"a":1,"b":2})"},
        {"{}", R"({"a":1,"b":2,"c":3})"}},
       {R"({"type":"array","items":{"type":"integer"},"minItems":1,"maxItems":3})",
        {"[1]", "[1, 2, 3]", "[\n  1\n]"},
        {"[]", "[1,2,3,4]", "[1,]"}},
       {R"({"type":"array","prefixItems":[{"type":"integer"},{"type":"string"}],"items":false,"minItems":1})",
        {"[1]", R"([1,"a"])"},
        {"[]", R"(["a"])", R"([1,"a",2])"}},
       {R"({"type":"array","maxItems":0})", {"[]", "[ ]"}, {"[1]"}},
       {R"({"type":"array","prefixItems":[{"type":"integer"}],"maxItems":1})",
        {"[]", "[1]"},
        {"[1,1]"}},
       // Names that no text can be.
       {R"({"type":"object","properties":{"b":{"type":"integer"}},"patternProperties":{"^a":{"type":"null"}},"propertyNames":{"pattern":"^b"},"additionalProperties":false})",
        {"{}", R"({"b":1})"},
        {R"({"a":null})"}}},
      schema);
}

TEST_CASE("references, recursion and joined schemas") {
  check_cases(
      {{R"({"$defs":{"n":{"type":"object","properties":{"v":{"type":"integer"},"next":{"anyOf":[{"$ref":"#/$defs/n"},{"type":"null"}]}},"required":["v","next"]}},"$ref":"#/$defs/n"})",
        {R"({"v":1,"next":null})", R"({"v":1,"next":{"v":2,"next":null}})"},
        {R"({"v":1})", R"({"v":1,"next":{"v":2}})"}},
       {R"({"anyOf":[{"type":"array","items":{"$ref":"#"}},{"type":"integer"}]})",
        {"1", "[]", "[[1,[2]],3]"},
        {"[1", "\"a\""}},
       {R"({"allOf":[{"type":"object","properties":{"a":{"type":"integer","minimum":3}},"required":["a"]},{"properties":{"a":{"maximum":5},"b":{"type":"null"}}}]})",
        {R"({"a":4})", R"({"a":4,"b":null})"},
        {R"({"a":6})", R"({"a":1})", R"({"b":null})"}},
       {R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"integer"}},"anyOf":[{"required":["a"]},{"required":["b"]}]})",
        {R"({"a":1})", R"({"b":1})", R"({"a":1,"b":2})"},
        {"{}"}},
       {R"({"oneOf":[{"type":"object","properties":{"k":{"const":"x"}},"required":["k"]},{"type":"object","properties":{"k":{"const":"y"},"v":{"type":"integer"}},"required":["k"]}]})",
        {R"({"k":"x"})", R"({"k":"y","v":1})"},
        {R"({"k":"x","v":1})", R"({"k":"z"})"}},
       {R"({"allOf":[{"pattern":"^a"},{"pattern":"z$"},{"maxLength":3}]})",
        {R"("az")", R"("abz")"},
        {R"("a")", R"("abbz")"}},
       {R"({"allOf":[{"type":"integer","multipleOf":4},{"multipleOf":6}]})",
        {"0", "12", "-24"},
        {"4", "6", "8"}},
       {R"({"allOf":[{"type":"integer","multipleOf":1},{"multipleOf":1}]})", {"7"}, {"7.5"}},
       {R"({"allOf":[{"type":"integer","multipleOf":1000},{"multipleOf":1000}]})",
        {"3000"},
        {"500"}}},
      schema);
  for (const char* wrong : {"0", "-1", "2.5", "1001"})
    for (const bool first : {true, false}) {
      const std::string text =
          fmt::format(R"({{"allOf":[{{"type":"integer","multipleOf":{}}},{{"multipleOf":{}}}]}})",
                      first ? wrong : "2", first ? "2" : wrong);
      CAPTURE(text);
      CHECK(refusal(schema(text)).find("cannot be joined") != std::string::npos);
    }
}

TEST_CASE("a regular expression takes whole texts") {
  check_cases({{"a|bc", {"a", "bc"}, {"ab", "abc", ""}},
               {"^(?:\\d{2,3}|x)+?$", {"12", "123x", "x"}, {"1", ""}},
               {"[^a-c\\]]", {"d", "é", "\""}, {"a", "]", "dd"}},
               {"\\u00e9[\\w-]*", {"é", "éa-_9"}, {"e"}},
               // The first characters of three and of four bytes in UTF-8.
               {"[\u0800\U00010000]", {"\u0800", "\U00010000"}, {"\u07FF", "\uFFFF", "\U00010001"}},
               {"a{,2}", {"a{,2}"}, {"aa"}},
               {".*", {"", "abc é"}, {"a\nb"}}},
              regex);
  for (const char* wrong : {"(", ")", "a**b(", "[a", "(?=a)", "(?i)a", "\\1", "\\p{L}", "a{3,2}",
                            "*", "\\b", "a{20000}", "\\", "a^", "(^a)", "a|b^"})
    CHECK_FALSE(refusal(regex(wrong)).empty());
  // An escaped letter is a class or a control character, or refused. An escaped sign is itself.
  for (char c = '!'; c <= '~'; ++c) {
    CAPTURE(c);
    const std::string escaped{'\\', c};
    if (std::isalpha(static_cast<unsigned char>(c)) != 0)
      CHECK(refusal(regex(escaped)).empty() ==
            (std::string_view("dDwWsSntrfv").find(c) != std::string_view::npos));
    else if (c < '0' || c > '9')
      CHECK(takes(regex(escaped), std::string(1, c)));
  }
}

TEST_CASE("GBNF") {
  check_cases({{"root ::= \"yes\" | \"no\" # comment\n", {"yes", "no"}, {"yesno", "y"}},
               {"root ::= item (\", \" item)*\nitem ::= [a-z]+ | \"-\"? [0-9]{1,3}\n",
                {"ab", "ab, -12, c"},
                {"ab,c", "1234", ""}},
               {"root ::= expr\nexpr ::= expr \"+\" term | term\nterm ::= [0-9] | \"(\" expr \")\"",
                {"1", "1+2+3", "(1+2)+3"},
                {"1+", "(1", "+1"}},
               {"root ::= \"a\" root \"b\" | \"\"", {"", "ab", "aaabbb"}, {"aab", "abb"}},
               // A rule may call itself behind another one that takes a byte.
               {"root ::= x root \"b\" | \"c\"\nx ::= \"a\" x \"e\" | \"d\"",
                {"c", "dcb", "adecb", "ddcbb"},
                {"dc", "cb", "adcb"}},
               {"root ::= (\n  \"x\" |\n  \"y\"\n)+ .", {"xé", "xyx"}, {"x", "z"}}},
              grammar_text);
  for (const char* wrong :
       {"x ::= \"a\"", "root ::= y", "root ::= \"a",
        "root ::= a\na ::= b \"x\" | \"c\"\nb ::= a \"y\"", "root ::= root", "root ::= [z-a]",
        "root ::= \"a\"\nroot ::= \"b\"", "root ::= \"a\"{3,2}"})
    CHECK_FALSE(refusal(grammar_text(wrong)).empty());
}

TEST_CASE("Lark") {
  check_cases(
      {{"start: \"yes\" | \"no\"i", {"yes", "NO", "no"}, {"YES"}},
       {"?start: sum\nsum: sum \"+\" product | product\nproduct: product \"*\" atom | atom\natom: "
        "NUMBER -> number\n  | \"(\" sum \")\"\n%import common.NUMBER\n%import common.WS\n%ignore "
        "WS\n",
        {"1+2*3", " ( 1 + 2 ) * 3.5", "1\n+ 1"},
        {"1+", "()", "1 2"}},
       {"start: WORD (\",\" WORD)~1..2\nWORD: /[a-z]+/", {"a,b", "a,b,c"}, {"a", "a,b,c,d"}},
       {"start: [\"x\"] A\nA: \"0\"..\"3\"", {"x2", "3"}, {"x4", "x"}}},
      grammar_text);
  for (const char* wrong : {"start: b", "start: \"a", "start{x}: x", "%declare A\nstart: A",
                            "start: /a/i", "start: A\nA: b\nb: \"x\"", "other: \"x\""})
    CHECK_FALSE(refusal(grammar_text(wrong)).empty());
}

TEST_CASE("brackets in the strings of a schema are not depth") {
  // After an escaped quote, with an even and an odd number of characters before it.
  const std::string brackets(100, '[');
  for (const char* before : {"", "x"}) {
    const std::string text = std::string(R"({"description":")") + before + R"(\")" + brackets;
    CHECK(takes(schema(text + R"(","type":"null"})"), "null"));
  }
  const std::string deep = R"({"enum":[)" + brackets + std::string(100, ']') + "]}";
  CHECK(refusal(schema(deep)).find("more than 64 deep") != std::string::npos);
}

TEST_CASE("a refusal names a character whole, and its line") {
  for (const char* text : {"root ::= \"a\"\nb ::= é", "start: \"a\"\nb: é"})
    CHECK(refusal(grammar_text(text)) == "the grammar, line 2: unexpected character 'é'");
}

TEST_CASE("what is not supported is refused, by name and path") {
  const auto names = [](const char* text, const char* part) {
    CAPTURE(text, part);
    const std::string message = refusal(schema(text));
    CAPTURE(message);
    CHECK(message.find(part) != std::string::npos);
  };
  names(R"({"properties":{"a":{"not":{}}}})", "#/properties/a: the keyword not");
  names(R"({"type":"array","uniqueItems":true})", "uniqueItems");
  names(R"({"type":"array","contains":{}})", "contains");
  names(R"({"if":{},"then":{}})", "if");
  names(R"({"type":"string","format":"color"})", "color");
  names(R"~({"type":"string","pattern":"(?=a)"})~", "look-around");
  names(R"({"type":"elephant"})", "elephant");
  names(R"({"$ref":"#/$defs/x"})", "#/$defs/x");
  names(R"({"$ref":"https://example.com/a"})", "example.com");
  names(R"({"oneOf":[{"type":"integer"},{"type":"number"}]})", "oneOf");
  names(R"({"type":"number","multipleOf":0.1})", "multipleOf");
  names(R"({"type":"string","maxLength":"x"})", "maxLength");
  names(R"({"type":"string","maxLength":20001})", "maxLength");
  names(R"({"properties":[]})", "properties");
  names(R"({"enum":[]})", "enum");
  names("{", "not JSON");
  names("[]", "object");
  names(R"({"type":"integer","minimum":5,"maximum":4})", "no text matches");
  names(R"({"type":"string","minLength":3,"maxLength":2})", "no text matches");
  names(R"({"type":"string","pattern":"a","minLength":1,"maxLength":0})", "no text matches");
  names(R"({"$ref":"#"})", "no text matches");
  names("false", "no text matches");
  names(R"({"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]})", "no text matches");
}

// The mask of a guide against a trial of every token by a matcher of its own.
TEST_CASE("a mask has exactly the tokens that fit") {
  const std::vector<std::string> tokens = test_tokens();
  const std::vector<Source> sources = {
      schema(
          R"({"type":"object","properties":{"ab":{"type":"string"},"n":{"type":"array","items":{"type":"number"}}},"required":["ab"]})"),
      schema(
          R"({"anyOf":[{"type":"array","items":{"$ref":"#"}},{"type":"string","maxLength":4},{"type":"integer"}]})"),
      {SourceKind::json_object, "", {}},
      {SourceKind::choice, "", {"yes", "yes no", "no"}},
      regex("(ab|abc)*[^\"]\"?"),
      grammar_text("root ::= \"a\" root \"b\" | [0-9]* \",\"?"),
      grammar_text("root ::= w (\" \" w)*\nw ::= [a-z]+ | \"\\\"\" w \"\\\"\""),
      schema(
          R"({"type":"array","items":{"anyOf":[{"type":"string","format":"email"},{"type":"string","pattern":"^[a-z ]+$","maxLength":70},{"type":"string","format":"uri"}]}})"),
      // Rules that stand apart, because they are long. What may follow them: a quote; a letter; a
      // rule that may be empty; what follows their caller.
      grammar_text("root ::= (\"{\\\"\" text \"\\\": \" [0-9]+ \"}\\n\")*\n"
                   "text ::= [^\"\\\\\\x00-\\x1F]{0,64}"),
      grammar_text("root ::= (\"<\" text \"stone>\")+\ntext ::= [^\"\\\\\\x00-\\x1F]{0,64}"),
      grammar_text("root ::= a b c \"!\"\na ::= [a-z ]{0,70}\nb ::= [0-9_]{0,70}\n"
                   "c ::= \"\\\"\" [^\"]{1,70} \"\\\"\" | \"\""),
      grammar_text("root ::= (w \"-\" v)+\nw ::= [a-z]{1,70}\nv ::= [a-z0-9]{2,70} \"s\""),
      grammar_text("root ::= \"(\" inner \")\"\ninner ::= [a-z]{1,70} more\n"
                   "more ::= [A-Z0-9_]{0,70} | \"[\" inner \"]\"")};
  for (uint64_t seed = 0; seed < 40; ++seed)
    for (const Source& source : sources) {
      std::mt19937_64 random(seed);
      CAPTURE(seed, source.text);
      const auto made = compiled(source);
      Matcher matcher(made);
      std::string text;
      for (int step = 0; step < 24 && !matcher.complete(); ++step) {
        std::vector<uint32_t> mask(static_cast<size_t>(compiler().mask_words()), 0xFFFFFFFFu);
        matcher.fill_mask(mask);
        std::vector<int32_t> allowed;
        Matcher same_text(made);
        REQUIRE(same_text.accept(std::string_view(text)));
        for (int32_t id = 0; id < kVocabulary; ++id) {
          const bool set = mask[size_t(id) / 32] >> (id % 32) & 1;
          Matcher trial = same_text;
          const bool fits = size_t(id) < tokens.size() && !tokens[size_t(id)].empty() &&
                            trial.accept(std::string_view(tokens[size_t(id)]));
          CAPTURE(text, id);
          REQUIRE(set == fits);
          if (set) allowed.push_back(id);
        }
        for (int32_t id = kVocabulary; id < compiler().mask_words() * 32; ++id)
          REQUIRE((mask[size_t(id) / 32] >> (id % 32) & 1) == 0);
        REQUIRE((matcher.may_end() || !allowed.empty()));
        if (allowed.empty()) break;
        // Half of the time a token of several bytes, if there is one.
        const auto longer = std::ranges::lower_bound(allowed, 256);
        if (random() % 2 == 0 && longer != allowed.end()) allowed.erase(allowed.begin(), longer);
        const int32_t token = allowed[random() % allowed.size()];
        REQUIRE(matcher.accept(token));
        text += tokens[size_t(token)];
      }
    }
}

TEST_CASE("a token that does not fit changes nothing") {
  Matcher matcher(compiled(schema(R"({"type":"array","items":{"type":"integer"}})")));
  REQUIRE(matcher.accept(std::string_view("[1")));
  CHECK_FALSE(matcher.accept(std::string_view("2]x")));
  CHECK_FALSE(matcher.accept(std::string_view("a")));
  CHECK(matcher.accept(std::string_view("2]")));
  CHECK(matcher.complete());
}

TEST_CASE("a grammar is compiled once") {
  const auto source = schema(R"({"type":"integer","minimum":77})");
  CHECK(compiled(source) == compiled(source));
}

TEST_CASE("grammars that would take too long are refused soon") {
  CHECK_FALSE(refusal(regex("(a{1,9000}b?){1,9000}")).empty());
  CHECK_FALSE(refusal(regex("[ab]*a[ab]{60}")).empty());
  CHECK_FALSE(refusal(schema(R"({"type":"array","maxItems":20000,"items":{"const":"abcdefghij"}})"))
                  .empty());
}

TEST_CASE("a short schema that asks for much work is refused soon") {
  using nlohmann::json;
  // Each definition names the next one twice: 2^25 schemas.
  json definitions = {{"a25", {{"type", "string"}}}};
  for (int i = 0; i < 25; ++i) {
    const json next = {{"$ref", "#/$defs/a" + std::to_string(i + 1)}};
    definitions["a" + std::to_string(i)] = {{"allOf", {next, next}}};
  }
  json pairs = json::array(), fields = json::object(), values = json::array();
  for (int i = 0; i < 3000; ++i) pairs.push_back({{"const", i}});
  for (int i = 0; i < 1025; ++i) fields["p" + std::to_string(i)] = {{"type", "integer"}};
  for (int i = 0; i < 20'000; ++i) values.push_back(i);
  const json schemas[] = {{{"$ref", "#/$defs/a0"}, {"$defs", definitions}},
                          {{"oneOf", pairs}},
                          {{"type", "object"}, {"properties", fields}},
                          {{"allOf", {{{"enum", values}}, {{"enum", values}}}}}};
  for (const json& schema : schemas) {
    const std::string text = schema.dump();
    CAPTURE(text.substr(0, 60));
    const auto begin = std::chrono::steady_clock::now();
    const Status status = grammar::check({grammar::SourceKind::json_schema, text, {}});
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().code == ErrorCode::invalid);
    CHECK(took.count() < 5);  // on a slow machine; without a limit the first takes minutes
  }
}

// Behind each token, another set of some 200 rules can go on, each with a stack of its own. Without
// a limit, a mask of 128,000 tokens would take half a minute and a gigabyte.
TEST_CASE("a grammar whose masks take too long is refused, or ends its text") {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, char(byte));
  std::mt19937 random(5);
  while (tokens.size() < 8000) {
    std::string& word = tokens.emplace_back();
    for (size_t length = 2 + random() % 8; word.size() < length;)
      word += char('a' + std::min(random() % 26, random() % 26));
  }
  const int size = int(tokens.size());
  Compiler compiler(std::move(tokens), size);
  // Each rule leaves out one letter, and remembers the others until it ends.
  std::string rules = "many ::= r0";
  for (int i = 1; i < 200; ++i) rules += fmt::format(" | r{}", i);
  for (int i = 0; i < 200; ++i) {
    std::string letters = "abcdefghijklmnopqrstuvwxyz";
    letters.erase(size_t(i * 7 % 26), 1);
    rules += fmt::format("\nr{} ::= [{}] r{} \"{}\" | \"{}\"", i, letters, i, i, i);
  }
  // The walk that makes a mask meets the rules.
  const auto refused = compiler.compile(grammar_text("root ::= [a-z] many\n" + rules));
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.error().code == ErrorCode::invalid);
  CHECK(refused.error().message.find("too long") != std::string::npos);
  // They come behind the end of another rule, where each step looks anew.
  const std::string behind = "root ::= one many\none ::= \"(\" one \")\" | [a-z] \"!\"*\n";
  const auto made = compiler.compile(grammar_text(behind + rules));
  REQUIRE(made.ok());
  std::vector<uint32_t> mask(size_t(compiler.mask_words()));
  CHECK_FALSE(Compiler::guide(*made)->fill_mask(mask));
  // The next text has a limit of its own.
  const auto sums = compiler.compile(grammar_text("root ::= [0-9]+ (\"+\" root)?"));
  REQUIRE(sums.ok());
  CHECK(Compiler::guide(*sums)->fill_mask(mask));
}

TEST_CASE("a forced text is what one byte after another leaves no choice about") {
  const std::vector<std::string> tokens = test_tokens();
  const uint32_t seed = 5;
  CAPTURE(seed);
  std::mt19937 random(seed);
  size_t longest = 0, settled_bytes = 0;
  for (const Source& source :
       {schema(R"({"type":"object","properties":{"the name":{"enum":["abc","abd"]},)"
               R"("yes":{"type":"integer"}},"required":["the name","yes"]})"),
        regex("(the end|the eve) of (yes|no)+!"), Source{SourceKind::json_object, "", {}},
        Source{SourceKind::choice, "", {"abcabc", "abcabd", "no"}},
        grammar_text("root ::= \"the end\" root2 \"the end\"\nroot2 ::= \"a\" | \"ab\"")}) {
    const auto grammar = compiled(source);
    for (int walk = 0; walk < 20; ++walk) {
      Matcher matcher(grammar);
      const auto guide = Compiler::guide(grammar);
      for (int step = 0; step < 40 && !matcher.complete(); ++step) {
        const auto bytes_of = [](const Matcher& at) {
          std::string bytes;
          for (int byte = 0; byte < 256; ++byte)
            if (Matcher(at).accept(std::string_view(std::string(1, char(byte)))))
              bytes += char(byte);
          return bytes;
        };
        std::string expected;
        Matcher at = matcher;
        for (std::string next = bytes_of(at);
             next.size() == 1 && !at.may_end() && expected.size() < 20; next = bytes_of(at)) {
          expected += next;
          REQUIRE(at.accept(std::string_view(next)));
        }
        REQUIRE(matcher.forced_text(20) == expected);
        const ForcedText forced = guide->forced_text();
        REQUIRE(forced.text.substr(0, 20) == expected);
        REQUIRE(forced.settled <= forced.text.size());
        for (size_t from = 0; from <= forced.settled && from < forced.text.size(); ++from) {
          const std::string_view rest = std::string_view(forced.text).substr(from);
          const bool open = std::ranges::any_of(tokens, [&](const std::string& token) {
            return token.size() > rest.size() && token.starts_with(rest);
          });
          REQUIRE(open == (from == forced.settled));
        }
        longest = std::max(longest, expected.size());
        settled_bytes += forced.settled;
        const std::string choices = bytes_of(matcher);
        const std::string next(1, choices[random() % choices.size()]);
        REQUIRE(matcher.accept(std::string_view(next)));
        REQUIRE(guide->accept(int32_t(uint8_t(next[0]))));
      }
    }
  }
  CHECK(longest >= 7);
  CHECK(settled_bytes > 100);
}

}  // namespace
}  // namespace kivi::grammar
