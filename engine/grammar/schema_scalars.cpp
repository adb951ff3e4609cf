// SPDX-License-Identifier: Apache-2.0
// Strings and numbers of a schema.
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "engine/grammar/json_formats.h"
#include "engine/grammar/json_text.h"
#include "engine/grammar/regular.h"
#include "engine/grammar/schema_compiler.h"

namespace kivi::grammar {
namespace {

constexpr int kMultipleMax = 1000;

}  // namespace

Expr schema_regex(const std::string& pattern, RegexAnchors anchors, const std::string& path) {
  try {
    return parse_regex(pattern, anchors, json_characters);
  } catch (const Failure& failure) {
    fail(fmt::format("{}: {}", path, failure.message));
  }
}

std::shared_ptr<Automaton> SchemaCompiler::string_inside(const Schema& schema,
                                                         const std::string& path) {
  std::shared_ptr<Automaton> all;
  const auto demand = [&](const Expr& e) {
    Automaton next = build_automaton(e);
    all = shared(all ? intersection(*all, next) : std::move(next));
  };
  if (schema.contains("pattern"))
    demand(schema_regex(schema["pattern"].get<std::string>(), RegexAnchors::search,
                        path + ": pattern"));
  if (schema.contains(kPatterns))
    for (const Schema& pattern : schema[kPatterns])
      demand(schema_regex(pattern.get<std::string>(), RegexAnchors::search, path + ": pattern"));
  if (schema.contains("format")) {
    const auto format = schema["format"].get<std::string>();
    const std::string pattern = format_pattern(format);
    if (pattern.empty())
      fail(fmt::format("{}: the format {} is not supported, must be one of {}", path,
                       Schema(format).dump(), format_names()));
    demand(schema_regex(pattern, RegexAnchors::whole, path + ": format"));
  }
  const int least = count_of(schema, "minLength", 0, path),
            most = count_of(schema, "maxLength", -1, path);
  if (least > 0 || most >= 0) demand(repeat(json_characters(kAnyChar), least, most));
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

}  // namespace kivi::grammar
