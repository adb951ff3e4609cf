// SPDX-License-Identifier: Apache-2.0
// Objects and arrays of a schema.
#include <fmt/format.h>

#include <algorithm>

#include "engine/grammar/json_text.h"
#include "engine/grammar/schema_compiler.h"
#include "engine/grammar/work_limit.h"

namespace kivi::grammar {
namespace {

constexpr size_t kPrefixItemsMax = 500;

}  // namespace

std::shared_ptr<Automaton> SchemaCompiler::free_keys(const Schema& schema,
                                                     const std::vector<std::string>& names,
                                                     const std::string& path) {
  auto keys = shared(build_automaton(repeat(json_characters(kAnyChar), 0, -1)));
  std::vector<Expr> spelled;
  for (const std::string& name : names) spelled.push_back(text(json_escaped(name)));
  if (!spelled.empty())
    keys = shared(difference(*keys, build_automaton(choice(std::move(spelled)))));
  if (!schema.contains("propertyNames")) return keys;
  const std::string at = path + "/propertyNames";
  const Schema rule = flat(schema["propertyNames"], at);
  if (rule == false) return nullptr;
  if (!rule.is_object()) return keys;
  Schema storage;
  if (const Schema* fixed = fixed_values(rule, storage)) {
    std::vector<Expr> allowed;
    for (const Schema& name : *fixed)
      if (name.is_string()) allowed.push_back(text(json_escaped(name.get<std::string>())));
    keys = shared(intersection(*keys, build_automaton(choice(std::move(allowed)))));
  }
  if (const auto inside = string_inside(rule, at)) keys = shared(intersection(*keys, *inside));
  return keys;
}

void SchemaCompiler::add_member(std::vector<Expr>& members, std::shared_ptr<Automaton> key,
                                const Schema& value, const std::string& path) {
  if (std::ranges::none_of(key->final, [](uint8_t f) { return f != 0; })) return;
  const Expr allowed = expression(value, path);
  if (allowed == nullptr) return;
  const Expr name =
      as_rule(sequence({text("\""), automaton(std::move(key)), text("\"")}), path + " name");
  members.push_back(rules_.member(name, as_rule(allowed, path)));
}

std::shared_ptr<Automaton> SchemaCompiler::add_patterns(std::vector<Expr>& members,
                                                        std::shared_ptr<Automaton> keys,
                                                        const Schema& patterns,
                                                        const std::vector<std::string>& names,
                                                        const std::string& path) {
  const auto accepts_something = [](const Automaton& a) {
    return std::ranges::any_of(a.next, [](int32_t to) { return to >= 0; }) || a.final[0];
  };
  std::vector<std::shared_ptr<Automaton>> seen;
  for (const auto& [pattern, value] : patterns.items()) {
    const std::string at = fmt::format("{}/patternProperties/{}", path, pattern);
    auto fits = shared(build_automaton(schema_regex(pattern, RegexAnchors::search, at)));
    for (const std::string& name : names)
      if (fits->accepts(json_escaped(name)))
        fail(fmt::format("{}: the pattern fits the property {} too, which is not supported", at,
                         Schema(name).dump()));
    // A key that fits two patterns would have to fit the values of both.
    for (const auto& other : seen)
      if (accepts_something(intersection(*fits, *other)))
        fail(path +
             ": two patterns of patternProperties fit the same names, which is not supported");
    add_member(members, shared(intersection(*keys, *fits)), value, at);
    seen.push_back(std::move(fits));
  }
  for (const auto& other : seen) keys = shared(difference(*keys, *other));
  return keys;
}

Expr SchemaCompiler::more_properties(const Schema& schema, const std::vector<std::string>& names,
                                     const std::string& path) {
  const bool open = !schema.contains("properties") || schema["properties"].empty();
  const bool patterns = schema.contains("patternProperties");
  const Schema additional = schema.contains("additionalProperties") ? schema["additionalProperties"]
                                                                    : Schema(open && !patterns);
  const std::string at = path + "/additionalProperties";
  if (names.empty() && !patterns && !schema.contains("propertyNames")) {
    const Expr value = expression(additional, at);
    return value ? rules_.member(rules_.string(), as_rule(value, at)) : nullptr;
  }
  std::shared_ptr<Automaton> keys = free_keys(schema, names, path);
  if (keys == nullptr) return nullptr;
  std::vector<Expr> members;
  if (patterns) keys = add_patterns(members, keys, schema["patternProperties"], names, path);
  if (additional != false) add_member(members, keys, additional, at);
  return choice(std::move(members));
}

Expr SchemaCompiler::object(const Schema& schema, const std::string& path) {
  std::vector<std::string> names, required;
  if (schema.contains("required"))
    for (const Schema& name : schema["required"]) required.push_back(name.get<std::string>());
  const auto is_required = [&](const std::string& name) {
    spend(int64_t(required.size()));
    return std::ranges::find(required, name) != required.end();
  };
  std::vector<ListItem> items;
  const auto add = [&](const std::string& name, Expr value) {
    names.push_back(name);
    const Expr key = text('"' + json_escaped(name) + '"');
    items.push_back({value ? rules_.member(key, std::move(value)) : nullptr, is_required(name)});
  };
  if (schema.contains("properties"))
    for (const auto& [name, property] : schema["properties"].items())
      add(name, expression(property, fmt::format("{}/properties/{}", path, name)));
  for (const std::string& name : required) {
    spend(int64_t(names.size()));
    if (std::ranges::find(names, name) != names.end()) continue;
    if (schema.contains("patternProperties"))
      fail(
          fmt::format("{}: required names {}, which properties does not: not supported beside "
                      "patternProperties",
                      path, Schema(name).dump()));
    const Schema any = true;
    const Schema& rest =
        schema.contains("additionalProperties") ? schema["additionalProperties"] : any;
    add(name, expression(rest, path + "/additionalProperties"));
  }
  Expr more = more_properties(schema, names, path);
  const int least = count_of(schema, "minProperties", 0, path);
  const int most = count_of(schema, "maxProperties", -1, path);
  const int demanded = int(std::ranges::count_if(items, &ListItem::required));
  const bool most_holds = most < 0 || (more == nullptr && int(items.size()) <= most);
  if (demanded >= least && most_holds) {
    return as_rule(rules_.braces('{', listing(std::move(items), rules_.separator(), more), '}'),
                   path);
  }
  // Names may come twice where they are free, so that two members need not be two properties.
  if (!items.empty() || least > 1)
    fail(
        fmt::format("{}: {} is not supported here: it needs an object without properties of its "
                    "own, and minProperties of at most 1",
                    path, demanded < least ? "minProperties" : "maxProperties"));
  if (more == nullptr) return least == 0 ? rules_.braces('{', text(""), '}') : nullptr;
  if (most == 0) return least == 0 ? rules_.braces('{', text(""), '}') : nullptr;
  Expr members =
      sequence({more, repeat(sequence({rules_.separator(), more}), 0, most < 0 ? -1 : most - 1)});
  if (least == 0) members = optional(members);
  return as_rule(rules_.braces('{', members, '}'), path);
}

Expr SchemaCompiler::array(const Schema& schema, const std::string& path) {
  const Schema none = Schema::array(), any = true;
  const Schema& prefix = schema.contains("prefixItems") ? schema["prefixItems"] : none;
  if (prefix.size() > kPrefixItemsMax)
    fail(fmt::format("{}: prefixItems has {} schemas, must have at most {}", path, prefix.size(),
                     kPrefixItemsMax));
  const int least = count_of(schema, "minItems", 0, path);
  int most = count_of(schema, "maxItems", -1, path);
  if (most >= 0 && least > most) return nullptr;
  std::vector<Expr> first;
  for (size_t i = 0; i < prefix.size() && (most < 0 || int(i) < most); ++i) {
    const Expr item = expression(prefix[i], fmt::format("{}/prefixItems/{}", path, i));
    if (item == nullptr) {  // no list reaches this place
      most = int(i);
      break;
    }
    first.push_back(item);
  }
  const int given = int(first.size());
  const Schema& items = schema.contains("items") ? schema["items"] : any;
  const Expr item = most >= 0 && most <= given
                        ? nullptr
                        : as_rule(expression(items, path + "/items"), path + "/items");
  if (item == nullptr && least > given) return nullptr;
  if (most >= 0 && least > most) return nullptr;
  const Expr separator = rules_.separator();
  // The items behind `given`, then backwards through the prefix.
  const auto behind = [&](int from, int reach) {  // at least `from` of them, at most `reach`
    return repeat(sequence({separator, item}), from, reach);
  };
  Expr list;
  if (given == 0) {
    list =
        item ? sequence({item, behind(std::max(0, least - 1), most < 0 ? -1 : most - 1)}) : nullptr;
  } else {
    list = item ? behind(std::max(0, least - given), most < 0 ? -1 : most - given) : text("");
    for (int i = given - 1; i > 0; --i) {
      list = sequence({separator, first[size_t(i)], list});
      if (i >= least) list = optional(list);
    }
    list = sequence({first[0], list});
  }
  if (least == 0) list = list ? optional(list) : text("");
  if (list == nullptr) return nullptr;
  return as_rule(rules_.braces('[', list, ']'), path);
}

}  // namespace kivi::grammar
