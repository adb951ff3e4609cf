// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar/schema_merge.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "engine/grammar/expression.h"
#include "engine/grammar/work_limit.h"

namespace kivi::grammar {
namespace {

constexpr const char* kTypes[] = {"object", "array",   "string", "integer",
                                  "number", "boolean", "null"};

constexpr std::string_view kAnnotations[] = {
    "title",     "description",   "default",  "examples",        "example",          "$schema",
    "$id",       "$comment",      "$defs",    "definitions",     "deprecated",       "readOnly",
    "writeOnly", "discriminator", "nullable", "contentEncoding", "contentMediaType", "$anchor"};

constexpr std::string_view kRefused[] = {"not",
                                         "if",
                                         "then",
                                         "else",
                                         "contains",
                                         "minContains",
                                         "maxContains",
                                         "dependentRequired",
                                         "dependentSchemas",
                                         "dependencies",
                                         "unevaluatedProperties",
                                         "unevaluatedItems",
                                         "$dynamicRef",
                                         "$recursiveRef",
                                         "$dynamicAnchor",
                                         "contentSchema"};

// What a keyword without `type` beside it is about.
struct Implied {
  std::string_view keyword, type;
};
constexpr Implied kImplied[] = {{"properties", "object"},
                                {"required", "object"},
                                {"additionalProperties", "object"},
                                {"patternProperties", "object"},
                                {"minProperties", "object"},
                                {"maxProperties", "object"},
                                {"propertyNames", "object"},
                                {"items", "array"},
                                {"prefixItems", "array"},
                                {"minItems", "array"},
                                {"maxItems", "array"},
                                {"uniqueItems", "array"},
                                {"pattern", "string"},
                                {"format", "string"},
                                {"minLength", "string"},
                                {"maxLength", "string"},
                                {kPatterns, "string"},
                                {"minimum", "number"},
                                {"maximum", "number"},
                                {"exclusiveMinimum", "number"},
                                {"exclusiveMaximum", "number"},
                                {"multipleOf", "number"}};

Schema all_of(const Schema& a, const Schema& b) {
  if (a == b || b == true) return a;
  if (a == true) return b;
  return Schema{{"allOf", Schema::array({a, b})}};
}

// Properties that one side names and the other leaves to its additionalProperties.
void take_properties(Schema& out, const Schema& from, const Schema& other) {
  if (!from.contains("properties")) return;
  for (const auto& [name, property] : from["properties"].items()) {
    Schema& place = out["properties"][name];
    if (!place.is_null()) continue;  // both have it
    const bool named = other.contains("properties") && other["properties"].contains(name);
    if (named)
      place = all_of(property, other["properties"][name]);
    else if (other.contains("additionalProperties"))
      place = all_of(property, other["additionalProperties"]);
    else
      place = property;
  }
}

void merge_items(Schema& out, const Schema& a, const Schema& b) {
  const Schema none = Schema::array(), any = true;
  const Schema& first = a.contains("prefixItems") ? a["prefixItems"] : none;
  const Schema& second = b.contains("prefixItems") ? b["prefixItems"] : none;
  const Schema& rest_a = a.contains("items") ? a["items"] : any;
  const Schema& rest_b = b.contains("items") ? b["items"] : any;
  Schema prefix = Schema::array();
  for (size_t i = 0; i < std::max(first.size(), second.size()); ++i)
    prefix.push_back(
        all_of(i < first.size() ? first[i] : rest_a, i < second.size() ? second[i] : rest_b));
  if (!prefix.empty()) out["prefixItems"] = std::move(prefix);
  if (a.contains("items") || b.contains("items")) out["items"] = all_of(rest_a, rest_b);
}

Schema intersect_values(const Schema& a, const Schema& b) {
  spend(int64_t(a.size() * b.size()));
  Schema both = Schema::array();
  for (const Schema& value : a)
    if (std::ranges::find(b, value) != b.end()) both.push_back(value);
  return both;
}

// The stricter of two bounds.
void merge_bound(Schema& out, const Schema& a, const Schema& b, const char* name, bool largest) {
  if (!a.contains(name) && !b.contains(name)) return;
  if (!a.contains(name) || !b.contains(name)) {
    out[name] = a.contains(name) ? a[name] : b[name];
    return;
  }
  out[name] = (a[name] < b[name]) == largest ? b[name] : a[name];
}

std::vector<std::string> patterns_of(const Schema& s) {
  std::vector<std::string> patterns;
  if (s.contains("pattern")) patterns.push_back(s["pattern"].get<std::string>());
  if (s.contains(kPatterns))
    for (const Schema& p : s[kPatterns]) patterns.push_back(p.get<std::string>());
  return patterns;
}

void merge_strings(Schema& out, const Schema& a, const Schema& b, const std::string& path) {
  std::vector<std::string> patterns = patterns_of(a);
  for (std::string& p : patterns_of(b))
    if (std::ranges::find(patterns, p) == patterns.end()) patterns.push_back(std::move(p));
  if (!patterns.empty()) out[kPatterns] = patterns;
  if (a.contains("format") && b.contains("format") && a["format"] != b["format"])
    fail(fmt::format("{}: two formats, {} and {}, cannot be joined", path, a["format"].dump(),
                     b["format"].dump()));
  if (a.contains("format") || b.contains("format"))
    out["format"] = a.contains("format") ? a["format"] : b["format"];
}

// anyOf (or oneOf) of both: every pair.
void merge_options(Schema& out, const Schema& a, const Schema& b, const char* name,
                   const std::string& path) {
  constexpr size_t kPairsMax = 256;
  if (!a.contains(name) || !b.contains(name)) {
    if (a.contains(name) || b.contains(name)) out[name] = a.contains(name) ? a[name] : b[name];
    return;
  }
  if (a[name].size() * b[name].size() > kPairsMax)
    fail(fmt::format("{}: two {} of {} and {} branches cannot be joined, {} pairs are the most",
                     path, name, a[name].size(), b[name].size(), kPairsMax));
  Schema pairs = Schema::array();
  for (const Schema& x : a[name])
    for (const Schema& y : b[name]) pairs.push_back(all_of(x, y));
  out[name] = std::move(pairs);
}

void merge_multiples(Schema& out, const Schema& a, const Schema& b, const std::string& path) {
  if (!a.contains("multipleOf") || !b.contains("multipleOf")) {
    if (a.contains("multipleOf") || b.contains("multipleOf"))
      out["multipleOf"] = a.contains("multipleOf") ? a["multipleOf"] : b["multipleOf"];
    return;
  }
  const Schema &x = a["multipleOf"], &y = b["multipleOf"];
  if (!x.is_number_integer() || !y.is_number_integer() || x < 1 || y < 1 || x > 1000 || y > 1000)
    fail(path + ": two multipleOf that are not integers from 1 to 1000 cannot be joined");
  out["multipleOf"] = std::lcm(x.get<int64_t>(), y.get<int64_t>());
}

bool type_within(const std::string& type, const std::vector<std::string>& types) {
  return std::ranges::find(types, type) != types.end() ||
         (type == "integer" && std::ranges::find(types, "number") != types.end());
}

bool may_be_equal(const Schema& values, const Schema& other) {
  spend(int64_t(values.size() * other.size()));
  return std::ranges::any_of(
      values, [&](const Schema& v) { return std::ranges::find(other, v) != other.end(); });
}

bool requires_name(const Schema& s, const std::string& name) {
  if (s.contains("required")) spend(int64_t(s["required"].size()));
  return s.contains("required") &&
         std::ranges::find(s["required"], Schema(name)) != s["required"].end();
}

// `a` demands a property that `b` forbids.
bool forbids_required(const Schema& a, const Schema& b) {
  if (!a.contains("required") || !b.contains("additionalProperties") ||
      b["additionalProperties"] != false || b.contains("patternProperties"))
    return false;
  return std::ranges::any_of(a["required"], [&](const Schema& name) {
    return !b.contains("properties") || !b["properties"].contains(name.get<std::string>());
  });
}

bool disjoint_objects(const Schema& a, const Schema& b) {
  if (forbids_required(a, b) || forbids_required(b, a)) return true;
  if (!a.contains("properties") || !b.contains("properties")) return false;
  for (const auto& [name, property] : a["properties"].items()) {
    if (!requires_name(a, name) || !requires_name(b, name) || !b["properties"].contains(name))
      continue;
    const Schema& other = b["properties"][name];
    if (!property.is_object() || !other.is_object()) continue;
    Schema mine, theirs;
    const Schema* x = fixed_values(property, mine);
    const Schema* y = fixed_values(other, theirs);
    if (x != nullptr && y != nullptr && !may_be_equal(*x, *y)) return true;
  }
  return false;
}

}  // namespace

bool is_annotation(std::string_view keyword) {
  return std::ranges::find(kAnnotations, keyword) != std::end(kAnnotations);
}

void check_keywords(const Schema& schema, const std::string& path) {
  for (const std::string_view name : kRefused)
    if (schema.contains(name)) fail(fmt::format("{}: the keyword {} is not supported", path, name));
  if (schema.contains("uniqueItems") && schema["uniqueItems"] != false)
    fail(path + ": the keyword uniqueItems is not supported but for false");
  const auto expect = [&](const char* name, bool fits, const char* what) {
    if (schema.contains(name) && !fits)
      fail(fmt::format("{}: {} is {}, must be {}", path, name, schema[name].dump(), what));
  };
  const auto is = [&](const char* name) -> const Schema& {
    static const Schema nothing;
    return schema.contains(name) ? schema[name] : nothing;
  };
  const auto all_schemas = [](const Schema& list) {
    return std::ranges::all_of(list,
                               [](const Schema& s) { return s.is_object() || s.is_boolean(); });
  };
  for (const char* name : {"properties", "patternProperties"})
    expect(name, is(name).is_object() && all_schemas(is(name)), "an object of schemas");
  for (const char* name : {"anyOf", "oneOf", "allOf", "prefixItems"})
    expect(name, is(name).is_array() && !is(name).empty() && all_schemas(is(name)),
           "a list of schemas that is not empty");
  for (const char* name : {"additionalProperties", "propertyNames"})
    expect(name, is(name).is_object() || is(name).is_boolean(), "a schema");
  expect("items", is("items").is_object() || is("items").is_boolean(),
         "a schema (prefixItems has a list of them)");
  expect("required",
         is("required").is_array() && std::ranges::all_of(is("required"), &Schema::is_string),
         "a list of names");
  expect("enum", is("enum").is_array() && !is("enum").empty(), "a list that is not empty");
  for (const char* name : {"pattern", "format", "$ref"})
    expect(name, is(name).is_string(), "a string");
  for (const char* name :
       {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
    expect(name, is(name).is_number_integer() && is(name) >= 0, "an integer from 0");
  for (const char* name :
       {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
    expect(name, is(name).is_number(), "a number");
}

const char* type_of(const Schema& value) {
  if (value.is_object()) return "object";
  if (value.is_array()) return "array";
  if (value.is_string()) return "string";
  if (value.is_boolean()) return "boolean";
  if (value.is_null()) return "null";
  if (value.is_number_integer()) return "integer";
  const double number = value.get<double>();
  return number == double(int64_t(number)) ? "integer" : "number";
}

std::vector<std::string> types_of(const Schema& schema, const std::string& path) {
  std::vector<std::string> types;
  if (schema.contains("type")) {
    const Schema& type = schema["type"];
    const auto add = [&](const Schema& name) {
      if (!name.is_string() ||
          std::ranges::find(kTypes, name.get<std::string>()) == std::end(kTypes))
        fail(
            fmt::format("{}: type is {}, must be object, array, string, integer, number, boolean, "
                        "null or a list of them",
                        path, name.dump()));
      types.push_back(name.get<std::string>());
    };
    if (type.is_array())
      for (const Schema& name : type) add(name);
    else
      add(type);
    return types;
  }
  Schema storage;
  if (const Schema* values = fixed_values(schema, storage)) {
    for (const Schema& value : *values) types.emplace_back(type_of(value));
    return types;
  }
  for (const Implied& i : kImplied)
    if (schema.contains(i.keyword) && std::ranges::find(types, i.type) == types.end())
      types.emplace_back(i.type);
  if (!types.empty()) return types;
  return {std::begin(kTypes), std::end(kTypes)};
}

const Schema* fixed_values(const Schema& schema, Schema& storage) {
  if (schema.contains("const")) {
    storage = Schema::array({schema["const"]});
    if (schema.contains("enum")) storage = intersect_values(storage, schema["enum"]);
    return &storage;
  }
  return schema.contains("enum") ? &schema["enum"] : nullptr;
}

int64_t nodes_of(const Schema& schema) {
  int64_t count = 1;
  if (schema.is_structured())
    for (const Schema& item : schema) count += nodes_of(item);
  return count;
}

Schema merge(const Schema& a, const Schema& b, const std::string& path) {
  spend(200 + 20 * (nodes_of(a) + nodes_of(b)));
  if (a == false || b == false) return false;
  if (a == true) return b;
  if (b == true) return a;
  check_keywords(a, path);
  check_keywords(b, path);
  Schema out = Schema::object();
  const std::vector<std::string> types_a = types_of(a, path), types_b = types_of(b, path);
  if (a.contains("type") || b.contains("type")) {
    Schema both = Schema::array();
    for (const std::string& t : types_a)
      if (type_within(t, types_b)) both.push_back(t);
    for (const std::string& t : types_b)
      if (type_within(t, types_a) && std::ranges::find(both, Schema(t)) == both.end())
        both.push_back(t);
    if (both.empty()) return false;
    out["type"] = std::move(both);
  }
  Schema values_a, values_b;
  const Schema* x = fixed_values(a, values_a);
  const Schema* y = fixed_values(b, values_b);
  if (x != nullptr || y != nullptr) {
    Schema values = x == nullptr ? *y : y == nullptr ? *x : intersect_values(*x, *y);
    if (values.empty()) return false;
    out["enum"] = std::move(values);
  }
  take_properties(out, a, b);
  take_properties(out, b, a);
  for (const Schema* s : {&a, &b}) {
    if (s->contains("required"))
      for (const Schema& name : (*s)["required"])
        if (!requires_name(out, name.get<std::string>())) out["required"].push_back(name);
    if (s->contains("patternProperties"))
      for (const auto& [name, property] : (*s)["patternProperties"].items()) {
        Schema& place = out["patternProperties"][name];
        place = place.is_null() ? property : all_of(place, property);
      }
  }
  for (const char* name : {"additionalProperties", "propertyNames"})
    if (a.contains(name) && b.contains(name))
      out[name] = all_of(a[name], b[name]);
    else if (a.contains(name) || b.contains(name))
      out[name] = a.contains(name) ? a[name] : b[name];
  merge_items(out, a, b);
  for (const char* name : {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"})
    merge_bound(out, a, b, name, true);
  for (const char* name : {"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"})
    merge_bound(out, a, b, name, false);
  merge_multiples(out, a, b, path);
  merge_strings(out, a, b, path);
  merge_options(out, a, b, "anyOf", path);
  merge_options(out, a, b, "oneOf", path);
  return out;
}

bool disjoint(const Schema& a, const Schema& b, const std::string& path) {
  spend(50);
  if (a == false || b == false) return true;
  if (!a.is_object() || !b.is_object()) return false;
  Schema storage_a, storage_b;
  const Schema* x = fixed_values(a, storage_a);
  const Schema* y = fixed_values(b, storage_b);
  if (x != nullptr && y != nullptr) return !may_be_equal(*x, *y);
  const std::vector<std::string> types_a = types_of(a, path), types_b = types_of(b, path);
  bool objects = false;
  for (const std::string& t : types_a)
    if (type_within(t, types_b) ||
        (t == "number" && std::ranges::find(types_b, "integer") != types_b.end())) {
      if (t != "object") return false;
      objects = true;
    }
  return !objects || disjoint_objects(a, b);
}

}  // namespace kivi::grammar
