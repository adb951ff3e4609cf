// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar/json_schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "engine/grammar/automaton.h"
#include "engine/grammar/json_formats.h"
#include "engine/grammar/json_rules.h"
#include "engine/grammar/json_text.h"
#include "engine/grammar/regular.h"
#include "engine/grammar/schema_merge.h"

namespace kivi::grammar {
namespace {

constexpr int kDepthMax = 200;  // schemas inside one another, references followed
constexpr size_t kPrefixItemsMax = 500;
constexpr int kMultipleMax = 1000;
constexpr int kCountMax = 20'000;  // bounds of lengths and counts

const CharRanges kAnyChar{{0, kLastChar}};

std::shared_ptr<Automaton> shared(Automaton a) { return std::make_shared<Automaton>(std::move(a)); }

class SchemaCompiler {
 public:
  explicit SchemaCompiler(const Schema& root) : root_(root), rules_(grammar_) {}

  Grammar run() {
    const int root = add_rule(grammar_, "root", true);
    // A text that goes on from a prompt often begins with a space.
    Expr body = sequence({optional(text(" ")), expression(root_, "#")});
    grammar_.rules[size_t(root)].body = std::move(body);
    grammar_.root = root;
    return std::move(grammar_);
  }

 private:
  class Depth {
   public:
    Depth(int& depth, const std::string& path) : depth_(depth) {
      if (++depth_ > kDepthMax)
        fail(fmt::format("{}: schemas and references nest more than {} deep", path, kDepthMax));
    }
    ~Depth() { --depth_; }

   private:
    int& depth_;
  };

  // Null where no value fits.
  Expr expression(const Schema& schema, const std::string& path);
  Expr of_types(const Schema& schema, const std::string& path);
  Expr of_type(const std::string& type, const Schema& schema, const std::string& path);
  Expr options(const Schema& schema, const char* keyword, const std::string& path);
  Expr values(const Schema& values, const Schema& schema, const std::string& path);
  Expr reference(const std::string& pointer, const std::string& path);
  Expr string(const Schema& schema, const std::string& path);
  Expr number(const Schema& schema, const std::string& path, bool integers);
  // Not as a rule. Sets `integers` where no other number fits.
  static Expr number_inside(const Schema& schema, const std::string& path, bool& integers);
  Expr object(const Schema& schema, const std::string& path);
  Expr array(const Schema& schema, const std::string& path);

  const Schema& find(const std::string& pointer, const std::string& path) const;
  // Without $ref and allOf at the top.
  Schema flat(const Schema& schema, const std::string& path);
  // The inside of a string that has bounds; none where it has none.
  std::shared_ptr<Automaton> string_inside(const Schema& schema, const std::string& path);
  // `name`: a rule's name. What is used more than once is better a rule of its own.
  Expr as_rule(Expr e, std::string name);
  Expr more_properties(const Schema& schema, const std::vector<std::string>& names,
                       const std::string& path);

