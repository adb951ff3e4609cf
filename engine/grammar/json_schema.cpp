// SPDX-License-Identifier: Apache-2.0
#include "engine/grammar/json_schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "engine/grammar/json_text.h"
#include "engine/grammar/schema_compiler.h"
#include "engine/grammar/work_limit.h"

namespace kivi::grammar {
namespace {

constexpr int kSchemaDepthMax = 200;  // schemas inside one another, references followed
constexpr int kCountMax = 20'000;     // bounds of lengths and counts

}  // namespace

class SchemaCompiler::Depth {
 public:
  Depth(int& depth, const std::string& path) : depth_(depth) {
    if (++depth_ > kSchemaDepthMax)
      fail(fmt::format("{}: schemas and references nest more than {} deep", path, kSchemaDepthMax));
  }
  ~Depth() { --depth_; }

 private:
  int& depth_;
};

Grammar SchemaCompiler::run() {
  const int root = add_rule(grammar_, "root", true);
  // A text that goes on from a prompt often begins with a space.
  Expr body = sequence({optional(text(" ")), expression(root_, "#")});
  grammar_.rules[size_t(root)].body = std::move(body);
  grammar_.root = root;
  return std::move(grammar_);
}

bool without_constraints(const Schema& schema) {
  return std::ranges::all_of(schema.items(),
                             [](const auto& item) { return is_annotation(item.key()); });
}

Schema without(const Schema& schema, std::initializer_list<const char*> keywords) {
  Schema rest = schema;
  for (const char* name : keywords) rest.erase(name);
  return rest;
}

int count_of(const Schema& schema, const char* name, int otherwise, const std::string& path) {
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
  spend(100);
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
  spend(200 + 20 * nodes_of(schema));
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
  std::vector<Schema> branches;
  if (std::string_view(keyword) == "oneOf")
    for (const Schema& branch : list) {
      const size_t i = branches.size();
      branches.push_back(flat(branch, path));
      for (size_t j = 0; j < i; ++j)
        if (!disjoint(branches[i], branches[j], path))
          fail(
              fmt::format("{}: a value could fit branches {} and {} of oneOf: give them different "
                          "types, or a required property with different const values, or use anyOf",
                          path, j, i));
    }
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
  // What `rest` allows, made when it is first needed.
  std::optional<std::shared_ptr<Automaton>> strings;
  std::optional<Automaton> numbers;
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
      if (!strings) strings = string_inside(rest, path);
      if (*strings && !(*strings)->accepts(json_escaped(value.get_ref<const std::string&>())))
        continue;
    } else if (value.is_number()) {
      bool integers = false;
      if (!numbers) numbers = build_automaton(number_inside(rest, path, integers));
      if (!numbers->accepts(spelled)) continue;
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
