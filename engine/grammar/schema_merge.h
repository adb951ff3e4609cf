// SPDX-License-Identifier: Apache-2.0
// Schemas joined into one: what allOf, and keywords beside $ref and anyOf, mean.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace kivi::grammar {

using Schema = nlohmann::ordered_json;

// The patterns of a schema after a merge: there may be several. No keyword of JSON Schema.
inline constexpr const char* kPatterns = "x-kivi-patterns";

// Accepts what both accept. Neither holds $ref or allOf at its top. Throws Failure where we cannot
// say it in one schema. `path` is for errors.
Schema merge(const Schema& a, const Schema& b, const std::string& path);

// Returns the number of values in a schema: what a copy of it costs.
int64_t nodes_of(const Schema& schema);

// Takes part in no decision: title, description, default, ...
bool is_annotation(std::string_view keyword);

// Refuses the keywords that we do not implement, by name.
void check_keywords(const Schema& schema, const std::string& path);

// "string", "integer", ...: the types that a schema may have; all where nothing says otherwise.
std::vector<std::string> types_of(const Schema& schema, const std::string& path);
const char* type_of(const Schema& value);

// Returns true if it is certain that no value fits both schemas. Both are of one schema document,
// without $ref and allOf at their top.
bool disjoint(const Schema& a, const Schema& b, const std::string& path);

// The values of const and enum; null where there is neither.
const Schema* fixed_values(const Schema& schema, Schema& storage);

}  // namespace kivi::grammar