  const Schema& root_;
  Grammar grammar_;
  JsonRules rules_;
  std::map<std::string, int> references_;
  int depth_ = 0;
};

bool without_constraints(const Schema& schema) {
  return std::ranges::all_of(schema.items(),
                             [](const auto& item) { return is_annotation(item.key()); });
}

Schema without(const Schema& schema, std::initializer_list<const char*> keywords) {
  Schema rest = schema;
  for (const char* name : keywords) rest.erase(name);
  return rest;
}

int count(const Schema& schema, const char* name, int otherwise, const std::string& path) {
  if (!schema.contains(name)) return otherwise;
  if (schema[name] > kCountMax)
    fail(fmt::format("{}: {} is {}, must be at most {}", path, name, schema[name].dump(),
                     kCountMax));
  return schema[name].get<int>();
}

Expr SchemaCompiler::as_rule(Expr e, std::string name) {
  if (e == nullptr || e->kind == Expression::Kind::call) return e;
  const int rule = add_rule(grammar_, std::move(name), false);
  grammar_.rules[size_t(rule)].body = std::move(e);
  return call(rule);
}

Expr SchemaCompiler::expression(const Schema& schema, const std::string& path) {
  const Depth depth(depth_, path);
  if (schema == false) return nullptr;
  if (schema == true) return rules_.value();
  if (!schema.is_object())
    fail(fmt::format("{}: a schema is {}, must be an object or a boolean", path, schema.dump()));
  check_keywords(schema, path);
  if (schema.contains("$ref") && without_constraints(without(schema, {"$ref"})))
    return reference(schema["$ref"].get<std::string>(), path);
  if (schema.contains("$ref") || schema.contains("allOf"))
    return expression(flat(schema, path), path);
  if (without_constraints(schema)) return rules_.value();
  if (schema.contains("anyOf")) return options(schema, "anyOf", path);
  if (schema.contains("oneOf")) return options(schema, "oneOf", path);
  Schema storage;
  if (const Schema* fixed = fixed_values(schema, storage)) return values(*fixed, schema, path);
  return of_types(schema, path);
}

const Schema& SchemaCompiler::find(const std::string& pointer, const std::string& path) const {
  if (pointer != "#" && !pointer.starts_with("#/"))
    fail(fmt::format("{}: $ref is {}, must point into this schema (\"#/$defs/...\")", path,
                     Schema(pointer).dump()));
  try {
    std::string decoded;  // %25 and the like
    for (size_t i = 1; i < pointer.size(); ++i) {
      if (pointer[i] == '%' && i + 2 < pointer.size()) {
        decoded += char(std::stoi(pointer.substr(i + 1, 2), nullptr, 16));
        i += 2;
      } else {
        decoded += pointer[i];
      }
    }
    return root_.at(Schema::json_pointer(decoded));
  } catch (const std::exception&) {
    fail(fmt::format("{}: $ref is {}, there is nothing in this schema", path,
                     Schema(pointer).dump()));
  }
}

Expr SchemaCompiler::reference(const std::string& pointer, const std::string& path) {
  const auto [place, fresh] = references_.try_emplace(pointer, 0);
  if (!fresh) return call(place->second);
  const Schema& target = find(pointer, path);
  const int rule = place->second = add_rule(grammar_, pointer, false);
  Expr body = expression(target, pointer);
  grammar_.rules[size_t(rule)].body = std::move(body);
  return call(rule);
}

Schema SchemaCompiler::flat(const Schema& schema, const std::string& path) {
  const Depth depth(depth_, path);
  if (!schema.is_object()) return schema;
  check_keywords(schema, path);
  if (!schema.contains("$ref") && !schema.contains("allOf")) return schema;
  Schema out = without(schema, {"$ref", "allOf"});
  if (without_constraints(out)) out = true;
  if (schema.contains("$ref")) {
    const auto pointer = schema["$ref"].get<std::string>();
    out = merge(out, flat(find(pointer, path), pointer), path);
  }
  if (schema.contains("allOf"))
    for (size_t i = 0; i < schema["allOf"].size(); ++i) {
      const std::string at = fmt::format("{}/allOf/{}", path, i);
      out = merge(out, flat(schema["allOf"][i], at), at);
    }
  return out;
}

Expr SchemaCompiler::options(const Schema& schema, const char* keyword, const std::string& path) {
  const Schema& list = schema[keyword];
  if (std::string_view(keyword) == "oneOf")
    for (size_t i = 0; i < list.size(); ++i)
      for (size_t j = 0; j < i; ++j)
        if (!disjoint(flat(list[i], path), flat(list[j], path), path))
          fail(
              fmt::format("{}: a value could fit branches {} and {} of oneOf: give them different "
                          "types, or a required property with different const values, or use anyOf",
                          path, j, i));
  const Schema rest = without(schema, {keyword});
  const bool alone = without_constraints(rest);
  std::vector<Expr> parts;
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string at = fmt::format("{}/{}/{}", path, keyword, i);
    parts.push_back(alone ? expression(list[i], at)
                          : expression(merge(rest, flat(list[i], at), at), at));
  }
  return choice(std::move(parts));
}

Expr SchemaCompiler::values(const Schema& list, const Schema& schema, const std::string& path) {
  const std::vector<std::string> types = types_of(schema, path);
  const Schema rest = without(schema, {"const", "enum"});
  std::vector<Expr> parts;
  for (const Schema& value : list) {
    const std::string type = type_of(value);
    const bool fits = std::ranges::find(types, type) != types.end() ||
                      (type == "integer" && std::ranges::find(types, "number") != types.end());
    if (!fits) continue;
    const std::string spelled = value.is_string()
                                    ? '"' + json_escaped(value.get_ref<const std::string&>()) + '"'
                                    : value.dump();
    if (value.is_string()) {
      if (const auto inside = string_inside(rest, path);
          inside && !inside->accepts(json_escaped(value.get_ref<const std::string&>())))
        continue;
    } else if (value.is_number()) {
      bool integers = false;
      const Expr allowed = number_inside(rest, path, integers);
      if (allowed == nullptr || !build_automaton(allowed).accepts(spelled)) continue;
    } else if (value.is_structured() && !without_constraints(without(rest, {"type"}))) {
      fail(path +
           ": const or enum with objects or lists stands beside other constraints, which is "
           "not supported");
    }
    parts.push_back(text(spelled));
  }
  return choice(std::move(parts));
}

Expr SchemaCompiler::of_types(const Schema& schema, const std::string& path) {
  std::vector<std::string> types = types_of(schema, path);
  // Every integer is a number.
  if (std::ranges::find(types, "number") != types.end()) std::erase(types, "integer");
  std::vector<Expr> parts;
  for (const std::string& type : types) parts.push_back(of_type(type, schema, path));
  return choice(std::move(parts));
}

Expr SchemaCompiler::of_type(const std::string& type, const Schema& schema,
                             const std::string& path) {
  if (type == "object") return object(schema, path);
  if (type == "array") return array(schema, path);
  if (type == "string") return string(schema, path);
  if (type == "integer") return number(schema, path, true);
  if (type == "number") return number(schema, path, false);
  if (type == "boolean") return choice({text("true"), text("false")});
  return text("null");
}

std::shared_ptr<Automaton> SchemaCompiler::string_inside(const Schema& schema,
                                                         const std::string& path) {
  std::shared_ptr<Automaton> all;
  const auto demand = [&](const Expr& e) {
    Automaton next = build_automaton(e);
    all = shared(all ? intersection(*all, next) : std::move(next));
  };
  const auto demand_regex = [&](const std::string& pattern, RegexAnchors anchors,
                                const char* from) {
    try {
      demand(parse_regex(pattern, anchors, json_characters));
    } catch (const Failure& failure) {
      fail(fmt::format("{}: {}: {}", path, from, failure.message));
    }
  };
  if (schema.contains("pattern"))
    demand_regex(schema["pattern"].get<std::string>(), RegexAnchors::search, "pattern");
  if (schema.contains(kPatterns))
    for (const Schema& pattern : schema[kPatterns])
      demand_regex(pattern.get<std::string>(), RegexAnchors::search, "pattern");
  if (schema.contains("format")) {
    const auto format = schema["format"].get<std::string>();
    const std::string pattern = format_pattern(format);
    if (pattern.empty())
      fail(fmt::format("{}: the format {} is not supported, must be one of {}", path,
                       Schema(format).dump(), format_names()));
    demand_regex(pattern, RegexAnchors::whole, "format");
  }
  const int least = count(schema, "minLength", 0, path),
            most = count(schema, "maxLength", -1, path);
  if (least > 0 || most >= 0) {
    if (most >= 0 && least > most) return shared(build_automaton(nullptr));
    demand(repeat(json_characters(kAnyChar), least, most));
  }
  return all;
}

Expr SchemaCompiler::string(const Schema& schema, const std::string& path) {
  const auto inside = string_inside(schema, path);
  if (!inside) return rules_.string();
  return as_rule(sequence({text("\""), automaton(inside), text("\"")}), path);
}

Expr SchemaCompiler::number(const Schema& schema, const std::string& path, bool integers) {
  Expr inside = number_inside(schema, path, integers);
  const auto bounds = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"};
  if (std::ranges::none_of(bounds, [&](const char* name) { return schema.contains(name); }))
    return integers ? rules_.integer() : rules_.number();
  return as_rule(std::move(inside), path);
}

Expr SchemaCompiler::number_inside(const Schema& schema, const std::string& path, bool& integers) {
  NumberBounds bounds;
  // Of an inclusive and an exclusive bound the stricter one counts.
  const auto pick = [&](const char* name, const char* exclusive, bool lower,
                        std::optional<std::string>& bound, bool& excluded) {
    const bool has = schema.contains(name), has_exclusive = schema.contains(exclusive);
    if (!has && !has_exclusive) return;
    const Schema* value = has ? &schema[name] : &schema[exclusive];
    excluded = !has;
    if (has && has_exclusive &&
        (lower ? schema[exclusive] >= schema[name] : schema[exclusive] <= schema[name])) {
      value = &schema[exclusive];
      excluded = true;
    }
    bound = value->dump();
  };
  pick("minimum", "exclusiveMinimum", true, bounds.least, bounds.least_excluded);
  pick("maximum", "exclusiveMaximum", false, bounds.most, bounds.most_excluded);
  int multiple = 0;
  if (schema.contains("multipleOf")) {
    const Schema& m = schema["multipleOf"];
    if (m.get<double>() != double(int64_t(m.get<double>())) || m < 1 || m > kMultipleMax)
      fail(fmt::format("{}: multipleOf is {}, must be an integer from 1 to {}", path, m.dump(),
                       kMultipleMax));
    multiple = int(m.get<double>());
    integers = true;  // a multiple of an integer is one
  }
  return integers ? json_integer(bounds, multiple) : json_number(bounds);
}

// A key that is none of `names`, with its value; null where there may be none.
Expr SchemaCompiler::more_properties(const Schema& schema, const std::vector<std::string>& names,
                                     const std::string& path) {
  const bool open = !schema.contains("properties") || schema["properties"].empty();
  const Schema additional = schema.contains("additionalProperties")
                                ? schema["additionalProperties"]
                                : Schema(open && !schema.contains("patternProperties"));
  const bool constrained =
      !names.empty() || schema.contains("patternProperties") || schema.contains("propertyNames");
  if (!constrained) {
    const Expr value = expression(additional, path + "/additionalProperties");
    return value ? rules_.member(rules_.string(), as_rule(value, path + "/additionalProperties"))
                 : nullptr;
  }
  std::vector<Expr> spelled;
  for (const std::string& name : names) spelled.push_back(text(json_escaped(name)));
  std::shared_ptr<Automaton> left =
      shared(build_automaton(repeat(json_characters(kAnyChar), 0, -1)));
  if (!spelled.empty()) left = shared(difference(*left, build_automaton(choice(spelled))));
  if (schema.contains("propertyNames")) {
    const std::string at = path + "/propertyNames";
    const Schema rule = flat(schema["propertyNames"], at);
    if (rule == false) return nullptr;
    Schema storage;
    if (const Schema* fixed = rule.is_object() ? fixed_values(rule, storage) : nullptr) {
      std::vector<Expr> allowed;
      for (const Schema& name : *fixed)
        if (name.is_string()) allowed.push_back(text(json_escaped(name.get<std::string>())));
      left = shared(intersection(*left, build_automaton(choice(std::move(allowed)))));
    }
    if (rule.is_object())
      if (const auto inside = string_inside(rule, at)) left = shared(intersection(*left, *inside));
  }
  std::vector<Expr> members;
  const auto add = [&](std::shared_ptr<Automaton> key, const Schema& value_schema,
                       const std::string& at) {
    if (std::ranges::none_of(key->final, [](uint8_t f) { return f != 0; })) return;
    const Expr value = expression(value_schema, at);
    if (value == nullptr) return;
    const Expr name =
        as_rule(sequence({text("\""), automaton(std::move(key)), text("\"")}), at + " name");
    members.push_back(rules_.member(name, as_rule(value, at)));
  };
  if (schema.contains("patternProperties")) {
    std::vector<std::shared_ptr<Automaton>> seen;
    for (const auto& [pattern, value] : schema["patternProperties"].items()) {
      const std::string at = path + "/patternProperties/" + pattern;
      auto key =
          shared(build_automaton(parse_regex(pattern, RegexAnchors::search, json_characters)));
      for (const std::string& name : names)
        if (key->accepts(json_escaped(name)))
          fail(fmt::format("{}: the pattern fits the property {} too, which is not supported", at,
                           Schema(name).dump()));
      auto mine = shared(intersection(*left, *key));
      for (const auto& other : seen) {
        mine = shared(difference(*mine, *other));  // keys that fit several are not written
      }
      seen.push_back(key);
      add(mine, value, at);
    }
    // Keys that fit a later pattern as well must not take the value of an earlier one.
    if (seen.size() > 1)
      for (size_t i = 0; i < seen.size(); ++i)
        for (size_t j = 0; j < i; ++j) {
          const Automaton both = intersection(*seen[i], *seen[j]);
          if (std::ranges::any_of(both.next, [](int32_t to) { return to >= 0; }) || both.final[0])
            fail(path +
                 ": two patterns of patternProperties fit the same names, which is not supported");
        }
    for (const auto& other : seen) left = shared(difference(*left, *other));
  }
  if (additional != false) add(left, additional, path + "/additionalProperties");
  return choice(std::move(members));
}

Expr SchemaCompiler::object(const Schema& schema, const std::string& path) {
  std::vector<std::string> names, required;
  if (schema.contains("required"))
    for (const Schema& name : schema["required"]) required.push_back(name.get<std::string>());
  const auto is_required = [&](const std::string& name) {
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
      add(name, expression(property, path + "/properties/" + name));
  for (const std::string& name : required) {
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
  const int least = count(schema, "minProperties", 0, path);
  const int most = count(schema, "maxProperties", -1, path);
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
  const int least = count(schema, "minItems", 0, path);
  int most = count(schema, "maxItems", -1, path);
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

}  // namespace

Grammar grammar_of_schema(const nlohmann::ordered_json& schema) {
  return SchemaCompiler(schema).run();
}

Grammar grammar_of_any_object() {
  Grammar grammar;
  JsonRules rules(grammar);
  const int root = add_rule(grammar, "root", true);
  Expr body = sequence({optional(text(" ")), rules.object()});
  grammar.rules[size_t(root)].body = std::move(body);
  grammar.root = root;
  return grammar;
}

}  // namespace kivi::grammar
